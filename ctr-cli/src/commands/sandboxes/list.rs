//! `ctr sandboxes ls`

use clap::Args;
use proto::containerd::services::sandbox::v1::StoreListRequest;

use crate::{
    cli::Global,
    output::{Table, seconds},
};

/// List sandboxes
#[derive(Args, Debug)]
pub(crate) struct List {
    /// Show only sandboxes that match one of these
    #[arg(long)]
    filters: Vec<String>,
}

impl List {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = StoreListRequest { filters: self.filters };
        let list = client.sandboxes().list(request).await?.into_inner().list;
        let mut table = Table::new(&["ID", "CREATED", "RUNTIME"]);
        for sandbox in list {
            let created = seconds(sandbox.created_at.as_ref());
            table.row([sandbox.sandbox_id, created, sandbox.runtime.unwrap_or_default().name]);
        }
        Ok(table.print()?)
    }
}
