//! A process: its program, identity and limits.

use serde::Deserialize;

use super::nullable;

/// A process to run in a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Process {
    #[serde(deserialize_with = "nullable")]
    pub terminal: bool,
    pub console_size: Option<ConsoleSize>,
    #[serde(deserialize_with = "nullable")]
    pub user: User,
    #[serde(deserialize_with = "nullable")]
    pub args: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub cwd: String,
    pub capabilities: Option<Capabilities>,
    #[serde(deserialize_with = "nullable")]
    pub rlimits: Vec<Rlimit>,
    #[serde(deserialize_with = "nullable")]
    pub no_new_privileges: bool,
    #[serde(deserialize_with = "nullable")]
    pub apparmor_profile: String,
    pub oom_score_adj: Option<i32>,
    pub scheduler: Option<Scheduler>,
    #[serde(deserialize_with = "nullable")]
    pub selinux_label: String,
    pub io_priority: Option<IoPriority>,
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Option<CpuAffinity>,
}

/// The CPUs on which an exec runs, as lists (`0-3,7`): before it is in the container's cgroup, and
/// from then on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct CpuAffinity {
    #[serde(deserialize_with = "nullable")]
    pub initial: String,
    #[serde(deserialize_with = "nullable")]
    pub r#final: String,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct ConsoleSize {
    pub height: u16,
    pub width: u16,
}

/// Who a process is, in the container's numbers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct User {
    #[serde(deserialize_with = "nullable")]
    pub uid: u32,
    #[serde(deserialize_with = "nullable")]
    pub gid: u32,
    pub umask: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub additional_gids: Vec<u32>,
}

/// The five capability sets, by name (`CAP_CHOWN`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Capabilities {
    #[serde(deserialize_with = "nullable")]
    pub bounding: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub effective: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub inheritable: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub permitted: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub ambient: Vec<String>,
}

/// A resource limit; `kind` is its name (`RLIMIT_NOFILE`).
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Rlimit {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub soft: u64,
    #[serde(default)]
    pub hard: u64,
}

/// A scheduling policy by name (`SCHED_BATCH`) and its attributes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Scheduler {
    pub policy: String,
    pub nice: i32,
    pub priority: i32,
    #[serde(deserialize_with = "nullable")]
    pub flags: Vec<String>,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// An I/O scheduling class by name (`IOPRIO_CLASS_BE`) and the priority in it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct IoPriority {
    pub class: String,
    pub priority: i32,
}
