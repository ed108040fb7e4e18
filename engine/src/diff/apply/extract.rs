//! Turns entries into files.
//!
//! Rules, which are containerd's:
//!
//! | there is | entry is a directory | entry is anything else |
//! |---|---|---|
//! | nothing | made | made |
//! | a directory | keeps its files, gets the attributes | removed with its files first |
//! | anything else | removed first | removed first |
//!
//! A whiteout hides what lower layers have, never what this layer has: where both are in one
//! layer, in whichever order, a file stays, and a directory becomes opaque.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, XattrFlags, chownat, fsetxattr, linkat,
        makedev, mkdirat, mknodat, openat, statat, symlinkat,
    },
    io::Errno,
};
use sys::tree::remove_at;

use super::{
    Limits, Whiteouts,
    directories::{Directories, Finish, kind},
    file::{At, Creator, Writing, clear_xattrs, create, set_directory, set_unopened, settable},
};
use crate::diff::{
    DiffError, EntryProblem,
    error::shown,
    paths::{Place, Target, place, target},
    tar::{Entry, Kind, Reader},
};

/// Writes entries to a directory.
pub(super) struct Extractor {
    directories: Directories,
    whiteouts: Whiteouts,
    creator: Creator,
    limits: Limits,
    entries: u64,
    file_bytes: u64,
    /// Places that this layer has filled, for opaque directories, which may come late. Only
    /// needed where whiteouts remove.
    filled: HashSet<Vec<u8>>,
}

/// What was tried, for errors.
type Failed = (&'static str, io::Error);

impl Extractor {
    pub(super) fn new(
        root: OwnedFd,
        whiteouts: Whiteouts,
        parents: Vec<OwnedFd>,
        limits: &Limits,
    ) -> Result<Self, DiffError> {
        let creator = Creator::current().map_err(DiffError::Read)?;
        Ok(Self {
            directories: Directories::new(root, parents),
            whiteouts,
            creator,
            limits: *limits,
            entries: 0,
            file_bytes: 0,
            filled: HashSet::new(),
        })
    }

    /// Extracts all entries, and sets the times of directories at the end.
    pub(super) fn extract<R: Read>(&mut self, reader: &mut Reader<R>) -> Result<(), DiffError> {
        while let Some(entry) = reader.next()? {
            self.count(&entry)?;
            self.entry(&entry, reader)?;
        }
        self.directories.finish().map_err(|(path, source)| DiffError::Entry {
            operation: "set attributes",
            entry: shown(&path),
            source,
        })
    }

    /// See [`Directories::into_invented`].
    pub(super) fn into_invented(self) -> Vec<Vec<u8>> {
        self.directories.into_invented()
    }

    fn count(&mut self, entry: &Entry) -> Result<(), DiffError> {
        self.entries += 1;
        self.file_bytes = self.file_bytes.saturating_add(entry.size);
        let Limits { entries_max, file_bytes_max, .. } = self.limits;
        if self.entries > entries_max {
            return Err(DiffError::TooLarge { what: "entries", max: entries_max });
        }
        if self.file_bytes > file_bytes_max {
            return Err(DiffError::TooLarge { what: "bytes of files", max: file_bytes_max });
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<(), DiffError> {
        let bad = |problem| DiffError::BadEntry { entry: shown(&entry.path), problem };
        let failed =
            |(operation, source)| DiffError::Entry { operation, entry: shown(&entry.path), source };
        match target(&entry.path).map_err(bad)? {
            Target::Root | Target::Ignored => Ok(()),
            Target::Whiteout(place) => self.whiteout(&place, entry).map_err(failed),
            Target::Opaque { directory } => self.opaque(&directory).map_err(failed),
            Target::File(place) => match entry.kind {
                Kind::Regular => self.regular(&place, entry, reader),
                Kind::Directory => self.directory(&place, entry).map_err(failed),
                Kind::HardLink => {
                    let from = self::place(&entry.link).ok_or_else(|| bad(EntryProblem::Empty))?;
                    self.hard_link(&place, &from, entry).map_err(failed)
                }
                Kind::Symlink if entry.link.is_empty() => Err(bad(EntryProblem::Empty)),
                Kind::Symlink | Kind::CharacterDevice | Kind::BlockDevice | Kind::Fifo => {
                    self.special(&place, entry).map_err(failed)
                }
                Kind::Other(flag) => Err(bad(EntryProblem::Type(char::from(flag)))),
            },
        }
    }

    fn regular<R: Read>(
        &mut self,
        place: &Place,
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), DiffError> {
        let failed = |operation: &'static str| {
            move |source| DiffError::Entry { operation, entry: shown(&entry.path), source }
        };
        let name = c_string(&place.name).map_err(|(operation, error)| failed(operation)(error))?;
        let file = self
            .make(place, &name, |at| create(at, entry))
            .map_err(|(operation, error)| failed(operation)(error))?;
        let mut file = Writing::new(file, entry).map_err(failed("write"))?;
        loop {
            let bytes = reader.data(u64::MAX)?;
            if bytes.is_empty() {
                break;
            }
            file.write(bytes).map_err(failed("write"))?;
        }
        let directory = self.directories.get(&place.directory).map_err(failed("open directory"))?;
        file.finish(At { directory, name: &name }, self.creator).map_err(failed("set attributes"))
    }

    fn directory(&mut self, place: &Place, entry: &Entry) -> Result<(), Failed> {
        let name = c_string(&place.name)?;
        let (mut hides, mut exists) = (false, false);
        let directory = self.parent(place)?;
        match mkdirat(directory, &name, Mode::RWXU) {
            Err(Errno::EXIST) => {
                let kind = kind(directory.as_fd(), &name).map_err(failed("stat"))?;
                exists = kind == Some(FileType::Directory);
                if !exists {
                    hides = self.is_whiteout(place, &name)?;
                    self.make(place, &name, |at| mkdirat(at.directory, at.name, Mode::RWXU))?;
                }
            }
            result => result.map_err(failed("create directory"))?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made =
            openat(self.parent(place)?, &name, flags, Mode::empty()).map_err(failed("open"))?;
        if hides && !exists {
            self.mark_opaque(&made)?;
        }
        if exists {
            clear_xattrs(made.as_fd(), entry).map_err(failed("set attributes"))?;
        }
        set_directory(made.as_fd(), entry).map_err(failed("set attributes"))?;
        let path = joined(place);
        let xattrs = settable(entry).map(|(name, value)| (name, value.to_vec())).collect();
        self.directories.finish_later(path.clone(), Finish { mtime: Some(entry.mtime), xattrs });
        self.directories.reload(&path);
        self.note(path);
        Ok(())
    }

    fn hard_link(&mut self, place: &Place, from: &Place, entry: &Entry) -> Result<(), Failed> {
        let name = c_string(&place.name)?;
        let from_name = c_string(&from.name)?;
        let source = self.directories.find(&from.directory).map_err(failed("open directory"))?;
        let source = source.ok_or(("find the target of the link", Errno::NOENT.into()))?;
        self.make(place, &name, |at| {
            linkat(&source, &from_name, at.directory, at.name, AtFlags::empty())
        })?;
        let directory = self.parent(place)?;
        let is_symlink =
            kind(directory.as_fd(), &name).map_err(failed("stat"))? == Some(FileType::Symlink);
        set_unopened(At { directory, name: &name }, entry, is_symlink, None)
            .map_err(failed("set attributes"))
    }

    fn special(&mut self, place: &Place, entry: &Entry) -> Result<(), Failed> {
        let name = c_string(&place.name)?;
        let device = |kind| {
            let (major, minor) = entry.device;
            move |at: At<'_>| {
                mknodat(at.directory, at.name, kind, Mode::RUSR, makedev(major, minor))
            }
        };
        match entry.kind {
            Kind::CharacterDevice => self.make(place, &name, device(FileType::CharacterDevice))?,
            Kind::BlockDevice => self.make(place, &name, device(FileType::BlockDevice))?,
            Kind::Fifo => self.make(place, &name, device(FileType::Fifo))?,
            _ => self
                .make(place, &name, |at| symlinkat(entry.link.as_slice(), at.directory, at.name))?,
        }
        let creator = Some(self.creator);
        let directory = self.parent(place)?;
        let is_symlink = entry.kind == Kind::Symlink;
        set_unopened(At { directory, name: &name }, entry, is_symlink, creator)
            .map_err(failed("set attributes"))
    }

    /// Calls `make`, and once more without what was in the way.
    fn make<T>(
        &mut self,
        place: &Place,
        name: &CStr,
        make: impl Fn(At<'_>) -> Result<T, Errno>,
    ) -> Result<T, Failed> {
        let directory = self.parent(place)?;
        let mut made = make(At { directory, name });
        if matches!(made, Err(Errno::EXIST)) {
            remove_at(directory.as_fd(), name).map_err(failed("replace"))?;
            self.directories.forget(&joined(place));
            made = make(At { directory: self.parent(place)?, name });
        }
        let made = made.map_err(failed("create"))?;
        self.note(joined(place));
        Ok(made)
    }

    fn whiteout(&mut self, place: &Place, entry: &Entry) -> Result<(), Failed> {
        let name = c_string(&place.name)?;
        match self.whiteouts {
            Whiteouts::Remove => self.remove_lower(place, &name),
            Whiteouts::Mark { .. } => {
                let directory = self.parent(place)?;
                let kind_there = kind(directory.as_fd(), &name).map_err(failed("stat"))?;
                match kind_there {
                    Some(FileType::Directory) => {
                        let flags =
                            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        let made = openat(directory, &name, flags, Mode::empty())
                            .map_err(failed("open"))?;
                        self.mark_opaque(&made)
                    }
                    // This layer's own file hides what is below already.
                    Some(_) => Ok(()),
                    None => {
                        let kind = FileType::CharacterDevice;
                        mknodat(directory, &name, kind, Mode::empty(), 0)
                            .map_err(failed("create whiteout"))?;
                        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
                        let flags = AtFlags::SYMLINK_NOFOLLOW;
                        chownat(directory, &name, Some(uid), Some(gid), flags)
                            .map_err(failed("set attributes"))
                    }
                }
            }
        }
    }

    /// Removes what lower layers have at `place`, and keeps what this one has there.
    fn remove_lower(&mut self, place: &Place, name: &CStr) -> Result<(), Failed> {
        let path = joined(place);
        let found = self.directories.find(&place.directory).map_err(failed("open directory"))?;
        let Some(directory) = found else { return Ok(()) };
        if self.filled.contains(&path) {
            if kind(directory.as_fd(), name).map_err(failed("stat"))? == Some(FileType::Directory) {
                return self.clear(&path);
            }
            return Ok(());
        }
        self.directories.forget(&path);
        remove_at(directory.as_fd(), name).map_err(failed("remove"))
    }

    fn opaque(&mut self, directory: &[u8]) -> Result<(), Failed> {
        match self.whiteouts {
            Whiteouts::Remove => self.clear(directory),
            Whiteouts::Mark { .. } => {
                self.directories.get(directory).map_err(failed("open directory"))?;
                let made = self.directories.find(directory).map_err(failed("open directory"))?;
                match made {
                    Some(made) => self.mark_opaque(&made),
                    None => Ok(()),
                }
            }
        }
    }

    /// Removes all in `directory` that this layer did not fill.
    fn clear(&mut self, directory: &[u8]) -> Result<(), Failed> {
        let mut pending = vec![directory.to_vec()];
        while let Some(path) = pending.pop() {
            let found = self.directories.find(&path).map_err(failed("open directory"))?;
            let Some(fd) = found else { continue };
            for (name, kind) in names(&fd).map_err(failed("list"))? {
                let below = match path.as_slice() {
                    b"" => name.to_bytes().to_vec(),
                    path => [path, b"/", name.to_bytes()].concat(),
                };
                if !self.filled.contains(&below) {
                    self.directories.forget(&below);
                    remove_at(fd.as_fd(), &name).map_err(failed("remove"))?;
                } else if kind == FileType::Directory {
                    pending.push(below);
                }
            }
        }
        Ok(())
    }

    /// Whether this layer has a whiteout at `place`.
    fn is_whiteout(&mut self, place: &Place, name: &CStr) -> Result<bool, Failed> {
        let directory = self.parent(place)?;
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("stat"))?;
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        Ok(is_device && stat.st_rdev == 0)
    }

    fn mark_opaque(&self, directory: &OwnedFd) -> Result<(), Failed> {
        let Whiteouts::Mark { opaque } = self.whiteouts else { return Ok(()) };
        fsetxattr(directory, opaque, b"y", XattrFlags::empty()).map_err(failed("mark as opaque"))
    }

    fn parent(&mut self, place: &Place) -> Result<&super::directories::Directory, Failed> {
        self.directories.get(&place.directory).map_err(failed("open directory"))
    }

    /// Remembers that this layer has something at `path`, and so at all places above it.
    fn note(&mut self, path: Vec<u8>) {
        if self.whiteouts != Whiteouts::Remove {
            return;
        }
        let mut end = path.len();
        while let Some(slash) = path[..end].iter().rposition(|byte| *byte == b'/') {
            if !self.filled.insert(path[..slash].to_vec()) {
                break;
            }
            end = slash;
        }
        self.filled.insert(path);
    }
}

/// What is in a directory.
fn names(directory: &OwnedFd) -> io::Result<Vec<(CString, FileType)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            let kind = kind(directory.as_fd(), name)?.unwrap_or(FileType::Unknown);
            names.push((name.to_owned(), kind));
        }
    }
    Ok(names)
}

fn joined(place: &Place) -> Vec<u8> {
    match place.directory.as_slice() {
        b"" => place.name.clone(),
        directory => [directory, b"/", &place.name].concat(),
    }
}

fn c_string(name: &[u8]) -> Result<CString, Failed> {
    CString::new(name).map_err(|_| ("use the name", Errno::INVAL.into()))
}

fn failed<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Failed {
    move |error| (operation, error.into())
}
