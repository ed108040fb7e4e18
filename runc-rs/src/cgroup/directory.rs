//! A control group's directory, open, and the files in it.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2},
    io::{Errno, read, write},
};

use super::Error;

/// Room for what most files have; larger ones are read in steps.
const READ_SIZE: usize = 4096;

/// The most bytes of a file that are read: statistics of any sane number of devices.
const READ_MAX: usize = 4 << 20;

/// The mode of new groups.
const MODE: u32 = 0o755;

/// An open directory. Its files are reached through the descriptor, so that one path walk is
/// enough for any number of them.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens a group that exists.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty())?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens a group below this one.
    pub(super) fn open_child(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = openat(&self.fd, name, flags, Mode::empty())?;
        Ok(Self { fd, path: self.path.join(name) })
    }

    /// Opens a group at any depth below this one.
    pub(super) fn open_below(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(openat2(&self.fd, path, flags, Mode::empty(), resolve)?)
    }

    /// Opens a file of the group.
    pub(super) fn open_file(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(openat(&self.fd, name, flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Makes a group below this one; says whether it is new.
    pub(super) fn make_child(&self, name: &OsStr) -> io::Result<bool> {
        is_new(mkdirat(&self.fd, name, Mode::from_raw_mode(MODE)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a file.
    pub(super) fn read(&self, name: &str) -> io::Result<String> {
        let file = self.open_file(name, OFlags::RDONLY)?;
        let mut bytes = vec![0; READ_SIZE];
        let mut len = 0;
        loop {
            let count = read(&file, &mut bytes[len..])?;
            len += count;
            if count == 0 || len > READ_MAX {
                break;
            }
            if len == bytes.len() {
                bytes.resize(len * 2, 0);
            }
        }
        bytes.truncate(len);
        String::from_utf8(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Writes a file, in one system call, as control files need it.
    pub(super) fn write(&self, name: &str, value: &str) -> io::Result<()> {
        let file = self.open_file(name, OFlags::WRONLY)?;
        write(&file, value.as_bytes())?;
        Ok(())
    }

    /// Reads a file, with an error that says which.
    pub(super) fn must_read(&self, name: &str) -> Result<String, Error> {
        self.read(name).map_err(|source| self.error("read", name, source))
    }

    /// Writes a file, with an error that says which and what.
    pub(super) fn must_write(&self, name: &str, value: &str) -> Result<(), Error> {
        self.write(name, value).map_err(|source| self.write_error(name, value, source))
    }

    /// Opens a file into which `value` is written first, with an error as if that were refused.
    pub(super) fn must_open_to_write(&self, name: &str, value: &str) -> Result<OwnedFd, Error> {
        self.open_file(name, OFlags::WRONLY).map_err(|source| self.write_error(name, value, source))
    }

    /// Writes a file that is open, in one system call, with an error that says which and what.
    pub(super) fn must_write_to(
        &self,
        file: &OwnedFd,
        name: &str,
        value: &str,
    ) -> Result<(), Error> {
        write(file, value.as_bytes())
            .map(drop)
            .map_err(|error| self.write_error(name, value, error.into()))
    }

    fn write_error(&self, name: &str, value: &str, source: io::Error) -> Error {
        Error::Write { value: value.to_owned(), path: self.path.join(name), source: source.into() }
    }

    pub(super) fn error(&self, operation: &'static str, name: &str, source: io::Error) -> Error {
        Error::File { operation, path: self.path.join(name), source: source.into() }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes the directory `path`; says whether it is new.
pub(super) fn make(path: &Path) -> io::Result<bool> {
    is_new(mkdirat(CWD, path, Mode::from_raw_mode(MODE)))
}

fn is_new(result: Result<(), Errno>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
