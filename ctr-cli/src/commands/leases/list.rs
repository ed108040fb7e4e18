//! `ctr leases ls`

use clap::Args;
use proto::containerd::services::leases::v1::ListRequest;
use serde_json::json;

use crate::{
    cli::Global,
    names,
    output::{self, Format, ListFormat, Table, outln, seconds, timestamp},
};

/// List leases
#[derive(Args, Debug)]
pub(crate) struct List {
    /// Show only leases that match one of these
    filters: Vec<String>,
    #[command(flatten)]
    format: ListFormat,
}

impl List {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = ListRequest { filters: self.filters };
        let leases = client.leases().list(request).await?.into_inner().leases;
        if self.format.quiet {
            return Ok(leases.iter().try_for_each(|lease| outln!("{}", lease.id))?);
        }
        if self.format.format == Format::Json {
            let document = leases.iter().map(|lease| {
                let created = timestamp(lease.created_at.as_ref());
                json!({"id": lease.id, "created_at": created, "labels": lease.labels})
            });
            return output::json(&document.collect::<Vec<_>>());
        }
        let mut table = Table::new(&["ID", "CREATED AT", "LABELS"]);
        for lease in leases {
            let created = seconds(lease.created_at.as_ref());
            table.row([lease.id, created, names::label_cell(&lease.labels)]);
        }
        Ok(table.print()?)
    }
}
