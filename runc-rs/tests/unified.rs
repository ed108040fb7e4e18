//! Whole containers on a machine with cgroup v2 alone, with every controller.
//!
//! Run in a virtual machine by `cargo test -p integration --test vm -- v2`. Tests with
//! `needs_<feature>` in their name are left out where the kernel lacks that.

mod support;

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Child, Stdio},
};

use serde_json::{Value, json};
use support::{Answer, Bundle, wait_until};

fn needs_unified() {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    let controllers = controllers.expect("needs cgroup v2: run this in the virtual machine");
    assert!(controllers.contains("memory"), "needs cgroup v2 with controllers");
}

/// A bundle whose container sleeps, with these limits.
fn limited(resources: Value) -> Bundle {
    needs_unified();
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["linux"]["resources"] = resources;
    bundle
}

fn directory(bundle: &Bundle) -> PathBuf {
    PathBuf::from("/sys/fs/cgroup").join(&bundle.id)
}

fn file(bundle: &Bundle, name: &str) -> String {
    let path = directory(bundle).join(name);
    let text = fs::read_to_string(&path);
    text.unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim_end().to_owned()
}

fn expect(bundle: &Bundle, case: &str, files: &[(&str, &str)]) {
    for (name, want) in files {
        assert_eq!(file(bundle, name), *want, "{case}: {name}");
    }
}

fn must_update(bundle: &Bundle, words: &[&str]) {
    let answer = bundle.on("update", words);
    assert_eq!(answer.status, 0, "{words:?}: {}", answer.stderr);
}

/// `update -r -` with this on standard input.
fn update_from(bundle: &Bundle, resources: &Value) -> Answer {
    let mut command = bundle.command(&["update", "-r", "-", &bundle.id]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("run update");
    let mut input = child.stdin.take().expect("is piped");
    input.write_all(resources.to_string().as_bytes()).expect("it reads");
    drop(input);
    Answer::new(child.wait_with_output().expect("it ends"))
}

#[test]
fn limits_and_updates() {
    let bundle = limited(json!({
        "memory": {"limit": 33554432, "reservation": 25165824},
        "cpu": {"shares": 100, "quota": 500000, "period": 1000000},
        "pids": {"limit": 20},
    }));
    bundle.start();
    let files =
        [("memory.max", "33554432"), ("memory.low", "25165824"), ("cpu.max", "500000 1000000")];
    expect(&bundle, "created", &files);
    expect(&bundle, "created", &[("cpu.weight", "17"), ("pids.max", "20")]);
    let steps: [(&[&str], &str, &str); 14] = [
        (&["--memory", "67108864"], "memory.max", "67108864"),
        (&["--memory", "50M"], "memory.max", "52428800"),
        (&["--memory-reservation", "33554432"], "memory.low", "33554432"),
        (&["--memory", "-1"], "memory.max", "max"),
        (&["--cpu-period", "900000"], "cpu.max", "500000 900000"),
        (&["--cpu-quota", "600000"], "cpu.max", "600000 900000"),
        (&["--cpu-quota", "-1"], "cpu.max", "max 900000"),
        (&["--cpu-quota", "-1", "--cpu-period", "100000"], "cpu.max", "max 100000"),
        (&["--cpu-share", "200"], "cpu.weight", "29"),
        (&["--pids-limit", "10"], "pids.max", "10"),
        (&["--pids-limit", "-1"], "pids.max", "max"),
        (&["--pids-limit", "0"], "pids.max", "1"),
        (&["--cpu-idle", "1"], "cpu.idle", "1"),
        (&["--cpu-idle", "0"], "cpu.idle", "0"),
    ];
    for (words, name, want) in steps {
        must_update(&bundle, words);
        expect(&bundle, &words.join(" "), &[(name, want)]);
    }
    must_update(&bundle, &["--cpu-period", "900000", "--cpu-quota", "600000"]);
    must_update(&bundle, &["--cpu-burst", "500000"]);
    expect(&bundle, "burst", &[("cpu.max.burst", "500000")]);
    must_update(&bundle, &["--memory", "100M"]);
    expect(&bundle, "another update", &[("cpu.max.burst", "500000")]);
    let all = json!({"memory": {"limit": 33554432}, "pids": {"limit": 20},
        "unified": {"cpu.max": "max 100000", "cpu.weight": "16", "pids.max": "12"}});
    let answer = update_from(&bundle, &all);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    let files = [("memory.max", "33554432"), ("cpu.weight", "16"), ("pids.max", "12")];
    expect(&bundle, "from standard input", &files);
    for (words, want) in [
        (["--cpu-idle", "2"], "cpu.idle"),
        (["--memory", "x"], "invalid value for memory"),
        (["--cpu-period", "1"], "cpu.max"),
    ] {
        let answer = bundle.on("update", &words);
        assert_eq!(answer.status, 1, "{words:?}");
        assert!(answer.stderr.contains(want), "{words:?}: {}", answer.stderr);
    }
}

#[test]
fn quota_or_period_alone() {
    let cases = [
        ("period", json!({"period": 1000000}), "max 1000000"),
        ("quota", json!({"quota": 5000}), "5000 100000"),
        ("neither", json!({}), "max 100000"),
    ];
    for (case, cpu, want) in cases {
        let bundle = limited(json!({"cpu": cpu}));
        bundle.start();
        expect(&bundle, case, &[("cpu.max", want)]);
        must_update(&bundle, &["--cpu-quota", "30000"]);
        let period = want.split(' ').nth(1).expect("has a period");
        expect(&bundle, case, &[("cpu.max", &format!("30000 {period}"))]);
    }
}

#[test]
fn limits_needs_swap() {
    let bundle = limited(json!({"memory": {"limit": 33554432, "swap": 67108864}}));
    bundle.start();
    expect(&bundle, "created", &[("memory.swap.max", "33554432")]);
    let steps: [(&[&str], &str); 4] = [
        (&["--memory", "30M", "--memory-swap", "50M"], "20971520"),
        (&["--memory", "60M", "--memory-swap", "80M"], "20971520"),
        (&["--memory-swap", "-1"], "max"),
        (&["--memory", "60M", "--memory-swap", "60M"], "0"),
    ];
    for (words, want) in steps {
        must_update(&bundle, words);
        expect(&bundle, &words.join(" "), &[("memory.swap.max", want)]);
    }
    let refused = limited(json!({"memory": {"limit": 2, "swap": 1}}));
    let answer = refused.run();
    assert!(answer.stderr.contains("memory+swap limit should be >= memory limit"), "{answer:?}");
}

#[test]
fn limits_needs_cpuset() {
    let bundle = limited(json!({"cpu": {"cpus": "0", "mems": "0"}}));
    bundle.start();
    expect(&bundle, "created", &[("cpuset.cpus", "0"), ("cpuset.mems", "0")]);
    // The same again, for a machine with one processor.
    must_update(&bundle, &["--cpuset-cpus", "0-0", "--cpuset-mems", "0"]);
    expect(&bundle, "updated", &[("cpuset.cpus", "0"), ("cpuset.mems", "0")]);
    for flag in ["--cpuset-cpus", "--cpuset-mems"] {
        let answer = bundle.on("update", &[flag, "99"]);
        assert_eq!(answer.status, 1, "{flag}: {}", answer.stderr);
    }
}

#[test]
fn limits_needs_io_weight() {
    let bundle = limited(json!({"blockIO": {"weight": 750}}));
    bundle.start();
    expect(&bundle, "created", &[("io.weight", "default 7475")]);
    must_update(&bundle, &["--blkio-weight", "10"]);
    expect(&bundle, "updated", &[("io.weight", "default 1")]);
}

#[test]
fn rates_of_a_disk() {
    needs_unified();
    let number = fs::read_to_string("/sys/block/ubda/dev").expect("the machine has a disk");
    let number = number.trim();
    let (major, minor) = number.split_once(':').expect("two numbers");
    let rate = |rate: u64| {
        let number = |text: &str| text.parse::<u64>().expect("a number");
        json!([{"major": number(major), "minor": number(minor), "rate": rate}])
    };
    let bundle = limited(json!({"blockIO": {"throttleReadBpsDevice": rate(485760)}}));
    bundle.start();
    let want = format!("{number} rbps=485760 wbps=max riops=max wiops=max");
    expect(&bundle, "created", &[("io.max", &want)]);
    let answer = update_from(
        &bundle,
        &json!({"blockIO": {"throttleReadBpsDevice": rate(10485760),
            "throttleWriteBpsDevice": rate(9437184), "throttleReadIOPSDevice": rate(1000),
            "throttleWriteIOPSDevice": rate(900)}}),
    );
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    let want = format!("{number} rbps=10485760 wbps=9437184 riops=1000 wiops=900");
    expect(&bundle, "updated", &[("io.max", &want)]);
}

#[test]
fn unified_keys() {
    let bundle = limited(json!({
        "memory": {"limit": 33554432}, "cpu": {"shares": 3333, "quota": 40000, "period": 100000},
        "unified": {"memory.min": "131072", "memory.max": "41943040", "memory.oom.group": "1",
            "pids.max": "42", "cpu.max": "5000 50000", "cpu.weight": "42"}}));
    bundle.start();
    let files = [("memory.min", "131072"), ("memory.max", "41943040"), ("pids.max", "42")];
    expect(&bundle, "they win", &files);
    let files = [("cpu.max", "5000 50000"), ("cpu.weight", "42"), ("memory.oom.group", "1")];
    expect(&bundle, "they win", &files);
    let refusals = [
        ("../x", "must be a file name (no slashes)"),
        ("memory", "must be in the form CONTROLLER.PARAMETER"),
        ("nosuch.max", "controller \"nosuch\" not available"),
        ("memory.nosuch", "memory.nosuch"),
    ];
    for (key, want) in refusals {
        let bundle = limited(json!({"unified": {key: "1"}}));
        let answer = bundle.run();
        let text = answer.stderr.replace("\\\"", "\"");
        assert_eq!(answer.status, 1, "{key}");
        assert!(text.contains(want), "{key}: {text}");
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{key}");
    }
}

#[test]
fn memory_below_what_is_used() {
    let bundle = limited(json!({}));
    bundle.start();
    let cases = [
        (json!({"limit": 1024, "checkBeforeUpdate": true}), "rejecting memory limit"),
        (
            json!({"limit": 1024, "swap": 2048, "checkBeforeUpdate": true}),
            "rejecting memory+swap limit",
        ),
    ];
    for (memory, want) in cases {
        let answer = update_from(&bundle, &json!({"memory": memory}));
        assert_eq!(answer.status, 1, "{want}");
        assert!(answer.stderr.contains(want), "{want}: {}", answer.stderr);
        assert_eq!(bundle.state()["status"], "running", "{want}");
    }
    // It may end before the command has looked again.
    bundle.on("update", &["--memory", "1024"]);
    bundle.wait_for("stopped");
}

#[test]
fn devices_are_filtered() {
    let mut bundle = limited(json!({"devices": [{"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"}]}));
    bundle.config["linux"]["devices"] =
        json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]);
    bundle.start();
    for case in ["created", "updated"] {
        let open = |how: &str| {
            let script = format!("true {how} /dev/kmsg");
            bundle.on("exec", &["sh", "-c", &script])
        };
        let (write, read) = (open(">"), open("<"));
        assert_eq!(write.status, 0, "{case}: {}", write.stderr);
        assert!(read.stderr.contains("Operation not permitted"), "{case}: {read:?}");
        must_update(&bundle, &["--pids-limit", "42"]);
    }
}

#[test]
fn groups_that_are_in_use() {
    let first = limited(json!({}));
    first.start();
    let mut second = limited(json!({}));
    second.config["linux"]["cgroupsPath"] = json!(format!("/{}", first.id));
    let answer = second.run();
    assert!(answer.stderr.contains("container's cgroup is not empty"), "{answer:?}");
    assert_eq!(first.state()["status"], "running", "it is left alone");
    let third = limited(json!({}));
    fs::create_dir(directory(&third)).expect("make group");
    fs::write(directory(&third).join("cgroup.freeze"), "1").expect("freeze");
    let answer = third.run();
    assert!(answer.stderr.contains("container's cgroup unexpectedly frozen"), "{answer:?}");
    fs::remove_dir(directory(&third)).expect("remove group");
}

/// A container that is told about its events until it ends.
fn watch(bundle: &Bundle, words: &[&str]) -> (Child, PathBuf) {
    let path = bundle.path().join("events");
    let output = fs::File::create(&path).expect("make file");
    let words = [&["events"], words, &[bundle.id.as_str()]].concat();
    let child = bundle.command(&words).stdout(output).spawn().expect("run events");
    (child, path)
}

#[test]
fn events() {
    let bundle = limited(json!({"memory": {"limit": 16777216, "swap": 16777216}}));
    bundle.start();
    let (mut child, path) = watch(&bundle, &["--interval", "100ms"]);
    let text = || fs::read_to_string(&path).expect("read events");
    wait_until("two statistics", || text().matches("\"type\":\"stats\"").count() >= 2);
    let script = "x=1234567890123456; while :; do x=$x$x; done";
    assert_ne!(bundle.on("exec", &["sh", "-c", script]).status, 0, "is killed");
    let want = format!("{{\"type\":\"oom\",\"id\":\"{}\"}}", bundle.id);
    wait_until("the news of a kill", || text().contains(&want));
    assert_eq!(bundle.on("delete", &["--force"]).status, 0);
    assert!(child.wait().expect("it ends with the container").success());
}

#[test]
fn statistics_needs_psi() {
    let bundle = limited(json!({"cpu": {"quota": 1000}}));
    bundle.start();
    let script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); done";
    assert_eq!(bundle.on("exec", &["sh", "-c", script]).status, 0);
    let answer = bundle.on("events", &["--stats"]);
    let event: Value = serde_json::from_str(&answer.stdout).expect("JSON");
    let total = &event["data"]["cpu"]["psi"]["some"]["total"];
    assert!(total.as_u64().is_some_and(|total| total > 0), "{}", answer.stdout);
}

#[test]
fn the_smallest_memory() {
    let bundle = limited(json!({"memory": {"limit": 524288}}));
    bundle.start();
    expect(&bundle, "created", &[("memory.max", "524288")]);
    assert_eq!(bundle.state()["status"], "running");
    let answer = bundle.on("exec", &["sh", "-c", "exit 7"]);
    assert_eq!(answer.status, 7, "{}", answer.stderr);
    let events = file(&bundle, "memory.events");
    assert!(events.lines().any(|line| line == "oom_kill 0"), "{events}");
    // In the foreground, from its start to its end.
    let mut bundle = limited(json!({"memory": {"limit": 524288}}));
    bundle.config["process"]["args"] = json!(["sh", "-c", "exit 7"]);
    let answer = bundle.run();
    assert_eq!(answer.status, 7, "{}", answer.stderr);
}

/// The group is the user namespace's root's where it is to manage it, and only there.
#[test]
fn delegation() {
    for (case, writable, namespace, want) in [
        ("read-only mount", false, true, "65534"),
        ("no cgroup namespace", true, false, "65534"),
        ("its own", true, true, "0"),
    ] {
        needs_unified();
        let script = "stat -c %u /sys/fs/cgroup";
        let mut bundle = Bundle::new(script);
        let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
        bundle.config["linux"]["uidMappings"] = map.clone();
        bundle.config["linux"]["gidMappings"] = map;
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.push(json!({"type": "user"}));
        namespaces.retain(|it| namespace || it["type"] != "cgroup");
        if writable {
            make_cgroups_writable(&mut bundle);
        }
        let answer = bundle.run();
        assert_eq!(answer.stdout.trim(), want, "{case}: {}", answer.stderr);
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{case}");
    }
}

#[test]
fn delete_removes_groups_below() {
    needs_unified();
    let mut bundle = Bundle::new("sleep 1000");
    make_cgroups_writable(&mut bundle);
    bundle.start();
    let script = "cd /sys/fs/cgroup; echo +pids > cgroup.subtree_control; mkdir foo; cd foo; \
                  echo threaded > cgroup.type; mkdir bar; echo $$ > cgroup.threads; exec sleep 999";
    let words = ["exec", "-d", bundle.id.as_str(), "sh", "-euc", script];
    let status = bundle.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("run exec").success());
    wait_until("the group has a thread", || {
        fs::read_to_string(directory(&bundle).join("foo/cgroup.threads"))
            .is_ok_and(|text| !text.is_empty())
    });
    assert_eq!(bundle.on("delete", &["--force"]).status, 0);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
    assert!(!directory(&bundle).exists());
}

/// What the init leaves behind in a shared pid namespace dies with the container.
#[test]
fn all_processes_are_killed() {
    for force in [false, true] {
        needs_unified();
        let mut bundle = Bundle::new("sleep 1000 & sleep 1000 & exec sleep 1000");
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "pid");
        bundle.start();
        let count = || file(&bundle, "cgroup.procs").lines().count();
        wait_until("three processes", || count() == 3);
        let pid = i32::try_from(bundle.state()["pid"].as_i64().expect("a number")).expect("small");
        let pid = rustix::process::Pid::from_raw(pid).expect("not zero");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
        bundle.wait_for("stopped");
        let flags: &[&str] = if force { &["--force"] } else { &[] };
        assert_eq!(bundle.on("delete", flags).status, 0, "force {force}");
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "force {force}");
    }
}

#[test]
fn exec_follows_the_init_into_a_group_below() {
    needs_unified();
    let mut bundle = Bundle::new("sleep 1000");
    make_cgroups_writable(&mut bundle);
    bundle.start();
    let cgroup = |what: &str| {
        let answer = bundle.on("exec", &["cat", "/proc/self/cgroup"]);
        assert_eq!(answer.status, 0, "{what}: {}", answer.stderr);
        answer.stdout
    };
    let sh = |script: &str| {
        let answer = bundle.on("exec", &["sh", "-euc", script]);
        assert_eq!(answer.status, 0, "{script}: {}", answer.stderr);
    };
    assert_eq!(cgroup("at first"), "0::/\n");
    sh("mkdir /sys/fs/cgroup/foo; echo 1 > /sys/fs/cgroup/foo/cgroup.procs");
    assert_eq!(cgroup("the init is below"), "0::/\n");
    sh("cd /sys/fs/cgroup; echo $$ > foo/cgroup.procs; echo +memory > cgroup.subtree_control");
    assert_eq!(cgroup("only there may processes be"), "0::/foo\n");
    assert_eq!(bundle.on("delete", &["--force"]).status, 0);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn exec_finds_an_init_that_has_left_its_group() {
    needs_unified();
    let elsewhere = PathBuf::from(format!("/sys/fs/cgroup/elsewhere-{}", std::process::id()));
    fs::create_dir(&elsewhere).expect("make a group");
    let script = format!("echo 1 > {}/cgroup.procs && exec sleep 1000", elsewhere.display());
    let mut bundle = Bundle::new(&script);
    make_cgroups_writable(&mut bundle);
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    bundle.start();
    wait_until("the init has moved", || fs::remove_dir(directory(&bundle)).is_ok());
    let answer = bundle.on("exec", &["cat", "/proc/self/cgroup"]);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    let name = elsewhere.file_name().expect("has one").to_string_lossy();
    assert_eq!(answer.stdout, format!("0::/{name}\n"));
    assert_eq!(bundle.on("delete", &["--force"]).status, 0);
    fs::remove_dir(&elsewhere).expect("nothing is in it");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn exec_says_why_it_may_not_come_in() {
    needs_unified();
    let mut bundle = Bundle::new("sleep 1000");
    make_cgroups_writable(&mut bundle);
    bundle.start();
    let script = "cd /sys/fs/cgroup; mkdir foo; for p in $(cat cgroup.procs); do \
                  echo $p > foo/cgroup.procs || true; done; echo +memory > cgroup.subtree_control";
    let answer = bundle.on("exec", &["sh", "-uc", script]);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    let answer = bundle.call(&["exec", "--cgroup", "/", &bundle.id, "true"]);
    assert_ne!(answer.status, 0);
    assert!(answer.stderr.contains("adding pid "), "{}", answer.stderr);
    assert!(answer.stderr.contains("device or resource busy"), "{}", answer.stderr);
}

fn make_cgroups_writable(bundle: &mut Bundle) {
    let mounts = bundle.config["mounts"].as_array_mut().expect("a list");
    for mount in mounts.iter_mut().filter(|mount| mount["type"] == "cgroup") {
        mount["options"] = json!(["nosuid", "noexec", "nodev", "relatime"]);
    }
}
