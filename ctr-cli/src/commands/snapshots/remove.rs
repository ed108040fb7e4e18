//! `ctr snapshots rm`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::snapshots::v1::RemoveSnapshotRequest;

use super::Context;
use crate::commands::each;

/// Remove snapshots
#[derive(Args, Debug)]
pub(crate) struct Remove {
    #[arg(required = true)]
    keys: Vec<String>,
}

impl Remove {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        each(&self.keys, async |key| {
            let snapshotter = context.snapshotter.clone();
            let request = RemoveSnapshotRequest { snapshotter, key: key.clone() };
            let response = context.client.snapshots().remove(request).await;
            response.with_context(|| format!("remove snapshot {key:?}"))?;
            Ok(())
        })
        .await
    }
}
