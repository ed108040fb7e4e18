//! `ctr images unmount`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::snapshots::v1::RemoveSnapshotRequest;
use tonic::Code;

use crate::{cli::Global, image::resolve_snapshotter, mounts::unmount, output::outln};

/// Unmount an image
#[derive(Args, Debug)]
pub(crate) struct Unmount {
    /// Directory on which it is mounted
    target: PathBuf,
    /// Remove its snapshot too
    #[arg(long)]
    rm: bool,
    /// Snapshotter (empty: the namespace's default)
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER")]
    snapshotter: Option<String>,
}

impl Unmount {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        unmount(&self.target)?;
        if self.rm {
            let client = global.connect().await?;
            let snapshotter = resolve_snapshotter(&client, self.snapshotter.as_deref()).await?;
            let key = self.target.to_str().context("the mount point is not UTF-8")?.to_owned();
            match client.snapshots().remove(RemoveSnapshotRequest { snapshotter, key }).await {
                Ok(_) => {}
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status).context("remove the snapshot"),
            }
        }
        Ok(outln!("{}", self.target.display())?)
    }
}
