//! The numbered directories that hold the data of snapshots.
//!
//! # Order
//!
//! A directory is made before its record and deleted after it, by whoever comes to it, so a record always has its
//! directory, and a crash leaves at most directories without records. [`Directories::orphans`]
//! finds those. It must not take a directory whose record is about to be written for one, so each
//! such directory has a [`Pending`], and the search looks in this order: directories, pending,
//! records. A directory that was seen first is pending second, or has its record third, or is an
//! orphan.
//!
//! None of this is about the machine: when that stops without warning, a directory may be missing
//! whose record is there, or lack what was in it. See [`Store`](crate::Store).
//!
//! Numbers are not stored: they go on from the highest directory and the highest record.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, atomic::AtomicBool},
};

use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};

use crate::{Error, records::Records};

/// A directory with numbered directories in it.
pub(crate) struct Directories {
    path: PathBuf,
    numbers: Mutex<Numbers>,
}

struct Numbers {
    next: u64,
    /// Numbers of directories that may not have their record yet.
    pending: BTreeSet<u64>,
}

impl Directories {
    /// Opens, and makes if it is not there, the directory `path`, readable by its owner only.
    pub(crate) fn open(path: PathBuf, records: &Records) -> Result<Self, Error> {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&path).map_err(Error::file("create directory", &path))?;
        let highest = records.ids()?.into_iter().chain(numbered(&path)?).max();
        let numbers = Numbers { next: highest.unwrap_or(0) + 1, pending: BTreeSet::new() };
        Ok(Self { path, numbers: Mutex::new(numbers) })
    }

    /// The path of the directory `id`.
    pub(crate) fn path(&self, id: u64) -> PathBuf {
        self.path.join(id.to_string())
    }

    /// Makes a directory of mode 0700 with a new number.
    pub(crate) fn create(&self) -> Result<Pending<'_>, Error> {
        let id = {
            let mut numbers = self.numbers();
            let id = numbers.next;
            numbers.next += 1;
            numbers.pending.insert(id);
            id
        };
        let pending = Pending { directories: self, id, keep: false };
        let path = pending.path();
        let mut private = fs::DirBuilder::new();
        private.mode(0o700).create(&path).map_err(Error::file("create directory", &path))?;
        Ok(pending)
    }

    /// Whether there is a directory `id`.
    pub(crate) fn exists(&self, id: u64) -> bool {
        self.path(id).symlink_metadata().is_ok()
    }

    /// Puts `new` in the place of the directory `id`, which goes. Both it and `new` are on disk
    /// when this returns, with all that was written to this filesystem before.
    pub(crate) fn replace(&self, id: u64, new: Pending<'_>) -> Result<(), Error> {
        self.sync()?;
        let (from, to) = (new.path(), self.path(id));
        let flags = if self.exists(id) { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        renameat_with(CWD, &from, CWD, &to, flags).map_err(Error::file("replace", to))?;
        drop(new);
        self.sync()
    }

    /// Writes all that is on the filesystem to disk.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        let directory = fs::File::open(&self.path).map_err(Error::file("open", &self.path))?;
        syncfs(directory).map_err(Error::file("sync", &self.path))
    }

    /// Deletes the directory `id` with all that is in it, if it is there. Ends before that, with an
    /// error, when it is told to `stop`.
    pub(crate) fn delete(&self, id: u64, stop: &AtomicBool) -> Result<(), Error> {
        let path = self.path(id);
        sys::tree::remove_unless(&path, stop).map_err(Error::file("delete", path))
    }

    /// Numbers of directories without a record.
    pub(crate) fn orphans(&self, records: &Records) -> Result<BTreeSet<u64>, Error> {
        let mut orphans = BTreeSet::from_iter(numbered(&self.path)?);
        for pending in &self.numbers().pending {
            orphans.remove(pending);
        }
        for id in records.ids()? {
            orphans.remove(&id);
        }
        Ok(orphans)
    }

    fn numbers(&self) -> std::sync::MutexGuard<'_, Numbers> {
        // Every change is one operation, so a panic elsewhere left nothing half-done.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A new directory, which is deleted on drop unless its record was written.
pub(crate) struct Pending<'d> {
    directories: &'d Directories,
    id: u64,
    keep: bool,
}

impl Pending<'_> {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directories.path(self.id)
    }

    /// Keeps the directory: its record is durable.
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be deleted now is an orphan, which a later cleanup reports.
            let _ = self.directories.delete(self.id, &AtomicBool::new(false));
        }
        self.directories.numbers().pending.remove(&self.id);
    }
}

fn numbered(path: &Path) -> Result<Vec<u64>, Error> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::file("list", path))? {
        let name = entry.map_err(Error::file("list", path))?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    Ok(numbers)
}
