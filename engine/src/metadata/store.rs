//! The database, and how concurrent writers share a commit.
//!
//! # Group commit
//!
//! A writer announces itself, waits for the open transaction, makes its changes in it and leaves.
//! Whoever leaves while nobody else is announced commits for all; the others wait for the outcome.
//! So a lone writer commits at once, and of a crowd that gathers during one commit all but the
//! last add nothing but their changes to the next.
//!
//! ```text
//!  announce ──> lock group ──> change ──┬─ others announced ──> wait for the generation's outcome
//!                                       └─ nobody, or group full ──> commit ──> wake the others
//! ```
//!
//! # After an I/O error
//!
//! redb refuses everything after a failed write, because it no longer knows what is on disk. So the
//! database is closed and opened again, which recovers the last commit: when a full disk has room
//! again, the daemon goes on.

use std::{
    fs::{self, File},
    io,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard,
        RwLockWriteGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, RepairSession, WriteTransaction,
};

use super::{
    rows::{Changes, View},
    schema,
};
use crate::error::Error;

/// What of the database is kept in memory, in bytes.
const CACHE_LEN: usize = 2 << 20;

/// How many writers share a commit at most.
const GROUP_LEN_MAX: usize = 256;

/// How many outcomes of commits are kept for writers that are slow to wake up; each needs one.
const FAILURES_MAX: usize = 16;

/// The engine's records. A clone is another handle on the same database.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// Opens the database file; tests put a failing one below.
pub(super) type Opener = Box<dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync>;

struct Inner {
    path: PathBuf,
    opener: Opener,
    /// Nothing between a failure and the next attempt to open it.
    database: RwLock<Option<Database>>,
    /// Writers that want the group and have not left it.
    announced: AtomicUsize,
    group: Mutex<Group>,
    committed: Condvar,
    /// Held shared by whoever makes or refers to objects, alone by garbage collection.
    collection: RwLock<()>,
    /// Held by the one who [glances](Store::glance).
    glance: Mutex<()>,
    /// Called after each change.
    notice: OnceLock<Notice>,
}

type Notice = Box<dyn Fn() + Send + Sync>;

/// Guards the open transaction and says how earlier ones ended.
#[derive(Default)]
struct Group {
    transaction: Option<WriteTransaction>,
    members: usize,
    /// The number of the open transaction, or of the next.
    generation: u64,
    /// Generations that could not be committed, newest last.
    failures: Vec<(u64, Arc<redb::Error>)>,
}

impl Store {
    /// Opens the database at `path`, or makes it. One that was not closed is brought back to its
    /// last commit, one of an older schema up to date.
    ///
    /// # Errors
    ///
    /// - `NewerSchema`: a newer program has written it.
    /// - `DamagedDatabase`: it is no database, or has no good commit.
    /// - `Database`: it cannot be read, or another process has it open.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if !path.try_exists().map_err(Error::file("look for", path))? {
            make(path)?;
        }
        let opener = |path: &Path| {
            let told = AtomicBool::new(false);
            let tell = move |_: &mut RepairSession| {
                if !told.swap(true, Ordering::Relaxed) {
                    tracing::info!(
                        "metadata database was not closed: going on from its last commit"
                    );
                }
            };
            Database::builder().set_cache_size(CACHE_LEN).set_repair_callback(tell).open(path)
        };
        Self::open_with(path, Box::new(opener))
    }

    pub(super) fn open_with(path: &Path, opener: Opener) -> Result<Self, Error> {
        let explain = |operation: &'static str, error: redb::Error| {
            if is_damage(&error) {
                Error::DamagedDatabase { path: path.to_owned(), source: error.into() }
            } else {
                Error::database(operation)(error)
            }
        };
        let database = opener(path).map_err(|error| explain("open", error.into()))?;
        if !schema::is_prepared(&database).unwrap_or(false) {
            let transaction = database.begin_write();
            let transaction = transaction.map_err(|error| explain("begin", error.into()))?;
            schema::prepare(&transaction, path)?;
            transaction.commit().map_err(|error| explain("commit", error.into()))?;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                opener,
                database: RwLock::new(Some(database)),
                announced: AtomicUsize::new(0),
                group: Mutex::default(),
                committed: Condvar::new(),
                collection: RwLock::default(),
                glance: Mutex::default(),
                notice: OnceLock::new(),
            }),
        })
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Shows the last commit to `read`.
    ///
    /// # Errors
    ///
    /// Those of `read`, and `Database`.
    pub fn read<T>(&self, read: impl FnOnce(&View) -> Result<T, Error>) -> Result<T, Error> {
        let transaction = self.inner.begin_read().map_err(Error::database("begin"))?;
        read(&View::new(transaction))
    }

    /// Shows the last commit to `look`, if that is short and nobody else does so: for a thread that
    /// should not wait. A look needs no lock that is held during a commit, so all it may wait for is
    /// a page of the database that is not in memory; and for that no more than one thread waits.
    /// Otherwise nothing, also while the database has to be opened again.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub(crate) fn glance<T>(
        &self,
        look: impl FnOnce(&View) -> Result<T, Error>,
    ) -> Option<Result<T, Error>> {
        let _alone = self.inner.glance.try_lock().ok()?;
        let database = self.inner.database.try_read().ok()?;
        let transaction = database.as_ref()?.begin_read().map_err(Error::database("begin"));
        drop(database);
        Some(transaction.and_then(|transaction| look(&View::new(transaction))))
    }

    /// Lets `change` make changes, and returns once they are on disk, all of them or, when it
    /// fails, none.
    ///
    /// # Errors
    ///
    /// Those of `change`, and `Database`.
    pub fn write<T>(
        &self,
        change: impl FnOnce(&mut Changes<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _keep = self.referring();
        self.write_while_collecting(change)
    }

    /// Has `notice` called, briefly, after every change but those of collections. The first to
    /// ask for it gets it.
    pub(crate) fn on_change(&self, notice: Notice) {
        let _ = self.inner.notice.set(notice);
    }

    fn note_change(&self) {
        if let Some(notice) = self.inner.notice.get() {
            notice();
        }
    }

    /// [`write`](Self::write) for the one who holds [`collecting`](Self::collecting), or has
    /// [`referring`](Self::referring) already.
    pub(crate) fn write_while_collecting<T>(
        &self,
        change: impl FnOnce(&mut Changes<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.transact(|transaction| {
            let mut changes = Changes::new(transaction);
            let value = change(&mut changes)?;
            changes.apply()?;
            Ok(value)
        })
        .map_err(Error::database("commit"))?
        .inspect(|_| self.note_change())
    }

    /// Removes records of any kind, for the one who holds [`collecting`](Self::collecting):
    /// `remove` may put what it likes into the transaction, and returns nothing but the
    /// database's errors.
    pub(crate) fn collect<T>(
        &self,
        remove: impl FnOnce(&WriteTransaction, &mut Changes<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.transact(|transaction| {
            let mut changes = Changes::new(transaction);
            let value = remove(transaction, &mut changes)?;
            changes.apply()?;
            Ok(value)
        })
        .map_err(Error::database("commit"))?
    }

    /// Keeps garbage collection from running between a look at an object and a reference to it.
    ///
    /// Collections wait for whoever has it, and everybody who comes later waits for them: it is
    /// for as long as a commit takes, and for no work on files.
    pub fn referring(&self) -> RwLockReadGuard<'_, ()> {
        self.inner.collection.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps everybody else from changing anything.
    pub(crate) fn collecting(&self) -> RwLockWriteGuard<'_, ()> {
        self.inner.collection.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` in a transaction that it may share with others, and returns once that is
    /// committed. When `change` reports an error by its value, it must have changed nothing.
    ///
    /// # Errors
    ///
    /// The transaction could not be begun or committed.
    fn transact<T>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> T,
    ) -> Result<T, Arc<redb::Error>> {
        let inner = &*self.inner;
        inner.announced.fetch_add(1, Ordering::SeqCst);
        let mut group = inner.lock();
        let outcome = match group.open(inner) {
            Ok(transaction) => Ok(panic::catch_unwind(AssertUnwindSafe(|| change(transaction)))),
            Err(error) => Err(error),
        };
        group.members += 1;
        let generation = group.generation;
        let left = inner.announced.fetch_sub(1, Ordering::SeqCst) - 1;
        if left == 0 || group.members >= GROUP_LEN_MAX {
            group.commit(inner);
            inner.committed.notify_all();
        } else {
            group = inner
                .committed
                .wait_while(group, |group| group.generation == generation)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let failure = group.failure(generation);
        drop(group);
        match outcome? {
            Ok(_) if failure.is_some() => Err(failure.expect("just seen")),
            Ok(value) => Ok(value),
            Err(panic) => panic::resume_unwind(panic),
        }
    }
}

impl Inner {
    fn begin_read(&self) -> Result<ReadTransaction, redb::Error> {
        self.with(|database| Ok(database.begin_read()?))
    }

    /// Uses the database; opens it first when it failed before.
    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*database {
            return work(database);
        }
        drop(database);
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        match &mut *database {
            Some(database) => work(database),
            none => work(none.insert((self.opener)(&self.path)?)),
        }
    }

    /// Closes the database; the next one who uses it opens it again.
    fn close(&self) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn lock(&self) -> MutexGuard<'_, Group> {
        // A change that panics has written nothing, so the group is whole.
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn open(&mut self, inner: &Inner) -> Result<&WriteTransaction, Arc<redb::Error>> {
        if self.transaction.is_none() {
            let begun = inner.with(|database| Ok(database.begin_write()?));
            self.transaction = Some(begun.map_err(Arc::new)?);
        }
        Ok(self.transaction.as_ref().expect("just begun"))
    }

    fn commit(&mut self, inner: &Inner) {
        if let Some(transaction) = self.transaction.take()
            && let Err(error) = transaction.commit()
        {
            inner.close();
            if self.failures.len() == FAILURES_MAX {
                self.failures.remove(0);
            }
            self.failures.push((self.generation, Arc::new(error.into())));
        }
        self.members = 0;
        self.generation += 1;
    }

    fn failure(&self, generation: u64) -> Option<Arc<redb::Error>> {
        let found = self.failures.iter().find(|(failed, _)| *failed == generation);
        found.map(|(_, error)| Arc::clone(error))
    }
}

/// The snapshotters' view: their records share the commits of everybody else, and do not change
/// during a collection. So whoever has [`Store::referring`] must not change a snapshot.
impl snapshotter::Transactions for Store {
    fn read(&self) -> Result<redb::ReadTransaction, snapshotter::Error> {
        self.inner.begin_read().map_err(snapshotter::Error::database)
    }

    fn write(&self, change: &mut snapshotter::Change<'_>) -> Result<(), snapshotter::Error> {
        let _keep = self.referring();
        self.transact(|transaction| change(transaction))
            .map_err(snapshotter::Error::database)?
            .inspect(|()| self.note_change())
    }
}

/// Makes an empty database at `path`, which appears there when it is whole: a file that is not is
/// damage.
fn make(path: &Path) -> Result<(), Error> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        removed => removed.map_err(Error::file("remove", &unfinished))?,
    }
    let database = Database::builder().set_cache_size(CACHE_LEN).create(&unfinished);
    let database = database.map_err(Error::database("create"))?;
    let transaction = database.begin_write().map_err(Error::database("begin"))?;
    schema::prepare(&transaction, path)?;
    transaction.commit().map_err(Error::database("commit"))?;
    drop(database);
    fs::rename(&unfinished, path).map_err(Error::file("rename", path))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let sync = File::open(folder).and_then(|folder| folder.sync_all());
    sync.map_err(Error::file("sync", folder))
}

/// Whether the error tells of what the file holds, and not of a disk, a lock or a limit.
pub(crate) fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(error) => {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableIsNotMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;
    use crate::metadata::{
        Rows, Table,
        schema::{META, SCHEMA},
    };

    fn open() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(&folder.path().join("m.redb")).expect("opens");
        (folder, store)
    }

    fn count(store: &Store) -> usize {
        let count = |view: &View| {
            let mut count = 0;
            view.scan(Table::Images, b"", &mut |_, _| {
                count += 1;
                Ok(())
            })?;
            Ok(count)
        };
        store.read(count).expect("reads")
    }

    #[test]
    fn concurrent_writers_are_all_kept() {
        let (folder, store) = open();
        let barrier = Barrier::new(32);
        thread::scope(|scope| {
            for writer in 0..32u8 {
                let (store, barrier) = (&store, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for row in 0..8u8 {
                        let put = |changes: &mut Changes<'_>| {
                            changes.put(Table::Images, &[writer, row], vec![1]);
                            Ok(())
                        };
                        store.write(put).expect("writes");
                    }
                });
            }
        });
        drop(store);
        let store = Store::open(&folder.path().join("m.redb")).expect("opens again");
        assert_eq!(count(&store), 256);
    }

    #[test]
    fn one_glances_at_a_time() {
        let (_folder, store) = open();
        let none = |_: &View| Ok(());
        let seen = store.glance(|_| Ok(store.glance(none).is_none()));
        assert!(seen.expect("nobody else").expect("reads"), "another looks already");
        let seen = store.write(|_| Ok(store.glance(none).is_some()));
        assert!(seen.expect("writes"), "beside a change");
        store.inner.close();
        assert!(store.glance(none).is_none(), "it has to be opened first");
        store.read(none).expect("reads");
        assert!(store.glance(none).is_some(), "open again");
    }

    #[test]
    fn a_failed_call_changes_nothing() {
        let (_folder, store) = open();
        let result: Result<(), _> = store.write(|changes| {
            changes.put(Table::Images, b"a", vec![1]);
            assert!(changes.get(Table::Images, b"a").expect("reads").is_some(), "own change");
            Err(Error::NotFound("x".to_owned()))
        });
        assert!(matches!(result, Err(Error::NotFound(_))));
        assert_eq!(count(&store), 0);
    }

    #[test]
    fn a_panic_does_not_stop_others() {
        let (_folder, store) = open();
        let panicking = AssertUnwindSafe(|| {
            let _ = store.write(|_| -> Result<(), Error> { panic!("on purpose") });
        });
        assert!(panic::catch_unwind(panicking).is_err());
        store
            .write(|changes| {
                changes.put(Table::Images, b"a", vec![1]);
                Ok(())
            })
            .expect("writes");
        assert_eq!(count(&store), 1);
    }

    /// A file on a disk that may be full.
    #[derive(Debug)]
    struct Disk {
        file: redb::backends::FileBackend,
        full: Arc<std::sync::atomic::AtomicBool>,
    }

    impl redb::StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.file.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.file.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            if self.full.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.file.write(offset, data)
        }
        fn close(&self) -> io::Result<()> {
            self.file.close()
        }
    }

    #[test]
    fn a_full_disk_is_not_for_ever() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_full = Arc::clone(&full);
        let opener = move |path: &Path| {
            let mut options = std::fs::OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(path);
            let file = redb::backends::FileBackend::new(file.expect("opens"))?;
            let disk = Disk { file, full: Arc::clone(&is_full) };
            Database::builder().create_with_backend(disk)
        };
        let store = Store::open_with(&folder.path().join("m.redb"), Box::new(opener));
        let store = store.expect("opens");
        let put = |key: &'static [u8]| {
            store.write(|changes| {
                changes.put(Table::Images, key, vec![1]);
                Ok(())
            })
        };
        put(b"before").expect("writes");
        full.store(true, Ordering::SeqCst);
        put(b"lost").expect_err("the disk is full");
        put(b"lost").expect_err("it still is");
        full.store(false, Ordering::SeqCst);
        assert_eq!(count(&store), 1, "what was committed is there, and nothing else");
        put(b"after").expect("writes again");
        assert_eq!(count(&store), 2);
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let (folder, store) = open();
        drop(store);
        let path = folder.path().join("m.redb");
        let database = Database::open(&path).expect("opens");
        let transaction = database.begin_write().expect("begins");
        transaction.open_table(META).expect("opens").insert("schema", 9).expect("writes");
        transaction.commit().expect("commits");
        drop(database);
        let error = Store::open(&path).err().expect("is refused");
        assert!(matches!(error, Error::NewerSchema { found: 9, known: SCHEMA, .. }), "{error}");
    }
}
