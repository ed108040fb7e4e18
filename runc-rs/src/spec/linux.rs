//! What only Linux has: Linux namespaces, devices, cgroup, seccomp, paths to hide.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{nullable, resources::LinuxResources, seccomp::LinuxSeccomp};

/// The `linux` section.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Linux {
    #[serde(deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "nullable")]
    pub sysctl: BTreeMap<String, String>,
    pub resources: Option<LinuxResources>,
    pub cgroups_path: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub namespaces: Vec<Namespace>,
    #[serde(deserialize_with = "nullable")]
    pub devices: Vec<Device>,
    pub seccomp: Option<LinuxSeccomp>,
    #[serde(deserialize_with = "nullable")]
    pub rootfs_propagation: String,
    #[serde(deserialize_with = "nullable")]
    pub masked_paths: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub readonly_paths: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub mount_label: String,
    pub personality: Option<Personality>,
    #[serde(deserialize_with = "nullable")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
    pub intel_rdt: Option<IntelRdt>,
    #[serde(deserialize_with = "nullable")]
    pub net_devices: BTreeMap<String, NetDevice>,
    pub memory_policy: Option<MemoryPolicy>,
}

/// The share of caches and memory bandwidth, by the resctrl filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct IntelRdt {
    #[serde(rename = "closID", deserialize_with = "nullable")]
    pub clos_id: String,
    #[serde(deserialize_with = "nullable")]
    pub schemata: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub l3_cache_schema: String,
    #[serde(deserialize_with = "nullable")]
    pub mem_bw_schema: String,
    #[serde(deserialize_with = "nullable")]
    pub enable_monitoring: bool,
}

/// A network interface to move into the container; without a name it keeps its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct NetDevice {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
}

/// From which NUMA nodes memory comes, by name (`MPOL_BIND`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct MemoryPolicy {
    pub mode: String,
    #[serde(deserialize_with = "nullable")]
    pub nodes: String,
    #[serde(deserialize_with = "nullable")]
    pub flags: Vec<String>,
}

/// A range of ids and where it is mapped to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct IdMapping {
    #[serde(rename = "containerID")]
    pub container_id: u32,
    #[serde(rename = "hostID")]
    pub host_id: u32,
    pub size: u32,
}

/// A Linux namespace to make, or with `path` to join.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    #[serde(default, deserialize_with = "nullable")]
    pub path: String,
}

/// The kinds of Linux namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it all")]
pub enum NamespaceKind {
    User,
    Ipc,
    Uts,
    #[serde(rename = "network")]
    Net,
    Pid,
    #[serde(rename = "mount")]
    Mnt,
    Cgroup,
    Time,
}

/// A device node to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Device {
    #[serde(deserialize_with = "nullable")]
    pub path: String,
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub major: i64,
    #[serde(deserialize_with = "nullable")]
    pub minor: i64,
    pub file_mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// An execution domain by name (`LINUX32`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Personality {
    pub domain: String,
    #[serde(deserialize_with = "nullable")]
    pub flags: Vec<String>,
}

/// What a clock of a time namespace shows more than the host's.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct TimeOffset {
    pub secs: i64,
    pub nanosecs: u32,
}

impl Linux {
    /// The namespace of this kind, where the container does not use the runtime's own.
    pub fn namespace(&self, kind: NamespaceKind) -> Option<&Namespace> {
        self.namespaces.iter().find(|namespace| namespace.kind == kind)
    }

    /// Says whether the container gets a new namespace of this kind.
    pub fn creates(&self, kind: NamespaceKind) -> bool {
        self.namespace(kind).is_some_and(|namespace| namespace.path.is_empty())
    }
}

impl NamespaceKind {
    /// All kinds, in the order in which they are joined but for the user namespace.
    pub const ALL: [Self; 8] = [
        Self::User,
        Self::Ipc,
        Self::Uts,
        Self::Net,
        Self::Pid,
        Self::Mnt,
        Self::Cgroup,
        Self::Time,
    ];

    /// The kernel's short name, a file in `/proc/<pid>/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Net => "net",
            Self::Pid => "pid",
            Self::Mnt => "mnt",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }

    /// The name that runc's `state.json` has for it.
    pub fn state_name(self) -> &'static str {
        match self {
            Self::User => "NEWUSER",
            Self::Ipc => "NEWIPC",
            Self::Uts => "NEWUTS",
            Self::Net => "NEWNET",
            Self::Pid => "NEWPID",
            Self::Mnt => "NEWNS",
            Self::Cgroup => "NEWCGROUP",
            Self::Time => "NEWTIME",
        }
    }

    /// The `CLONE_NEW*` bit.
    pub fn flag(self) -> u32 {
        let flag = match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Net => libc::CLONE_NEWNET,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Mnt => libc::CLONE_NEWNS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => libc::CLONE_NEWTIME,
        };
        flag.cast_unsigned()
    }
}
