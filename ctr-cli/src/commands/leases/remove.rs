//! `ctr leases rm`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::leases::v1::DeleteRequest;

use crate::{cli::Global, commands::each, output::outln};

/// Delete leases
#[derive(Args, Debug)]
pub(crate) struct Remove {
    #[arg(required = true)]
    ids: Vec<String>,
    /// Return after what nothing else keeps has been collected
    #[arg(long)]
    sync: bool,
}

impl Remove {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let last = self.ids.last().cloned();
        each(&self.ids, async |id| {
            // One collection after all deletions is enough.
            let sync = self.sync && Some(id) == last.as_ref();
            let request = DeleteRequest { id: id.clone(), sync };
            client.leases().delete(request).await.with_context(|| format!("delete lease {id}"))?;
            Ok(outln!("{id}")?)
        })
        .await
    }
}
