//! Capabilities by name.

use super::Spec;

/// What containers have unless told otherwise.
pub(super) const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// All capabilities, in the kernel's order.
const ALL: [&str; 41] = [
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

/// The capabilities in a mask, which is what `CapEff` in `/proc/self/status` says.
pub(crate) fn in_mask(mask: u64) -> Vec<String> {
    let named = ALL.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0);
    named.map(|(_, name)| (*name).to_owned()).collect()
}

impl Spec {
    /// Adds capabilities to all sets that the default fills.
    pub(crate) fn add_capabilities(&mut self, names: &[String]) {
        let own = self.process.capabilities.get_or_insert_default();
        for set in [&mut own.bounding, &mut own.effective, &mut own.permitted] {
            for name in names {
                if !set.contains(name) {
                    set.push(name.clone());
                }
            }
        }
    }

    /// Removes capabilities from all sets.
    pub(crate) fn drop_capabilities(&mut self, names: &[String]) {
        let own = self.process.capabilities.get_or_insert_default();
        let sets = [
            &mut own.bounding,
            &mut own.effective,
            &mut own.permitted,
            &mut own.inheritable,
            &mut own.ambient,
        ];
        for set in sets {
            set.retain(|name| !names.contains(name));
        }
    }
}

/// The capabilities that this process has, and therefore can give to a privileged container.
pub(crate) fn current() -> std::io::Result<Vec<String>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    mask.map(in_mask).ok_or_else(|| std::io::Error::other("no CapEff in /proc/self/status"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        let cases: [(&str, u64, &[&str]); 3] = [
            ("none", 0, &[]),
            ("first and admin", 1 | 1 << 21, &["CAP_CHOWN", "CAP_SYS_ADMIN"]),
            ("beyond the known", 1 << 40 | 1 << 60, &["CAP_CHECKPOINT_RESTORE"]),
        ];
        for (case, mask, want) in cases {
            assert_eq!(in_mask(mask), want, "{case}");
        }
    }

    #[test]
    fn add_and_drop() {
        let mut spec = Spec::new("default", "c1");
        spec.add_capabilities(&["CAP_SYS_ADMIN".to_owned(), "CAP_KILL".to_owned()]);
        spec.drop_capabilities(&["CAP_CHOWN".to_owned()]);
        let own = spec.process.capabilities.expect("is a default");
        assert_eq!(own.bounding.len(), DEFAULT.len());
        assert_eq!(own.bounding.last().map(String::as_str), Some("CAP_SYS_ADMIN"));
        assert_eq!((own.bounding == own.effective, own.bounding == own.permitted), (true, true));
    }
}
