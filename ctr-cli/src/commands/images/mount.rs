//! `ctr images mount`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use proto::containerd::{
    services::snapshots::v1::{PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest},
    types,
};

use crate::{
    cli::Global,
    client::Client,
    image::{Lease, find_image, resolve, resolve_snapshotter, unpack},
    mounts::mount_all,
    output::outln,
    platform::Platform,
};

/// Mount an image
#[derive(Args, Debug)]
pub(crate) struct Mount {
    name: String,
    /// Directory to mount it on
    target: PathBuf,
    /// Make it writable
    #[arg(long)]
    rw: bool,
    /// Platform of the image (default: this host's)
    #[arg(long)]
    platform: Option<Platform>,
    /// Snapshotter (empty: the namespace's default)
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER")]
    snapshotter: Option<String>,
}

impl Mount {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let snapshotter = resolve_snapshotter(&client, self.snapshotter.as_deref()).await?;
        let image = find_image(&client, &self.name).await?;
        let platform = self.platform.clone().unwrap_or_else(Platform::host);
        let target = image.target.unwrap_or_default().into();
        let lease = Lease::create(&client).await?;
        let result = self.mount(lease.client(), &target, &platform, &snapshotter).await;
        lease.delete().await?;
        result?;
        Ok(outln!("{}", self.target.display())?)
    }

    async fn mount(
        &self,
        client: &Client,
        target: &crate::image::Descriptor,
        platform: &Platform,
        snapshotter: &str,
    ) -> anyhow::Result<()> {
        let resolved = resolve(client, target, platform).await?;
        let parent = unpack(client, &resolved, snapshotter).await?;
        let parent = parent.context("the image has no layers")?.to_string();
        // As with stock ctr the mount point is the key, by which `unmount --rm` finds it.
        let key = self.target.to_str().context("the mount point is not UTF-8")?.to_owned();
        let mounts = self.snapshot(client, snapshotter, &key, parent).await?;
        if let Err(error) = mount_all(&mounts, &self.target) {
            let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
            // The mount's failure says more.
            let _ = client.snapshots().remove(request).await;
            return Err(error);
        }
        Ok(())
    }

    async fn snapshot(
        &self,
        client: &Client,
        snapshotter: &str,
        key: &str,
        parent: String,
    ) -> anyhow::Result<Vec<types::Mount>> {
        let (snapshotter, key) = (snapshotter.to_owned(), key.to_owned());
        // Nothing in the store refers to a mount, so the snapshot must keep itself.
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let labels = [("containerd.io/gc.root".to_owned(), now)].into();
        let mut snapshots = client.snapshots();
        Ok(if self.rw {
            let request = PrepareSnapshotRequest { snapshotter, key, parent, labels };
            snapshots.prepare(request).await?.into_inner().mounts
        } else {
            let request = ViewSnapshotRequest { snapshotter, key, parent, labels };
            snapshots.view(request).await?.into_inner().mounts
        })
    }
}
