//! Where a container's groups are: path rules and the layout of the machine.
//!
//! # Rules of the fs driver, which are runc's
//!
//! | `cgroupsPath` | group                                        |
//! |---------------|----------------------------------------------|
//! | absolute      | below the root of each hierarchy             |
//! | relative      | v1: below the caller's own group; v2: beside it, since a v2 group with processes cannot have children with controllers |
//! | absent        | the same, with the container's id as path    |
//!
//! Paths are cleaned first, so that none leads out of where it begins.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{stat, statfs};

use super::Error;

/// Where the hierarchies are.
pub(super) const ROOT: &str = "/sys/fs/cgroup";

/// Where hybrid machines have the v2 hierarchy, below [`ROOT`].
const HYBRID: &str = "unified";

/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2_MAGIC: u32 = 0x6367_7270;

/// The v1 hierarchies that a container joins, in the order in which it does.
const LEGACY: [&str; 15] = [
    "cpuset",
    "devices",
    "memory",
    "cpu",
    "cpuacct",
    "pids",
    "blkio",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "freezer",
    "rdma",
    "name=systemd",
    "misc",
];

/// A hierarchy, as the caller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// The controllers that it has, or an empty one for v2.
    pub(super) controllers: Vec<String>,
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// The caller's own group in it.
    own: String,
}

/// How the machine's control groups are laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// One v2 hierarchy.
    Unified(Hierarchy),
    /// v1 hierarchies, and on hybrid machines a v2 one for tracking processes.
    Legacy(Vec<Hierarchy>),
}

impl Layout {
    /// Looks at the machine.
    pub(super) fn detect() -> Result<Self, Error> {
        let fail = |what| move |source: io::Error| Error::Layout { what, source: Some(source) };
        let own =
            fs::read_to_string("/proc/self/cgroup").map_err(fail("read /proc/self/cgroup"))?;
        if is_unified(Path::new(ROOT)) {
            let own = parse_own(&own)
                .find_map(|(controllers, own)| controllers.is_empty().then(|| own.to_owned()))
                .ok_or(Error::Layout { what: "no v2 line in /proc/self/cgroup", source: None })?;
            let mount = PathBuf::from(ROOT);
            return Ok(Self::Unified(Hierarchy { controllers: vec![String::new()], mount, own }));
        }
        let entries = fs::read_dir(ROOT).map_err(fail("read /sys/fs/cgroup"))?;
        let names: BTreeSet<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        let mut hierarchies = legacy(&own, &names);
        let hybrid = Path::new(ROOT).join(HYBRID);
        if !(names.contains(HYBRID) && is_unified(&hybrid)) {
            hierarchies.retain(|hierarchy| hierarchy.mount != hybrid);
        }
        if !hierarchies.iter().any(|hierarchy| hierarchy.has("devices")) {
            return Err(Error::Layout {
                what: "no devices hierarchy below /sys/fs/cgroup",
                source: None,
            });
        }
        Ok(Self::Legacy(hierarchies))
    }
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }

    /// The directory of the group `inner`.
    pub(super) fn directory(&self, inner: &Inner, beside: bool) -> Result<PathBuf, Error> {
        match inner {
            Inner::Absolute(path) => Ok(self.mount.join(path)),
            Inner::Relative(path) => {
                let own = self.own_directory()?;
                let base = if beside && own != self.mount {
                    own.parent().unwrap_or(&self.mount).to_owned()
                } else {
                    own
                };
                Ok(base.join(path))
            }
        }
    }

    /// The directory of the caller's own group.
    fn own_directory(&self) -> Result<PathBuf, Error> {
        let own = self.own.trim_start_matches('/');
        // The root of a whole hierarchy has inode 1. Inside a container without a cgroup
        // namespace only a part of it may be mounted, and then paths begin elsewhere.
        if own.is_empty() || stat(&self.mount).is_ok_and(|stat| stat.st_ino == 1) {
            return Ok(self.mount.join(own));
        }
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(|source| {
            Error::Layout { what: "read /proc/self/mountinfo", source: Some(source) }
        })?;
        let root = mount_root(&mountinfo, &self.mount).unwrap_or("/");
        let below = Path::new(&self.own).strip_prefix(root).unwrap_or(Path::new(own));
        Ok(self.mount.join(below))
    }
}

/// A group's path below a hierarchy, cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Inner {
    /// Seen from the hierarchy's root.
    Absolute(PathBuf),
    /// Seen from the caller's own group.
    Relative(PathBuf),
}

impl Inner {
    /// The path that the fs driver makes of a spec.
    pub(super) fn of(cgroups_path: Option<&str>, id: &str) -> Self {
        let path = cgroups_path.unwrap_or_default();
        let clean = clean(path);
        if path.starts_with('/') {
            Self::Absolute(clean)
        } else if clean.as_os_str().is_empty() {
            Self::Relative(PathBuf::from(id))
        } else {
            Self::Relative(clean)
        }
    }
}

/// Resolves `.` and `..` without looking at the disk, and never above the beginning.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

fn is_unified(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type as u64 == u64::from(CGROUP2_MAGIC))
}

/// The lines of `/proc/self/cgroup`: controllers and the caller's group.
pub(super) fn parse_own(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        rest.split_once(':')
    })
}

/// The hierarchies that `/proc/self/cgroup` has and for which there is a directory.
pub(super) fn legacy(own: &str, names: &BTreeSet<String>) -> Vec<Hierarchy> {
    let mut hierarchies = Vec::with_capacity(LEGACY.len() + 1);
    for (controllers, own) in parse_own(own) {
        let wanted = controllers.is_empty() || controllers.split(',').any(|c| LEGACY.contains(&c));
        let Some(directory) = mount_name(controllers, names).filter(|_| wanted) else { continue };
        hierarchies.push(Hierarchy {
            controllers: controllers.split(',').map(str::to_owned).collect(),
            mount: Path::new(ROOT).join(directory),
            own: own.to_owned(),
        });
    }
    let rank = |hierarchy: &Hierarchy| {
        LEGACY.iter().position(|name| hierarchy.has(name)).unwrap_or(LEGACY.len())
    };
    hierarchies.sort_by_key(rank);
    hierarchies
}

/// The directory for a list of controllers; the list may be in another order there.
fn mount_name<'a>(controllers: &'a str, names: &'a BTreeSet<String>) -> Option<&'a str> {
    if controllers.is_empty() {
        return Some(HYBRID);
    }
    let plain = controllers.strip_prefix("name=").unwrap_or(controllers);
    if names.contains(plain) {
        return Some(plain);
    }
    let set: BTreeSet<&str> = plain.split(',').collect();
    names
        .iter()
        .map(String::as_str)
        .find(|name| name.split(',').collect::<BTreeSet<_>>() == set)
        .or_else(|| plain.split(',').find(|controller| names.contains(*controller)))
}

/// The part of a filesystem that is mounted at `mount`.
pub(super) fn mount_root<'a>(mountinfo: &'a str, mount: &Path) -> Option<&'a str> {
    let mut found = None;
    for line in mountinfo.lines() {
        let mut fields = line.split(' ').skip(3);
        if let (Some(root), Some(point)) = (fields.next(), fields.next())
            && Path::new(point) == mount
        {
            found = Some(root);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_path() {
        let absolute = |path: &str| Inner::Absolute(PathBuf::from(path));
        let relative = |path: &str| Inner::Relative(PathBuf::from(path));
        let cases = [
            ("absent", None, relative("id")),
            ("empty", Some(""), relative("id")),
            ("absolute", Some("/docker/abc"), absolute("docker/abc")),
            ("absolute, dots", Some("/../../etc/./abc//d/.."), absolute("etc/abc")),
            ("relative", Some("a/b"), relative("a/b")),
            ("relative, dots", Some("../../a/../../b"), relative("b")),
            ("only dots", Some("../.."), relative("id")),
            ("root", Some("/"), absolute("")),
        ];
        for (case, path, want) in cases {
            assert_eq!(Inner::of(path, "id"), want, "{case}");
        }
    }

    #[test]
    fn legacy_hierarchies() {
        let names =
            ["cpu,cpuacct", "cpu", "memory", "systemd", "unified", "net_prio,net_cls", "devices"];
        let names: BTreeSet<String> = names.into_iter().map(str::to_owned).collect();
        let own = "9:name=systemd:/a\n5:net_cls,net_prio:/\n4:devices:/d\n3:cpuset:/\n\
                   2:cpu,cpuacct:/c\n1:name=mine:/\n0::/u\n";
        let hierarchy = |controllers: &str, mount: &str, own: &str| Hierarchy {
            controllers: controllers.split(',').map(str::to_owned).collect(),
            mount: Path::new(ROOT).join(mount),
            own: own.to_owned(),
        };
        let want = vec![
            hierarchy("devices", "devices", "/d"),
            hierarchy("cpu,cpuacct", "cpu,cpuacct", "/c"),
            hierarchy("net_cls,net_prio", "net_prio,net_cls", "/"),
            hierarchy("name=systemd", "systemd", "/a"),
            hierarchy("", "unified", "/u"),
        ];
        assert_eq!(legacy(own, &names), want);
    }

    #[test]
    fn root_of_a_mount() {
        let text = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                    36 31 0:33 /docker/x /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n";
        assert_eq!(mount_root(text, Path::new("/sys/fs/cgroup/devices")), Some("/docker/x"));
        assert_eq!(mount_root(text, Path::new("/sys/fs/cgroup")), None);
    }
}
