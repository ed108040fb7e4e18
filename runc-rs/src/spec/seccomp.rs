//! `linux.seccomp`: which system calls a container may make.
//!
//! Names are kept as text here; [`crate::seccomp`] gives them meaning.
//!
//! Source: OCI runtime-spec 1.3, `config-linux.md`, "Seccomp".

use serde::{Deserialize, Serialize};

use super::nullable;

/// A profile of system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinuxSeccomp {
    /// What happens to calls that no rule matches.
    #[serde(deserialize_with = "nullable")]
    pub default_action: String,
    /// The error number of the default action, for those that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// The architectures whose calls are let in, besides the machine's own.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub architectures: Vec<String>,
    /// The flags of the filter; without the field, unlike an empty list, the runtime's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<Vec<String>>,
    /// The socket to which the listener of the "notify" action is sent.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub listener_path: String,
    /// What the receiver of the listener is told besides.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub listener_metadata: String,
    /// The rules.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub syscalls: Vec<LinuxSyscall>,
}

impl LinuxSeccomp {
    /// Whether it asks for nothing, so that there is no filter.
    pub(crate) fn is_empty(&self) -> bool {
        self.default_action.is_empty() && self.syscalls.is_empty()
    }
}

impl LinuxSeccomp {
    /// Whether the profile says nothing at all, which means that there is no filter.
    pub fn is_unset(&self) -> bool {
        self.default_action.is_empty() && self.syscalls.is_empty()
    }
}

/// A rule: what happens to these calls, if these conditions hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinuxSyscall {
    /// The calls.
    #[serde(deserialize_with = "nullable")]
    pub names: Vec<String>,
    /// What happens to them.
    #[serde(deserialize_with = "nullable")]
    pub action: String,
    /// The error number of the action, for those that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// The conditions, all of which must hold; if two of them are about the same argument, any
    /// one of them must.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub args: Vec<LinuxSeccompArg>,
}

/// A condition on one argument of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinuxSeccompArg {
    /// Which argument, from 0 to 5.
    pub index: u32,
    /// What it is compared with, or the mask of a masked comparison.
    pub value: u64,
    /// What a masked argument is compared with.
    pub value_two: u64,
    /// How it is compared.
    pub op: String,
}
