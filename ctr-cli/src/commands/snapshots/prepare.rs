//! `ctr snapshots prepare` and `ctr snapshots view`

use clap::Args;
use proto::containerd::{
    services::snapshots::v1::{PrepareSnapshotRequest, ViewSnapshotRequest},
    types::Mount,
};

use super::{Context, mount_documents, print_mounts, root_label};
use crate::output;

/// Prepare an active snapshot on a committed one
#[derive(Args, Debug)]
pub(crate) struct Prepare {
    #[command(flatten)]
    flags: Flags,
}

/// Make a read-only snapshot of a committed one
#[derive(Args, Debug)]
pub(crate) struct View {
    #[command(flatten)]
    flags: Flags,
}

#[derive(Args, Debug)]
struct Flags {
    key: String,
    /// The committed snapshot below it
    #[arg(default_value = "")]
    parent: String,
    /// Print the commands that mount it here
    #[arg(long, short)]
    target: Option<String>,
    /// Print its mounts as JSON
    #[arg(long)]
    mounts: bool,
}

impl Prepare {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let request = PrepareSnapshotRequest {
            snapshotter: context.snapshotter.clone(),
            key: self.flags.key.clone(),
            parent: self.flags.parent.clone(),
            labels: [root_label()].into(),
        };
        let mounts = context.client.snapshots().prepare(request).await?.into_inner().mounts;
        self.flags.print(&mounts)
    }
}

impl View {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let request = ViewSnapshotRequest {
            snapshotter: context.snapshotter.clone(),
            key: self.flags.key.clone(),
            parent: self.flags.parent.clone(),
            // Stock ctr sets none, and its views are gone with the next collection.
            labels: [root_label()].into(),
        };
        let mounts = context.client.snapshots().view(request).await?.into_inner().mounts;
        self.flags.print(&mounts)
    }
}

impl Flags {
    fn print(&self, mounts: &[Mount]) -> anyhow::Result<()> {
        if let Some(target) = &self.target {
            print_mounts(target, mounts)?;
        }
        if self.mounts {
            output::json(&mount_documents(mounts))?;
        }
        Ok(())
    }
}
