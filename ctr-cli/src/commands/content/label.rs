//! `ctr content label`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::content::v1::{Info, UpdateRequest};

use crate::{cli::Global, image::Digest, names, output::outln};

/// Set and clear labels of a blob
#[derive(Args, Debug)]
pub(crate) struct Label {
    digest: Digest,
    /// Labels, as key=value; an empty value clears the label
    #[arg(required = true)]
    labels: Vec<String>,
}

impl Label {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let mut labels = names::labels(&self.labels);
        let paths = names::label_paths(&labels);
        labels.retain(|_, value| !value.is_empty());
        let info = Info { digest: self.digest.to_string(), labels, ..Default::default() };
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = UpdateRequest { info: Some(info), update_mask };
        let info = client.content().update(request).await?.into_inner().info;
        let info = info.context("daemon returned no blob")?;
        Ok(outln!("{}", names::label_text(&info.labels))?)
    }
}
