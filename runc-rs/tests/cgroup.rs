//! Control groups on the real kernel, whatever its layout is: v1, hybrid or v2.
//!
//! Needs root and a static busybox. Makes groups of its own below the root of each hierarchy and
//! removes them.

use std::{
    fs,
    io::Write as _,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use runc_rs::{
    cgroup::{Cgroup, Error},
    spec::resources::LinuxResources,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::Signal,
};

/// How long anything may take that the kernel does by and by.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Groups that are gone when the test is over, however it ends.
struct Group(Cgroup);

impl Group {
    fn new(test: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "needs root: it makes cgroups");
        let path = format!("/gantry-test-{test}-{}/inner", std::process::id());
        Self(Cgroup::plan(Some(&path), "unused", false).expect("plan"))
    }

    fn file(&self, controller: &str, name: &str) -> String {
        let paths = self.0.paths();
        let directory = paths.get(controller).or(paths.get("")).expect("has the controller");
        let path = directory.join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn has(&self, controller: &str) -> bool {
        match self.0.is_unified() {
            true => fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
                .is_ok_and(|list| list.split_whitespace().any(|name| name == controller)),
            false => self.0.paths().contains_key(controller),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.0.kill_all(Signal::KILL);
        let _ = self.0.destroy();
        for path in self.0.paths().values() {
            let _ = fs::remove_dir(path.parent().expect("is below a parent"));
        }
    }
}

/// A shell that waits for a line before it runs `script`; killed at the end.
struct Waiting(Child);

impl Waiting {
    fn new(script: &str) -> Self {
        let child = Command::new("busybox")
            .args(["sh", "-c", &format!("read line; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("busybox starts");
        Self(child)
    }

    /// Lets it go on; returns whether it succeeded, and what it said.
    fn run(&mut self) -> (bool, String) {
        self.0.stdin.take().expect("is piped").write_all(b"\n").expect("it waits");
        let status = self.0.wait().expect("it ends");
        let mut text = String::new();
        use std::io::Read as _;
        let _ = self.0.stdout.take().expect("is piped").read_to_string(&mut text);
        let _ = self.0.stderr.take().expect("is piped").read_to_string(&mut text);
        (status.success(), text)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).expect("is valid")
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn exists(paths: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    paths.into_iter().filter(|path| Path::new(path).is_dir()).collect()
}

#[test]
fn life() {
    let group = Group::new("life");
    let cgroup = &group.0;
    cgroup.create(None).expect("create");
    let mut child = Waiting::new("sleep 100 & wait");
    cgroup.join(child.0.id()).expect("join");
    assert_eq!(cgroup.pids(true).expect("pids"), [child.0.id()]);
    let membership =
        fs::read_to_string(format!("/proc/{}/cgroup", child.0.id())).expect("it lives");
    for line in membership.lines().filter(|line| !line.contains("name=")) {
        let known = cgroup.paths().keys().any(|name| line.contains(&format!(":{name}:")));
        assert!(!known || line.contains("gantry-test-life"), "{line}");
    }

    let again = Cgroup::load(cgroup.paths());
    assert_eq!(again.paths(), cgroup.paths());
    assert!(matches!(again.create(None), Err(Error::NotEmpty { processes: 1 })));
    assert!(exists(cgroup.paths().into_values()).len() == cgroup.paths().len());

    again.freeze().expect("freeze");
    assert!(again.is_frozen().expect("state"));
    again.thaw().expect("thaw");
    assert!(!again.is_frozen().expect("state"));

    again.freeze().expect("freeze");
    again.kill_all(Signal::KILL).expect("kill");
    assert!(!child.0.wait().expect("it is dead").success());
    again.destroy().expect("destroy");
    assert_eq!(exists(cgroup.paths().into_values()), Vec::<PathBuf>::new());
    again.destroy().expect("is gone already");
    // Whoever has killed a container may come after somebody who has deleted it.
    let late = cgroup.is_frozen().expect_err("is gone");
    assert!(matches!(late, Error::File { .. }), "{late:?}");
    cgroup.thaw_if_frozen().expect("nothing is frozen there");
}

/// What v1 shows without a soft limit.
const SOFT_LIMIT_NONE: &str = "9223372036854771712";

/// Controller, file and content.
type Content = (&'static str, &'static str, &'static str);

/// A change, and what the files of v1 and of v2 contain after it.
struct Step {
    name: &'static str,
    resources: &'static str,
    legacy: &'static [Content],
    unified: &'static [Content],
}

const STEPS: [Step; 3] = [
    Step {
        name: "created",
        resources: r#"{"memory":{"limit":33554432,"swap":67108864,"reservation":16777216},
            "cpu":{"shares":512,"quota":20000,"period":50000,"burst":1000},
            "pids":{"limit":17}}"#,
        legacy: &[
            ("memory", "memory.limit_in_bytes", "33554432"),
            ("memory", "memory.memsw.limit_in_bytes", "67108864"),
            ("memory", "memory.soft_limit_in_bytes", "16777216"),
            ("cpu", "cpu.shares", "512"),
            ("cpu", "cpu.cfs_quota_us", "20000"),
            ("cpu", "cpu.cfs_period_us", "50000"),
            ("pids", "pids.max", "17"),
        ],
        unified: &[
            ("", "memory.max", "33554432"),
            ("", "memory.low", "16777216"),
            ("", "cpu.weight", "59"),
            ("", "cpu.max", "20000 50000"),
            ("", "pids.max", "17"),
        ],
    },
    Step {
        name: "raised",
        resources: r#"{"memory":{"limit":134217728,"swap":268435456},"cpu":{"quota":-1},
            "pids":{"limit":-1}}"#,
        legacy: &[
            ("memory", "memory.limit_in_bytes", "134217728"),
            ("memory", "memory.memsw.limit_in_bytes", "268435456"),
            ("cpu", "cpu.cfs_quota_us", "-1"),
            ("pids", "pids.max", "max"),
        ],
        unified: &[
            ("", "memory.max", "134217728"),
            ("", "cpu.max", "max 50000"),
            ("", "pids.max", "max"),
        ],
    },
    Step {
        name: "lowered",
        resources: r#"{"memory":{"limit":16777216,"swap":16777216},"pids":{"limit":0}}"#,
        legacy: &[
            ("memory", "memory.limit_in_bytes", "16777216"),
            ("memory", "memory.memsw.limit_in_bytes", "16777216"),
            ("pids", "pids.max", "1"),
        ],
        unified: &[("", "memory.max", "16777216"), ("", "pids.max", "1")],
    },
];

#[test]
fn limits() {
    let group = Group::new("limits");
    if !group.has("memory") {
        eprintln!("this cgroup2 hierarchy has no controllers: no limits to test");
        return;
    }
    group.0.create(Some(&resources(STEPS[0].resources))).expect("create");
    for step in STEPS {
        group.0.apply(&resources(step.resources)).expect(step.name);
        let want = if group.0.is_unified() { step.unified } else { step.legacy };
        for (controller, name, want) in want {
            let got = group.file(controller, name);
            // Newer kernels take soft limits of v1 and have none.
            if *name == "memory.soft_limit_in_bytes" && got.trim_end() == SOFT_LIMIT_NONE {
                continue;
            }
            assert_eq!(got.trim_end(), *want, "{}: {name}", step.name);
        }
    }
}

#[test]
fn limits_needs_cpuset() {
    let group = Group::new("cpuset");
    if !group.has("cpuset") {
        eprintln!("this cgroup2 hierarchy has no controllers: no limits to test");
        return;
    }
    group.0.create(Some(&resources(r#"{"cpu":{"cpus":"0","mems":"0"}}"#))).expect("create");
    for file in ["cpuset.cpus", "cpuset.mems"] {
        assert_eq!(group.file("cpuset", file).trim_end(), "0", "{file}");
    }
}

#[test]
fn a_refused_limit_leaves_nothing() {
    let group = Group::new("refused");
    let bad = [
        r#"{"cpu":{"cpus":"4096"}}"#,
        r#"{"memory":{"swappiness":101,"limit":6,"swap":5}}"#,
        r#"{"devices":[{"allow":true,"type":"q","access":"r"}]}"#,
    ];
    for json in bad {
        if json.contains("cpus") && !group.has("cpuset") {
            continue;
        }
        group.0.create(Some(&resources(json))).expect_err(json);
        assert_eq!(exists(group.0.paths().into_values()), Vec::<PathBuf>::new(), "{json}");
        let parents =
            group.0.paths().into_values().filter_map(|path| Some(path.parent()?.to_owned()));
        assert_eq!(exists(parents), Vec::<PathBuf>::new(), "{json}");
    }
}

#[test]
fn devices() {
    let cases = [
        ("what every container may use", "[]", "/dev/null", true),
        ("anything else", "[]", "/dev/kmsg", false),
        (
            "listed",
            r#"[{"allow":false,"access":"rwm"},
                {"allow":true,"type":"c","major":1,"minor":11,"access":"rw"}]"#,
            "/dev/kmsg",
            true,
        ),
        ("everything", r#"[{"allow":true,"access":"rwm"}]"#, "/dev/kmsg", true),
        (
            "all but one",
            r#"[{"allow":true,"access":"rwm"},
                {"allow":false,"type":"c","major":1,"minor":11,"access":"r"}]"#,
            "/dev/kmsg",
            false,
        ),
    ];
    for (case, rules, device, want) in cases {
        let group = Group::new("devices");
        let resources = resources(&format!(r#"{{"devices":{rules}}}"#));
        group.0.create(Some(&resources)).expect(case);
        let mut child = Waiting::new(&format!("exec 3<>{device}"));
        group.0.join(child.0.id()).expect("join");
        let (got, text) = child.run();
        assert_eq!(got, want, "{case}: {text}");
    }
}

#[test]
fn memory_kills_are_told() {
    let group = Group::new("oom");
    if !group.has("memory") {
        eprintln!("this cgroup2 hierarchy has no controllers: no memory to run out of");
        return;
    }
    let resources = resources(r#"{"memory":{"limit":4194304,"swap":4194304}}"#);
    group.0.create(Some(&resources)).expect("create");
    let watch = group.0.oom_watch().expect("watch");
    assert_eq!(watch.kills().expect("count"), Some(0));
    let mut child = Waiting::new("x=1234567890123456; while :; do x=$x$x; done");
    group.0.join(child.0.id()).expect("join");
    assert!(!child.run().0, "is killed");
    wait_for("the watch tells", || {
        let timeout = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut [PollFd::new(&watch.as_fd(), PollFlags::IN)], Some(&timeout)).expect("poll") > 0
    });
    wait_for("the count rises", || watch.kills().expect("count") >= Some(1));
    assert!(group.0.oom_kills().expect("count") >= 1);
    group.0.destroy().expect("destroy");
    wait_for("the end is told", || watch.kills().expect("count").is_none());
}

/// runc needs 7 MB here; what is charged is what runs after the limit is set.
#[test]
fn a_tiny_limit_starts() {
    let group = Group::new("tiny");
    if !group.has("memory") {
        eprintln!("this cgroup2 hierarchy has no controllers: no limits to test");
        return;
    }
    group.0.create(Some(&resources(r#"{"memory":{"limit":524288}}"#))).expect("create");
    let mut child = Waiting::new("exec busybox true");
    group.0.join(child.0.id()).expect("join");
    let (ran, text) = child.run();
    assert!(ran, "{text}");
}

#[test]
fn statistics() {
    let group = Group::new("stats");
    group.0.create(None).expect("create");
    let mut child = Waiting::new(
        "x=12345678; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17; do x=$x$x; done; read line",
    );
    group.0.join(child.0.id()).expect("join");
    child.0.stdin.as_mut().expect("is piped").write_all(b"\n").expect("it waits");
    let has_memory = group.has("memory");
    wait_for("CPU time and memory are counted", || {
        let stats = group.0.stats().expect("stats");
        stats.cpu.total > 1_000_000 && (stats.memory.usage.usage > 100_000 || !has_memory)
    });
    let stats = group.0.stats().expect("stats");
    assert_eq!(stats.pids.current, 1);
    if has_memory {
        assert!(stats.memory.usage.limit > 1 << 60, "{:?}", stats.memory.usage);
        assert!(!stats.memory.raw.is_empty() && stats.memory.events.contains_key("oom_kill"));
    }
    if !group.0.is_unified() {
        assert!(!stats.cpu.per_cpu.is_empty(), "{stats:?}");
        assert_eq!(stats.cpuset.cpus.is_empty(), !group.has("cpuset"), "{stats:?}");
    }
}

#[test]
fn groups_below() {
    let group = Group::new("below");
    group.0.create(None).expect("create");
    let paths = group.0.paths();
    for path in paths.values() {
        // Controllers may share a hierarchy, and then this is there already.
        fs::create_dir_all(path.join("sub")).expect("make a group below");
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(list) = fs::read_to_string(path.join(file))
                && !list.trim().is_empty()
            {
                fs::write(path.join("sub").join(file), list.trim()).expect("inherit");
            }
        }
    }
    let child = Waiting::new("sleep 100");
    let pid = child.0.id();
    for bad in ["../elsewhere", "missing"] {
        group.0.join_below(Path::new(bad), pid).expect_err(bad);
    }
    group.0.join_below(Path::new("/sub"), pid).expect("join");
    assert_eq!(group.0.pids(false).expect("pids"), Vec::<u32>::new());
    assert_eq!(group.0.pids(true).expect("pids"), [pid]);
    group.0.kill_all(Signal::TERM).expect("kill");
    drop(child);
    group.0.destroy().expect("destroy");
    assert_eq!(exists(paths.into_values()), Vec::<PathBuf>::new());
}
