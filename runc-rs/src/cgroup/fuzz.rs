//! What is fuzzed of the cgroups; see [`crate::fuzz`].

use std::{
    collections::BTreeSet,
    path::{Component, Path},
};

use super::{
    devices::{DeviceSet, interpret, program::program},
    limits,
    path::{Inner, legacy, mount_root, parse_own},
    processes, stats,
};
use crate::spec::resources::{LinuxDeviceCgroup, LinuxResources};

/// Device rules, four bytes each: the program for v2 and the lines for v1 decide the same.
pub(crate) fn devices(data: &[u8]) {
    let rules: Vec<LinuxDeviceCgroup> = data.chunks_exact(4).take(64).map(rule).collect();
    let Ok(set) = DeviceSet::of_container(&rules) else { return };
    let code = program(&set);
    let lines = set.lines(None);
    let lines: Vec<_> = lines.iter().map(|line| (line.file, line.text.as_str())).collect();
    for kind in [1, 2] {
        for major in [0, 1, 5, 8, 10, 136] {
            for minor in [0, 1, 3, 200] {
                for access in 1..8 {
                    let got = interpret::run(&code, kind, access, major, minor);
                    let want = legacy_decision(&lines, (kind, access, major, minor));
                    assert_eq!(got, want, "{rules:?}: {kind} {access} {major}:{minor}");
                }
            }
        }
    }
}

fn rule(bytes: &[u8]) -> LinuxDeviceCgroup {
    let number = |byte: u8| {
        [None, Some(-1), Some(0), Some(1), Some(3), Some(5), Some(8), Some(1 << 33)]
            [usize::from(byte & 7)]
    };
    let letters = [(1, 'm'), (2, 'r'), (4, 'w')];
    LinuxDeviceCgroup {
        allow: bytes[0] & 1 != 0,
        kind: ["c", "b", "a", "c", "b", "c", "b", "x"][usize::from(bytes[0] >> 1 & 7)].to_owned(),
        major: number(bytes[1]),
        minor: number(bytes[2]),
        access: letters.iter().filter(|(bit, _)| bytes[3] & bit != 0).map(|(_, one)| one).collect(),
    }
}

/// What the kernel's v1 controller makes of lines, as simple as it can be said: the last "all"
/// sets the default and forgets the rest, and every other line is an exception from it.
fn legacy_decision(lines: &[(&str, &str)], request: (u32, u32, u32, u32)) -> bool {
    let (kind, access, major, minor) = request;
    let mut default = false;
    let mut excepted = false;
    for (file, text) in lines {
        let allow = *file == "devices.allow";
        if text.starts_with('a') {
            (default, excepted) = (allow, false);
            continue;
        }
        assert_ne!(allow, default, "{text} is no exception");
        let words: Vec<&str> = text.split([' ', ':']).collect();
        let is = |word: &str, number: u32| word == "*" || word == number.to_string();
        let bits = [('m', 1), ('r', 2), ('w', 4)];
        let bits = bits.iter().filter(|(letter, _)| words[3].contains(*letter));
        let bits: u32 = bits.map(|(_, bit)| bit).sum();
        let covers = if allow { bits & access == access } else { bits & access != 0 };
        let same = words[0] == ["b", "c"][kind as usize - 1];
        excepted |= same && is(words[1], major) && is(words[2], minor) && covers;
    }
    default != excepted
}

/// Limits as text.
pub(crate) fn resources(data: &[u8]) {
    if let Ok(resources) = serde_json::from_slice(data) {
        plan(&resources);
    }
}

/// Plans what is written for limits: to files of the group, and none of another's.
pub(crate) fn plan(resources: &LinuxResources) {
    let controllers =
        ["cpuset", "memory", "cpu", "pids", "blkio", "hugetlb", "net_cls", "net_prio", "rdma"];
    let mut plans: Vec<_> =
        controllers.iter().map(|controller| limits::v1(controller, resources)).collect();
    plans.push(limits::v2(resources));
    plans.push(limits::unified(resources));
    for write in plans.into_iter().flatten().flatten() {
        assert!(!write.file.contains('/') && !write.file.starts_with('.'), "{write:?}");
    }
    if let Some(memory) = &resources.memory {
        let _ = limits::refuse_below_usage(memory, u64::MAX);
    }
    let _ = DeviceSet::of_container(&resources.devices).map(|set| program(&set));
}

/// Paths of groups: a container's, and one below that.
pub(crate) fn paths(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let inside = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    let (Inner::Absolute(path) | Inner::Relative(path)) = Inner::of(Some(&text), "id");
    assert!(inside(&path), "{text:?}: {path:?}");
    if let Ok(path) = processes::below(Path::new("/group"), Path::new(&*text)) {
        let below = path.strip_prefix("/group").expect("begins there");
        assert!(inside(below), "{text:?}: {path:?}");
    }
    DeviceSet::parse(&text);
    stats::fuzz(&text);
}

/// How the machine's groups are laid out.
pub(crate) fn layout(mountinfo: &str, own: &str) {
    parse_own(own).for_each(drop);
    let names: BTreeSet<String> = ["cpu,cpuacct", "memory", "devices", "systemd", "unified"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    for hierarchy in legacy(own, &names) {
        assert!(hierarchy.mount.starts_with(super::path::ROOT), "{hierarchy:?}");
    }
    mount_root(mountinfo, Path::new("/sys/fs/cgroup/memory"));
}
