//! The snapshotter, for every layout of directories.
//!
//! # When the machine stops without warning
//!
//! Records are on disk when a call returns, files are not: to wait for them would make an unpack
//! several times slower. So a committed snapshot's record notes in which boot of the machine that
//! happened, until [`sync`](Snapshotter::sync) has written the files, which is done soon after and
//! makes nobody wait. A snapshot that still has such a note after the machine was started again is
//! *suspect*: it cannot be a parent, nor can what is on top of it be mounted, until it was filled
//! anew ([`renew`](Snapshotter::renew)). A crash of this program alone loses no files and makes no
//! suspects.
//!
//! An active snapshot's files are as durable as whoever writes them makes them. One that was given
//! out to be mounted `volatile` has the same note, which nothing removes but a commit: after another
//! start of the machine it can neither be mounted nor committed. Should even its
//! directory be lost, it is there again, empty, when the snapshotter is opened.

mod removal;
mod reopen;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    EditLabels, Error, Fill, Info, Key, Kind, Labels, Mount, Snapshotter, Transactions, Usage,
    directories::Directories,
    layout::Layout,
    records::{Commit, New, Record, Records},
    tree,
    turns::{Turn, Turns},
};

use self::removal::Removal;

/// A [`Snapshotter`] that keeps each snapshot in a directory of its own, on one filesystem.
pub struct Store<L: Layout> {
    shared: Arc<Shared<L>>,
    /// Works on what is shared.
    removal: Removal<L>,
    /// Called when there is something to [`sync`](Snapshotter::sync).
    on_commit: Box<dyn Fn() + Send + Sync>,
    unshown: Vec<(Key, Error)>,
}

/// What calls share with the thread that deletes the directories of removed snapshots.
struct Shared<L> {
    layout: L,
    records: Records,
    directories: Directories,
    /// One call at a time makes of a snapshot's files what is kept of them.
    turns: Turns,
}

impl<L: Layout> Store<L> {
    /// Opens the snapshotter in `root`, makes what is missing, and begins to delete what a crash
    /// left behind.
    ///
    /// `root` must belong to this snapshotter alone: directories in it without a record in the
    /// database are taken for garbage.
    ///
    /// # Errors
    ///
    /// - `File`: `root` cannot be used, or is not UTF-8, which the options of mounts must be.
    /// - `Database`.
    pub fn open(
        root: &Path,
        transactions: Arc<dyn Transactions>,
        layout: L,
    ) -> Result<Self, Error> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        Self::open_in_boot(root, transactions, layout, boot.trim())
    }

    /// [`open`](Self::open), on a machine whose boot ID is `boot`.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_in_boot(
        root: &Path,
        transactions: Arc<dyn Transactions>,
        layout: L,
        boot: &str,
    ) -> Result<Self, Error> {
        if root.to_str().is_none_or(|root| root.contains([':', ',', '\\'])) {
            let source = std::io::Error::other("the path cannot be part of mount options");
            return Err(Error::File { operation: "use", path: root.to_owned(), source });
        }
        let records = Records::open(transactions, L::NAME, boot.to_owned())?;
        let directories = Directories::open(root.join("snapshots"), &records)?;
        layout.check_place(root)?;
        let turns = Turns::default();
        let shared = Arc::new(Shared { layout, records, directories, turns });
        let removal = Removal::new(Arc::clone(&shared));
        let mut store = Self { shared, removal, on_commit: Box::new(|| {}), unshown: Vec::new() };
        // However much it is, and whether it can be deleted or not, the snapshots can be used.
        store.removal.sweep();
        store.restore_lost()?;
        store.unshown = store.show_again()?;
        store.shared.layout.hide_forgotten(&root.join("snapshots"));
        Ok(store)
    }

    /// Has `notice` called, briefly, whenever there is something new to [`sync`](Snapshotter::sync).
    #[must_use]
    pub fn on_commit(mut self, notice: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_commit = Box::new(notice);
        self
    }

    /// The active snapshots and views whose layers could not be shown when this was opened, and why: whoever was
    /// given their mounts before sees empty layers. To be told to somebody, once.
    pub fn take_unshown(&mut self) -> Vec<(Key, Error)> {
        std::mem::take(&mut self.unshown)
    }

    fn create(
        &self,
        kind: Kind,
        key: &Key,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Result<Vec<Mount>, Error> {
        self.shared.layout.check(key, labels)?;
        // Refuses before anything is copied; the transaction checks again.
        let chain = self.shared.records.parent_chain(parent)?;
        if let Ok(_exists) = self.shared.records.get(key) {
            return Err(Error::AlreadyExists { key: key.clone() });
        }
        let parents = self.paths(&chain);
        let pending = self.shared.directories.create()?;
        let below = parents.first().map(PathBuf::as_path);
        let user = ReleaseOnDrop { layout: &self.shared.layout, id: pending.id() };
        let shown = self.show(&parents, user.id);
        let filled =
            shown.and_then(|()| self.shared.layout.fill(&pending.path(), kind, below, labels));
        filled.or_else(|error| {
            // Perhaps because the parent was removed meanwhile.
            self.shared.records.parent_chain(parent).and(Err(error))
        })?;
        let id = pending.id();
        let is_volatile = self.shared.layout.is_volatile(kind, &parents);
        let new = New { id, kind, key, parent, labels, external: None, is_volatile };
        self.shared.records.create(&new)?;
        let mounts = self.shared.layout.mounts(kind, &pending.path(), &parents, labels);
        pending.keep();
        std::mem::forget(user);
        Ok(mounts)
    }

    fn commit_on(
        &self,
        name: &Key,
        key: &Key,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Result<(), Error> {
        let (_turn, record) = self.turn(key).map_err(|error| match error {
            // Another call has committed it, perhaps of the same client.
            Error::NotFound { .. } if self.shared.records.get(name).is_ok() => {
                Error::AlreadyExists { key: name.clone() }
            }
            error => error,
        })?;
        if record.kind != Kind::Active {
            let (actual, needed) = (record.kind, Kind::Active);
            return Err(Error::WrongKind { key: key.clone(), actual, needed });
        }
        self.need_whole(key, &record)?;
        let directory = self.shared.directories.path(record.id);
        if let (Some(parent), None) = (parent, &record.parent) {
            let below = self.shared.directories.path(self.shared.records.get(parent)?.id);
            self.shared.layout.show(&below, record.id)?;
            self.shared.layout.adopt(&directory, &below)?;
        }
        let mut usage = self.disk_usage(record.id)?;
        if let Some(bytes) = self.shared.layout.seal(&directory)? {
            usage.bytes = bytes;
        }
        let usage = Some(usage);
        self.shared.records.commit(&Commit { name, key, parent, labels, usage, external: None })?;
        self.shared.layout.release(record.id);
        self.shared.layout.settle(&directory);
        (self.on_commit)();
        Ok(())
    }

    /// Waits until no other call works on the files of `key`, and gives its record as that has left
    /// it.
    fn turn(&self, key: &Key) -> Result<(Turn<'_>, Record), Error> {
        loop {
            let id = self.shared.records.get(key)?.id;
            let turn = self.shared.turns.take(id);
            let record = self.shared.records.get(key)?;
            // Else the key is another snapshot's by now.
            if record.id == id {
                return Ok((turn, record));
            }
        }
    }

    /// Refuses an active snapshot that was mounted `volatile` when the machine stopped.
    fn need_whole(&self, key: &Key, record: &Record) -> Result<(), Error> {
        let unknown = || {
            record.unsynced.is_none()
                && self.shared.layout.is_marked(&self.shared.directories.path(record.id))
        };
        if self.shared.records.is_suspect(record) || unknown() {
            return Err(Error::Volatile { key: key.clone() });
        }
        Ok(())
    }

    fn disk_usage(&self, id: u64) -> Result<Usage, Error> {
        let content = self.shared.layout.content(&self.shared.directories.path(id));
        tree::usage(&content).map_err(Error::file("measure", content))
    }

    /// Makes the files of committed snapshots be in their directories.
    fn show(&self, parents: &[PathBuf], user: u64) -> Result<(), Error> {
        parents.iter().try_for_each(|parent| self.shared.layout.show(parent, user))
    }

    /// Notes that a snapshot without a record needs nothing any more, when nobody is at work on it.
    fn release(&self, id: u64) {
        let _turn = self.shared.turns.take(id);
        self.shared.layout.release(id);
    }

    fn paths(&self, ids: &[u64]) -> Vec<PathBuf> {
        ids.iter().map(|id| self.shared.directories.path(*id)).collect()
    }

    fn info(&self, key: Key, mut record: Record) -> Info {
        self.shared.layout.add_labels(&self.shared.directories.path(record.id), &mut record.labels);
        record.info(key)
    }
}

impl<L: Layout> Shared<L> {
    /// Deletes the directory of a snapshot without a record, unless `stop` says that there is no time.
    fn delete(&self, id: u64, stop: &AtomicBool) -> Result<(), Error> {
        // Whoever else deletes it is waited for.
        let _turn = self.turns.take(id);
        self.layout.release(id);
        self.layout.hide(&self.directories.path(id))?;
        self.directories.delete(id, stop)
    }

    /// Deletes all directories of snapshots without records.
    fn sweep(&self, stop: &AtomicBool) -> Result<(), Error> {
        let mut result = Ok(());
        for id in self.directories.orphans(&self.records)? {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            result = result.and(self.delete(id, stop));
        }
        result
    }
}

/// A snapshot that may not come to be, and then needs nothing any more.
struct ReleaseOnDrop<'l, L: Layout> {
    layout: &'l L,
    id: u64,
}

impl<L: Layout> Drop for ReleaseOnDrop<'_, L> {
    fn drop(&mut self) {
        self.layout.release(self.id);
    }
}

impl<L: Layout> Snapshotter for Store<L> {
    fn prepare(
        &self,
        key: &Key,
        parent: Option<&Key>,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        self.create(Kind::Active, key, parent, &labels)
    }

    fn view(&self, key: &Key, parent: Option<&Key>, labels: Labels) -> Result<Vec<Mount>, Error> {
        self.create(Kind::View, key, parent, &labels)
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>, Error> {
        let record = self.shared.records.get(key)?;
        if record.kind != Kind::Committed && !self.shared.directories.exists(record.id) {
            self.restore(key)?;
        }
        // Else what is shown now would stay so, if the snapshot was removed before.
        let _turn = self.turn(key)?;
        let (record, chain) = self.shared.records.get_chain(key)?;
        if record.kind == Kind::Committed {
            return Err(Error::NotMountable { key: key.clone() });
        }
        let (directory, parents) = (self.shared.directories.path(record.id), self.paths(&chain));
        self.show(&parents, record.id)?;
        if record.kind == Kind::Active {
            self.need_whole(key, &record)?;
            if record.unsynced.is_none() && self.shared.layout.is_volatile(record.kind, &parents) {
                self.shared.records.note_volatile(key, record.id)?;
            }
            self.shared.layout.readmit(&directory)?;
        }
        Ok(self.shared.layout.mounts(record.kind, &directory, &parents, &record.labels))
    }

    fn commit(&self, name: &Key, key: &Key, labels: Labels) -> Result<(), Error> {
        self.commit_on(name, key, None, &labels)
    }

    fn rebase(&self, name: &Key, key: &Key, parent: &Key, labels: Labels) -> Result<(), Error> {
        if !L::REBASE && self.shared.records.get(key)?.parent.as_deref() != Some(parent.name()) {
            return Err(Error::Unsupported { key: key.clone(), feature: "a new parent" });
        }
        self.commit_on(name, key, Some(parent), &labels)
    }

    fn can_rebase(&self) -> bool {
        L::REBASE
    }

    fn remove(&self, key: &Key) -> Result<(), Error> {
        let record = self.shared.records.remove(key)?;
        self.release(record.id);
        self.shared.layout.hide_unused();
        if !self.shared.layout.defers_removal() {
            self.removal.add(record.id);
        }
        Ok(())
    }

    fn remove_within(
        &self,
        transaction: &redb::WriteTransaction,
        keys: &[Key],
    ) -> Result<Vec<Key>, Error> {
        let removed = self.shared.records.remove_within(transaction, keys)?;
        Ok(removed.into_iter().map(|(key, _)| key).collect())
    }

    fn stat(&self, key: &Key) -> Result<Info, Error> {
        Ok(self.info(key.clone(), self.shared.records.get(key)?))
    }

    fn update(&self, key: &Key, edit: &mut EditLabels<'_>) -> Result<Info, Error> {
        Ok(self.info(key.clone(), self.shared.records.update(key, edit)?))
    }

    fn walk(
        &self,
        namespace: Option<&str>,
        visit: &mut dyn FnMut(Info) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        self.shared.records.walk(namespace, &mut |key, record| visit(self.info(key, record)))
    }

    fn usage(&self, key: &Key) -> Result<Usage, Error> {
        let record = self.shared.records.get(key)?;
        match (record.kind, record.usage) {
            (Kind::Active, _) => self.disk_usage(record.id),
            (_, usage) => Ok(usage.unwrap_or_default()),
        }
    }

    fn sync(&self) -> Result<(), Error> {
        let unsynced = |record: Record| {
            let is_ours = record.kind == Kind::Committed && record.unsynced.is_some();
            (is_ours && !self.shared.records.is_suspect(&record)).then_some(record.id)
        };
        let unsynced = self.shared.records.select(unsynced)?;
        if unsynced.is_empty() {
            return Ok(());
        }
        self.shared.directories.sync()?;
        self.shared.records.note_synced(&unsynced)
    }

    fn suspects(&self) -> Result<Vec<Info>, Error> {
        let suspects = |record: Record| {
            let is_suspect =
                record.kind == Kind::Committed && self.shared.records.is_suspect(&record);
            is_suspect.then_some(record)
        };
        let mut suspects = self
            .shared
            .records
            .select(suspects)?
            .into_iter()
            .map(|(key, record)| Ok((self.shared.records.depth(&key)?, self.info(key, record))))
            .collect::<Result<Vec<_>, Error>>()?;
        suspects.sort_by_key(|(depth, _)| *depth);
        Ok(suspects.into_iter().map(|(_, info)| info).collect())
    }

    fn renew(&self, name: &Key, fill: &mut Fill<'_>) -> Result<(), Error> {
        let (record, chain) = self.shared.records.get_chain(name)?;
        if record.kind != Kind::Committed {
            let (actual, needed) = (record.kind, Kind::Committed);
            return Err(Error::WrongKind { key: name.clone(), actual, needed });
        }
        let parents = self.paths(&chain);
        let pending = self.shared.directories.create()?;
        let user = ReleaseOnDrop { layout: &self.shared.layout, id: pending.id() };
        self.show(&parents, user.id)?;
        let below = parents.first().map(PathBuf::as_path);
        let labels = Labels::new();
        self.shared.layout.fill(&pending.path(), Kind::Active, below, &labels)?;
        fill(&self.shared.layout.mounts(Kind::Active, &pending.path(), &parents, &labels))
            .map_err(|source| Error::Fill { key: name.clone(), source })?;
        self.shared.layout.seal(&pending.path())?;
        self.shared.layout.settle(&pending.path());
        self.shared.layout.hide(&self.shared.directories.path(record.id))?;
        self.shared.directories.replace(record.id, pending)?;
        self.shared.records.note_synced(&[(name.clone(), record.id)])?;
        self.restore_lost()
    }

    fn cleanup(&self) -> Result<(), Error> {
        let swept = self.shared.sweep(&AtomicBool::new(false));
        self.shared.layout.hide_unused();
        swept
    }
}
