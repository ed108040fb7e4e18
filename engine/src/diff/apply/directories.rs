//! The directories in which a layer's entries are.
//!
//! An archive mostly has the files of a directory one after the other, so the last directory
//! stays open, and a file costs no lookup of its path.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, XattrFlags, fchmod, fchown,
        fsetxattr, fstat, futimens, mkdirat, openat2, readlinkat, statat,
    },
    io::Errno,
};

use super::file::{copy_xattrs, timestamps};
use crate::diff::tar::Time;

/// How many symbolic links may be in a path, as in the kernel.
const LINKS_MAX: usize = 40;

/// How parents of entries are made where the layer does not tell, and nothing is below.
const DEFAULT_MODE: u32 = 0o755;

/// An open directory of the target.
pub(super) struct Directory {
    fd: OwnedFd,
    /// Whether new files get the directory's group.
    pub(super) sets_group: bool,
}

impl Directory {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let stat = fstat(&fd)?;
        Ok(Self { fd, sets_group: stat.st_mode & 0o2000 != 0 })
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a directory shall be like when nothing is written to it any more.
#[derive(Debug, Default)]
pub(super) struct Finish {
    pub(super) mtime: Option<Time>,
    /// Attributes that would change what is made in it.
    pub(super) xattrs: Vec<(CString, Vec<u8>)>,
}

/// The directories of a target.
pub(super) struct Directories {
    root: OwnedFd,
    /// The roots of the trees below, nearest first.
    parents: Vec<OwnedFd>,
    /// The directory that was used last, by its path.
    last: Option<(Vec<u8>, Directory)>,
    finish: BTreeMap<Vec<u8>, Finish>,
    /// Directories that nothing tells about.
    invented: Vec<Vec<u8>>,
}

impl Directories {
    pub(super) fn new(root: OwnedFd, parents: Vec<OwnedFd>) -> Self {
        Self { root, parents, last: None, finish: BTreeMap::new(), invented: Vec::new() }
    }

    /// The directory `path`, which is made if it is missing.
    pub(super) fn get(&mut self, path: &[u8]) -> io::Result<&Directory> {
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            self.last = None;
            let fd = match self.open(path) {
                Err(Errno::NOENT) => self.make(path)?,
                opened => opened?,
            };
            self.last = Some((path.to_vec(), Directory::new(fd)?));
        }
        Ok(&self.last.as_ref().expect("was just set").1)
    }

    /// The directory `path`, if it is there.
    pub(super) fn find(&self, path: &[u8]) -> io::Result<Option<OwnedFd>> {
        match self.open(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            opened => Ok(Some(opened?)),
        }
    }

    /// Says what the directory `path` shall be like at the end.
    pub(super) fn finish_later(&mut self, path: Vec<u8>, finish: Finish) {
        self.finish.insert(path, finish);
    }

    /// Looks at the directory `path` again when it is used, because its attributes changed.
    pub(super) fn reload(&mut self, path: &[u8]) {
        if self.last.as_ref().is_some_and(|(last, _)| last == path) {
            self.last = None;
        }
    }

    /// Forgets the directory `path` and all below it, which is no directory any more.
    pub(super) fn forget(&mut self, path: &[u8]) {
        self.last = None;
        let below = [path, b"/"].concat();
        let keys: Vec<_> = self
            .finish
            .range(path.to_vec()..)
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(path))
            .filter(|key| *key == path || key.starts_with(&below))
            .cloned()
            .collect();
        for key in keys {
            self.finish.remove(&key);
        }
    }

    /// Sets what [`finish_later`](Self::finish_later) was told. Returns the path at which it
    /// failed.
    pub(super) fn finish(&mut self) -> Result<(), (Vec<u8>, io::Error)> {
        for (path, finish) in std::mem::take(&mut self.finish) {
            self.finish_one(&path, &finish).map_err(|error| (path, error))?;
        }
        Ok(())
    }

    fn finish_one(&self, path: &[u8], finish: &Finish) -> io::Result<()> {
        // A link that the layer made in place of a directory is not this directory.
        let Some(fd) = self.find(path)? else { return Ok(()) };
        for (name, value) in &finish.xattrs {
            super::file::ignorable(fsetxattr(&fd, name, value, XattrFlags::empty()), name, true)?;
        }
        if let Some(mtime) = finish.mtime {
            futimens(&fd, &timestamps(mtime))?;
        }
        Ok(())
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        open_in(&self.root, path, ResolveFlags::empty())
    }

    /// Makes the directory `path` and those above it that are missing, where symbolic links
    /// inside the target lead, as if it were the root.
    fn make(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut rest: Vec<Vec<u8>> = parts(path);
        let mut links = 0;
        let mut current = open_in(&self.root, b"", ResolveFlags::empty())?;
        while let Some(name) = rest.pop() {
            if name == b".." {
                done.pop();
                let path = done.join(&b'/');
                current = open_in(&self.root, &path, ResolveFlags::NO_SYMLINKS)?;
                continue;
            }
            let c_name = CString::new(name.clone())?;
            match kind(current.as_fd(), &c_name)? {
                Some(FileType::Directory) => {}
                Some(FileType::Symlink) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP.into());
                    }
                    let link = readlinkat(&current, &c_name, Vec::new())?.into_bytes();
                    if link.starts_with(b"/") {
                        done.clear();
                        current = open_in(&self.root, b"", ResolveFlags::empty())?;
                    }
                    rest.extend(parts(&link));
                    continue;
                }
                Some(_) => return Err(Errno::NOTDIR.into()),
                None => {
                    done.push(name);
                    self.make_one(current.as_fd(), &c_name, &done.join(&b'/'))?;
                    done.pop();
                }
            }
            done.push(c_name.into_bytes());
            let path = done.join(&b'/');
            current = open_in(&self.root, &path, ResolveFlags::NO_SYMLINKS)?;
        }
        Ok(current)
    }

    /// Makes one directory, like that of the same path below, if there is one.
    fn make_one(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> io::Result<()> {
        mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        if let Some(mtime) = imitate(made.as_fd(), &self.parents, path)? {
            self.finish_later(path.to_vec(), Finish { mtime: Some(mtime), xattrs: Vec::new() });
            return Ok(());
        }
        self.invented.push(path.to_vec());
        Ok(fchmod(&made, Mode::from_raw_mode(DEFAULT_MODE))?)
    }

    /// The directories that were made without a word about them, neither in the layer nor below.
    pub(super) fn into_invented(self) -> Vec<Vec<u8>> {
        self.invented
    }
}

/// Makes directories like those of the same paths in `below`, nearest first, if they are there.
/// What is no directory is left as it is.
pub(super) fn imitate_all(
    root: &OwnedFd,
    below: &[OwnedFd],
    paths: &[Vec<u8>],
) -> Result<(), (Vec<u8>, io::Error)> {
    // Deepest first: a time, once set, stays.
    for path in paths.iter().rev() {
        let one = || {
            let made = match open_in(root, path, ResolveFlags::NO_SYMLINKS) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
                opened => opened?,
            };
            if let Some(mtime) = imitate(made.as_fd(), below, path)? {
                futimens(&made, &timestamps(mtime))?;
            }
            Ok(())
        };
        one().map_err(|error| (path.clone(), error))?;
    }
    Ok(())
}

/// Gives `made` the owner, mode and attributes of the directory `path` in the first of `below`
/// that has it, and tells that one's time.
fn imitate(made: BorrowedFd<'_>, below: &[OwnedFd], path: &[u8]) -> io::Result<Option<Time>> {
    for below in below {
        let model = match open_in(below, path, ResolveFlags::empty()) {
            Err(Errno::NOENT) => continue,
            Err(Errno::NOTDIR | Errno::LOOP) => break,
            opened => opened?,
        };
        let stat = fstat(&model)?;
        fchown(made, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        fchmod(made, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        copy_xattrs(model.as_fd(), made);
        return Ok(Some(mtime(&stat)));
    }
    Ok(None)
}

/// Opens a directory as if `root` were the root.
fn open_in(root: &OwnedFd, path: &[u8], more: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
    loop {
        // The kernel asks for another try when something was renamed meanwhile.
        match openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The parts of a path, last first.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').rev();
    parts.filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}

/// What `name` is, if it is there.
pub(super) fn kind(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<FileType>> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        stat => Ok(Some(FileType::from_raw_mode(stat?.st_mode))),
    }
}

fn mtime(stat: &Stat) -> Time {
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Time { seconds: stat.st_mtime, nanoseconds }
}
