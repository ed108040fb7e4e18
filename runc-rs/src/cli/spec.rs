//! `spec`: a configuration to start from.

use std::{fs::OpenOptions, io, io::Write as _, path::Path};

use serde_json::{Value, json};

use super::flags::{ANYWHERE, Parsed, switch, value};
use crate::{cgroup::Cgroup, error::Error, spec};

pub(super) fn run(words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &[value("bundle", "b"), switch("rootless", "")], ANYWHERE)?;
    parsed.expect("spec", 0, 0)?;
    let bundle = parsed.value("bundle").filter(|path| !path.is_empty()).unwrap_or(".");
    let path = Path::new(bundle).join(spec::CONFIG);
    let document = if parsed.is_on("rootless")? {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        rootless(example(), uid, gid)
    } else {
        example()
    };
    write(&path, &document)?;
    Ok(0)
}

fn write(path: &Path, document: &Value) -> Result<(), Error> {
    let fail = |error| Error::file("write", path, error);
    let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let name = path.display();
            return Err(Error::Usage(format!("File {name} exists. Remove it first")));
        }
        Err(error) => return Err(fail(error)),
    };
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, format);
    serde::Serialize::serialize(document, &mut serializer)
        .map_err(|error| fail(io::Error::other(error)))?;
    file.write_all(&text).map_err(fail)
}

/// What `runc spec` writes, but for the host's name.
fn example() -> Value {
    let mut kinds = vec!["pid", "network", "ipc", "uts", "mount"];
    if Cgroup::plan(None, "example", true).is_ok_and(|cgroup| cgroup.is_unified()) {
        kinds.push("cgroup");
    }
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": spec::VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "runc-rs",
        "mounts": mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces(&kinds),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
                "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
                "/proc/sched_debug", "/proc/scsi", "/sys/devices/virtual/powercap",
                "/sys/firmware",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}

fn namespaces(kinds: &[&str]) -> Value {
    kinds.iter().map(|kind| json!({"type": kind})).collect()
}

fn mounts() -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ])
}

/// Makes of a configuration one for somebody who may do nothing: a user namespace with one user,
/// the host's network, no limits.
fn rootless(mut document: Value, uid: u32, gid: u32) -> Value {
    let mapping = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    let linux = &mut document["linux"];
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
    }
    linux["uidMappings"] = mapping(uid);
    linux["gidMappings"] = mapping(gid);
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    let Some(mounts) = document["mounts"].as_array_mut() else { return document };
    // The group of terminals is not mapped, and sysfs belongs to who has the network namespace.
    for mount in mounts {
        if mount["destination"] == "/sys" {
            *mount = json!({
                "destination": "/sys",
                "type": "none",
                "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
            });
        }
        if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
            options.retain(|option| option != "gid=5");
        }
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_configurations() {
        for (case, document) in [("root", example()), ("rootless", rootless(example(), 7, 8))] {
            let directory = tempfile::tempdir().expect("temporary directory");
            write(&directory.path().join(spec::CONFIG), &document).expect(case);
            spec::Spec::load(directory.path()).expect(case);
            let again = write(&directory.path().join(spec::CONFIG), &document);
            let text = again.expect_err(case).to_string();
            assert!(text.ends_with("config.json exists. Remove it first"), "{case}: {text}");
        }
    }
}
