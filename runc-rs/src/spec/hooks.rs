//! Programs that the runtime runs at points of a container's life.

use serde::{Deserialize, Serialize};

use super::nullable;

/// The hooks, in the order in which their points come.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Hooks {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

/// One program; `path` is absolute, `args` starts with argument zero, `timeout` is in seconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Hook {
    pub path: String,
    #[serde(deserialize_with = "nullable")]
    pub args: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}
