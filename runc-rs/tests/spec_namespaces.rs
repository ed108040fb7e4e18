//! Linux namespaces that a container joins by path, and ids that mounts map, as root, on the real
//! kernel.

mod support;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
};

use serde_json::{Value, json};
use support::Bundle;

fn map(container: u32, host: u32, size: u32) -> Value {
    json!([{"containerID": container, "hostID": host, "size": size}])
}

/// Gives a bundle a user namespace.
fn with_user_namespace(bundle: &mut Bundle) {
    bundle.config["linux"]["uidMappings"] = map(0, 100_000, 1000);
    bundle.config["linux"]["gidMappings"] = map(0, 100_000, 1000);
    add_namespace(bundle, "user", None);
}

/// Adds a namespace, or replaces the one of this type.
fn add_namespace(bundle: &mut Bundle, kind: &str, path: Option<String>) {
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|namespace| namespace["type"] != kind);
    namespaces.push(match path {
        Some(path) => json!({"type": kind, "path": path}),
        None => json!({"type": kind}),
    });
}

#[test]
fn joined_by_path() {
    const KINDS: [(&str, &str); 6] = [
        ("user", "user"),
        ("network", "net"),
        ("pid", "pid"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("time", "time"),
    ];
    let mut holder = Bundle::new("sleep 1000");
    with_user_namespace(&mut holder);
    add_namespace(&mut holder, "time", None);
    holder.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1000}});
    holder.start();
    let pid = holder.state()["pid"].as_i64().expect("pid");
    let inode = |name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("namespace");
    let cases: [&[&str]; 7] = [
        &["user"],
        &["network"],
        &["user", "network"],
        &["user", "pid"],
        &["ipc", "uts"],
        &["time"],
        &["user", "network", "pid", "ipc", "uts", "time"],
    ];
    for joined in cases {
        let script = "for kind in user net pid ipc uts time; do readlink /proc/self/ns/$kind; done";
        let mut bundle = Bundle::new(script);
        bundle.config["hostname"] = json!("");
        for (kind, name) in KINDS.iter().filter(|(kind, _)| joined.contains(kind)) {
            add_namespace(&mut bundle, kind, Some(format!("/proc/{pid}/ns/{name}")));
        }
        let answer = bundle.run();
        assert_eq!(answer.status, 0, "{joined:?}: {answer:?}");
        let lines: Vec<&str> = answer.stdout.lines().collect();
        assert_eq!(lines.len(), KINDS.len(), "{joined:?}: {answer:?}");
        for ((kind, name), line) in KINDS.iter().zip(lines) {
            let same = inode(name).to_string_lossy() == line;
            assert_eq!(same, joined.contains(kind), "{joined:?}: {kind}: {line}");
        }
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{joined:?}");
    }
}

#[test]
fn paths_that_are_no_namespaces() {
    let cases = [
        ("missing", "/no/such", "open namespace /no/such: no such file or directory"),
        ("a file", "/dev/null", "setns net: invalid argument"),
        ("of another kind", "/proc/self/ns/uts", "setns net: invalid argument"),
    ];
    for (case, path, want) in cases {
        let mut bundle = Bundle::new("true");
        add_namespace(&mut bundle, "network", Some(path.to_owned()));
        let answer = bundle.run();
        assert_eq!(answer.status, 1, "{case}: {answer:?}");
        assert!(answer.stderr.contains(want), "{case}: {answer:?}");
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{case}");
    }
}

#[test]
fn ids_that_mounts_map() {
    let script = "stat -c %u:%g /root/f; touch /root/new 2>/dev/null; stat -c %u /root/new";
    let cases = [
        // Name, with a user namespace, options, mappings; what is seen, and the new file's owner.
        ("the container's", true, json!(["bind", "idmap"]), None, "7:7\n0\n", 0),
        ("below, too", true, json!(["rbind", "ridmap"]), None, "7:7\n0\n", 0),
        ("its own", false, json!(["bind"]), Some(map(0, 50, 20)), "57:57\n", 0),
        ("neither", false, json!(["bind"]), None, "7:7\n0\n", 0),
    ];
    for (case, user, options, mappings, want, owner) in cases {
        let mut bundle = Bundle::new(script);
        let source = bundle.path().join("source");
        fs::create_dir(&source).expect("make source");
        fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).expect("open source");
        fs::write(source.join("f"), "").expect("write");
        std::os::unix::fs::chown(source.join("f"), Some(7), Some(7)).expect("chown");
        if user {
            with_user_namespace(&mut bundle);
        }
        let mut mount = json!({"source": source, "destination": "/root", "options": options});
        if let Some(mappings) = mappings {
            mount["uidMappings"] = mappings.clone();
            mount["gidMappings"] = mappings;
        }
        bundle.config["mounts"].as_array_mut().expect("a list").push(mount);
        let answer = bundle.run();
        assert_eq!(answer.stdout, want, "{case}: {answer:?}");
        if let Ok(made) = source.join("new").metadata() {
            assert_eq!(made.uid(), owner, "{case}");
        }
    }
}

#[test]
fn mounts_of_the_host_in_a_user_namespace() {
    // It has attributes of its own, which a less privileged namespace may have to keep.
    let mut bundle = Bundle::new("mount");
    with_user_namespace(&mut bundle);
    let mounts = bundle.config["mounts"].as_array_mut().expect("a list");
    mounts.push(json!({"source": "/dev/shm", "destination": "/root", "options": ["bind", "ro"]}));
    let answer = bundle.run();
    let line = answer.stdout.lines().find(|line| line.contains(" on /root "));
    let line = line.unwrap_or_else(|| panic!("no mount: {answer:?}"));
    assert!(line.contains("(ro,"), "{line}");
}

/// Parameters of a network or user namespace that the container shares with the host stay as they
/// are.
#[test]
fn sysctls_of_own_namespaces_only() {
    let own_network = Some("/proc/self/ns/net".to_owned());
    let user = json!({"user.max_net_namespaces": "5"});
    let network = json!({"net.ipv4.ip_unprivileged_port_start": "77"});
    let cases = [
        ("of a user namespace", true, None, &user, Ok("5\n")),
        (
            "of the host's user namespace",
            false,
            None,
            &user,
            Err("setting ucounts without a user namespace not allowed: user.max_net_namespaces"),
        ),
        ("of a network of its own", false, None, &network, Ok("77\n")),
        (
            "of the host's network by path",
            false,
            own_network,
            &network,
            Err("not allowed in host network namespace"),
        ),
    ];
    for (case, has_user, path, sysctl, want) in cases {
        let name = sysctl.as_object().and_then(|map| map.keys().next()).expect("a name");
        let mut bundle = Bundle::new(&format!("cat /proc/sys/{}", name.replace('.', "/")));
        if has_user {
            with_user_namespace(&mut bundle);
        }
        if path.is_some() {
            add_namespace(&mut bundle, "network", path);
        }
        bundle.config["linux"]["sysctl"] = sysctl.clone();
        let answer = bundle.run();
        match want {
            Ok(text) => assert_eq!(answer.stdout, text, "{case}: {}", answer.stderr),
            Err(text) => {
                let said = answer.stderr.replace("\\\"", "\"");
                assert!(said.contains(text), "{case}: {said}");
                assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{case}");
            }
        }
    }
}

/// As runc has it: engines write mappings for containers that have no use for them.
#[test]
fn mappings_without_a_user_namespace_mean_nothing() {
    let mut bundle = Bundle::new("cat /proc/self/uid_map");
    bundle.config["linux"]["uidMappings"] = map(0, 100_000, 1000);
    bundle.config["linux"]["gidMappings"] = map(0, 100_000, 1000);
    let answer = bundle.run();
    let own = fs::read_to_string("/proc/self/uid_map").expect("read map");
    assert_eq!(answer.stdout, own, "{}", answer.stderr);
}
