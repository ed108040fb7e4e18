//! What the database holds of snapshots, and how it changes.
//!
//! # Schema
//!
//! | table               | key                                              | value              |
//! |---------------------|--------------------------------------------------|--------------------|
//! | `snapshots`         | `(snapshotter, namespace, name)`, three `&str`   | a record, JSON     |
//! | `snapshot_children` | `(snapshotter, parent's id, id)`, `&str u64 u64` | name of the child, `&str` |
//!
//! `snapshotter` is `overlayfs`, `erofs`, `native`, `btrfs` or the name of an external one, so one database serves
//! several. A record is a JSON object:
//!
//! | field     | value                                                                   |
//! |-----------|-------------------------------------------------------------------------|
//! | `id`      | the number of the snapshot's directory, unique per snapshotter          |
//! | `kind`    | `"active"`, `"view"` or `"committed"`                                   |
//! | `parent`  | name of a committed snapshot of the same namespace; absent: none        |
//! | `labels`  | object of strings; absent: none                                         |
//! | `created` | nanoseconds since 1970                                                  |
//! | `updated` | nanoseconds since 1970                                                  |
//! | `usage`   | `{"inodes": n, "bytes": n}`, of committed snapshots only                |
//! | `unsynced`| the boot ID of the machine when it was committed, until its files are known to be on disk; absent: they are. Of an active one: the boot in which it was given out to be mounted `volatile`; absent: it was not |
//! | `external`| what an external snapshotter calls it; absent: its files are in a directory of ours |
//!
//! Fields that a reader does not know are ignored; new ones must have a default.
//!
//! # Invariants
//!
//! - Every `parent` names a committed record, and stands in `snapshot_children`; nothing else
//!   stands there.
//! - The id moves with the data: a commit keeps the id of the active snapshot.
//!
//! Each function here checks all that can be refused before it writes, because the transaction
//! may be shared ([`Transactions::write`]).

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, TableError, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::{Change, EditLabels, Error, Info, Key, Kind, Labels, Transactions, Usage};

/// All snapshots.
pub const SNAPSHOTS: TableDefinition<'_, (&str, &str, &str), &[u8]> =
    TableDefinition::new("snapshots");

/// For each snapshot with children, the children.
pub const CHILDREN: TableDefinition<'_, (&str, u64, u64), &str> =
    TableDefinition::new("snapshot_children");

/// Makes the tables, in case they are not there.
///
/// # Errors
///
/// [`Error::Database`].
pub fn create_tables(transaction: &WriteTransaction) -> Result<(), Error> {
    transaction.open_table(SNAPSHOTS).map_err(Error::database)?;
    transaction.open_table(CHILDREN).map_err(Error::database)?;
    Ok(())
}

/// The snapshotters that have snapshots of `namespace`, by name, whether they are in use or not.
///
/// # Errors
///
/// [`Error::Database`].
pub fn snapshotters_of(
    transaction: &ReadTransaction,
    namespace: &str,
) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    let Some(table) = open_read(transaction)? else { return Ok(found) };
    let first_from = |snapshotter: &str, namespace: &str| {
        let first = table.range((snapshotter, namespace, "")..).map_err(Error::database)?.next();
        let first = first.transpose().map_err(Error::database)?;
        Ok::<_, Error>(first.map(|(key, _)| {
            let (snapshotter, namespace, _) = key.value();
            (snapshotter.to_owned(), namespace.to_owned())
        }))
    };
    let mut next = String::new();
    while let Some((snapshotter, _)) = first_from(&next, "")? {
        // What comes after all that start with this one's name.
        next = format!("{snapshotter}\0");
        if first_from(&snapshotter, namespace)? == Some((snapshotter.clone(), namespace.to_owned()))
        {
            found.push(snapshotter);
        }
    }
    Ok(found)
}

/// Shows the snapshots of all snapshotters that `is_wanted` chooses by their names, whether they are in use or
/// not, to `visit`.
///
/// # Errors
///
/// [`Error::Database`].
pub fn walk_of(
    transaction: &ReadTransaction,
    is_wanted: impl Fn(&str) -> bool,
    mut visit: impl FnMut(&str, Info),
) -> Result<(), Error> {
    let Some(mut table) = open_read(transaction)? else { return Ok(()) };
    let mut next = String::new();
    loop {
        let first = table.range((next.as_str(), "", "")..).map_err(Error::database)?.next();
        let first = first.transpose().map_err(Error::database)?;
        let Some(name) = first.map(|(key, _)| key.value().0.to_owned()) else { return Ok(()) };
        if is_wanted(&name) {
            let view = View { snapshotter: &name, table };
            view.walk(None, &mut |key, record| {
                visit(&name, record.info(key));
                ControlFlow::Continue(())
            })?;
            table = view.table;
        }
        // What comes after all that start with this one's name.
        next = format!("{name}\0");
    }
}

/// The value in [`SNAPSHOTS`], for whoever looks at the tables as such; its fields are the schema's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the schema has them")]
pub struct Record {
    pub id: u64,
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    pub created: i64,
    pub updated: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsynced: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<String>,
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    ///
    /// [`Error::Database`]: a field is missing, or not of its type.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(bytes).map_err(Error::database)
    }

    /// Writes a record.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(Error::database)
    }

    /// What callers may know of the record of `key`.
    pub(crate) fn info(self, key: Key) -> Info {
        Info {
            parent: self.parent.map(|parent| Key::stored(key.namespace(), &parent)),
            key,
            kind: self.kind,
            labels: self.labels,
            created: time(self.created),
            updated: time(self.updated),
        }
    }

    pub(crate) fn parent_key(&self, key: &Key) -> Option<Key> {
        self.parent.as_deref().map(|parent| Key::stored(key.namespace(), parent))
    }
}

/// A snapshot to be made.
pub(crate) struct New<'a> {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) key: &'a Key,
    pub(crate) parent: Option<&'a Key>,
    pub(crate) labels: &'a Labels,
    /// What an external snapshotter calls it.
    pub(crate) external: Option<&'a str>,
    /// Whether what is written to it is not synced.
    pub(crate) is_volatile: bool,
}

/// A commit to be made.
pub(crate) struct Commit<'a> {
    pub(crate) name: &'a Key,
    pub(crate) key: &'a Key,
    /// The new parent, for a rebase.
    pub(crate) parent: Option<&'a Key>,
    pub(crate) labels: &'a Labels,
    /// Of one of ours.
    pub(crate) usage: Option<Usage>,
    /// What an external snapshotter calls it now; what is in one is as durable as that makes it.
    pub(crate) external: Option<&'a str>,
}

/// The records of one snapshotter.
pub(crate) struct Records {
    transactions: Arc<dyn Transactions>,
    snapshotter: Box<str>,
    /// The machine's boot ID.
    boot: String,
}

impl Records {
    pub(crate) fn open(
        transactions: Arc<dyn Transactions>,
        snapshotter: &str,
        boot: String,
    ) -> Result<Self, Error> {
        if open_read(&transactions.read()?)?.is_none() {
            transactions.write(&mut create_tables)?;
        }
        Ok(Self { transactions, snapshotter: snapshotter.into(), boot })
    }

    /// The record of `key`.
    pub(crate) fn get(&self, key: &Key) -> Result<Record, Error> {
        self.view()?.get(key)
    }

    /// Whether the snapshot of `record` may have lost files: it was committed, or given out to be
    /// mounted `volatile`, before the machine was last started, and is not known to have been on
    /// disk by then.
    pub(crate) fn is_suspect(&self, record: &Record) -> bool {
        record.unsynced.as_ref().is_some_and(|boot| *boot != self.boot)
    }

    /// How many snapshots are below `key`.
    pub(crate) fn depth(&self, key: &Key) -> Result<usize, Error> {
        let view = self.view()?;
        let mut depth = 0;
        let mut next = view.get(key)?.parent_key(key);
        while let Some(key) = next {
            depth += 1;
            next = view.get(&key)?.parent_key(&key);
        }
        Ok(depth)
    }

    /// The record of `key`, and the ids of all below it, nearest first.
    pub(crate) fn get_chain(&self, key: &Key) -> Result<(Record, Vec<u64>), Error> {
        let view = self.view()?;
        let record = view.get(key)?;
        let chain = self.chain(&view, record.parent_key(key))?;
        Ok((record, chain))
    }

    /// Checks that a snapshot could be made on top of `parent`, and returns the ids of all below
    /// it, nearest first.
    pub(crate) fn parent_chain(&self, parent: Option<&Key>) -> Result<Vec<u64>, Error> {
        let view = self.view()?;
        if let Some(parent) = parent {
            need_kind(parent, &view.get(parent)?, Kind::Committed)?;
        }
        self.chain(&view, parent.cloned())
    }

    /// The ids of `next` and all below it. There is none with a suspect among them: what would be
    /// seen on top of it is wrong.
    fn chain(&self, view: &View<'_>, mut next: Option<Key>) -> Result<Vec<u64>, Error> {
        let mut ids = Vec::new();
        while let Some(key) = next {
            let record = view.get(&key)?;
            if self.is_suspect(&record) {
                return Err(Error::Suspect { key });
            }
            next = record.parent_key(&key);
            ids.push(record.id);
        }
        Ok(ids)
    }

    /// All ids, in no order.
    pub(crate) fn ids(&self) -> Result<Vec<u64>, Error> {
        Ok(self.select(|record| Some(record.id))?.into_iter().map(|(_, id)| id).collect())
    }

    /// What `choose` makes of the records that it wants, in the order of their keys.
    pub(crate) fn select<T>(
        &self,
        mut choose: impl FnMut(Record) -> Option<T>,
    ) -> Result<Vec<(Key, T)>, Error> {
        let mut chosen = Vec::new();
        self.view()?.walk(None, &mut |key, record| {
            chosen.extend(choose(record).map(|value| (key, value)));
            ControlFlow::Continue(())
        })?;
        Ok(chosen)
    }

    /// Notes that the files of these snapshots are on disk. One that was removed meanwhile, or
    /// made anew under its key, is passed over.
    pub(crate) fn note_synced(&self, synced: &[(Key, u64)]) -> Result<(), Error> {
        self.change(&mut |tables| {
            synced.iter().try_for_each(|(key, id)| tables.set_unsynced(key, *id, None))
        })
    }

    /// Notes that what is written to the active snapshot `key` is not synced from now on.
    pub(crate) fn note_volatile(&self, key: &Key, id: u64) -> Result<(), Error> {
        self.change(&mut |tables| tables.set_unsynced(key, id, Some(&self.boot)))
    }

    pub(crate) fn walk(
        &self,
        namespace: Option<&str>,
        visit: &mut dyn FnMut(Key, Record) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        self.view()?.walk(namespace, visit)
    }

    pub(crate) fn create(&self, new: &New<'_>) -> Result<(), Error> {
        self.change(&mut |tables| tables.create(new, &self.boot))
    }

    pub(crate) fn commit(&self, commit: &Commit<'_>) -> Result<(), Error> {
        self.change(&mut |tables| tables.commit(commit, &self.boot))
    }

    /// Removes the record of `key`, and returns it.
    pub(crate) fn remove(&self, key: &Key) -> Result<Record, Error> {
        let mut removed = None;
        self.change(&mut |tables| {
            removed = Some(tables.remove(key)?);
            Ok(())
        })?;
        Ok(removed.expect("a change that succeeded was called"))
    }

    /// Removes, in a transaction of the caller's, the records of those of `keys` that are there and
    /// have no children, and returns which these are, with their ids.
    pub(crate) fn remove_within(
        &self,
        transaction: &WriteTransaction,
        keys: &[Key],
    ) -> Result<Vec<(Key, u64)>, Error> {
        let mut tables = Tables::open(transaction, &self.snapshotter)?;
        let mut removed = Vec::new();
        for key in keys {
            match tables.remove(key) {
                Ok(record) => removed.push((key.clone(), record.id)),
                Err(Error::NotFound { .. } | Error::HasChildren { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    pub(crate) fn update(&self, key: &Key, edit: &mut EditLabels<'_>) -> Result<Record, Error> {
        let mut updated = None;
        self.change(&mut |tables| {
            updated = Some(tables.update(key, edit)?);
            Ok(())
        })?;
        Ok(updated.expect("a change that succeeded was called"))
    }

    fn view(&self) -> Result<View<'_>, Error> {
        let table = open_read(&self.transactions.read()?)?;
        let table = table.ok_or_else(|| Error::database("the table of snapshots is missing"))?;
        Ok(View { table, snapshotter: &self.snapshotter })
    }

    fn change(
        &self,
        change: &mut (dyn FnMut(&mut Tables<'_>) -> Result<(), Error> + Send),
    ) -> Result<(), Error> {
        let snapshotter = &*self.snapshotter;
        let change: &mut Change<'_> =
            &mut |transaction| change(&mut Tables::open(transaction, snapshotter)?);
        self.transactions.write(change)
    }
}

type SnapshotTable = redb::ReadOnlyTable<(&'static str, &'static str, &'static str), &'static [u8]>;

fn open_read(transaction: &ReadTransaction) -> Result<Option<SnapshotTable>, Error> {
    match transaction.open_table(SNAPSHOTS) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(Error::database(error)),
    }
}

/// The records as they were at one moment.
struct View<'r> {
    snapshotter: &'r str,
    table: SnapshotTable,
}

impl View<'_> {
    fn get(&self, key: &Key) -> Result<Record, Error> {
        get(&self.table, self.snapshotter, key)
    }

    fn walk(
        &self,
        namespace: Option<&str>,
        visit: &mut dyn FnMut(Key, Record) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let start = (self.snapshotter, namespace.unwrap_or_default(), "");
        for entry in self.table.range(start..).map_err(Error::database)? {
            let (key, record) = entry.map_err(Error::database)?;
            let (snapshotter, of, name) = key.value();
            if snapshotter != self.snapshotter || namespace.is_some_and(|only| only != of) {
                break;
            }
            let record = Record::decode(record.value())?;
            if visit(Key::stored(of, name), record).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The records within a write transaction.
struct Tables<'t> {
    snapshotter: &'t str,
    snapshots: Table<'t, (&'static str, &'static str, &'static str), &'static [u8]>,
    children: Table<'t, (&'static str, u64, u64), &'static str>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction, snapshotter: &'t str) -> Result<Self, Error> {
        let snapshots = transaction.open_table(SNAPSHOTS).map_err(Error::database)?;
        let children = transaction.open_table(CHILDREN).map_err(Error::database)?;
        Ok(Self { snapshotter, snapshots, children })
    }

    fn create(&mut self, new: &New<'_>, boot: &str) -> Result<(), Error> {
        self.need_free(new.key)?;
        let parent = self.parent(new.key, new.parent)?;
        let now = now();
        let record = Record {
            id: new.id,
            kind: new.kind,
            parent: new.parent.map(|parent| parent.name().to_owned()),
            labels: new.labels.clone(),
            created: now,
            updated: now,
            usage: None,
            unsynced: new.is_volatile.then(|| boot.to_owned()),
            external: new.external.map(str::to_owned),
        };
        self.insert(new.key, &record, parent)
    }

    fn commit(&mut self, commit: &Commit<'_>, boot: &str) -> Result<(), Error> {
        let Commit { name, key, .. } = *commit;
        if name.namespace() != key.namespace() {
            return Err(Error::OtherNamespace { key: name.clone(), other: key.clone() });
        }
        self.need_free(name)?;
        let old = self.get(key)?;
        need_kind(key, &old, Kind::Active)?;
        let parent_key = match (old.parent_key(key), commit.parent) {
            (Some(old), Some(new)) if old != *new => {
                return Err(Error::OtherParent { key: key.clone(), parent: new.clone() });
            }
            (old, new) => old.or_else(|| new.cloned()),
        };
        let parent = self.parent(name, parent_key.as_ref())?;
        let now = now();
        let record = Record {
            id: old.id,
            kind: Kind::Committed,
            parent: parent_key.map(|parent| parent.name().to_owned()),
            labels: commit.labels.clone(),
            created: now,
            updated: now,
            usage: commit.usage,
            unsynced: commit.external.is_none().then(|| boot.to_owned()),
            external: commit.external.map(str::to_owned),
        };
        // The link to the parent, if `key` had one, is overwritten: the id is the same.
        self.insert(name, &record, parent)?;
        let place = (self.snapshotter, key.namespace(), key.name());
        self.snapshots.remove(place).map_err(Error::database)?;
        Ok(())
    }

    fn remove(&mut self, key: &Key) -> Result<Record, Error> {
        let record = self.get(key)?;
        if let Some(child) = self.child(record.id)? {
            let child = Key::stored(key.namespace(), &child);
            return Err(Error::HasChildren { key: key.clone(), child });
        }
        let parent = self.parent(key, record.parent_key(key).as_ref())?;
        let place = (self.snapshotter, key.namespace(), key.name());
        self.snapshots.remove(place).map_err(Error::database)?;
        if let Some(parent) = parent {
            let link = (self.snapshotter, parent, record.id);
            self.children.remove(link).map_err(Error::database)?;
        }
        Ok(record)
    }

    fn update(&mut self, key: &Key, edit: &mut EditLabels<'_>) -> Result<Record, Error> {
        let mut record = self.get(key)?;
        edit(&mut record.labels);
        record.updated = now();
        self.put(key, &record)?;
        Ok(record)
    }

    fn set_unsynced(&mut self, key: &Key, id: u64, boot: Option<&str>) -> Result<(), Error> {
        match self.get(key) {
            Ok(mut record) if record.id == id => {
                record.unsynced = boot.map(str::to_owned);
                self.put(key, &record)
            }
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn get(&self, key: &Key) -> Result<Record, Error> {
        get(&self.snapshots, self.snapshotter, key)
    }

    fn need_free(&self, key: &Key) -> Result<(), Error> {
        match self.get(key) {
            Ok(_) => Err(Error::AlreadyExists { key: key.clone() }),
            Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The id of `parent`, which may be the parent of `key`.
    fn parent(&self, key: &Key, parent: Option<&Key>) -> Result<Option<u64>, Error> {
        let Some(parent) = parent else { return Ok(None) };
        if parent.namespace() != key.namespace() {
            return Err(Error::OtherNamespace { key: parent.clone(), other: key.clone() });
        }
        let record = self.get(parent)?;
        need_kind(parent, &record, Kind::Committed)?;
        Ok(Some(record.id))
    }

    fn child(&self, id: u64) -> Result<Option<String>, Error> {
        let children = (self.snapshotter, id, 0)..=(self.snapshotter, id, u64::MAX);
        let mut children = self.children.range(children).map_err(Error::database)?;
        let first = children.next().transpose().map_err(Error::database)?;
        Ok(first.map(|(_, name)| name.value().to_owned()))
    }

    fn insert(&mut self, key: &Key, record: &Record, parent: Option<u64>) -> Result<(), Error> {
        self.put(key, record)?;
        if let Some(parent) = parent {
            let link = (self.snapshotter, parent, record.id);
            self.children.insert(link, key.name()).map_err(Error::database)?;
        }
        Ok(())
    }

    fn put(&mut self, key: &Key, record: &Record) -> Result<(), Error> {
        let value = record.encode()?;
        let place = (self.snapshotter, key.namespace(), key.name());
        self.snapshots.insert(place, value.as_slice()).map_err(Error::database)?;
        Ok(())
    }
}

fn get(
    table: &impl ReadableTable<(&'static str, &'static str, &'static str), &'static [u8]>,
    snapshotter: &str,
    key: &Key,
) -> Result<Record, Error> {
    let value = table.get((snapshotter, key.namespace(), key.name())).map_err(Error::database)?;
    let value = value.ok_or_else(|| Error::NotFound { key: key.clone() })?;
    Record::decode(value.value())
}

fn need_kind(key: &Key, record: &Record, needed: Kind) -> Result<(), Error> {
    if record.kind == needed {
        return Ok(());
    }
    Err(Error::WrongKind { key: key.clone(), actual: record.kind, needed })
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn time(nanoseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or_default())
}
