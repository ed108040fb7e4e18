//! The systemd cgroup driver, on a machine with systemd.
//!
//! Run in virtual machines by `cargo test -p integration --test vm -- systemd`, with cgroup v2 and
//! with v1.

mod support;

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::chown, process::CommandExt as _},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use support::{Answer, Bundle, wait_until};

/// A bundle whose container is a scope in a slice.
struct Scope {
    bundle: Bundle,
    slice: String,
}

impl Scope {
    fn new(script: &str) -> Self {
        assert!(
            fs::exists("/run/systemd/system").is_ok_and(|it| it),
            "needs systemd: run this in the virtual machine"
        );
        let mut bundle = Bundle::new(script);
        let slice = "machine.slice".to_owned();
        bundle.config["linux"]["cgroupsPath"] = json!(format!("{slice}:gantry:{}", bundle.id));
        bundle.config["linux"]["resources"] = json!({});
        bundle.systemd_cgroup = true;
        Self { bundle, slice }
    }

    fn unit(&self) -> String {
        format!("gantry-{}.scope", self.bundle.id)
    }

    /// A property, as systemd shows it.
    fn shown(&self, property: &str) -> String {
        systemctl(&["show", "--property", property, "--value", &self.unit()]).stdout.trim().into()
    }

    fn file(&self, controller: &str, name: &str) -> String {
        let top = if is_unified() { "" } else { controller };
        let unit = self.unit();
        let path = format!("/sys/fs/cgroup/{top}/{}/{unit}/{name}", self.slice);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        text.trim_end().to_owned()
    }

    fn set(&mut self, resources: Value) {
        let all = self.bundle.config["linux"]["resources"].as_object_mut().expect("an object");
        all.extend(resources.as_object().expect("an object").clone());
    }

    fn update(&self, words: &[&str]) -> Answer {
        self.bundle.on("update", words)
    }

    fn must_update(&self, words: &[&str]) {
        let answer = self.update(words);
        assert_eq!(answer.status, 0, "{words:?}: {}", answer.stderr);
    }

    /// Compares what systemd shows, and what the group's files have.
    fn expect(&self, case: &str, shown: &[(&str, &str)], files: &[(&str, &str, &str)]) {
        for (property, want) in shown {
            assert_eq!(self.shown(property), *want, "{case}: {property}");
        }
        for (controller, name, want) in files {
            assert_eq!(self.file(controller, name), *want, "{case}: {name}");
        }
    }

    /// Nothing is left, neither of the container nor of the unit.
    fn expect_gone(&self) {
        wait_until("systemd forgets the unit", || systemctl(&["status", &self.unit()]).status == 4);
        assert_eq!(self.bundle.leftovers(), Vec::<String>::new());
    }
}

fn systemctl(words: &[&str]) -> Answer {
    Answer::new(Command::new("systemctl").args(words).output().expect("systemctl starts"))
}

fn is_unified() -> bool {
    fs::exists("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|it| it)
}

#[test]
fn a_container_is_a_scope() {
    let mut scope = Scope::new("sleep 1000");
    let annotations = json!({"org.systemd.property.TimeoutStopSec": "7", "a": "b"});
    scope.bundle.config["annotations"] = annotations;
    scope.bundle.start();
    let pid = scope.bundle.state()["pid"].to_string();
    let description = format!("libcontainer container {}", scope.bundle.id);
    scope.expect(
        "started",
        &[
            ("ActiveState", "active"),
            ("Slice", "machine.slice"),
            ("Delegate", "yes"),
            ("Description", &description),
            ("TimeoutStopUSec", "7s"),
            ("NeedDaemonReload", "no"),
            ("TasksAccounting", "yes"),
        ],
        &[("pids", "cgroup.procs", &pid)],
    );
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("read cgroup");
    for line in group.lines().filter(|line| !line.starts_with("0::/") || is_unified()) {
        assert!(line.ends_with(&scope.unit()), "{line} in {group}");
    }
    let answer = scope.bundle.on("exec", &["sh", "-c", "echo $$; grep -c . /proc/self/cgroup"]);
    assert_eq!(answer.status, 0, "exec: {}", answer.stderr);
    let answer = scope.bundle.on("pause", &[]);
    assert_eq!(answer.status, 0, "pause: {}", answer.stderr);
    assert_eq!(scope.bundle.state()["status"], "paused");
    assert_eq!(scope.bundle.on("resume", &[]).status, 0);
    let answer = scope.bundle.on("events", &["--stats"]);
    assert!(answer.stdout.contains("\"pids\":{\"current\":1"), "{}", answer.stdout);
    assert_eq!(scope.bundle.on("kill", &["KILL"]).status, 0);
    scope.bundle.wait_for("stopped");
    assert_eq!(scope.bundle.on("delete", &[]).status, 0);
    scope.expect_gone();
}

#[test]
fn places() {
    let cases = [
        ("", "system.slice", "runc-"),
        (":libpod:", "system.slice", "libpod-"),
        ("gantry-a-b.slice:x:", "gantry.slice/gantry-a.slice/gantry-a-b.slice", "x-"),
    ];
    for (path, slice, prefix) in cases {
        let mut scope = Scope::new("true");
        let id = scope.bundle.id.clone();
        let path = if path.is_empty() { String::new() } else { format!("{path}{id}") };
        scope.bundle.config["linux"]["cgroupsPath"] = json!(path);
        scope.bundle.config["process"]["args"] = json!(["cat", "/proc/self/cgroup"]);
        let namespaces = scope.bundle.config["linux"]["namespaces"].as_array_mut();
        namespaces.expect("a list").retain(|namespace| namespace["type"] != "cgroup");
        let answer = scope.bundle.run();
        assert_eq!(answer.status, 0, "{path}: {}", answer.stderr);
        let want = format!("/{slice}/{prefix}{id}.scope");
        assert!(answer.stdout.lines().any(|line| line.ends_with(&want)), "{path}: {answer:?}");
    }
    let _ = systemctl(&["stop", "gantry.slice"]);
}

#[test]
fn refuses() {
    let cases = [
        ("path", "/linux/cgroupsPath", json!("/a/b"), "expected cgroupsPath to be of format"),
        ("slice", "/linux/cgroupsPath", json!("a--b.slice:x:y"), "invalid slice name: a--b.slice"),
        (
            "annotation",
            "/annotations",
            json!({"org.systemd.property.X1y": "1"}),
            "name incorrect: contains non-alphabetic character",
        ),
        (
            "value",
            "/annotations",
            json!({"org.systemd.property.TimeoutStopUSec": "["}),
            "value parse error",
        ),
        (
            "property",
            "/annotations",
            json!({"org.systemd.property.NoSuchThing": "1"}),
            "unable to start unit",
        ),
        (
            "limit",
            "/linux/resources/cpu",
            json!({"cpus": "9-1"}),
            "conversion error: invalid range: 9-1",
        ),
        ("kernel's refusal", "/linux/resources/cpu", json!({"period": 100}), "cpu"),
    ];
    for (case, pointer, value, want) in cases {
        let mut scope = Scope::new("true");
        let (parent, name) = pointer.rsplit_once('/').expect("has a parent");
        scope.bundle.config.pointer_mut(parent).expect(case)[name] = value;
        let answer = scope.bundle.run();
        assert_eq!(answer.status, 1, "{case}: {answer:?}");
        assert!(answer.stderr.contains(want), "{case}: {}", answer.stderr);
        scope.expect_gone();
    }
}

#[test]
fn a_name_that_is_taken() {
    let scope = Scope::new("sleep 1000");
    scope.bundle.start();
    let mut other = Scope::new("true");
    let path = scope.bundle.config["linux"]["cgroupsPath"].clone();
    other.bundle.config["linux"]["cgroupsPath"] = path;
    let answer = other.bundle.run();
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.stderr.contains("container's cgroup is not empty"), "{}", answer.stderr);
    // A unit of that name elsewhere, whose group is not where ours would be.
    other.bundle.config["linux"]["cgroupsPath"] = json!(format!(":gantry:{}", scope.bundle.id));
    let answer = other.bundle.run();
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.stderr.contains("unable to start unit"), "{}", answer.stderr);
    assert_eq!(scope.bundle.state()["status"], "running", "the first one is left alone");
}

/// `RuntimeMaxSec` has systemd end the container, and remember that it failed.
#[test]
fn delete_removes_a_failed_unit() {
    let mut scope = Scope::new("");
    scope.bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    scope.bundle.config["annotations"] = json!({
        "org.systemd.property.RuntimeMaxSec": "1",
        "org.systemd.property.TimeoutStopSec": "1",
    });
    scope.bundle.start();
    scope.bundle.wait_for("stopped");
    wait_until("the unit has failed", || scope.shown("ActiveState") == "failed");
    assert_eq!(scope.bundle.on("delete", &[]).status, 0);
    scope.expect_gone();
}

#[test]
fn delete_by_force() {
    for paused in [false, true] {
        let scope = Scope::new("sleep 1000 & wait");
        scope.bundle.start();
        if paused {
            assert_eq!(scope.bundle.on("pause", &[]).status, 0);
        }
        let answer = scope.bundle.on("delete", &["--force"]);
        assert_eq!(answer.status, 0, "paused {paused}: {}", answer.stderr);
        scope.expect_gone();
    }
}

#[test]
fn limits() {
    let mut scope = Scope::new("sleep 1000");
    scope.set(json!({
        "memory": {"limit": 33554432, "reservation": 25165824},
        "cpu": {"shares": 100, "quota": 500000, "period": 1000000},
        "pids": {"limit": 20},
    }));
    scope.bundle.start();
    let unified = is_unified();
    let memory = |case: &str, limit: &str| {
        let (property, file) = match unified {
            true => ("MemoryMax", "memory.max"),
            false => ("MemoryLimit", "memory.limit_in_bytes"),
        };
        scope.expect(case, &[(property, limit)], &[("memory", file, limit)]);
    };
    let cpu = |case: &str, per_second: &str, quota: &str, period: &str| {
        scope.expect(case, &[("CPUQuotaPerSecUSec", per_second)], &[]);
        if unified {
            scope.expect(case, &[], &[("cpu", "cpu.max", &format!("{quota} {period}"))]);
        } else {
            let quota = if quota == "max" { "-1" } else { quota };
            let files = [("cpu", "cpu.cfs_quota_us", quota), ("cpu", "cpu.cfs_period_us", period)];
            scope.expect(case, &[], &files);
        }
    };
    let weight = |case: &str, shares: &str, weight: &str| match unified {
        true => scope.expect(case, &[("CPUWeight", weight)], &[("cpu", "cpu.weight", weight)]),
        false => scope.expect(case, &[("CPUShares", shares)], &[("cpu", "cpu.shares", shares)]),
    };
    memory("started", "33554432");
    cpu("started", "500ms", "500000", "1000000");
    weight("started", "100", "17");
    scope.expect("started", &[("TasksMax", "20")], &[("pids", "pids.max", "20")]);

    scope.must_update(&["--memory", "50M"]);
    memory("more memory", "52428800");
    scope.must_update(&["--cpu-period", "900000"]);
    cpu("another period", "560ms", "504000", "900000");
    scope.must_update(&["--cpu-quota", "600000"]);
    cpu("another quota", "670ms", "603000", "900000");
    scope.must_update(&["--cpu-quota", "-1"]);
    cpu("no quota", "infinity", "max", "900000");
    scope.must_update(&["--cpu-share", "200"]);
    weight("another weight", "200", "29");
    for (limit, shown, file) in [("-1", "infinity", "max"), ("0", "1", "1"), ("12", "12", "12")] {
        scope.must_update(&["--pids-limit", limit]);
        scope.expect(limit, &[("TasksMax", shown)], &[("pids", "pids.max", file)]);
    }
    let reload = systemctl(&["daemon-reload"]);
    assert_eq!(reload.status, 0, "{}", reload.stderr);
    memory("reloaded", "52428800");
    scope.expect("reloaded", &[("TasksMax", "12")], &[("pids", "pids.max", "12")]);
    let answer = scope.bundle.on("exec", &["sh", "-c", "echo x > /dev/null; ls -l /dev/pts"]);
    assert_eq!(answer.status, 0, "devices after a reload: {}", answer.stderr);
}

/// Under systemd, too, and from its start.
#[test]
fn the_smallest_memory() {
    let mut scope = Scope::new("sleep 1000");
    scope.set(json!({"memory": {"limit": 524_288}}));
    scope.bundle.start();
    let name = if is_unified() { "memory.max" } else { "memory.limit_in_bytes" };
    scope.expect("started", &[], &[("memory", name, "524288")]);
    let answer = scope.bundle.on("exec", &["sh", "-c", "exit 7"]);
    assert_eq!(answer.status, 7, "{}", answer.stderr);
    let mut scope = Scope::new("exit 7");
    scope.set(json!({"memory": {"limit": 524_288}}));
    let answer = scope.bundle.run();
    assert_eq!(answer.status, 7, "{}", answer.stderr);
}

/// systemd removes the cgroup of a scope that is empty.
#[test]
fn a_container_that_has_stopped_has_no_processes() {
    let scope = Scope::new("sleep 1000");
    scope.bundle.start();
    assert_eq!(scope.bundle.on("kill", &["KILL"]).status, 0);
    scope.bundle.wait_for("stopped");
    wait_until("the scope to end", || scope.shown("ActiveState") == "inactive");
    let answer = scope.bundle.on("ps", &[]);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    assert_eq!(answer.stdout.lines().count(), 1, "{}", answer.stdout);
}

#[test]
fn limits_needs_cpuset() {
    let mut scope = Scope::new("sleep 1000");
    scope.set(json!({"cpu": {"cpus": "0", "mems": "0"}}));
    scope.bundle.start();
    let shown: &[(&str, &str)] = match is_unified() {
        true => &[("AllowedCPUs", "0"), ("AllowedMemoryNodes", "0")],
        false => &[],
    };
    scope.expect(
        "started",
        shown,
        &[("cpuset", "cpuset.cpus", "0"), ("cpuset", "cpuset.mems", "0")],
    );
}

/// A limit that systemd does not know stays when systemd sets those that it knows.
#[test]
fn limits_by_files_only_on_v2() {
    if !is_unified() {
        let mut scope = Scope::new("true");
        scope.set(json!({"unified": {"memory.low": "1"}}));
        let answer = scope.bundle.run();
        assert!(answer.stderr.contains("cannot use unified on cgroup v1"), "{answer:?}");
        return;
    }
    let mut scope = Scope::new("sleep 1000");
    scope.set(json!({"unified": {
        "memory.min": "131072", "memory.low": "524288", "memory.high": "20971520",
        "memory.max": "41943040", "pids.max": "99", "cpu.max": "10000 100000", "cpu.weight": "42",
        "cgroup.max.depth": "3",
    }}));
    scope.bundle.start();
    let files = [("", "cgroup.max.depth", "3")];
    scope.expect(
        "started",
        &[
            ("MemoryMin", "131072"),
            ("MemoryLow", "524288"),
            ("MemoryHigh", "20971520"),
            ("MemoryMax", "41943040"),
            ("TasksMax", "99"),
            ("CPUQuotaPerSecUSec", "100ms"),
            ("CPUWeight", "42"),
        ],
        &[("", "memory.high", "20971520"), ("", "cpu.max", "10000 100000")],
    );
    scope.expect("started", &[], &files);
    scope.must_update(&["--pids-limit", "50"]);
    scope.expect("updated", &[("TasksMax", "50")], &files);
}

#[test]
fn idle_on_v2() {
    if !is_unified() {
        return;
    }
    let scope = Scope::new("sleep 1000");
    scope.bundle.start();
    let idle = |case: &str, want: &str| scope.expect(case, &[], &[("", "cpu.idle", want)]);
    idle("at first", "0");
    let answer = scope.update(&["--cpu-share", "200", "--cpu-idle", "1"]);
    assert!(answer.stderr.contains("unable to apply both"), "{answer:?}");
    idle("with a weight", "1");
    scope.must_update(&["--cpu-share", "200"]);
    idle("a weight ends it", "0");
    for value in ["1", "0", "1"] {
        scope.must_update(&["--cpu-idle", value]);
        idle(value, value);
    }
    for value in ["-1", "2"] {
        assert_ne!(scope.update(&["--cpu-idle", value]).status, 0, "{value}");
        idle(value, "1");
    }
}

#[test]
fn devices() {
    let mut scope = Scope::new("sleep 1000");
    scope.bundle.config["linux"]["devices"] =
        json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]);
    let kmsg = |scope: &Scope, redirect: &str| {
        let script = format!("true {redirect} /dev/kmsg");
        scope.bundle.on("exec", &["sh", "-c", &script]).status == 0
    };
    scope.set(json!({"devices": [{"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"}]}));
    scope.bundle.start();
    for case in ["started", "updated", "reloaded"] {
        assert!(kmsg(&scope, ">"), "{case}: may be written");
        assert!(!kmsg(&scope, "<"), "{case}: may not be read");
        match case {
            "started" => scope.must_update(&["--pids-limit", "77"]),
            _ => assert_eq!(systemctl(&["daemon-reload"]).status, 0),
        }
    }
    let answer = scope.bundle.on("exec", &["sh", "-c", "cat /dev/null && echo x > /dev/zero"]);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
}

/// Nothing of the container's is interrupted while systemd takes its devices away, which on v1 it
/// does at every change.
#[test]
fn an_update_takes_no_device_away() {
    let script = "while sleep 0.01; do cat /dev/null > /dev/null || echo lost; done";
    let scope = Scope::new(script);
    scope.bundle.write_config();
    let output = scope.bundle.path().join("output");
    let file = fs::File::create(&output).expect("make file");
    let mut command = scope.bundle.command(&["run", "-d", "-b", scope.bundle.path_text()]);
    let status =
        command.arg(&scope.bundle.id).stdout(file.try_clone().expect("clone")).stderr(file);
    assert!(status.status().expect("run").success());
    for limit in 30..40 {
        scope.must_update(&["--pids-limit", &limit.to_string()]);
    }
    assert_eq!(fs::read_to_string(output).expect("read"), "");
    assert_eq!(scope.bundle.on("pause", &[]).status, 0);
    scope.must_update(&["--pids-limit", "50"]);
    assert_eq!(scope.bundle.state()["status"], "paused", "an update leaves it paused");
}

/// The user of the test below, of whom the machine does not know before it.
const USER: u32 = 12_345;

/// Makes the user, and starts its systemd.
fn start_user_systemd() {
    let lines = [
        ("passwd", format!("gantry:x:{USER}:{USER}::/tmp:/bin/sh")),
        ("group", format!("gantry:x:{USER}:")),
        ("shadow", "gantry:*:19000:0:99999:7:::".to_owned()),
    ];
    for (name, line) in lines {
        let file = fs::OpenOptions::new().append(true).open(format!("/etc/{name}"));
        writeln!(file.expect(name), "{line}").expect(name);
    }
    let answer = systemctl(&["start", &format!("user@{USER}.service")]);
    assert_eq!(answer.status, 0, "{answer:?}");
}

/// A container in what the user's systemd may give away, asked for over the user's bus.
#[test]
fn of_a_user_without_rights_needs_user_systemd() {
    start_user_systemd();
    let runtime = format!("/run/user/{USER}");
    let environments = [
        ("XDG_RUNTIME_DIR", runtime.clone()),
        ("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={runtime}/bus")),
    ];
    for (name, value) in environments {
        let mut bundle = Bundle::new("");
        bundle.systemd_cgroup = true;
        bundle.copy_program();
        let config = bundle.path().join("config.json");
        fs::remove_file(&config).expect("remove config");
        chown(bundle.path(), Some(USER), Some(USER)).expect("give bundle");
        let call = |words: &[&str]| {
            let mut command = bundle.command(words);
            command.uid(USER).gid(USER).env_clear().env(name, &value).env("PATH", "/bin");
            let detached = words.contains(&"-d");
            let (out, err) = (bundle.path().join("out"), bundle.path().join("err"));
            if detached {
                // The container keeps these open.
                command.stdout(fs::File::create(&out).expect("make file"));
                command.stderr(fs::File::create(&err).expect("make file"));
            } else {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            let child = command.spawn().expect("run the program");
            let mut answer = Answer::new(child.wait_with_output().expect("end"));
            if detached {
                answer.stderr = fs::read_to_string(err).expect("read errors");
            }
            assert_eq!(answer.status, 0, "{name}, {words:?}: {answer:?}");
            answer.stdout
        };
        call(&["spec", "--rootless", "-b", bundle.path_text()]);
        let text = fs::read(&config).expect("read config");
        let mut described: Value = serde_json::from_slice(&text).expect("JSON");
        described["process"]["terminal"] = json!(false);
        described["process"]["args"] = json!(["sleep", "1000"]);
        described["linux"]["cgroupsPath"] = json!(format!("user.slice:gantry:{}", bundle.id));
        described["linux"]["resources"] =
            json!({"memory": {"limit": 33_554_432}, "pids": {"limit": 20}});
        fs::write(&config, described.to_string()).expect("write config");
        call(&["run", "-d", "-b", bundle.path_text(), &bundle.id]);
        let group = format!(
            "/user.slice/user-{USER}.slice/user@{USER}.service/user.slice/gantry-{}.scope",
            bundle.id
        );
        let file = |name: &str| {
            let text = fs::read_to_string(format!("/sys/fs/cgroup{group}/{name}"));
            text.expect(name).trim_end().to_owned()
        };
        assert_eq!((file("memory.max"), file("pids.max")), ("33554432".into(), "20".into()));
        call(&["update", "--pids-limit", "30", &bundle.id]);
        assert_eq!(file("pids.max"), "30");
        let exec = call(&["exec", &bundle.id, "cat", "/proc/self/cgroup"]);
        assert!(exec.trim_end().ends_with(&group) || exec == "0::/\n", "{exec}");
        call(&["delete", "--force", &bundle.id]);
        assert!(!fs::exists(format!("/sys/fs/cgroup{group}")).expect("look"), "it stays");
    }
    assert_eq!(systemctl(&["stop", &format!("user@{USER}.service")]).status, 0);
}
