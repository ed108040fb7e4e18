//! `ctr namespaces ls`

use clap::Args;
use proto::containerd::services::namespaces::v1::ListNamespacesRequest;
use serde_json::json;

use crate::{
    cli::Global,
    names,
    output::{self, Format, ListFormat, Table, outln},
};

/// List namespaces
#[derive(Args, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    format: ListFormat,
}

impl List {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = ListNamespacesRequest::default();
        let namespaces = client.namespaces().list(request).await?.into_inner().namespaces;
        if self.format.quiet {
            return Ok(namespaces.iter().try_for_each(|own| outln!("{}", own.name))?);
        }
        if self.format.format == Format::Json {
            let document =
                namespaces.iter().map(|own| json!({"name": own.name, "labels": own.labels}));
            return output::json(&document.collect::<Vec<_>>());
        }
        let mut table = Table::new(&["NAME", "LABELS"]);
        for namespace in namespaces {
            table.row([namespace.name, names::label_text(&namespace.labels)]);
        }
        Ok(table.print()?)
    }
}
