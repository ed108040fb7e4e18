//! `ctr images usage`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::snapshots::v1::UsageRequest;

use crate::{
    cli::Global,
    image::{chain_id, find_image, resolve, resolve_snapshotter},
    output::{Table, binary_size},
    platform::Platform,
};

/// Print the disk usage of an image's snapshots
#[derive(Args, Debug)]
pub(crate) struct Usage {
    name: String,
    /// Snapshotter (empty: the namespace's default)
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER")]
    snapshotter: Option<String>,
}

impl Usage {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let snapshotter = resolve_snapshotter(&client, self.snapshotter.as_deref()).await?;
        let image = find_image(&client, &self.name).await?;
        let target = image.target.unwrap_or_default().into();
        let resolved = resolve(&client, &target, &Platform::host()).await?;
        let mut table = Table::new(&["KEY", "SIZE", "INODES"]);
        let (mut size, mut inodes) = (0, 0);
        for layers in (1..=resolved.diff_ids.len()).rev() {
            let Some(name) = chain_id(&resolved.diff_ids[..layers]) else { continue };
            let request = UsageRequest { snapshotter: snapshotter.clone(), key: name.to_string() };
            let usage = client.snapshots().usage(request).await;
            let usage = usage.with_context(|| format!("usage of {name}"))?.into_inner();
            (size, inodes) = (size + usage.size, inodes + usage.inodes);
            table.row([name.to_string(), binary_size(usage.size), usage.inodes.to_string()]);
        }
        table.row(["total".to_owned(), binary_size(size), inodes.to_string()]);
        Ok(table.print()?)
    }
}
