//! Hides paths, and makes paths read-only.
//!
//! A masked directory shows an empty read-only tmpfs, one for all of them: making and reaping a
//! superblock per directory is most of what masking costs. A masked file shows /dev/null, which
//! was opened from the host and checked to be the device (CVE-2025-31133). It is read-only, which
//! keeps nobody from writing to a device, but a container's root from changing its mode and owner:
//! they are those of the host's /dev/null.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, major, minor, openat},
    io::Errno,
};
use sys::mount_attributes::{Attributes, set_attributes};

use crate::{
    error::Error,
    mount::{attach, options::Change, target},
};

/// Hides each of `paths`, where it exists.
pub(super) fn mask(root: BorrowedFd<'_>, paths: &[String], label: &str) -> Result<(), Error> {
    let mut null = None;
    let mut empty: Option<OwnedFd> = None;
    let mut done = BTreeSet::new();
    for path in paths {
        let fail = |error| Error::file("mask", path, error);
        let clean = target::clean(path);
        if !done.insert(clean.clone()) {
            continue;
        }
        let target = match target::open(root, &clean, OFlags::PATH) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(error) => return Err(fail(error)),
        };
        if target::is_directory(target.as_fd()).map_err(fail)? {
            let tree = match &empty {
                // The first one is attached by now, so it can be cloned.
                Some(first) => attach::clone_at(first.as_fd(), false),
                None => empty_directory(label),
            }
            .map_err(fail)?;
            attach::put(tree.as_fd(), target.as_fd()).map_err(fail)?;
            empty.get_or_insert(tree);
        } else {
            if null.is_none() {
                null = Some(open_null()?);
            }
            let Some(null) = &null else { continue };
            let tree = attach::clone_at(null.as_fd(), false).map_err(fail)?;
            set_attributes(tree.as_fd(), false, &of_null())
                .map_err(|error| Error::file("mask", path, error))?;
            attach::put(tree.as_fd(), target.as_fd()).map_err(fail)?;
        }
    }
    Ok(())
}

fn empty_directory(label: &str) -> Result<OwnedFd, Errno> {
    let mut data = vec!["nr_blocks=1".to_owned(), "nr_inodes=1".to_owned(), "mode=755".to_owned()];
    if !label.is_empty() {
        data.push(format!("context={label}"));
    }
    let readonly = Change { set: libc::MOUNT_ATTR_RDONLY, clear: 0 };
    attach::new_filesystem("tmpfs", "tmpfs", &["ro"], &data, readonly)
}

/// How a masked file is mounted.
fn of_null() -> Attributes<'static> {
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    Attributes { set, ..Attributes::default() }
}

/// Opens the host's /dev/null, and makes sure that it is.
fn open_null() -> Result<OwnedFd, Error> {
    let fail = |error| Error::file("open", "/dev/null", error);
    let null =
        openat(CWD, "/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
    let found = fstat(&null).map_err(fail)?;
    let is_null = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
        && (major(found.st_rdev), minor(found.st_rdev)) == (1, 3);
    if is_null { Ok(null) } else { Err(fail(Errno::NODEV)) }
}

/// Makes each of `paths`, where it exists, and all that is mounted below it, read-only.
pub(super) fn make_readonly(root: BorrowedFd<'_>, paths: &[String]) -> Result<(), Error> {
    for path in paths {
        let fail = |error| Error::file("make read-only", path, error);
        let target = match target::open(root, &target::clean(path), OFlags::PATH) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(error) => return Err(fail(error)),
        };
        let tree = attach::clone_at(target.as_fd(), true).map_err(fail)?;
        let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
        set_attributes(tree.as_fd(), true, &attributes)
            .map_err(|error| Error::file("make read-only", path, error))?;
        attach::put(tree.as_fd(), target.as_fd()).map_err(fail)?;
    }
    Ok(())
}
