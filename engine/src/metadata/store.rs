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

use std::{
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::rows::{Changes, View};
use crate::error::Error;

/// The schema that this program writes; `docs/formats.md` says what changed from one to the next.
const SCHEMA: u64 = 1;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

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

struct Inner {
    path: PathBuf,
    database: Database,
    /// Writers that want the group and have not left it.
    announced: AtomicUsize,
    group: Mutex<Group>,
    committed: Condvar,
    /// Held shared by whoever makes or refers to objects, alone by garbage collection.
    collection: RwLock<()>,
}

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
    /// Opens the database at `path`, or makes it. A database that was not closed is repaired.
    ///
    /// # Errors
    ///
    /// - `NewerSchema`: a newer program has written it.
    /// - `Database`: it cannot be read, or another process has it open.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let database = Database::builder()
            .set_cache_size(CACHE_LEN)
            .create(path)
            .map_err(Error::database("open"))?;
        let transaction = database.begin_write().map_err(Error::database("begin"))?;
        prepare(&transaction, path)?;
        transaction.commit().map_err(Error::database("commit"))?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                database,
                announced: AtomicUsize::new(0),
                group: Mutex::default(),
                committed: Condvar::new(),
                collection: RwLock::default(),
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
        let transaction = self.inner.database.begin_read().map_err(Error::database("begin"))?;
        read(&View::new(transaction))
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
    }

    /// Keeps garbage collection from running while an object is made of which no record tells yet.
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
        let outcome = match group.open(&inner.database) {
            Ok(transaction) => Ok(panic::catch_unwind(AssertUnwindSafe(|| change(transaction)))),
            Err(error) => Err(error),
        };
        group.members += 1;
        let generation = group.generation;
        let left = inner.announced.fetch_sub(1, Ordering::SeqCst) - 1;
        if left == 0 || group.members >= GROUP_LEN_MAX {
            group.commit();
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
    fn lock(&self) -> MutexGuard<'_, Group> {
        // A change that panics has written nothing, so the group is whole.
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn open(&mut self, database: &Database) -> Result<&WriteTransaction, Arc<redb::Error>> {
        if self.transaction.is_none() {
            let transaction = database.begin_write().map_err(|error| Arc::new(error.into()))?;
            self.transaction = Some(transaction);
        }
        Ok(self.transaction.as_ref().expect("just begun"))
    }

    fn commit(&mut self) {
        if let Some(transaction) = self.transaction.take()
            && let Err(error) = transaction.commit()
        {
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

/// The snapshotters' view: their records share the commits of everybody else.
impl snapshotter::Transactions for Store {
    fn read(&self) -> Result<redb::ReadTransaction, snapshotter::Error> {
        self.inner.database.begin_read().map_err(snapshotter::Error::database)
    }

    fn write(&self, change: &mut snapshotter::Change<'_>) -> Result<(), snapshotter::Error> {
        self.transact(|transaction| change(transaction)).map_err(snapshotter::Error::database)?
    }
}

/// Makes the tables, so that readers find them, and checks or notes the schema.
fn prepare(transaction: &WriteTransaction, path: &Path) -> Result<(), Error> {
    let mut meta = transaction.open_table(META).map_err(Error::database("open table"))?;
    let found = meta.get("schema").map_err(Error::database("read"))?.map(|found| found.value());
    match found {
        None => {
            meta.insert("schema", SCHEMA).map_err(Error::database("write"))?;
        }
        Some(SCHEMA) => {}
        Some(found) => {
            return Err(Error::NewerSchema { path: path.to_owned(), found, known: SCHEMA });
        }
    }
    super::rows::make_tables(transaction)
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;
    use crate::metadata::{Rows, Table};

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
