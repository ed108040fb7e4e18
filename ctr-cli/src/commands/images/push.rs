//! `ctr images push`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::types::transfer::ImageStore;

use crate::{
    cli::Global,
    image::find_image,
    names,
    platform::Platform,
    transfer::{RegistryFlags, transfer},
};

/// Push an image to a registry
#[derive(Args, Debug)]
pub(crate) struct Push {
    /// Name of the image in the registry
    remote: String,
    /// Image to push, if its name is another
    #[arg(value_name = "LOCAL")]
    source: Option<String>,
    #[command(flatten)]
    registry: RegistryFlags,
    /// Platforms to push (default: all)
    #[arg(long)]
    platform: Vec<Platform>,
    /// Accepted because stock ctr has it; the daemon decides
    #[arg(long, hide = true)]
    max_concurrent_uploaded_layers: Option<u32>,
}

impl Push {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let remote = names::normalise(&self.remote);
        let local = find_image(&client, self.source.as_deref().unwrap_or(&self.remote)).await?;
        let store = ImageStore {
            name: local.name,
            platforms: self.platform.into_iter().map(Into::into).collect(),
            ..Default::default()
        };
        let mut registry = self.registry.open(&client, &remote).await?;
        transfer(&client, proto::any::pack(&store), registry.end.clone(), registry.serve())
            .await
            .with_context(|| format!("push {remote}"))
    }
}
