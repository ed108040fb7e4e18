//! Checks of what only newer kernels, or few machines, have: scheduling, memory policy, network
//! devices, resctrl.

use super::{Check, invalid};
use crate::{
    init::scheduling,
    spec::{Linux, NamespaceKind, Process},
};

/// Checks how a process is scheduled.
pub(super) fn process(process: &Process) -> Check {
    let as_check = |field: &str, result: Result<(), String>| {
        result.map_err(|reason| invalid(format!("process.{field}"), reason))
    };
    if let Some(scheduler) = &process.scheduler {
        as_check("scheduler", scheduling::attributes(scheduler).map(drop))?;
    }
    if let Some(priority) = &process.io_priority {
        as_check("ioPriority", scheduling::io_priority(priority).map(drop))?;
    }
    let affinity = scheduling::Affinity::parse(process.exec_cpu_affinity.as_ref());
    as_check("execCPUAffinity", affinity.map(drop))
}

/// Checks the rest.
pub(super) fn linux(linux: &Linux) -> Check {
    if let Some(personality) = &linux.personality {
        scheduling::domain(personality)
            .map_err(|reason| invalid("linux.personality.domain", reason))?;
    }
    if let Some(policy) = &linux.memory_policy {
        scheduling::memory_policy(policy)
            .map_err(|reason| invalid("linux.memoryPolicy", reason))?;
    }
    net_devices(linux)?;
    intel_rdt(linux)
}

fn net_devices(linux: &Linux) -> Check {
    if !linux.net_devices.is_empty() && linux.namespace(NamespaceKind::Net).is_none() {
        let reason = "unable to move network devices without a NET namespace";
        return Err(invalid("linux.netDevices", reason));
    }
    for (name, device) in &linux.net_devices {
        let wrong = |name: &str| {
            let reason = format!("invalid network device name {name:?}");
            Err(invalid("linux.netDevices", reason))
        };
        if !is_device_name(name) {
            return wrong(name);
        }
        if !device.name.is_empty() && !is_device_name(&device.name) {
            return wrong(&device.name);
        }
    }
    Ok(())
}

/// The kernel's rule (`dev_valid_name`).
fn is_device_name(name: &str) -> bool {
    let allowed = |c: char| c != '/' && c != ':' && c != '\0' && !c.is_whitespace();
    (1..=sys::rtnetlink::NAME_LEN_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.chars().all(allowed)
}

fn intel_rdt(linux: &Linux) -> Check {
    let Some(rdt) = &linux.intel_rdt else { return Ok(()) };
    let clos = rdt.clos_id.as_str();
    // A single slash is the filesystem's root, the group of all who have no other.
    let is_name = clos == "/" || !(matches!(clos, "." | "..") || clos.contains(['/', '\0']));
    if !is_name {
        let reason = format!("invalid intelRdt.ClosID {clos:?}");
        return Err(invalid("linux.intelRdt.closID", reason));
    }
    let lines = rdt.schemata.iter().chain([&rdt.l3_cache_schema, &rdt.mem_bw_schema]);
    match lines.into_iter().find(|line| line.contains('\0')) {
        Some(_) => Err(invalid("linux.intelRdt", "contains a null byte")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::validate::tests::check;

    /// Each case: a change of a good configuration, and what its error has in it.
    fn assert_cases(cases: &[(&str, &str, &str)]) {
        for (case, change, want) in cases {
            let got = check(change).err().unwrap_or_default();
            assert_eq!(got.is_empty(), want.is_empty(), "{case}: {got}");
            assert!(got.contains(want), "{case}: {got}");
        }
    }

    #[test]
    fn machines() {
        assert_cases(&[
            ("RDT", r#"{"linux": {"intelRdt": {"closID": "a"}}}"#, ""),
            (
                "RDT group elsewhere",
                r#"{"linux": {"intelRdt": {"closID": "../a"}}}"#,
                "linux.intelRdt.closID: invalid intelRdt.ClosID \"../a\"",
            ),
            ("no devices to move", r#"{"linux": {"netDevices": {}}}"#, ""),
            (
                "device of the host",
                r#"{"linux": {"netDevices": {"eth0": {}}}}"#,
                "linux.netDevices: unable to move network devices without a NET namespace",
            ),
            (
                "device's name",
                r#"{"linux": {"namespaces": [{"type": "network"}, {"type": "mount"}],
                    "netDevices": {"eth0": {"name": "a/b"}}}}"#,
                "linux.netDevices: invalid network device name \"a/b\"",
            ),
            (
                "device's long name",
                r#"{"linux": {"namespaces": [{"type": "network"}, {"type": "mount"}],
                    "netDevices": {"a234567890123456": {}}}}"#,
                "linux.netDevices: invalid network device name",
            ),
            (
                "memory policy",
                r#"{"linux": {"memoryPolicy": {"mode": "MPOL_BIND"}}}"#,
                "linux.memoryPolicy: memory policy mode requires at least one node",
            ),
            (
                "personality",
                r#"{"linux": {"personality": {"domain": "BSD"}}}"#,
                "linux.personality.domain: invalid personality domain: \"BSD\"",
            ),
        ]);
    }

    #[test]
    fn processes() {
        assert_cases(&[
            (
                "no scheduler",
                r#"{"process": {"scheduler": {}}}"#,
                "process.scheduler: scheduler policy is required",
            ),
            (
                "nice",
                r#"{"process": {"scheduler": {"policy": "SCHED_OTHER", "nice": 20}}}"#,
                "process.scheduler: invalid scheduler.nice: 20",
            ),
            (
                "priority",
                r#"{"process": {"scheduler": {"policy": "SCHED_BATCH", "priority": 1}}}"#,
                "process.scheduler: scheduler.priority can only be specified",
            ),
            (
                "deadline",
                r#"{"process": {"scheduler": {"policy": "SCHED_RR", "deadline": 1}}}"#,
                "scheduler runtime/deadline/period can only be specified",
            ),
            (
                "I/O class",
                r#"{"process": {"ioPriority": {"class": "X", "priority": 1}}}"#,
                "process.ioPriority: invalid ioPriority.Class: \"X\"",
            ),
            (
                "I/O priority",
                r#"{"process": {"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}}}"#,
                "process.ioPriority: invalid ioPriority.Priority: 8",
            ),
            (
                "affinity",
                r#"{"process": {"execCPUAffinity": {"initial": "a"}}}"#,
                "process.execCPUAffinity: bad CPUAffinity.Initial: \"a\" is not a number",
            ),
        ]);
    }
}
