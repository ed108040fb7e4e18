//! What is fuzzed: a function for each text that somebody else writes.
//!
//! Nothing that comes in may panic, and some things must hold of what comes out. The functions are
//! called by `fuzz/`, which looks for new texts, and by this crate's tests, which run the seeds and
//! what is near them. Nothing here acts: no file is opened, no process made.

use std::collections::BTreeSet;

use crate::{
    cgroup, cli, container, criu,
    id::ContainerId,
    init::{channel::Message, devices, program, sysctl},
    mount, seccomp,
    spec::{self, Process, Spec},
    state::State,
};

/// A target: its name, which is that of its directory of seeds, and what is called.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 11] = [
    ("config", config),
    ("process", process),
    ("seccomp", seccomp::fuzz::profile),
    ("devices", cgroup::fuzz::devices),
    ("resources", cgroup::fuzz::resources),
    ("passwd", passwd),
    ("mountinfo", mountinfo),
    ("cgroups", cgroup::fuzz::paths),
    ("state", state),
    ("criu", criu::fuzz),
    ("words", words),
];

/// Runs one target.
///
/// # Panics
///
/// When there is no such target, or on a fault.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("target is listed");
    target(data);
}

/// `config.json`, and all that is planned from it.
fn config(data: &[u8]) {
    let Ok(spec) = Spec::parse(data) else { return };
    for mount in &spec.mounts {
        let plan = mount::plan(mount).expect("was checked");
        assert!(is_inside(&plan.destination), "{mount:?}");
    }
    let nodes = devices::plan(&spec.linux.devices);
    assert!(nodes.iter().all(|node| is_inside(node.path())), "{:?}", spec.linux.devices);
    for name in spec.linux.sysctl.keys() {
        assert!(sysctl::is_allowed_path(name), "{name}");
    }
    if let Some(profile) = &spec.linux.seccomp {
        seccomp::fuzz::compile(profile);
    }
    if let Some(resources) = &spec.linux.resources {
        cgroup::fuzz::plan(resources);
    }
    if let Some(process) = &spec.process {
        environment(process);
    }
}

/// Whether a path is relative and clean, so that it cannot lead out of where it begins.
fn is_inside(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// What `exec --process` reads.
fn process(data: &[u8]) {
    if let Ok(process) = Process::parse(data) {
        environment(&process);
    }
}

fn environment(process: &spec::Process) {
    assert_ne!(process.user.uid, u32::MAX);
    assert_ne!(process.user.gid, u32::MAX);
    let variables = program::environment(&process.env, || "/".to_owned());
    let names: BTreeSet<_> = variables.iter().map(|one| one.split('=').next()).collect();
    assert_eq!(names.len(), variables.len(), "{variables:?}");
    assert!(names.contains(&Some("HOME")), "{variables:?}");
}

/// `/etc/passwd` of an image.
fn passwd(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for uid in [0, 1, 1000, u32::MAX] {
        if let Some(home) = program::home_in(&text, uid) {
            assert!(!home.is_empty() && !home.contains(['\n', ':']), "{home:?}");
        }
    }
}

/// `/proc/self/mountinfo`, and after an empty line `/proc/self/cgroup`.
fn mountinfo(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (mounts, own) = text.split_once("\n\n").unwrap_or((&text, ""));
    mount::cgroupfs::fuzz(mounts, own);
    cgroup::fuzz::layout(mounts, own);
}

/// A record, the status of a process, and what an init says.
fn state(data: &[u8]) {
    let state = State::salvage(data);
    state.bundle();
    state.annotations();
    if let Ok(state) = serde_json::from_slice::<State>(data) {
        let text = serde_json::to_vec(&state).expect("can be written");
        let again: State = serde_json::from_slice(&text).expect("can be read");
        assert_eq!(again.bundle(), state.bundle());
        assert_eq!(again.annotations(), state.annotations());
    }
    container::parse_stat(&String::from_utf8_lossy(data));
    let _ = Message::decode(data, None);
}

/// A command line, one word a line.
fn words(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(id) = text.lines().next().unwrap_or_default().parse::<ContainerId>() {
        assert!(is_inside(id.as_str()), "{id}");
    }
    let words: Vec<String> = text.lines().map(str::to_owned).collect();
    cli::fuzz(&words);
}
