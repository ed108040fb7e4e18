//! `ctr snapshots ls`

use clap::Args;

use super::{Context, document, kind};
use crate::output::{self, Format, ListFormat, Table, outln};

/// List snapshots
#[derive(Args, Debug)]
pub(crate) struct List {
    /// Show only snapshots that match one of these
    filters: Vec<String>,
    #[command(flatten)]
    format: ListFormat,
}

impl List {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let snapshots = context.list(self.filters).await?;
        if self.format.quiet {
            return Ok(snapshots.iter().try_for_each(|own| outln!("{}", own.name))?);
        }
        if self.format.format == Format::Json {
            return output::json(&snapshots.iter().map(document).collect::<Vec<_>>());
        }
        let mut table = Table::new(&["KEY", "PARENT", "KIND"]);
        for snapshot in snapshots {
            let kind = kind(&snapshot).to_owned();
            table.row([snapshot.name, snapshot.parent, kind]);
        }
        Ok(table.print()?)
    }
}
