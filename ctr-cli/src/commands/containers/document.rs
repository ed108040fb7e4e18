//! A container's record as JSON, spelled as stock `ctr` prints it.

use anyhow::Context as _;
use prost_types::Any;
use proto::containerd::services::containers::v1::Container;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::output::timestamp;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Document {
    #[serde(rename = "ID")]
    id: String,
    labels: std::collections::BTreeMap<String, String>,
    image: String,
    runtime: Value,
    snapshot_key: String,
    snapshotter: String,
    created_at: Option<String>,
    updated_at: Option<String>,
    extensions: Option<Map<String, Value>>,
    #[serde(rename = "SandboxID", skip_serializing_if = "String::is_empty")]
    sandbox_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Value>,
}

impl Document {
    pub(super) fn new(container: Container) -> anyhow::Result<Self> {
        let runtime = container.runtime.unwrap_or_default();
        let extensions: Map<String, Value> =
            container.extensions.iter().map(|(name, any)| (name.clone(), raw(any))).collect();
        Ok(Self {
            runtime: json!({"Name": runtime.name, "Options": runtime.options.as_ref().map(raw)}),
            created_at: timestamp(container.created_at.as_ref()),
            updated_at: timestamp(container.updated_at.as_ref()),
            extensions: (!extensions.is_empty()).then_some(extensions),
            spec: container.spec.as_ref().map(spec).transpose()?,
            id: container.id,
            labels: container.labels,
            image: container.image,
            snapshot_key: container.snapshot_key,
            snapshotter: container.snapshotter,
            sandbox_id: container.sandbox,
        })
    }
}

/// The specification in a record.
pub(super) fn spec(any: &Any) -> anyhow::Result<Value> {
    serde_json::from_slice(&any.value).context("the container's specification")
}

/// An option or extension, decoded if its type is known.
fn raw(any: &Any) -> Value {
    let mut document = json!({"type_url": any.type_url});
    if !any.value.is_empty() {
        document["value"] = crate::dynamic::decode(any).unwrap_or(Value::Null);
    }
    document
}
