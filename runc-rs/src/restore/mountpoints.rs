//! What criu needs to find when it makes the container's mounts: a root that is a mount, and in it
//! the targets, which the runtime has made when it made the container, but maybe elsewhere.

use std::{os::fd::AsFd as _, path::Path};

use rustix::mount::{UnmountFlags, unmount};

use crate::{
    error::Error,
    init::rootfs,
    mount::{MountPlan, Source, attach::Mounter, options::Propagation},
};

/// Makes `rootfs` a mount of its own, with all targets that are in it. For a process in a new mount
/// namespace, which this cuts off from the host's.
pub(super) fn prepare(path: &Path, bundle: &Path, mounts: &[MountPlan]) -> Result<(), Error> {
    // As a container's root is by default: mounts of the host come in, none go out.
    let propagation = Propagation { kind: libc::MS_SLAVE, recursive: true };
    let root = rootfs::prepare(path, Some(propagation))?;
    let mounter = Mounter {
        root: root.as_fd(),
        root_path: path,
        bundle,
        label: "",
        cgroup_namespace: false,
        user_namespace: false,
    };
    for mount in to_make(mounts) {
        match &mount.source {
            // It may have targets of others in it, so it is mounted for now.
            Source::Bind { .. } => mounter.mount(mount, None)?,
            _ => mounter.target(mount, true).map(drop)?,
        }
    }
    // With all that is mounted in it, which criu would take for its own.
    unmount(path, UnmountFlags::DETACH).map_err(|error| Error::file("unmount", path, error))?;
    rootfs::prepare(path, Some(propagation)).map(drop)
}

/// Those mounts whose target has to be there: not those in another filesystem, which criu fills, or
/// the kernel. Cgroup mounts are in such ones, too.
fn to_make(mounts: &[MountPlan]) -> Vec<&MountPlan> {
    let covered = |at: usize, mount: &MountPlan| {
        mounts[..at].iter().any(|other| {
            let below = mount.destination.strip_prefix(&other.destination);
            !matches!(other.source, Source::Bind { .. })
                && below.is_some_and(|rest| rest.starts_with('/'))
        })
    };
    let mut made = Vec::new();
    for (at, mount) in mounts.iter().enumerate() {
        if mount.source != Source::Cgroup && !covered(at, mount) {
            made.push(mount);
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::Options;

    #[test]
    fn which_targets_are_made() {
        let plan = |destination: &str, source| MountPlan {
            destination: destination.to_owned(),
            source,
            options: Options::default(),
        };
        let bind = |destination: &str| {
            plan(destination, Source::Bind { path: "/x".to_owned(), recursive: true, idmap: None })
        };
        let tmpfs = |destination: &str| {
            let kind = "tmpfs".to_owned();
            plan(destination, Source::Filesystem { kind, name: String::new() })
        };
        let cases: [(&str, Vec<MountPlan>, &[&str]); 6] = [
            ("plain", vec![tmpfs("proc"), bind("etc/hosts")], &["proc", "etc/hosts"]),
            ("in a tmpfs", vec![tmpfs("dev"), tmpfs("dev/shm"), bind("dev/x")], &["dev"]),
            ("nested", vec![bind("test"), bind("test/nested")], &["test", "test/nested"]),
            ("beside", vec![tmpfs("dev"), bind("device")], &["dev", "device"]),
            ("before", vec![bind("run/x"), tmpfs("run")], &["run/x", "run"]),
            ("cgroup", vec![plan("sys/fs/cgroup", Source::Cgroup)], &[]),
        ];
        for (case, mounts, want) in cases {
            let made = to_make(&mounts);
            let got: Vec<_> = made.iter().map(|mount| mount.destination.as_str()).collect();
            assert_eq!(got, want, "{case}");
        }
    }
}
