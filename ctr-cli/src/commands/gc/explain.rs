//! `ctr gc explain`

use clap::Args;
use proto::gantry::services::gc::v1::{ExplainRequest, Explanation, Link, Object};
use serde_json::{Value, json};

use super::{answer, name};
use crate::{
    cli::Global,
    output::{self, Format, outln},
};

/// Say what keeps an object, or why it goes
#[derive(Args, Debug)]
pub(crate) struct Explain {
    /// A digest, KIND/NAME, snapshot/SNAPSHOTTER/KEY, or only a name; kinds are lease, image,
    /// container, sandbox, content, snapshot, ingest; plugin/NAME is about what a plugin has of others
    object: String,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

impl Explain {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = ExplainRequest { object: self.object };
        let found = answer(client.gc().explain(request).await)?.into_inner().explanations;
        if self.format == Format::Json {
            return output::json(&found.iter().map(document).collect::<Vec<_>>());
        }
        found.iter().try_for_each(print)
    }
}

fn print(found: &Explanation) -> anyhow::Result<()> {
    let verdict = if found.kept { "stays" } else { "goes" };
    let reason = &found.reason;
    let separator = if reason.is_empty() { "" } else { ": " };
    outln!("{} {verdict}{separator}{reason}", object(found.object.as_ref()))?;
    for (place, Link { object: of, by }) in found.chain.iter().enumerate() {
        let of = object(of.as_ref());
        match (found.kept, place) {
            (true, 0) => outln!("  {of} ({by})")?,
            (true, _) => outln!("  -> {of} ({by})")?,
            (false, _) => outln!("  {of}, which goes, too ({by})")?,
        }
    }
    Ok(())
}

fn object(object: Option<&Object>) -> String {
    object.map(name).unwrap_or_default()
}

fn document(found: &Explanation) -> Value {
    let link = |Link { object: of, by }: &Link| json!({"object": object(of.as_ref()), "by": by});
    json!({
        "object": object(found.object.as_ref()),
        "kept": found.kept,
        "reason": found.reason,
        "chain": found.chain.iter().map(link).collect::<Vec<_>>(),
    })
}
