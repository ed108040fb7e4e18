//! `ctr sandboxes info`

use clap::Args;
use prost_types::Any;
use serde_json::{Map, Value, json};

use super::load;
use crate::{
    cli::Global,
    output::{self, timestamp},
};

/// Get info about a sandbox
#[derive(Args, Debug)]
pub(crate) struct Info {
    id: String,
}

impl Info {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let sandbox = load(&client, &self.id).await?;
        let runtime = sandbox.runtime.unwrap_or_default();
        let extensions: Map<String, Value> =
            sandbox.extensions.iter().map(|(name, any)| (name.clone(), document(any))).collect();
        output::json(&json!({
            "ID": sandbox.sandbox_id,
            "Labels": sandbox.labels,
            "Runtime": {"Name": runtime.name, "Options": runtime.options.as_ref().map(document)},
            "Spec": sandbox.spec.as_ref().map(document),
            "Sandboxer": sandbox.sandboxer,
            "CreatedAt": timestamp(sandbox.created_at.as_ref()),
            "UpdatedAt": timestamp(sandbox.updated_at.as_ref()),
            "Extensions": extensions,
        }))
    }
}

/// What a client has packed: as JSON if it is, or else decoded if its type is known.
fn document(any: &Any) -> Value {
    serde_json::from_slice(&any.value).unwrap_or_else(|_| {
        let value = crate::dynamic::decode(any).unwrap_or(Value::Null);
        json!({"type_url": any.type_url, "value": value})
    })
}
