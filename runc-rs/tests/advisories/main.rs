//! A test for each advisory of the runtimes that came before this one: it fails where the fault is.
//! `docs/security.md` lists them. As root, on the real kernel.

#[path = "../support/mod.rs"]
mod support;

mod descriptors;
mod identity;
mod mounts;
mod names;
mod procfs;
mod program;

use std::{os::unix::net::UnixListener, process::Stdio};

use serde_json::{Value, json};
use support::Bundle;

/// Every capability that this process could give away.
const ALL_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
];

/// A bundle of a container that may do much to itself: a hostile one.
fn hostile(script: &str) -> Bundle {
    let mut bundle = Bundle::new(script);
    for set in ["bounding", "permitted", "effective"] {
        bundle.config["process"]["capabilities"][set] = json!(ALL_CAPABILITIES);
    }
    bundle.config["root"]["readonly"] = json!(false);
    bundle
}

/// Adds a mount.
fn add_mount(bundle: &mut Bundle, mount: Value) {
    bundle.config["mounts"].as_array_mut().expect("a list").push(mount);
}

/// Drops the mounts at and below a path.
fn drop_mounts(bundle: &mut Bundle, path: &str) {
    let mounts = bundle.config["mounts"].as_array_mut().expect("a list");
    mounts.retain(|mount| !mount["destination"].as_str().is_some_and(|at| at.starts_with(path)));
}

/// A hook that runs a script on the host, or in the container's mount namespace.
fn hook(script: &str) -> Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-ec", script], "env": ["PATH=/bin:/usr/bin:/sbin"]}])
}

/// `create` of a container with a terminal, and a socket that takes it.
fn create_with_terminal(bundle: &mut Bundle) -> (UnixListener, support::Answer) {
    bundle.config["process"]["terminal"] = json!(true);
    bundle.write_config();
    let path = bundle.path().join("console.sock");
    let listener = UnixListener::bind(&path).expect("listen");
    let console = path.to_str().expect("plain name");
    let words = ["create", "-b", bundle.path_text(), "--console-socket", console, &bundle.id];
    let mut command = bundle.command(&words);
    // A container that was made after all would keep standard output open.
    let errors = bundle.path().join("errors");
    let file = std::fs::File::create(&errors).expect("make file");
    let status = command.stdout(Stdio::null()).stderr(file).status().expect("run create");
    let answer = support::Answer {
        status: status.code().expect("no signal"),
        stdout: String::new(),
        stderr: std::fs::read_to_string(errors).expect("read errors"),
    };
    (listener, answer)
}
