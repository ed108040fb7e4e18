//! `ctr snapshots usage`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::snapshots::v1::UsageRequest;

use super::Context;
use crate::output::{Table, binary_size};

/// Print the disk usage of snapshots
#[derive(Args, Debug)]
pub(crate) struct Usage {
    keys: Vec<String>,
    /// Print sizes in bytes
    #[arg(short = 'b')]
    bytes: bool,
}

impl Usage {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let keys = if self.keys.is_empty() {
            context.list(Vec::new()).await?.into_iter().map(|info| info.name).collect()
        } else {
            self.keys
        };
        let mut table = Table::new(&["KEY", "SIZE", "INODES"]);
        for key in keys {
            let request =
                UsageRequest { snapshotter: context.snapshotter.clone(), key: key.clone() };
            let usage = context.client.snapshots().usage(request).await;
            let usage = usage.with_context(|| format!("usage of {key}"))?.into_inner();
            let size = if self.bytes { usage.size.to_string() } else { binary_size(usage.size) };
            table.row([key, size, usage.inodes.to_string()]);
        }
        Ok(table.print()?)
    }
}
