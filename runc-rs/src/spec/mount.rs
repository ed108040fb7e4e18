//! Mounts as they are written; `crate::mount` gives their options a meaning.

use serde::Deserialize;

use super::{IdMapping, nullable};

/// A mount to make in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Mount {
    #[serde(deserialize_with = "nullable")]
    pub destination: String,
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub source: String,
    #[serde(deserialize_with = "nullable")]
    pub options: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
}
