//! The `cgroup` mount: on v2 the one hierarchy, on v1 and hybrid a tmpfs with all of them.
//!
//! With a cgroup namespace the hierarchies are mounted anew and show the container's cgroup as
//! their root. Without one, v1 hierarchies show only the container's own cgroup, as a bind mount.

use std::os::fd::AsFd as _;

use rustix::{
    fs::{CWD, statfs, symlinkat},
    io::Errno,
};

use super::{
    MountPlan,
    attach::{Mounter, clone_tree, new_filesystem, put},
    options::Change,
    target,
};
use crate::{error::Error, proc};

const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
const ROOT: &str = "/sys/fs/cgroup";

/// This process's cgroups.
const OWN: &str = "/proc/self/cgroup";

/// What every cgroup mount has.
const HARDENED: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// Makes the mount.
pub(super) fn mount(mounter: &Mounter<'_>, plan: &MountPlan) -> Result<(), Error> {
    let found = statfs(ROOT).map_err(|error| Error::file("statfs", ROOT, error))?;
    if u64::try_from(found.f_type).unwrap_or(0) == CGROUP2_SUPER_MAGIC {
        mount_v2(mounter, plan)
    } else {
        mount_v1(mounter, plan)
    }
}

fn mount_v2(mounter: &Mounter<'_>, plan: &MountPlan) -> Result<(), Error> {
    let target = mounter.target(plan, true)?;
    let tree = match new_filesystem("cgroup2", "cgroup", &[], &[], plan.options.attributes) {
        // In a user namespace without a cgroup namespace there is no right to mount it.
        Err(Errno::PERM | Errno::BUSY) => {
            let own = if mounter.cgroup_namespace {
                proc::read(CWD, OWN).ok().and_then(|own| path_in(&own, "")).unwrap_or_default()
            } else {
                String::new()
            };
            let tree = clone_tree(std::path::Path::new(&format!("{ROOT}{own}")), true)?;
            set(&tree, plan.options.attributes.set, plan)?;
            tree
        }
        result => result.map_err(|error| mounter.fail(plan, error))?,
    };
    put(tree.as_fd(), target.as_fd()).map_err(|error| mounter.fail(plan, error))?;
    mounter.finish(plan, tree.as_fd())
}

fn mount_v1(mounter: &Mounter<'_>, plan: &MountPlan) -> Result<(), Error> {
    let fail = |error| mounter.fail(plan, error);
    let target = mounter.target(plan, true)?;
    let top = Change { set: HARDENED, clear: 0 };
    let tree =
        new_filesystem("tmpfs", "tmpfs", &[], &["mode=755".to_owned()], top).map_err(fail)?;
    put(tree.as_fd(), target.as_fd()).map_err(fail)?;
    let readonly = plan.options.attributes.set & libc::MOUNT_ATTR_RDONLY;
    // Read once for all hierarchies: the kernel writes this text anew for each reader.
    let own = proc::read(CWD, OWN)?;
    for hierarchy in parse_hierarchies(&proc::read(CWD, "/proc/self/mountinfo")?, &own) {
        let at = target::make_directory(tree.as_fd(), &hierarchy.name)?;
        let mounted = if mounter.cgroup_namespace {
            let change = Change { set: HARDENED | readonly, clear: 0 };
            new_filesystem("cgroup", "cgroup", &[], &hierarchy.options, change).map_err(fail)?
        } else {
            let below = path_in(&own, &hierarchy.controllers).unwrap_or_default();
            let path = format!("{}{below}", hierarchy.mount_point);
            let tree = clone_tree(std::path::Path::new(&path), true)?;
            set(&tree, HARDENED | readonly, plan)?;
            tree
        };
        put(mounted.as_fd(), at.as_fd()).map_err(fail)?;
        if hierarchy.name.contains(',') {
            for controller in hierarchy.name.split(',') {
                match symlinkat(hierarchy.name.as_str(), &tree, controller) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(fail(error)),
                }
            }
        }
    }
    if readonly != 0 {
        set(&tree, readonly, plan)?;
    }
    mounter.finish(plan, tree.as_fd())
}

fn set(tree: &std::os::fd::OwnedFd, bits: u64, plan: &MountPlan) -> Result<(), Error> {
    let attributes = sys::mount_attributes::Attributes { set: bits, ..Default::default() };
    sys::mount_attributes::set_attributes(tree.as_fd(), false, &attributes)
        .map_err(|error| Error::file("set mount attributes of", &plan.destination, error))
}

/// A v1 hierarchy of the host.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// The directory below /sys/fs/cgroup.
    pub(crate) name: String,
    pub(crate) mount_point: String,
    /// As in /proc/self/cgroup: `cpu,cpuacct` or `name=systemd`.
    pub(crate) controllers: String,
    /// What fsconfig(2) is told to get this hierarchy.
    options: Vec<String>,
}

/// The v1 hierarchies that this process sees.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>, Error> {
    let text = proc::read(CWD, "/proc/self/mountinfo")?;
    let own = proc::read(CWD, "/proc/self/cgroup")?;
    Ok(parse_hierarchies(&text, &own))
}

/// Finds in mountinfo the v1 mounts directly below /sys/fs/cgroup; `own` is /proc/self/cgroup, which
/// tells controllers from other mount options.
fn parse_hierarchies(mountinfo: &str, own: &str) -> Vec<Hierarchy> {
    let known: Vec<&str> = own.lines().filter_map(|line| line.split(':').nth(1)).collect();
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(point), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
        let Some(name) = point.strip_prefix("/sys/fs/cgroup/") else { continue };
        if right.next() != Some("cgroup") || name.contains('/') {
            continue;
        }
        let super_options: Vec<&str> = right.nth(1).unwrap_or("").split(',').collect();
        let controllers = known.iter().find(|list| {
            !list.is_empty() && list.split(',').all(|one| super_options.contains(&one))
        });
        let Some(controllers) = controllers else { continue };
        if found.iter().any(|hierarchy| hierarchy.name == name) {
            continue;
        }
        let mut options: Vec<String> = controllers.split(',').map(str::to_owned).collect();
        if controllers.starts_with("name=") {
            options.insert(0, "none".to_owned());
        }
        found.push(Hierarchy {
            name: name.to_owned(),
            mount_point: point.to_owned(),
            controllers: (*controllers).to_owned(),
            options,
        });
    }
    found
}

/// What is fuzzed; see [`crate::fuzz`].
pub(crate) fn fuzz(mountinfo: &str, own: &str) {
    for hierarchy in parse_hierarchies(mountinfo, own) {
        assert!(!hierarchy.name.contains('/'), "{hierarchy:?}");
        assert!(hierarchy.mount_point.starts_with(ROOT), "{hierarchy:?}");
    }
}

/// This process's cgroup in the hierarchy with these controllers, none for v2's.
pub(crate) fn own_path(controllers: &str) -> Option<String> {
    path_in(&proc::read(CWD, "/proc/self/cgroup").ok()?, controllers)
}

/// The cgroup of the process whose `/proc/<pid>/cgroup` this is, in the hierarchy with these
/// controllers, none for v2's.
fn path_in(text: &str, controllers: &str) -> Option<String> {
    let path = text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        (parts.next()? == controllers).then(|| parts.next())?
    })?;
    Some(if path == "/" { String::new() } else { path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_hierarchies() {
        let mountinfo = "\
30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /elsewhere/memory rw - cgroup cgroup rw,memory
";
        let own = "3:cpu,cpuacct:/a\n2:memory:/a\n1:name=systemd:/\n0::/\n";
        let hierarchy = |name: &str, controllers: &str, options: &[&str]| Hierarchy {
            name: name.to_owned(),
            mount_point: format!("/sys/fs/cgroup/{name}"),
            controllers: controllers.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        let want = [
            hierarchy("systemd", "name=systemd", &["none", "name=systemd"]),
            hierarchy("cpu,cpuacct", "cpu,cpuacct", &["cpu", "cpuacct"]),
        ];
        assert_eq!(parse_hierarchies(mountinfo, own), want);
    }

    #[test]
    fn paths_in_hierarchies() {
        let own = "3:cpu,cpuacct:/a\n2:memory:/b:c\n1:name=systemd:/\n0::/d\n";
        let cases = [
            ("two controllers", "cpu,cpuacct", Some("/a")),
            ("colon in the path", "memory", Some("/b:c")),
            ("root", "name=systemd", Some("")),
            ("v2", "", Some("/d")),
            ("no such hierarchy", "cpu", None),
        ];
        for (case, controllers, want) in cases {
            assert_eq!(path_in(own, controllers).as_deref(), want, "{case}");
        }
    }
}
