//! Flags and fields that few use, as root, on the real kernel.

mod support;

use std::process::Stdio;

use serde_json::json;
use support::{Answer, Bundle};

/// `run`, `create` and `exec` give a process a session keyring of the container's, unless they are
/// told not to; an exec is told by the container.
#[test]
fn no_new_keyring() {
    for (case, flags, want) in
        [("a new one", &[][..], "1\n"), ("none", &["--no-new-keyring"][..], "0\n")]
    {
        let mut bundle = Bundle::new("sleep 1000");
        bundle.config["linux"]["maskedPaths"] = json!([]);
        bundle.write_config();
        let words = [&["run", "-d", "-b", bundle.path_text()], flags, &[&bundle.id]].concat();
        let mut command = bundle.command(&words);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.expect("run").success(), "{case}");
        // Of others' keyrings, proc_keys(5) shows only what this process may see.
        let count = format!("grep -c ' _ses.{}: ' /proc/keys", bundle.id);
        let answer = bundle.on("exec", &["sh", "-c", &count]);
        assert_eq!(answer.stdout, want, "{case}: {}", answer.stderr);
    }
}

#[test]
fn exec_in_a_paused_container() {
    let bundle = Bundle::new("sleep 1000");
    bundle.start();
    assert_eq!(bundle.on("pause", &[]).status, 0);
    let answer = bundle.on("exec", &["true"]);
    let want = "cannot exec in a paused container (use --ignore-paused to override)";
    assert_eq!(answer.status, 255, "{}", answer.stderr);
    assert!(answer.stderr.contains(want), "{}", answer.stderr);
    let mut command = bundle.command(&["exec", "--ignore-paused", &bundle.id, "pwd"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("exec");
    support::wait_until("a second process", || {
        let pids = bundle.call(&["ps", "-f", "json", &bundle.id]).stdout;
        pids.matches(',').count() == 1
    });
    assert_eq!(bundle.on("resume", &[]).status, 0);
    let answer = Answer::new(child.wait_with_output().expect("end"));
    assert_eq!(answer.stdout, "/\n", "{}", answer.stderr);
}

/// A container that waits for its start can be paused, and has to be resumed before.
#[test]
fn paused_before_the_start() {
    let bundle = Bundle::new("sleep 1000");
    assert_eq!(bundle.create(), 0);
    assert_eq!(bundle.on("pause", &[]).status, 0);
    assert_eq!(bundle.state()["status"], "paused");
    let answer = bundle.on("start", &[]);
    let want = "cannot start a container in the paused state";
    assert!(answer.status == 1 && answer.stderr.contains(want), "{answer:?}");
    assert_eq!(bundle.on("resume", &[]).status, 0);
    assert_eq!(bundle.state()["status"], "created");
    assert_eq!(bundle.on("start", &[]).status, 0);
    bundle.wait_for("running");
}

/// What is asked for in vain is said, and does not hinder the start.
#[test]
fn fields_without_effect() {
    let cases = [
        (
            "/linux/personality",
            json!({"domain": "LINUX", "flags": ["A", "B"]}),
            "ignoring unsupported personality flags: [A B] because",
        ),
        (
            "/linux/resources/memory",
            json!({"kernel": 1}),
            "Kernel memory settings are ignored and will be removed",
        ),
        (
            "/mounts/0/destination",
            json!("tmp/x"),
            "mount destination tmp/x is not absolute. Support for",
        ),
        (
            "/process/capabilities/bounding",
            json!(["CAP_KILL", "cap_chown"]),
            "ignoring unknown or unavailable capabilities: [cap_chown]",
        ),
        ("/linux/seccomp", json!({}), ""),
    ];
    for (field, value, want) in cases {
        let mut bundle = Bundle::new("true");
        let mounts = bundle.config["mounts"].as_array_mut().expect("a list");
        mounts.insert(0, json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}));
        let (parent, name) = field.rsplit_once('/').expect("a pointer");
        bundle.config.pointer_mut(parent).expect("a parent")[name] = value;
        let answer = bundle.run();
        assert_eq!(answer.status, 0, "{field}: {}", answer.stderr);
        let lines = usize::from(!want.is_empty());
        assert_eq!(answer.stderr.lines().count(), lines, "{field}: {}", answer.stderr);
        assert!(answer.stderr.contains(want), "{field}: {}", answer.stderr);
    }
}

#[test]
fn an_exec_is_checked_like_a_configuration() {
    let bundle = Bundle::new("sleep 1000");
    bundle.start();
    let cases: [(&[&str], &str); 3] = [
        (&["--cwd", "x"], "process.cwd: Cwd must be an absolute path"),
        (&["-e", "B"], "invalid environment variable: missing '='"),
        (&["-e", "=x"], "invalid environment variable: name cannot be empty"),
    ];
    for (flags, want) in cases {
        let answer = bundle.call(&[&["exec"], flags, &[&bundle.id, "true"]].concat());
        assert_eq!(answer.status, 255, "{flags:?}: {}", answer.stderr);
        assert!(answer.stderr.contains(want), "{flags:?}: {}", answer.stderr);
    }
}

#[test]
fn signals_and_options_that_are_none() {
    let bundle = Bundle::new("sleep 1000");
    bundle.start();
    let answer = bundle.on("kill", &["99"]);
    let want = "unable to signal init: invalid argument";
    assert!(answer.status == 1 && answer.stderr.contains(want), "{answer:?}");
    let answer = bundle.on("ps", &["-o", "nothing"]);
    let want = "unknown user-defined format specifier";
    assert!(answer.status == 1 && answer.stderr.contains(want), "{answer:?}");
    assert_eq!(answer.stderr.lines().count(), 1, "{answer:?}");
}

/// What ends a container's init before it can say anything.
#[test]
fn too_little_memory_to_start() {
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 10});
    let answer = bundle.run();
    assert_eq!(answer.status, 1, "{}", answer.stderr);
    assert!(answer.stderr.contains("memory limit too low?"), "{}", answer.stderr);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}
