//! Capability sets, capabilities(7).

use std::collections::BTreeSet;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use crate::{error::Error, spec};

/// The five sets of a process, without names that this kernel does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sets {
    bounding: u64,
    effective: u64,
    inheritable: u64,
    permitted: u64,
    ambient: u64,
}

/// All capabilities, each at the place of its number.
const NAMES: [&str; 41] = [
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

impl Sets {
    /// Reads names; those that are unknown are left out, as runc does, for configurations are made
    /// for newer kernels than they run on.
    pub(super) fn new(described: Option<&spec::Capabilities>) -> Self {
        let Some(described) = described else { return Self::default() };
        Self {
            bounding: bits(&described.bounding),
            effective: bits(&described.effective),
            inheritable: bits(&described.inheritable),
            permitted: bits(&described.permitted),
            ambient: bits(&described.ambient),
        }
    }

    /// Limits what a program may ever get; comes before the change of user.
    pub(super) fn apply_bounding(self) -> Result<(), Error> {
        for number in 0..u64::BITS {
            let bit = 1 << number;
            if self.bounding & bit != 0 {
                continue;
            }
            match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(bit)) {
                Ok(()) => {}
                // Past the kernel's last capability.
                Err(rustix::io::Errno::INVAL) => break,
                Err(error) => {
                    return Err(Error::system("unable to apply", "bounding set", error));
                }
            }
        }
        Ok(())
    }

    /// Sets the others; comes after the change of user. What this process has not got it cannot
    /// hand on, and does without, as the runtime-spec has it.
    pub(super) fn apply(self) -> Result<(), Error> {
        let fail = |error| Error::system("unable to apply", "caps", error);
        let own = capabilities(None).map_err(fail)?.permitted.bits();
        let set = |bits: u64| CapabilitySet::from_bits_retain(bits & own);
        set_capabilities(
            None,
            CapabilitySets {
                effective: set(self.effective),
                permitted: set(self.permitted),
                inheritable: set(self.inheritable),
            },
        )
        .map_err(fail)?;
        clear_ambient_capability_set().map_err(fail)?;
        for number in 0..u64::BITS {
            let bit = 1 << number;
            if self.ambient & bit != 0 {
                // What is not permitted and inheritable cannot be ambient; runc ignores it, too.
                let _ = configure_capability_in_ambient_set(set(bit), true);
            }
        }
        Ok(())
    }
}

/// The names that no capability has, sorted, each once.
pub(crate) fn unknown(described: Option<&spec::Capabilities>) -> Vec<&str> {
    let Some(described) = described else { return Vec::new() };
    let spec::Capabilities { bounding, effective, inheritable, permitted, ambient } = described;
    let all = [bounding, effective, inheritable, permitted, ambient].into_iter().flatten();
    let names: BTreeSet<_> =
        all.map(String::as_str).filter(|name| number(name).is_none()).collect();
    names.into_iter().collect()
}

/// The names of those capabilities that are asked for but cannot be granted in the user namespace
/// of this process.
pub(crate) fn missing(described: Option<&spec::Capabilities>) -> Vec<&'static str> {
    let own = capabilities(None).map_or(u64::MAX, |sets| sets.permitted.bits());
    names(Sets::new(described).permitted & !own)
}

/// The names of those capabilities that are to be ambient but cannot, since they are not permitted
/// and inheritable as well.
pub(crate) fn not_ambient(described: Option<&spec::Capabilities>) -> Vec<&'static str> {
    let sets = Sets::new(described);
    names(sets.ambient & !(sets.permitted & sets.inheritable))
}

fn names(bits: u64) -> Vec<&'static str> {
    let numbered = NAMES.iter().enumerate();
    numbered.filter(|(number, _)| bits & (1 << number) != 0).map(|(_, name)| *name).collect()
}

fn bits(names: &[String]) -> u64 {
    names.iter().filter_map(|name| number(name)).fold(0, |bits, number| bits | 1 << number)
}

fn number(name: &str) -> Option<usize> {
    NAMES.iter().position(|&known| known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambient_ones_that_cannot_be() {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let all: &[&str] = &["CAP_CHOWN", "CAP_KILL"];
        let cases = [
            ("all can", all, all, vec![]),
            ("not inheritable", &["CAP_KILL"], all, vec!["CAP_CHOWN"]),
            ("not permitted", all, &["CAP_CHOWN"], vec!["CAP_KILL"]),
        ];
        for (case, inheritable, permitted, want) in cases {
            let described = spec::Capabilities {
                inheritable: set(inheritable),
                permitted: set(permitted),
                ambient: set(all),
                ..spec::Capabilities::default()
            };
            assert_eq!(not_ambient(Some(&described)), want, "{case}");
        }
    }

    #[test]
    fn unknown_names() {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let described = spec::Capabilities {
            bounding: set(&["CAP_TIME_TRAVEL", "CAP_KILL"]),
            permitted: set(&["CAP_TIME_TRAVEL", "CAP_CHOWN"]),
            ambient: set(&["BEFORE", ""]),
            ..spec::Capabilities::default()
        };
        assert_eq!(unknown(Some(&described)), ["", "BEFORE", "CAP_TIME_TRAVEL"]);
        assert_eq!(unknown(None), [""; 0]);
    }

    #[test]
    fn numbers() {
        let cases = [
            ("CAP_CHOWN", Some(0)),
            ("CAP_KILL", Some(5)),
            ("cap_kill", None),
            ("CAP_CHECKPOINT_RESTORE", Some(40)),
            ("KILL", None),
            ("", None),
        ];
        for (name, want) in cases {
            assert_eq!(number(name), want, "{name:?}");
        }
    }
}
