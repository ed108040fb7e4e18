//! `ctr containers label`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::containers::v1::{Container, UpdateContainerRequest};

use crate::{cli::Global, names, output::outln};

/// Set and clear labels of a container
#[derive(Args, Debug)]
pub(crate) struct Label {
    container: String,
    /// Labels, as key=value; an empty value clears the label
    #[arg(required = true)]
    labels: Vec<String>,
}

impl Label {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let labels = names::labels(&self.labels);
        let paths = names::label_paths(&labels);
        let container = Container { id: self.container, labels, ..Default::default() };
        let request = UpdateContainerRequest {
            container: Some(container),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let updated = client.containers().update(request).await?.into_inner().container;
        let updated = updated.context("daemon returned no container")?;
        Ok(outln!("{}", names::label_text(&updated.labels))?)
    }
}
