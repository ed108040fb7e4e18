//! `ctr content rm`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::content::v1::DeleteContentRequest;

use crate::{cli::Global, commands::each, image::Digest, output::outln};

/// Delete blobs
#[derive(Args, Debug)]
pub(crate) struct Delete {
    #[arg(required = true)]
    digests: Vec<Digest>,
}

impl Delete {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        each(&self.digests, async |digest| {
            let request = DeleteContentRequest { digest: digest.to_string() };
            client.content().delete(request).await.with_context(|| format!("delete {digest}"))?;
            Ok(outln!("{digest}")?)
        })
        .await
    }
}
