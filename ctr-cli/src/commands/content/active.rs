//! `ctr content active`

use clap::Args;
use proto::containerd::services::content::v1::ListStatusesRequest;

use crate::{
    cli::Global,
    output::{Table, age, decimal_size},
};

/// List writes that are not finished
#[derive(Args, Debug)]
pub(crate) struct Active {
    /// Show only writes whose names match this regular expression
    pattern: Option<String>,
}

impl Active {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let filters = self.pattern.into_iter().map(|pattern| format!("ref~={pattern:?}")).collect();
        let request = ListStatusesRequest { filters };
        let statuses = client.content().list_statuses(request).await?.into_inner().statuses;
        let mut table = Table::tabbed(&["REF", "SIZE", "AGE"]);
        for status in statuses {
            let size = decimal_size(status.offset);
            table.row([status.r#ref, size, age(status.started_at.as_ref())]);
        }
        Ok(table.print()?)
    }
}
