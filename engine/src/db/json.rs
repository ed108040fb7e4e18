//! Records as JSON, under the names that `docs/formats.md` has for their fields.

use std::{collections::BTreeMap, fmt::Write, time::SystemTime};

use prost_types::Any;
use serde_json::{Map, Value, json};

use crate::metadata::Object;

/// The fields of a record.
pub(super) fn object(object: &Object) -> Value {
    match object {
        Object::Lease(it) => json!({ "labels": it.labels, "created": time(it.created) }),
        Object::Leased { .. } => json!({}),
        Object::Image(it) => json!({
            "labels": it.labels,
            "created": time(it.created),
            "updated": time(it.updated),
            "media type": it.target.media_type,
            "digest": it.target.digest.to_string(),
            "size": it.target.size,
            "annotations": it.target.annotations,
        }),
        Object::Container(it) => json!({
            "labels": it.labels,
            "created": time(it.created),
            "updated": time(it.updated),
            "image": it.image,
            "runtime": it.runtime.name,
            "runtime options": it.runtime.options.as_ref().map(any),
            "spec": it.spec.as_ref().map(any),
            "snapshotter": it.snapshotter,
            "snapshot key": it.snapshot_key,
            "extensions": all(&it.extensions),
            "sandbox": it.sandbox,
        }),
        Object::Sandbox(it) => json!({
            "labels": it.labels,
            "created": time(it.created),
            "updated": time(it.updated),
            "runtime": it.runtime.name,
            "runtime options": it.runtime.options.as_ref().map(any),
            "spec": it.spec.as_ref().map(any),
            "extensions": all(&it.extensions),
            "sandboxer": it.sandboxer,
        }),
        Object::Content(it) => json!({
            "labels": it.labels,
            "created": time(it.created),
            "updated": time(it.updated),
            "size": it.size,
        }),
    }
}

fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "out of range".to_owned(), |it| it.to_string())
}

fn all(messages: &BTreeMap<String, Any>) -> Map<String, Value> {
    messages.iter().map(|(name, message)| (name.clone(), any(message))).collect()
}

/// A message: most are JSON themselves, the others are shown as bytes.
fn any(message: &Any) -> Value {
    match serde_json::from_slice::<Value>(&message.value) {
        Ok(value) => json!({ "type": message.type_url, "value": value }),
        Err(_) => json!({ "type": message.type_url, "bytes": hex(&message.value) }),
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}
