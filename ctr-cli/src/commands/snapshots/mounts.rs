//! `ctr snapshots mounts`

use clap::Args;
use proto::containerd::services::snapshots::v1::MountsRequest;

use super::{Context, print_mounts};

/// Print the mount commands of a snapshot
#[derive(Args, Debug)]
pub(crate) struct Mounts {
    /// Where the commands mount it
    target: String,
    key: String,
}

impl Mounts {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let request = MountsRequest { snapshotter: context.snapshotter.clone(), key: self.key };
        let mounts = context.client.snapshots().mounts(request).await?.into_inner().mounts;
        print_mounts(&self.target, &mounts)
    }
}
