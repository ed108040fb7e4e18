//! The root filesystem: made a mount of its own, filled, and entered.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, openat, statx},
    io::Errno,
    mount::{UnmountFlags, unmount},
    process::{chdir, chroot, fchdir, pivot_root},
};
use sys::mount_attributes::{Attributes, set_attributes};

use crate::{
    error::Error,
    mount::{attach, options::Propagation},
    proc,
};

/// How the process comes into its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The old root is exchanged for the new one and let go.
    Pivot,
    /// The new root is moved over the old one, for hosts that run from an initial ramdisk.
    Move,
    /// There is no mount namespace of its own.
    Chroot,
}

/// What the host's mounts become in a container whose configuration says nothing.
const PROPAGATION: Propagation = Propagation { kind: libc::MS_SLAVE, recursive: true };

/// Cuts this mount namespace off from the host's as `given` says, and makes `path` a mount of its
/// own; returns its descriptor.
///
/// Where nothing is given the host's mounts become slaves, from which binds are made, but the root
/// is private, as runc's: what is mounted into it on the host later is not seen in the container.
pub(crate) fn prepare(path: &Path, given: Option<Propagation>) -> Result<OwnedFd, Error> {
    let fail = |error: Errno| Error::file("prepare rootfs", path, error);
    let propagation = given.unwrap_or(PROPAGATION);
    // Unbindable is for the container's root alone: the host's could not be bound from any more.
    let kind = match propagation.kind {
        libc::MS_UNBINDABLE => libc::MS_PRIVATE,
        kind => kind,
    };
    let host = open_path("/").map_err(fail)?;
    set_propagation(host.as_fd(), Propagation { kind, recursive: true })?;
    if given.is_none() || kind == libc::MS_SHARED {
        make_parent_private(path)?;
    }
    mount_on_itself(path)
}

/// Makes `path` a mount of its own; returns its descriptor.
pub(super) fn mount_on_itself(path: &Path) -> Result<OwnedFd, Error> {
    let fail = |error: Errno| Error::file("prepare rootfs", path, error);
    let tree = attach::clone_tree(path, true)?;
    let target = open_path(path).map_err(fail)?;
    attach::put(tree.as_fd(), target.as_fd()).map_err(fail)?;
    Ok(tree)
}

/// Opens the root where nothing is mounted.
pub(super) fn open_path(path: impl AsRef<Path>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path.as_ref(), flags, Mode::empty())
}

/// Makes the mount that `path` is in private, so that what is mounted on it stays here, which
/// pivot_root(2) requires.
fn make_parent_private(path: &Path) -> Result<(), Error> {
    let fail = |error: Errno| Error::file("make private the mount of", path, error);
    for directory in path.ancestors() {
        let directory = open_path(directory).map_err(fail)?;
        let found =
            statx(&directory, "", AtFlags::EMPTY_PATH, StatxFlags::empty()).map_err(fail)?;
        if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            let private = Propagation { kind: libc::MS_PRIVATE, recursive: false };
            return set_propagation(directory.as_fd(), private);
        }
    }
    Ok(())
}

fn set_propagation(mount: BorrowedFd<'_>, propagation: Propagation) -> Result<(), Error> {
    let attributes = Attributes { propagation: propagation.kind, ..Attributes::default() };
    set_attributes(mount, propagation.recursive, &attributes)
        .map_err(|error| Error::system("set propagation of", "root", error))
}

/// Makes the root's mount read-only.
pub(super) fn make_readonly(root: BorrowedFd<'_>) -> Result<(), Error> {
    let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
    set_attributes(root, false, &attributes)
        .map_err(|error| Error::system("make read-only", "rootfs", error))
}

/// Makes `root` this process's root and working directory.
pub(super) fn enter(
    root: &OwnedFd,
    entry: Entry,
    propagation: Option<Propagation>,
) -> Result<(), Error> {
    let fail = |error: Errno| Error::system("enter", "rootfs", error);
    let propagation = propagation.unwrap_or(PROPAGATION);
    match entry {
        Entry::Pivot => {
            pivot(root, propagation).map_err(|error| Error::system("pivot_root", ".", error))?
        }
        Entry::Move => move_over(root)?,
        Entry::Chroot => {
            fchdir(root).map_err(fail)?;
            chroot(".").map_err(fail)?;
        }
    }
    chdir("/").map_err(fail)?;
    let late = matches!(propagation.kind, libc::MS_SHARED | libc::MS_UNBINDABLE);
    if entry != Entry::Chroot && late {
        let new = open_path("/").map_err(fail)?;
        set_propagation(new.as_fd(), propagation)?;
    }
    Ok(())
}

/// Exchanges the roots; the old one is stacked below the new one and then taken away. That it is
/// a slave, or private, keeps the host from seeing it go.
fn pivot(root: &OwnedFd, propagation: Propagation) -> Result<(), Errno> {
    let old = open_path("/")?;
    fchdir(root)?;
    pivot_root(".", ".")?;
    fchdir(&old)?;
    // A host has hundreds of mounts, so what `prepare` did to each is not done again.
    let cut_off = propagation.recursive && propagation.kind != libc::MS_SHARED;
    if !cut_off {
        let slave = Attributes { propagation: libc::MS_SLAVE, ..Attributes::default() };
        set_attributes(old.as_fd(), true, &slave)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    }
    unmount(".", UnmountFlags::DETACH)
}

/// Moves the new root over the old one. What of the old one's procfs and sysfs could be reached
/// again by mounting anew is taken away first.
fn move_over(root: &OwnedFd) -> Result<(), Error> {
    let fail = |error: Errno| Error::system("move", "rootfs to /", error);
    for line in proc::read(CWD, "/proc/self/mountinfo")?.lines().rev() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let kind = right.split(' ').next();
        let Some(point) = left.split(' ').nth(4) else { continue };
        if !matches!(kind, Some("proc" | "sysfs")) || is_inside(root, point) {
            continue;
        }
        match unmount(point, UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(Error::file("unmount", point, error)),
        }
    }
    fchdir(root).map_err(fail)?;
    let old = open_path("/").map_err(fail)?;
    attach::put(root.as_fd(), old.as_fd()).map_err(fail)?;
    chroot(".").map_err(fail)
}

/// Says whether a mount point of mountinfo is below the new root.
fn is_inside(root: &OwnedFd, point: &str) -> bool {
    use std::os::fd::AsRawFd as _;
    let link = format!("/proc/self/fd/{}", root.as_raw_fd());
    match rustix::fs::readlink(link, Vec::new()) {
        Ok(root) => Path::new(point).starts_with(&*root.to_string_lossy()),
        // Once /proc is gone, nothing of it is left outside.
        Err(_) => true,
    }
}
