//! The flags that make a container, which `run` and `containers create` share.

use std::path::PathBuf;

use clap::Args;

use crate::{
    platform::Platform,
    spec::{
        IdMapping, LinuxNamespace, Mount, Rlimit, parse_id_mapping, parse_linux_namespace,
        parse_mount, parse_rlimit,
    },
};

/// What a container is made of.
#[derive(Args, Debug)]
pub(crate) struct ContainerFlags {
    /// Image, or directory with --rootfs; left out with --config
    #[arg(value_name = "IMAGE|ROOTFS")]
    pub(super) image: Option<String>,
    /// Name of the container
    #[arg(value_name = "ID")]
    pub(super) id: Option<String>,
    /// Command and its arguments, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,

    #[command(flatten)]
    pub(super) storage: StorageFlags,
    #[command(flatten)]
    pub(super) runtime: RuntimeFlags,
    #[command(flatten)]
    pub(super) process: ProcessFlags,
    #[command(flatten)]
    pub(super) isolation: IsolationFlags,
    #[command(flatten)]
    pub(super) limits: LimitFlags,
}

/// Where the root filesystem and the specification come from.
#[derive(Args, Debug)]
pub(super) struct StorageFlags {
    /// Snapshotter (empty: the namespace's default)
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER")]
    pub(super) snapshotter: Option<String>,
    /// Labels of the container's snapshot, as key=value
    #[arg(long)]
    pub(super) snapshotter_label: Vec<String>,
    /// Specification to use instead of a generated one
    #[arg(long, short)]
    pub(super) config: Option<PathBuf>,
    /// Use a directory as the root filesystem, not an image
    #[arg(long)]
    pub(super) rootfs: bool,
    /// Make the root filesystem read-only
    #[arg(long)]
    pub(super) read_only: bool,
    /// Use the image for this platform
    #[arg(long)]
    pub(super) platform: Option<Platform>,
    /// Additional mounts, as type=bind,src=/tmp,dst=/host,options=rbind:ro
    #[arg(long, value_parser = parse_mount)]
    pub(super) mount: Vec<Mount>,
    /// Propagation of mounts in the root filesystem
    #[arg(long)]
    pub(super) rootfs_propagation: Option<String>,
    /// Labels, as key=value
    #[arg(long)]
    pub(super) label: Vec<String>,
    /// Annotations of the specification, as key=value
    #[arg(long)]
    pub(super) annotation: Vec<String>,
    /// Sandbox that the container belongs to
    #[arg(long)]
    pub(super) sandbox: Option<String>,
}

/// Which runtime runs the container, and how.
#[derive(Args, Debug)]
pub(crate) struct RuntimeFlags {
    /// Name of the runtime
    #[arg(long, default_value = "io.containerd.runc.v2")]
    pub(super) runtime: String,
    /// Configuration file of the runtime
    #[arg(long)]
    pub(super) runtime_config_path: Option<String>,
    /// Binary with runc's command line
    #[arg(long)]
    pub(super) runc_binary: Option<String>,
    /// State directory of that binary
    #[arg(long)]
    pub(super) runc_root: Option<String>,
    /// Make that binary use systemd's control groups
    #[arg(long)]
    pub(super) runc_systemd_cgroup: bool,
}

/// The container's process.
#[derive(Args, Debug)]
pub(super) struct ProcessFlags {
    /// Working directory
    #[arg(long)]
    pub(super) cwd: Option<String>,
    /// Environment variables, as NAME=value
    #[arg(long)]
    pub(super) env: Vec<String>,
    /// File of environment variables, one per line
    #[arg(long)]
    pub(super) env_file: Vec<PathBuf>,
    /// User, as name or id, with or without :group
    #[arg(long, short)]
    pub(super) user: Option<String>,
    /// Allocate a terminal
    #[arg(long, short)]
    pub(super) tty: bool,
    /// Host name
    #[arg(long)]
    pub(super) hostname: Option<String>,
    /// Let the process gain privileges by executing files
    #[arg(long)]
    pub(super) allow_new_privs: bool,
    /// Add capabilities, as CAP_SYS_ADMIN
    #[arg(long, value_parser = parse_capability)]
    pub(super) cap_add: Vec<String>,
    /// Remove capabilities
    #[arg(long, value_parser = parse_capability)]
    pub(super) cap_drop: Vec<String>,
    /// Open files, as soft:hard
    #[arg(long, value_parser = parse_rlimit)]
    pub(super) rlimit_nofile: Option<Rlimit>,
}

/// What separates the container from the host.
#[derive(Args, Debug)]
pub(super) struct IsolationFlags {
    /// Use the host's network
    #[arg(long)]
    pub(super) net_host: bool,
    /// Lift the confinement
    #[arg(long)]
    pub(super) privileged: bool,
    /// Do not give a privileged container the host's devices
    #[arg(long, requires = "privileged")]
    pub(super) privileged_without_host_devices: bool,
    /// Join Linux namespaces, as nstype:path
    #[arg(long, value_parser = parse_linux_namespace)]
    pub(super) with_ns: Vec<LinuxNamespace>,
    /// Devices, or directories of them, to give to the container
    #[arg(long)]
    pub(super) device: Vec<PathBuf>,
    /// Filter system calls with the default profile
    #[arg(long)]
    pub(super) seccomp: bool,
    /// Filter system calls with a profile of one's own
    #[arg(long, requires = "seccomp")]
    pub(super) seccomp_profile: Option<String>,
    /// AppArmor profile that the host has loaded
    #[arg(long)]
    pub(super) apparmor_profile: Option<String>,
    /// Map user ids, as container-uid:host-uid:length
    #[arg(long, value_parser = parse_id_mapping, requires = "gidmap")]
    pub(super) uidmap: Vec<IdMapping>,
    /// Map group ids, as container-gid:host-gid:length
    #[arg(long, value_parser = parse_id_mapping, requires = "uidmap")]
    pub(super) gidmap: Vec<IdMapping>,
    /// Leave the mapping of files to the snapshotter (this client always does)
    #[arg(long, hide = true)]
    pub(super) remap_labels: bool,
}

/// What the container may use.
#[derive(Args, Debug)]
pub(super) struct LimitFlags {
    /// Memory, in bytes or with k, m or g
    #[arg(long, value_parser = parse_bytes)]
    pub(super) memory_limit: Option<u64>,
    /// Processors, as 1.5
    #[arg(long, default_value_t = 0.0, conflicts_with_all = ["cpu_quota", "cpu_period"])]
    pub(super) cpus: f64,
    /// Weight among containers that want the processors
    #[arg(long)]
    pub(super) cpu_shares: Option<u64>,
    /// Microseconds of processor time per period (-1: no limit)
    #[arg(long, allow_negative_numbers = true)]
    pub(super) cpu_quota: Option<i64>,
    /// Microseconds of a period
    #[arg(long)]
    pub(super) cpu_period: Option<u64>,
    /// Microseconds that a period may take from idle ones before it
    #[arg(long)]
    pub(super) cpu_burst: Option<u64>,
    /// Processors to run on, as 0-1,3
    #[arg(long)]
    pub(super) cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long)]
    pub(super) cpuset_mems: Option<String>,
    /// Control group path (empty: none)
    #[arg(long)]
    pub(super) cgroup: Option<String>,
    /// Class of service for caches and memory bandwidth
    #[arg(long)]
    pub(super) rdt_class: Option<String>,
}

fn parse_capability(text: &str) -> Result<String, String> {
    if text.starts_with("CAP_") {
        Ok(text.to_owned())
    } else {
        Err("capabilities are written with the prefix CAP_".to_owned())
    }
}

/// Parses a number of bytes with an optional binary unit.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let invalid = || format!("{text:?} is not a number of bytes such as 67108864 or 64m");
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, shift) = match number.char_indices().last() {
        Some((at, 'k')) => (&number[..at], 10),
        Some((at, 'm')) => (&number[..at], 20),
        Some((at, 'g')) => (&number[..at], 30),
        Some((at, 't')) => (&number[..at], 40),
        _ => (number, 0),
    };
    let count: u64 = digits.parse().map_err(|_| invalid())?;
    let bytes = count.checked_mul(1 << shift).ok_or_else(invalid)?;
    i64::try_from(bytes).map(|_| bytes).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes() {
        let cases = [
            ("67108864", Some(64 << 20)),
            ("64m", Some(64 << 20)),
            ("64MiB", Some(64 << 20)),
            ("1G", Some(1 << 30)),
            ("0", Some(0)),
            ("m", None),
            ("-1", None),
            ("99999999t", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_bytes(text).ok(), want, "{text}");
        }
    }
}
