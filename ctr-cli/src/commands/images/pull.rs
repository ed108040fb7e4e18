//! `ctr images pull`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::types::transfer::{ImageStore, UnpackConfiguration};

use crate::{
    cli::Global,
    client::Client,
    image::{find_image, resolve},
    names,
    output::outln,
    platform::Platform,
    transfer::{RegistryFlags, transfer},
};

/// Pull an image from a registry
#[derive(Args, Debug)]
pub(crate) struct Pull {
    /// Image; a short name is one of Docker Hub's
    name: String,
    #[command(flatten)]
    registry: RegistryFlags,
    /// Platforms to pull (default: this host's)
    #[arg(long)]
    platform: Vec<Platform>,
    /// Pull the content of all platforms
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Pull the documents of all platforms (default)
    #[arg(long, hide = true)]
    all_metadata: bool,
    /// Leave out the documents of other platforms
    #[arg(long)]
    skip_metadata: bool,
    /// Labels of the image, as key=value
    #[arg(long)]
    label: Vec<String>,
    /// Snapshotter (empty: the namespace's default)
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER")]
    snapshotter: Option<String>,
    /// Do not unpack the image
    #[arg(long)]
    no_unpack: bool,
    /// Print the name of the image's snapshot
    #[arg(long)]
    print_chainid: bool,
    /// Accepted because stock ctr has it; the daemon decides
    #[arg(long, hide = true)]
    max_concurrent_downloads: Option<u32>,
    /// Accepted because stock ctr has it; the daemon decides
    #[arg(long, hide = true)]
    sync_fs: bool,
}

impl Pull {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let reference = names::normalise(&self.name);
        let mut registry = self.registry.open(&client, &reference).await?;
        let store = proto::any::pack(&self.store(&reference));
        transfer(&client, registry.end.clone(), store, registry.serve())
            .await
            .with_context(|| format!("pull {reference}"))?;
        if self.print_chainid {
            self.print_chain_id(&client, &reference).await?;
        }
        Ok(())
    }

    fn store(&self, name: &str) -> ImageStore {
        let platforms: Vec<Platform> = match (self.all_platforms, self.platform.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => vec![Platform::host()],
            (false, false) => self.platform.clone(),
        };
        let unpack = |platform: &Platform| UnpackConfiguration {
            platform: Some(platform.clone().into()),
            snapshotter: self.snapshotter.clone().unwrap_or_default(),
        };
        let unpacks = match (self.no_unpack, platforms.as_slice()) {
            (true, _) => Vec::new(),
            (false, []) => vec![unpack(&Platform::host())],
            (false, platforms) => platforms.iter().map(unpack).collect(),
        };
        ImageStore {
            name: name.to_owned(),
            labels: names::labels(&self.label),
            platforms: platforms.into_iter().map(Into::into).collect(),
            all_metadata: !self.skip_metadata,
            unpacks,
            ..Default::default()
        }
    }

    async fn print_chain_id(&self, client: &Client, reference: &str) -> anyhow::Result<()> {
        let platform = self.platform.first().cloned().unwrap_or_else(Platform::host);
        let image = find_image(client, reference).await?;
        let target = image.target.unwrap_or_default().into();
        let chain_id = resolve(client, &target, &platform).await?.chain_id();
        let chain_id = chain_id.context("the image has no layers")?;
        Ok(outln!("image chain ID: {chain_id}")?)
    }
}
