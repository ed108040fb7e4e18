//! containerd's default specification for Linux.

use super::{
    Capabilities, DeviceRule, Linux, LinuxNamespace, Mount, Process, Resources, Rlimit, Root, Spec,
    capabilities,
};

/// The version of the runtime specification that documents name: the one from which they use
/// something. A later one would shut out runtimes that could run them, such as crun 1.8.
const OCI_VERSION: &str = "1.1.0";

/// The search path of images that set no environment.
pub(crate) const DEFAULT_ENV: &str =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];

const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Destination, type, source, options.
const MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
];

/// Character devices that every container may use: null, random, full, tty, zero, urandom,
/// console, terminals of devpts, ptmx.
const DEVICES: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(8)),
    (1, Some(7)),
    (5, Some(0)),
    (1, Some(5)),
    (1, Some(9)),
    (5, Some(1)),
    (136, None),
    (5, Some(2)),
];

impl Spec {
    /// The default specification of the container `id` in `namespace`, with no command yet.
    pub(crate) fn new(namespace: &str, id: &str) -> Self {
        let strings = |list: &[&str]| list.iter().map(|&item| item.to_owned()).collect();
        let caps: Vec<String> = strings(&capabilities::DEFAULT);
        let deny_all = DeviceRule { access: "rwm".to_owned(), ..DeviceRule::default() };
        let namespaces = ["pid", "ipc", "uts", "mount", "network"];
        Self {
            oci_version: OCI_VERSION.to_owned(),
            process: Process {
                cwd: "/".to_owned(),
                no_new_privileges: true,
                capabilities: Some(Capabilities {
                    bounding: caps.clone(),
                    effective: caps.clone(),
                    permitted: caps,
                    ..Capabilities::default()
                }),
                rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".to_owned(), hard: 1024, soft: 1024 }],
                ..Process::default()
            },
            root: Root { path: "rootfs".to_owned(), readonly: false },
            mounts: MOUNTS.iter().map(mount).collect(),
            linux: Linux {
                masked_paths: strings(&MASKED_PATHS),
                readonly_paths: strings(&READONLY_PATHS),
                cgroups_path: format!("/{namespace}/{id}").trim_end_matches('/').to_owned(),
                resources: Resources { devices: vec![deny_all], ..Resources::default() },
                namespaces: namespaces
                    .map(|kind| LinuxNamespace { kind: kind.to_owned(), path: String::new() })
                    .into(),
                ..Linux::default()
            },
            ..Self::default()
        }
    }

    /// Lets the container use the devices that every container has.
    pub(crate) fn allow_default_devices(&mut self) {
        let rule = |(major, minor)| DeviceRule {
            allow: true,
            kind: "c".to_owned(),
            major: Some(major),
            minor,
            access: "rwm".to_owned(),
        };
        self.linux.resources.devices.extend(DEVICES.map(rule));
    }

    /// Lifts the confinement that can be lifted without the host's devices.
    pub(crate) fn make_privileged(&mut self, capabilities: Vec<String>) {
        let own = self.process.capabilities.get_or_insert_default();
        own.bounding.clone_from(&capabilities);
        own.effective.clone_from(&capabilities);
        own.permitted = capabilities;
        self.linux.masked_paths.clear();
        self.linux.readonly_paths.clear();
        for mount in &mut self.mounts {
            if mount.kind == "sysfs" || mount.kind == "cgroup" {
                for option in mount.options.iter_mut().filter(|option| *option == "ro") {
                    "rw".clone_into(option);
                }
            }
        }
        self.process.apparmor_profile.clear();
        self.linux.seccomp = None;
    }

    /// Adds mounts, which replace those that are at their destinations.
    pub(crate) fn add_mounts(&mut self, mounts: Vec<Mount>) {
        self.mounts.retain(|old| mounts.iter().all(|new| new.destination != old.destination));
        self.mounts.extend(mounts);
    }

    /// Makes the container use the host's Linux namespace of a kind.
    pub(crate) fn use_host_namespace(&mut self, kind: &str) {
        self.linux.namespaces.retain(|namespace| namespace.kind != kind);
    }

    /// Makes the container join or create a Linux namespace.
    pub(crate) fn set_namespace(&mut self, namespace: LinuxNamespace) {
        match self.linux.namespaces.iter_mut().find(|own| own.kind == namespace.kind) {
            Some(own) => *own = namespace,
            None => self.linux.namespaces.push(namespace),
        }
    }

    /// Sets a resource limit of the process.
    pub(crate) fn set_rlimit(&mut self, rlimit: Rlimit) {
        match self.process.rlimits.iter_mut().find(|own| own.kind == rlimit.kind) {
            Some(own) => *own = rlimit,
            None => self.process.rlimits.push(rlimit),
        }
    }

    /// The processor limits, made when they are first set.
    pub(crate) fn cpu(&mut self) -> &mut super::Cpu {
        self.linux.resources.cpu.get_or_insert_default()
    }
}

fn mount((destination, kind, source, options): &(&str, &str, &str, &[&str])) -> Mount {
    Mount {
        destination: (*destination).to_owned(),
        kind: (*kind).to_owned(),
        source: (*source).to_owned(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Mount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document that stock `ctr` 1.6.20 makes of an image with `sh` as its command, with the
    /// differences of later releases: the version, and the masked power sensors.
    const STOCK: &str = include_str!("testdata/default.json");

    #[test]
    fn is_containerds_default() {
        let mut spec = Spec::new("default", "c1");
        spec.allow_default_devices();
        spec.process.args = vec!["sh".to_owned()];
        spec.process.env = vec!["FOO=bar".to_owned()];
        spec.process.user.additional_gids = vec![0, 10];
        let stock: serde_json::Value = serde_json::from_str(STOCK).expect("well formed");
        assert_eq!(serde_json::to_value(&spec).expect("serializes"), stock);
    }

    #[test]
    fn reading_loses_nothing() {
        let mut stock: serde_json::Value = serde_json::from_str(STOCK).expect("well formed");
        stock["hooks"] = serde_json::json!({"prestart": []});
        stock["linux"]["resources"]["pids"] = serde_json::json!({"limit": 5});
        stock["process"]["oomScoreAdj"] = serde_json::json!(-5);
        let spec: Spec = serde_json::from_value(stock.clone()).expect("a specification");
        assert_eq!(serde_json::to_value(&spec).expect("serializes"), stock);
    }

    #[test]
    fn privileged() {
        let mut spec = Spec::new("default", "c1");
        spec.make_privileged(vec!["CAP_SYS_ADMIN".to_owned()]);
        assert_eq!(spec.linux.masked_paths, Vec::<String>::new());
        let sys = spec.mounts.iter().find(|mount| mount.kind == "sysfs").expect("is a default");
        assert_eq!(sys.options.last().map(String::as_str), Some("rw"));
    }
}
