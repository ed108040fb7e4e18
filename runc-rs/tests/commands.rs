//! What the commands print and return, beyond a container's way from create to delete.

mod support;

use std::{fs, process::Stdio};

use serde_json::json;
use support::Bundle;

#[test]
fn version_in_the_name_of_runc() {
    let bundle = Bundle::new("true");
    let link = bundle.path().join("runc");
    std::os::unix::fs::symlink(&bundle.program, &link).expect("link program");
    for (program, name) in [(&bundle.program, "runc-rs"), (&link, "runc")] {
        let output = std::process::Command::new(program).arg("--version").output().expect("run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with(&format!("{name} version 0.")), "{text}");
        assert!(lines[1].starts_with("commit: "), "{text}");
        assert!(lines[2].starts_with("spec: 1."), "{text}");
    }
}

#[test]
fn list_needs_a_root_that_was_named() {
    let bundle = Bundle::new("true");
    let answer = bundle.call(&["list"]);
    assert_eq!(answer.status, 1, "nothing there yet: {answer:?}");
    fs::create_dir_all(bundle.root()).expect("make root");
    let answer = bundle.call(&["list", "--format", "json"]);
    assert_eq!((answer.status, answer.stdout.as_str()), (0, "null\n"), "{}", answer.stderr);
}

#[test]
fn debug_log() {
    let setup = "nsexec container setup";
    let inits = [setup, "child process in init()", "init: closing the pipe to signal completion"];
    let execs = [setup, "child process in init()", "setns_init: about to exec"];
    let bundle = Bundle::new("sleep 1000");
    bundle.write_config();
    let log = bundle.path().join("log");
    let log_text = log.to_str().expect("plain name");
    let create: &[&str] = &["create", "-b", bundle.path_text(), &bundle.id];
    for (format, level) in [("text", "level=debug"), ("json", "\"level\":\"debug\"")] {
        let flags = ["--debug", "--log", log_text, "--log-format", format];
        let mut command = bundle.command(&[&flags, create].concat());
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.expect("run create").success(), "{format}");
        let text = fs::read_to_string(&log).expect("read log");
        for want in inits.iter().chain([&level]) {
            assert!(text.contains(want), "{format}, {want}: {text}");
        }
        let exec = [&flags[..], &["exec", &bundle.id, "true"]].concat();
        let answer = bundle.call(&exec);
        assert_eq!((answer.status, answer.stderr.as_str()), (0, ""), "{format}");
        let text = fs::read_to_string(&log).expect("read log");
        assert!(execs.iter().all(|want| text.contains(want)), "{format}: {text}");
        assert_eq!(bundle.on("delete", &["--force"]).status, 0);
        fs::remove_file(&log).expect("remove log");
    }
    let answer = bundle.call(&["--debug", "state", "none"]);
    assert!(answer.stderr.contains("level=error"), "{}", answer.stderr);
}

/// As the first process of its pid namespace, an init gets only the signals that it handles.
#[test]
fn a_container_that_was_never_started_ends_when_asked() {
    for signal in ["TERM", "INT", "HUP", "KILL"] {
        let bundle = Bundle::new("sleep 1000");
        assert_eq!(bundle.create(), 0);
        assert_eq!(bundle.on("kill", &[signal]).status, 0, "{signal}");
        bundle.wait_for("stopped");
        assert_eq!(bundle.on("delete", &[]).status, 0, "{signal}");
    }
}

#[test]
fn a_terminal_that_is_passed_on_leaves_line_ends_alone() {
    let mut bundle = Bundle::new("echo one; echo two");
    bundle.config["process"]["terminal"] = json!(true);
    let answer = bundle.run();
    assert_eq!(answer.stdout, "one\ntwo\n", "{}", answer.stderr);
}

#[test]
fn ambient_capabilities() {
    let mut bundle = Bundle::new("grep CapAmb /proc/self/status; sleep 1000");
    let sets = &mut bundle.config["process"]["capabilities"];
    for set in ["bounding", "permitted", "effective"] {
        sets[set] = json!(["CAP_CHOWN", "CAP_KILL"]);
    }
    sets["bounding"] = json!(["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"]);
    sets["inheritable"] = json!(["CAP_KILL", "CAP_NET_RAW"]);
    sets["ambient"] = json!(["CAP_KILL", "CAP_CHOWN"]);
    bundle.write_config();
    let log = bundle.path().join("log");
    let log = log.to_str().expect("plain name");
    let words = ["--log", log, "run", "-d", "-b", bundle.path_text(), &bundle.id];
    let mut command = bundle.command(&words);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("run").success());
    let text = fs::read_to_string(log).expect("read log");
    let want = "can't raise ambient capability CAP_CHOWN: operation not permitted";
    assert!(text.contains(want), "{text}");
    let words = ["exec", "--cap", "CAP_NET_RAW", &bundle.id, "grep", "CapAmb", "/proc/self/status"];
    assert_eq!(bundle.call(&words).stdout, "CapAmb:\t0000000000002020\n");
}

#[test]
fn hooks_in_the_container_begin_in_its_root() {
    let mut bundle = Bundle::new("cat /made");
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo $PWD > ./made"]});
    bundle.config["hooks"] = json!({"createContainer": [hook]});
    let rootfs = bundle.rootfs();
    let answer = bundle.run();
    assert_eq!(answer.stdout, format!("{}\n", rootfs.display()), "{}", answer.stderr);
}

#[test]
fn hooks_that_are_killed_say_by_what() {
    let mut bundle = Bundle::new("true");
    bundle.config["hooks"] =
        json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "kill -SYS $$"]}]});
    let answer = bundle.run();
    let want = "error running createRuntime hook #0: signal: bad system call";
    assert!(answer.status == 1 && answer.stderr.contains(want), "{answer:?}");
}

#[test]
fn clocks_of_a_user_namespace() {
    let cases = [("the host's users", false), ("users of its own", true)];
    for (case, user) in cases {
        let mut bundle = Bundle::new("grep -E 'monotonic|boottime' /proc/self/timens_offsets");
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.push(json!({"type": "time"}));
        if user {
            namespaces.push(json!({"type": "user"}));
            for kind in ["uidMappings", "gidMappings"] {
                bundle.config["linux"][kind] =
                    json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
            }
        }
        bundle.config["linux"]["timeOffsets"] =
            json!({"monotonic": {"secs": 7, "nanosecs": 8}, "boottime": {"secs": 9}});
        let answer = bundle.run();
        let numbers: Vec<_> = answer.stdout.split_whitespace().collect();
        assert_eq!(numbers, ["monotonic", "7", "8", "boottime", "9", "0"], "{case}: {answer:?}");
    }
}

#[test]
fn exec_in_groups_below() {
    let bundle = Bundle::new("sleep 1000");
    bundle.start();
    let cgroup = |controller: &str| {
        let path = format!("/sys/fs/cgroup/{controller}/{}", bundle.id);
        std::path::PathBuf::from(path)
    };
    let words = |group: &str, program: &str| {
        bundle.call(&["exec", "--cgroup", group, &bundle.id, "cat", program])
    };
    if cgroup("pids").exists() {
        fs::create_dir(cgroup("pids").join("below")).expect("make group");
        let answer = words("pids:below", "/proc/self/cgroup");
        let want = format!(":pids:/{}/below\n", bundle.id);
        // The view from outside, for the container's own begins at its group.
        let seen = answer.stdout.contains(&want) || answer.stdout.contains(":pids:/below\n");
        assert!(seen, "{answer:?}");
        let answer = words("nothing:below", "/proc/self/cgroup");
        assert!(answer.stderr.contains("unknown controller nothing"), "{}", answer.stderr);
    }
    let answer = words("missing", "/proc/self/cgroup");
    assert_eq!(answer.status, 255);
    assert!(answer.stderr.contains(": adding pid "), "{}", answer.stderr);
    assert!(answer.stderr.contains("o such file or directory"), "{}", answer.stderr);
    let answer = words("..", "/proc/self/cgroup");
    assert!(answer.stderr.contains("bad sub cgroup path"), "{}", answer.stderr);
}
