//! `ctr content fetch`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::types::transfer::ImageStore;

use crate::{
    cli::Global,
    names,
    platform::Platform,
    transfer::{RegistryFlags, transfer},
};

/// Fetch the content of an image without unpacking it
#[derive(Args, Debug)]
pub(crate) struct Fetch {
    /// Image; a short name is one of Docker Hub's
    name: String,
    #[command(flatten)]
    registry: RegistryFlags,
    /// Platforms to fetch (default: this host's)
    #[arg(long)]
    platform: Vec<Platform>,
    /// Fetch the content of all platforms
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Fetch the documents of all platforms (default)
    #[arg(long, hide = true)]
    all_metadata: bool,
    /// Labels of the image, as key=value
    #[arg(long)]
    label: Vec<String>,
}

impl Fetch {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let reference = names::normalise(&self.name);
        let mut platforms = self.platform;
        if platforms.is_empty() && !self.all_platforms {
            platforms.push(Platform::host());
        }
        let store = ImageStore {
            name: reference.clone(),
            labels: names::labels(&self.label),
            platforms: platforms.into_iter().map(Into::into).collect(),
            all_metadata: true,
            ..Default::default()
        };
        let mut registry = self.registry.open(&client, &reference).await?;
        transfer(&client, registry.end.clone(), proto::any::pack(&store), registry.serve())
            .await
            .with_context(|| format!("fetch {reference}"))
    }
}
