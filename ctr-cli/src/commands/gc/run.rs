//! `ctr gc run`

use clap::Args;
use proto::gantry::services::gc::v1::{Garbage, RunRequest};
use serde_json::{Value, json};

use super::{answer, name};
use crate::{
    cli::Global,
    output::{self, Format, Table, binary_size, outln},
};

/// Collect garbage, or list what would go
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Remove nothing
    #[arg(long)]
    dry_run: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

impl Run {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = RunRequest { dry_run: self.dry_run };
        let mut answers = answer(client.gc().run(request).await)?.into_inner();
        let mut garbage = Vec::new();
        while let Some(part) = answers.message().await? {
            garbage.extend(part.garbage);
        }
        if self.format == Format::Json {
            return output::json(&garbage.iter().map(document).collect::<Vec<_>>());
        }
        let total: u64 = garbage.iter().map(|one| one.bytes).sum();
        let mut table = Table::new(&["NAMESPACE", "OBJECT", "SIZE"]);
        for Garbage { object, bytes } in &garbage {
            let namespace = object.as_ref().map(|object| object.namespace.clone());
            let object = object.as_ref().map(name).unwrap_or_default();
            table.row([namespace.unwrap_or_default(), object, size(*bytes)]);
        }
        table.print()?;
        let done = if self.dry_run { "would be removed" } else { "removed" };
        Ok(outln!("{} objects {done}, {}", garbage.len(), size(total))?)
    }
}

fn size(bytes: u64) -> String {
    binary_size(i64::try_from(bytes).unwrap_or(i64::MAX))
}

fn document(garbage: &Garbage) -> Value {
    let object = garbage.object.as_ref();
    json!({
        "namespace": object.map(|object| &object.namespace),
        "object": object.map(name),
        "size": garbage.bytes,
    })
}
