//! What a container's start may cost. Times differ from machine to machine, so only what does not is
//! held here; `cargo xtask bench -- OCI` has the rest.
//!
//! Each limit has the number that was measured beside it, of an unoptimised program with a dynamic
//! loader, as these tests build it; a released one takes less.

mod support;

use std::{fs, path::Path, process::Stdio};

use serde_json::json;
use support::Bundle;

/// The least memory that a container may be limited to.
const MEMORY_MIN: u64 = 512 << 10;

/// Measured: 1142 on a machine with nine v1 hierarchies; 713 for an optimised program, in which nobody
/// looks whether a descriptor is open before it is closed.
const SYSTEM_CALLS_MAX: u64 = 1300;

/// The runtime, once more from a read-only mount, and the container's.
const PROGRAMS_MAX: u64 = 3;

/// Not exact: a child counts what the one who starts it has resident, too.
const PEAK_KIB_MAX: u64 = 8 << 10;

#[test]
fn system_calls_of_a_run() {
    assert!(Path::new("/usr/bin/strace").exists(), "strace is missing: install it");
    let mut bundle = Bundle::new("");
    bundle.config["process"]["args"] = json!(["/bin/true"]);
    bundle.write_config();
    let counts = bundle.path().join("counts");
    let mut command = std::process::Command::new("/usr/bin/strace");
    command.args(["-f", "-c", "-o"]).arg(&counts).arg(&bundle.program);
    command.arg("--root").arg(bundle.root()).args(["run", "-b", bundle.path_text(), &bundle.id]);
    let status = command.stdin(Stdio::null()).status().expect("run strace");
    assert!(status.success(), "{status}");
    let text = fs::read_to_string(&counts).expect("read counts");
    let count = |wanted: &[&str]| -> u64 {
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines
            .filter(|fields| fields.last().is_some_and(|name| wanted.contains(name)))
            .map(|fields| fields[3].parse::<u64>().expect("a number of calls"))
            .sum()
    };
    let calls = count(&["total"]);
    assert!((1..=SYSTEM_CALLS_MAX).contains(&calls), "{calls} system calls:\n{text}");
    assert_eq!(count(&["clone", "clone3", "fork", "vfork"]), 1, "one process is made:\n{text}");
    let programs = count(&["execve", "execveat"]);
    assert!(programs <= PROGRAMS_MAX, "{programs} programs are started:\n{text}");
}

#[test]
fn memory_of_create() {
    let bundle = Bundle::new("sleep 1000");
    bundle.write_config();
    let mut command = bundle.command(&["create", "-b", bundle.path_text(), &bundle.id]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("run create");
    let (status, usage) = sys::usage::wait(child).expect("wait");
    assert!(status.success(), "{status}");
    assert!(usage.peak_kib <= PEAK_KIB_MAX, "{usage:?}");
}

#[test]
fn starts_in_little_memory() {
    let mut bundle = Bundle::new("exit 7");
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": MEMORY_MIN});
    let answer = bundle.run();
    assert_eq!(answer.status, 7, "{}", answer.stderr);
}
