//! Checks of a configuration that need nothing but the configuration.
//!
//! Each failed check names the field and the reason, and no check looks at the system: what depends
//! on it (sources that exist, features of the kernel) is found out when it is used, and undone.

mod linux;

use std::collections::BTreeSet;

use super::{Error, Linux, NamespaceKind, Process, Spec};

type Check = Result<(), Error>;

fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Invalid { field: field.into(), reason: reason.into() }
}

/// Checks a whole configuration.
pub(super) fn spec(spec: &Spec) -> Check {
    let Some(described) = &spec.process else {
        return Err(invalid("process", "process property must not be empty"));
    };
    process(described)?;
    match &spec.root {
        Some(root) if !root.path.is_empty() => text("root.path", &root.path)?,
        _ => return Err(invalid("root.path", "must not be empty")),
    }
    linux::linux(&spec.linux)?;
    namespaces(&spec.linux)?;
    names(spec)?;
    mounts(spec)?;
    devices(&spec.linux)?;
    hooks(spec)?;
    sysctls(&spec.linux)
}

/// Checks a process, which may also be an exec's.
pub(super) fn process(process: &Process) -> Check {
    if process.cwd.is_empty() {
        return Err(invalid("process.cwd", "Cwd property must not be empty"));
    }
    if !process.cwd.starts_with('/') {
        return Err(invalid("process.cwd", "Cwd must be an absolute path"));
    }
    text("process.cwd", &process.cwd)?;
    if process.args.is_empty() {
        return Err(invalid("process.args", "args must not be empty"));
    }
    for (at, argument) in process.args.iter().enumerate() {
        text(&format!("process.args[{at}]"), argument)?;
    }
    for (at, variable) in process.env.iter().enumerate() {
        let field = format!("process.env[{at}]");
        text(&field, variable)?;
        match variable.split_once('=') {
            None => return Err(invalid(field, "invalid environment variable: missing '='")),
            Some(("", _)) => {
                return Err(invalid(field, "invalid environment variable: name cannot be empty"));
            }
            Some(_) => {}
        }
    }
    let user = &process.user;
    for id in [user.uid, user.gid].iter().chain(&user.additional_gids) {
        owner("process.user", *id)?;
    }
    let mut seen = BTreeSet::new();
    for (at, limit) in process.rlimits.iter().enumerate() {
        let field = format!("process.rlimits[{at}]");
        if crate::init::rlimit::resource(&limit.kind).is_none() {
            return Err(invalid(field, format!("wrong rlimit value: {}", limit.kind)));
        }
        if !seen.insert(&limit.kind) {
            return Err(invalid(field, format!("{} is there twice", limit.kind)));
        }
        if limit.soft > limit.hard {
            return Err(invalid(field, "soft limit is above hard limit"));
        }
    }
    match process.oom_score_adj {
        Some(score) if !(-1000..=1000).contains(&score) => {
            Err(invalid("process.oomScoreAdj", "is not between -1000 and 1000"))
        }
        _ => linux::process(process),
    }
}

/// To the kernel the highest number is no id but "as it is": the runtime's own.
fn owner(field: &str, id: u32) -> Check {
    if id == u32::MAX { Err(invalid(field, "4294967295 is not an id")) } else { Ok(()) }
}

/// A string that goes to the kernel may not hold the byte that ends it.
fn text(field: &str, text: &str) -> Check {
    if text.contains('\0') { Err(invalid(field, "contains a null byte")) } else { Ok(()) }
}

fn namespaces(linux: &Linux) -> Check {
    let mut seen = BTreeSet::new();
    for namespace in &linux.namespaces {
        if !seen.insert(namespace.kind) {
            let name = namespace.kind.name();
            return Err(invalid("linux.namespaces", format!("duplicated namespace {name}")));
        }
        text("linux.namespaces.path", &namespace.path)?;
        if !namespace.path.is_empty() && !namespace.path.starts_with('/') {
            return Err(invalid("linux.namespaces.path", "must be an absolute path"));
        }
    }
    // Mappings without a user namespace mean nothing, as for runc.
    match linux.namespace(NamespaceKind::User) {
        Some(user)
            if user.path.is_empty()
                && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty()) =>
        {
            return Err(invalid(
                "linux.uidMappings",
                "user namespaces enabled, but no namespace path to join nor mappings to apply \
                 specified",
            ));
        }
        _ => {}
    }
    match linux.namespace(NamespaceKind::Time) {
        None if !linux.time_offsets.is_empty() => Err(invalid(
            "linux.timeOffsets",
            "time namespace offsets specified, but time namespace isn't enabled in the config",
        )),
        Some(time) if !time.path.is_empty() && !linux.time_offsets.is_empty() => Err(invalid(
            "linux.timeOffsets",
            "time namespace enabled, but both namespace path and time offsets specified -- you \
             may only provide one",
        )),
        _ => Ok(()),
    }
}

fn names(spec: &Spec) -> Check {
    let private_uts = spec.linux.namespace(NamespaceKind::Uts).is_some();
    if !spec.hostname.is_empty() && !private_uts {
        return Err(invalid("hostname", "unable to set hostname without a private UTS namespace"));
    }
    if !spec.domainname.is_empty() && !private_uts {
        return Err(invalid(
            "domainname",
            "unable to set domainname without a private UTS namespace",
        ));
    }
    Ok(())
}

fn mounts(spec: &Spec) -> Check {
    let linux = &spec.linux;
    let private = linux.namespace(NamespaceKind::Mnt).is_some();
    let restricted = !linux.masked_paths.is_empty() || !linux.readonly_paths.is_empty();
    if !private && restricted {
        return Err(invalid(
            "linux.maskedPaths",
            "unable to restrict sys entries without a private MNT namespace",
        ));
    }
    for (at, mount) in spec.mounts.iter().enumerate() {
        let field = format!("mounts[{at}]");
        if mount.destination.is_empty() {
            return Err(invalid(field, "mount destination must not be empty"));
        }
        for part in [&mount.destination, &mount.source, &mount.kind] {
            text(&field, part)?;
        }
        crate::mount::plan(mount).map_err(|reason| invalid(field, reason.to_string()))?;
    }
    crate::mount::options::root_propagation(&linux.rootfs_propagation)
        .map(drop)
        .ok_or_else(|| invalid("linux.rootfsPropagation", "is not a propagation type"))
}

fn devices(linux: &Linux) -> Check {
    for (at, device) in linux.devices.iter().enumerate() {
        let field = format!("linux.devices[{at}]");
        text(&field, &device.path)?;
        if crate::mount::target::clean(&device.path).is_empty() {
            return Err(invalid(field, "path names no file"));
        }
        if !device.path.starts_with('/') {
            return Err(invalid(field, "path must be absolute"));
        }
        if !matches!(device.kind.as_str(), "c" | "u" | "b" | "p") {
            return Err(invalid(field, format!("invalid device type {:?}", device.kind)));
        }
        for id in [device.uid, device.gid].into_iter().flatten() {
            owner(&field, id)?;
        }
    }
    Ok(())
}

fn hooks(spec: &Spec) -> Check {
    let hooks = &spec.hooks;
    let all = [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ];
    for (point, hooks) in all {
        for (at, hook) in hooks.iter().enumerate() {
            let field = format!("hooks.{point}[{at}]");
            if !hook.path.starts_with('/') {
                return Err(invalid(field, "path must be absolute"));
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return Err(invalid(field, "timeout must be greater than zero"));
            }
        }
    }
    Ok(())
}

/// The sysctls of the ipc namespace that are not below `fs.mqueue`.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

fn sysctls(linux: &Linux) -> Check {
    for name in linux.sysctl.keys() {
        let dotted = crate::init::sysctl::dotted(name);
        let refuse = |reason: &str| Err(invalid("linux.sysctl", format!("{name:?} {reason}")));
        let is_path = crate::init::sysctl::is_allowed_path(name);
        if !is_path || dotted.split('.').any(str::is_empty) || name.contains('\0') {
            return refuse("is not a sysctl name");
        }
        let has = |kind| linux.namespace(kind).is_some();
        if IPC_SYSCTLS.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            if !has(NamespaceKind::Ipc) {
                return refuse("is not allowed in the hosts ipc namespace");
            }
        } else if dotted.starts_with("net.") {
            if !has(NamespaceKind::Net) {
                return refuse("not allowed in host network namespace");
            }
        } else if dotted == "kernel.domainname" && has(NamespaceKind::Uts) {
        } else if dotted == "kernel.hostname" && has(NamespaceKind::Uts) {
            return refuse("is not allowed as it conflicts with the OCI \"hostname\" field");
        } else if dotted.starts_with("user.") {
            if !has(NamespaceKind::User) {
                let reason = "setting ucounts without a user namespace not allowed";
                return Err(invalid("linux.sysctl", format!("{reason}: {dotted}")));
            }
        } else {
            return refuse("is not in a separate kernel namespace");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn check(change: &str) -> Result<(), String> {
        let mut value: serde_json::Value = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["sh"], "env": ["A=b"]},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        });
        let change: serde_json::Value = serde_json::from_str(change).expect("case is JSON");
        merge(&mut value, change);
        let parsed: Spec = serde_json::from_value(value).map_err(|error| error.to_string())?;
        spec(&parsed).map_err(|error| error.to_string())
    }

    fn merge(to: &mut serde_json::Value, from: serde_json::Value) {
        match (to, from) {
            (serde_json::Value::Object(to), serde_json::Value::Object(from)) => {
                for (key, value) in from {
                    merge(to.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (to, from) => *to = from,
        }
    }

    #[test]
    fn refuses_what_cannot_be() {
        let cases = [
            ("good", "{}", ""),
            ("nulls", r#"{"mounts": null, "hooks": null, "hostname": null}"#, ""),
            ("no process", r#"{"process": null}"#, "process: process property must not be empty"),
            ("no cwd", r#"{"process": {"cwd": ""}}"#, "process.cwd: Cwd property must not be"),
            ("relative cwd", r#"{"process": {"cwd": "a"}}"#, "Cwd must be an absolute path"),
            ("no args", r#"{"process": {"args": []}}"#, "process.args: args must not be empty"),
            ("bad env", r#"{"process": {"env": ["A"]}}"#, "process.env[0]: invalid environment"),
            ("root by -1", r#"{"process": {"user": {"uid": 4294967295}}}"#, "is not an id"),
            ("group by -1", r#"{"process": {"user": {"gid": 4294967295}}}"#, "is not an id"),
            (
                "groups by -1",
                r#"{"process": {"user": {"additionalGids": [1, 4294967295]}}}"#,
                "process.user: 4294967295 is not an id",
            ),
            ("uid past 32 bits", r#"{"process": {"user": {"uid": 4294967296}}}"#, "invalid value"),
            ("null byte", r#"{"process": {"args": ["a\u0000b"]}}"#, "process.args[0]: contains a"),
            (
                "rlimit",
                r#"{"process": {"rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}}"#,
                "process.rlimits[0]: wrong rlimit value: RLIMIT_X",
            ),
            ("no root", r#"{"root": null}"#, "root.path: must not be empty"),
            (
                "namespace twice",
                r#"{"linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}]}}"#,
                "linux.namespaces: duplicated namespace pid",
            ),
            (
                "unknown namespace",
                r#"{"linux": {"namespaces": [{"type": "x"}]}}"#,
                "unknown variant",
            ),
            ("hostname", r#"{"hostname": "a"}"#, "hostname: unable to set hostname without"),
            ("users", r#"{"linux": {"sysctl": {"user/max_x": "1"}}}"#, "setting ucounts without a"),
            (
                "no mappings",
                r#"{"linux": {"namespaces": [{"type": "user"}]}}"#,
                "linux.uidMappings: user namespaces enabled",
            ),
            (
                "masked paths",
                r#"{"linux": {"namespaces": [], "maskedPaths": ["/proc"]}}"#,
                "unable to restrict sys entries without a private MNT namespace",
            ),
            ("sysctl", r#"{"linux": {"sysctl": {"vm.x": "1"}}}"#, "is not in a separate kernel"),
            (
                "sysctl out of its subtree",
                r#"{"linux": {"namespaces": [{"type": "network"}], "sysctl": {"net/../kernel/panic": "1"}}}"#,
                "is not a sysctl name",
            ),
            ("host net", r#"{"linux": {"sysctl": {"net.x": "1"}}}"#, "not allowed in host network"),
            ("hook", r#"{"hooks": {"poststop": [{"path": "a"}]}}"#, "hooks.poststop[0]: path must"),
            (
                "device",
                r#"{"linux": {"devices": [{"path": "/dev/x", "type": "q"}]}}"#,
                "linux.devices[0]: invalid device type",
            ),
        ];
        for (case, change, want) in cases {
            let got = check(change).err().unwrap_or_default();
            assert_eq!(got.is_empty(), want.is_empty(), "{case}: {got}");
            assert!(got.contains(want), "{case}: {got}");
        }
    }
}
