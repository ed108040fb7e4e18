//! `ctr containers info`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::containers::v1::GetContainerRequest;

use super::document::{Document, spec};
use crate::{cli::Global, output};

/// Print a container's record
#[derive(Args, Debug)]
pub(crate) struct Info {
    container: String,
    /// Print only the specification
    #[arg(long)]
    spec: bool,
}

impl Info {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = GetContainerRequest { id: self.container };
        let container = client.containers().get(request).await?.into_inner().container;
        let container = container.context("daemon returned no container")?;
        if self.spec {
            let any = container.spec.as_ref().context("the container has no specification")?;
            return output::json(&spec(any)?);
        }
        output::json(&Document::new(container)?)
    }
}
