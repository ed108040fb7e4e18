//! Writes changes as entries.

use std::{
    collections::{HashMap, HashSet},
    ffi::CString,
    io::{self, Read, Write},
    os::fd::OwnedFd,
};

use rustix::fs::{FileType, Stat, major, minor};

use super::source::{At, at, kind, open_directory};
use crate::diff::{
    DiffError,
    error::shown,
    paths::WHITEOUT_PREFIX,
    tar::{Entry, Kind, Time, Writer},
};

/// The bytes of a file that are read at once.
const BUFFER_LEN: usize = 256 * 1024;

/// Whether a file is another than in the lower tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is there, and the same.
    None,
    /// It is new, or not the same.
    Some,
}

/// Writes the entries of a layer.
pub(super) struct Emitter<W> {
    writer: Writer<W>,
    mtime_max: Option<i64>,
    /// Directories that have their entry.
    directories: HashSet<Vec<u8>>,
    /// For files with several names, the name under which the layer has the content.
    sources: HashMap<(u64, u64), Vec<u8>>,
    /// For files with several names, those that have not changed, as long as none has.
    unchanged: HashMap<(u64, u64), Vec<Vec<u8>>>,
    buffer: Vec<u8>,
}

impl<W: Write> Emitter<W> {
    pub(super) fn new(writer: Writer<W>, mtime_max: Option<i64>) -> Self {
        Self {
            writer,
            mtime_max,
            directories: HashSet::new(),
            sources: HashMap::new(),
            unchanged: HashMap::new(),
            buffer: vec![0; BUFFER_LEN],
        }
    }

    pub(super) fn into_writer(self) -> Writer<W> {
        self.writer
    }

    /// Writes that `path`, which is not in the tree `root`, was removed.
    pub(super) fn removal(&mut self, root: &OwnedFd, path: &[u8]) -> Result<(), DiffError> {
        self.parents(root, path)?;
        let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let whiteout = [&path[..at], WHITEOUT_PREFIX, &path[at..]].concat();
        self.writer.entry(&Entry::empty_file(whiteout)).map_err(DiffError::Write)
    }

    /// Writes the file `path` of the tree `root`, if it has changed.
    pub(super) fn file(
        &mut self,
        root: &OwnedFd,
        at: At<'_>,
        stat: &Stat,
        path: &[u8],
        change: Change,
    ) -> Result<(), DiffError> {
        let kind = kind(stat);
        if kind == FileType::Socket {
            return Ok(());
        }
        let linked = stat.st_nlink > 1 && kind != FileType::Directory;
        let inode = (stat.st_dev, stat.st_ino);
        if linked && let Some(source) = self.sources.get(&inode) {
            let link = source.clone();
            let entry = self.entry(at, stat, path)?;
            return self.hard_link(root, entry, link, path);
        }
        if change == Change::None {
            if linked {
                self.unchanged.entry(inode).or_default().push(path.to_vec());
            }
            return Ok(());
        }
        let entry = self.entry(at, stat, path)?;
        self.parents(root, path)?;
        self.writer.entry(&entry).map_err(DiffError::Write)?;
        match kind {
            FileType::Directory => drop(self.directories.insert(path.to_vec())),
            FileType::RegularFile => self.content(at, entry.size, path)?,
            _ => {}
        }
        if linked {
            self.sources.insert(inode, path.to_vec());
            for other in self.unchanged.remove(&inode).unwrap_or_default() {
                self.hard_link(root, entry.clone(), path.to_vec(), &other)?;
            }
        }
        Ok(())
    }

    /// Writes `path` as another name of `link`, which the layer has.
    fn hard_link(
        &mut self,
        root: &OwnedFd,
        like: Entry,
        link: Vec<u8>,
        path: &[u8],
    ) -> Result<(), DiffError> {
        let kind = Kind::HardLink;
        let entry = Entry { path: path.to_vec(), link, kind, size: 0, stored: 0, ..like };
        self.parents(root, path)?;
        self.writer.entry(&entry).map_err(DiffError::Write)
    }

    /// Writes the directories that `path` is in, as far as the layer does not have them.
    fn parents(&mut self, root: &OwnedFd, path: &[u8]) -> Result<(), DiffError> {
        let mut missing = Vec::new();
        let mut end = path.len();
        while let Some(slash) = path[..end].iter().rposition(|byte| *byte == b'/') {
            if self.directories.contains(&path[..slash]) {
                break;
            }
            missing.push(slash);
            end = slash;
        }
        for end in missing.into_iter().rev() {
            let path = &path[..end];
            let failed =
                |source| DiffError::Source { operation: "read", path: shown(path), source };
            let split = path.iter().rposition(|byte| *byte == b'/');
            let above = split.map_or(&[][..], |slash| &path[..slash]);
            let name = CString::new(&path[split.map_or(0, |slash| slash + 1)..])
                .expect("names from a directory have no zero byte");
            let above = open_directory(root, above).map_err(failed)?;
            let place = at(&above, &name);
            let gone = || failed(rustix::io::Errno::NOENT.into());
            let stat = place.stat().map_err(failed)?.ok_or_else(gone)?;
            let entry = self.entry(place, &stat, path)?;
            self.writer.entry(&entry).map_err(DiffError::Write)?;
            self.directories.insert(path.to_vec());
        }
        Ok(())
    }

    fn content(&mut self, at: At<'_>, size: u64, path: &[u8]) -> Result<(), DiffError> {
        let failed = |source| DiffError::Source { operation: "read", path: shown(path), source };
        let mut file = at.open().map_err(failed)?;
        let mut rest = size;
        while rest > 0 {
            let len = self.buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            let len = file.read(&mut self.buffer[..len]).map_err(failed)?;
            if len == 0 {
                return Err(failed(std::io::Error::other("the file became shorter")));
            }
            self.writer.data(&self.buffer[..len]).map_err(DiffError::Write)?;
            rest -= len as u64;
        }
        Ok(())
    }

    fn entry(&self, at: At<'_>, stat: &Stat, path: &[u8]) -> Result<Entry, DiffError> {
        let failed = |source| DiffError::Source { operation: "read", path: shown(path), source };
        let mut path = path.to_vec();
        let (kind, mut link) = (entry_kind(kind(stat)), Vec::new());
        match kind {
            Kind::Directory => path.push(b'/'),
            Kind::Symlink => link = at.link().map_err(failed)?,
            _ => {}
        }
        let is_device = matches!(kind, Kind::CharacterDevice | Kind::BlockDevice);
        let size = match kind {
            Kind::Regular => u64::try_from(stat.st_size).unwrap_or(0),
            _ => 0,
        };
        let xattrs = at.xattrs().and_then(writable).map_err(failed)?;
        let seconds = self.mtime_max.map_or(stat.st_mtime, |max| max.min(stat.st_mtime));
        Ok(Entry {
            path,
            link,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size,
            stored: size,
            // Whole seconds, because readers differ in what they do with the rest.
            mtime: Time { seconds, nanoseconds: 0 },
            device: if is_device { (major(stat.st_rdev), minor(stat.st_rdev)) } else { (0, 0) },
            xattrs,
            pieces: None,
        })
    }
}

type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Refuses what a reader would take for something else: an equals sign ends a name in an archive.
fn writable(xattrs: Attributes) -> io::Result<Attributes> {
    match xattrs.iter().find(|(name, _)| name.contains(&b'=')) {
        None => Ok(xattrs),
        Some((name, _)) => {
            let name = shown(name);
            Err(io::Error::other(format!("archives cannot hold the attribute name {name:?}")))
        }
    }
}

fn entry_kind(kind: FileType) -> Kind {
    match kind {
        FileType::RegularFile => Kind::Regular,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::CharacterDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        _ => Kind::Fifo,
    }
}
