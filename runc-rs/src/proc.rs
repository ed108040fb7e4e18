//! Small files of procfs, read and written through a directory's descriptor.
//!
//! What is below /proc in a container may be anything that the container mounted there, so writes
//! that matter (labels, sysctls) go through [`Procfs`], a procfs that is mounted nowhere.
//! CVE-2025-52881 is about runtimes that wrote to paths.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2},
    io::{Errno, read as read_fd, write as write_fd},
};

use crate::{
    error::Error,
    mount::{attach, options::Change},
};

/// The inode of a procfs's root, in every kernel.
const ROOT_INODE: u64 = 1;

/// The most bytes read of a file.
const SIZE_MAX: usize = 4 << 20;

/// Reads the file `path`, relative to `directory` or absolute.
pub(crate) fn read(directory: impl AsFd, path: &str) -> Result<String, Error> {
    let fail = |error| Error::file("read", path, error);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(directory, path, flags, Mode::empty()).map_err(fail)?;
    read_all(file.as_fd()).map_err(fail)
}

/// Reads the file `path` that a container may have put there: one that is none, such as a FIFO or
/// a device, is not waited for.
pub(crate) fn read_regular(path: &str) -> Result<String, Error> {
    let fail = |error| Error::file("read", path, error);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat(CWD, path, flags, Mode::empty()).map_err(fail)?;
    let mode = fstat(&file).map_err(fail)?.st_mode;
    if FileType::from_raw_mode(mode) != FileType::RegularFile {
        return Err(fail(Errno::INVAL));
    }
    read_all(file.as_fd()).map_err(fail)
}

fn read_all(file: BorrowedFd<'_>) -> Result<String, Errno> {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match read_fd(file, &mut chunk) {
            Ok(0) => break,
            Ok(length) if text.len() + length > SIZE_MAX => return Err(Errno::FBIG),
            Ok(length) => text.extend_from_slice(&chunk[..length]),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    String::from_utf8(text).map_err(|_| Errno::ILSEQ)
}

/// Writes `text`, in one call, to the existing file `path`, relative to `directory` or absolute.
pub(crate) fn write(directory: impl AsFd, path: &str, text: &str) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(directory, path, flags, Mode::empty())?;
    write_whole(file.as_fd(), text)
}

fn write_whole(file: BorrowedFd<'_>, text: &str) -> Result<(), Errno> {
    match write_fd(file, text.as_bytes())? {
        length if length == text.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

/// A procfs of this process's pid namespace, out of the container's reach.
pub(crate) struct Procfs(Option<OwnedFd>);

impl Procfs {
    /// Opens one, if something is going to be written: making a procfs, and reaping it, is a
    /// twentieth of what a start costs, and most containers have it written to by nobody.
    pub(crate) fn if_needed(needed: bool) -> Result<Self, Error> {
        if needed { Self::open() } else { Ok(Self(None)) }
    }

    /// Mounts one, without attaching it to the tree; where that is forbidden (a user namespace
    /// whose /proc has parts masked), takes the one at /proc, after a look that it is one.
    fn open() -> Result<Self, Error> {
        let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        let change = Change { set: attributes, clear: 0 };
        if let Ok(own) = attach::new_filesystem("proc", "proc", &[], &[], change) {
            return Ok(Self(Some(own)));
        }
        Self::mounted()
    }

    /// Takes the one at /proc, after a look that it is one.
    pub(crate) fn mounted() -> Result<Self, Error> {
        let fail = |error| Error::file("open", "/proc", error);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = openat(CWD, "/proc", flags, Mode::empty()).map_err(fail)?;
        // A directory of a procfs, bound to /proc, would be one of procfs, too.
        let is_root = fstat(&found).map_err(fail)?.st_ino == ROOT_INODE;
        if !is_root || !attach::is_procfs(found.as_fd()).map_err(fail)? {
            return Err(fail(Errno::NOTSUP));
        }
        Ok(Self(Some(found)))
    }

    fn directory(&self) -> Result<&OwnedFd, Error> {
        // Whoever decided that none is needed did not know of this use.
        self.0.as_ref().ok_or_else(|| Error::file("open", "/proc", Errno::NOENT))
    }

    /// Opens one of this process's namespaces.
    pub(crate) fn own_namespace(&self, name: &str) -> Result<OwnedFd, Error> {
        let path = format!("self/ns/{name}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        // The last step is a magic link, which only this kind of open follows.
        openat(self.directory()?, &path, flags, Mode::empty())
            .map_err(|error| Error::file("open", format!("/proc/{path}"), error))
    }

    /// Writes `text` to the file `path` of this procfs and of nothing mounted over it.
    pub(crate) fn write(&self, path: &str, text: &str) -> Result<(), Error> {
        let fail = |error| Error::file("write", format!("/proc/{path}"), error);
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat2(self.directory()?, path, flags, Mode::empty(), within).map_err(fail)?;
        write_whole(file.as_fd(), text).map_err(fail)
    }
}
