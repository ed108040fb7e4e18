//! What this runtime can do, for engines to ask before they write a spec.
//!
//! The form is that of the runtime-spec's `features.md`; what is listed is what runc lists.
//! Features that are not there are `false`, never left out: an absent one means "not known".

use serde::Serialize;

use crate::{init::scheduling, seccomp};

/// The oldest and the newest version of the runtime-spec that is understood.
const VERSION_MIN: &str = "1.0.0";
const VERSION_MAX: &str = "1.3.0";

const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];

/// Sorted. `idmap` and `ridmap` are left out as in runc, which announces them elsewhere.
const MOUNT_OPTIONS: [&str; 60] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// By number.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Annotations that change what the runtime does on the host; one with a dot at its end stands for
/// all that begin so.
const UNSAFE_ANNOTATIONS: [&str; 3] = ["bundle", "org.systemd.property.", "org.criu.config"];

/// What this runtime can do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Features {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
    hooks: &'static [&'static str],
    mount_options: &'static [&'static str],
    linux: Linux,
    annotations: Annotations,
    potentially_unsafe_config_annotations: &'static [&'static str],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: &'static [&'static str],
    capabilities: &'static [&'static str],
    cgroup: Cgroup,
    seccomp: Seccomp,
    apparmor: Enabled,
    selinux: Enabled,
    intel_rdt: IntelRdt,
    memory_policy: MemoryPolicy,
    mount_extensions: MountExtensions,
    net_devices: Enabled,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "this is the form of the document")]
struct Cgroup {
    v1: bool,
    v2: bool,
    systemd: bool,
    systemd_user: bool,
    rdma: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Seccomp {
    enabled: bool,
    actions: &'static [&'static str],
    operators: &'static [&'static str],
    archs: &'static [&'static str],
    known_flags: &'static [&'static str],
    supported_flags: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Enabled {
    enabled: bool,
}

#[derive(Debug, Serialize)]
struct IntelRdt {
    enabled: bool,
    schemata: bool,
    monitoring: bool,
}

#[derive(Debug, Serialize)]
struct MemoryPolicy {
    modes: &'static [&'static str],
    flags: &'static [&'static str],
}

#[derive(Debug, Serialize)]
struct MountExtensions {
    idmap: Enabled,
}

#[derive(Debug, Serialize)]
struct Annotations {
    #[serde(rename = "org.opencontainers.runc.version")]
    version: &'static str,
    #[serde(rename = "org.opencontainers.runc.commit")]
    commit: &'static str,
    #[serde(rename = "org.opencontainers.runc.checkpoint.enabled")]
    checkpoint: &'static str,
}

impl Features {
    /// What this runtime can do on this kernel.
    pub fn detect() -> Self {
        Self {
            oci_version_min: VERSION_MIN,
            oci_version_max: VERSION_MAX,
            hooks: &HOOKS,
            mount_options: &MOUNT_OPTIONS,
            linux: Linux {
                namespaces: &NAMESPACES,
                capabilities: &CAPABILITIES,
                cgroup: Cgroup {
                    v1: true,
                    v2: true,
                    systemd: true,
                    systemd_user: true,
                    rdma: true,
                },
                seccomp: Seccomp {
                    enabled: true,
                    actions: &seccomp::ACTIONS,
                    operators: &seccomp::OPERATORS,
                    archs: &seccomp::ARCHITECTURES,
                    known_flags: &seccomp::FLAGS,
                    supported_flags: seccomp::supported_flags(),
                },
                apparmor: Enabled { enabled: true },
                selinux: Enabled { enabled: true },
                intel_rdt: IntelRdt { enabled: true, schemata: true, monitoring: true },
                memory_policy: MemoryPolicy {
                    modes: &scheduling::MEMORY_MODE_NAMES,
                    flags: &scheduling::MEMORY_FLAG_NAMES,
                },
                mount_extensions: MountExtensions { idmap: Enabled { enabled: true } },
                net_devices: Enabled { enabled: true },
            },
            annotations: Annotations {
                version: env!("CARGO_PKG_VERSION"),
                commit: option_env!("GANTRY_COMMIT").unwrap_or("unknown"),
                checkpoint: "true",
            },
            potentially_unsafe_config_annotations: &UNSAFE_ANNOTATIONS,
        }
    }

    /// The document, as `runc features` prints it.
    pub fn to_json(&self) -> String {
        let mut text = Vec::with_capacity(8192);
        let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, format);
        self.serialize(&mut serializer).expect("memory takes everything");
        text.push(b'\n');
        String::from_utf8(text).expect("JSON is UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_of_the_known_form() {
        let text = Features::detect().to_json();
        let document: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
        let cases = [
            ("/ociVersionMin", serde_json::json!("1.0.0")),
            ("/hooks/0", serde_json::json!("prestart")),
            ("/linux/cgroup/v1", serde_json::json!(true)),
            ("/linux/seccomp/knownFlags/0", serde_json::json!("SECCOMP_FILTER_FLAG_TSYNC")),
            ("/linux/mountExtensions/idmap/enabled", serde_json::json!(true)),
            ("/linux/intelRdt/monitoring", serde_json::json!(true)),
            ("/linux/memoryPolicy/modes/0", serde_json::json!("MPOL_BIND")),
            ("/linux/netDevices/enabled", serde_json::json!(true)),
        ];
        for (pointer, want) in cases {
            assert_eq!(document.pointer(pointer), Some(&want), "{pointer}");
        }
        assert!(MOUNT_OPTIONS.is_sorted());
        assert!(scheduling::MEMORY_MODE_NAMES.is_sorted());
        assert!(scheduling::MEMORY_FLAG_NAMES.is_sorted());
    }
}
