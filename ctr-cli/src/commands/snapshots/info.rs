//! `ctr snapshots info`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::snapshots::v1::StatSnapshotRequest;

use super::{Context, document};
use crate::output;

/// Print a snapshot's record
#[derive(Args, Debug)]
pub(crate) struct Info {
    key: String,
}

impl Info {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let request =
            StatSnapshotRequest { snapshotter: context.snapshotter.clone(), key: self.key };
        let info = context.client.snapshots().stat(request).await?.into_inner().info;
        output::json(&document(&info.context("daemon returned no snapshot")?))
    }
}
