//! `ctr snapshots commit`

use clap::Args;
use proto::containerd::services::snapshots::v1::CommitSnapshotRequest;

use super::{Context, root_label};

/// Commit an active snapshot under a name
#[derive(Args, Debug)]
pub(crate) struct Commit {
    /// Name of the committed snapshot
    name: String,
    /// The active snapshot
    key: String,
}

impl Commit {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let request = CommitSnapshotRequest {
            snapshotter: context.snapshotter.clone(),
            name: self.name,
            key: self.key,
            labels: [root_label()].into(),
            ..Default::default()
        };
        context.client.snapshots().commit(request).await?;
        Ok(())
    }
}
