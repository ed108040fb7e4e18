//! Snapshots that another program keeps.
//!
//! # Two names
//!
//! The other program knows nothing of namespaces: all its snapshots are in one key space. So what
//! clients call a snapshot is in a record of ours, with its labels and its parent, and the record
//! says what it is called there: `<namespace>/<number>/<name>`, as by containerd. The number is new
//! for each snapshot, so one that was removed here, and is not gone there yet, is in nobody's way.
//!
//! # Order
//!
//! What is made there is noted first ([`Made`]), then made, then gets its record, and it is removed there
//! after its record; so a record has its snapshot, and a crash, or an answer that came too late, leaves at
//! most snapshots without records. [`cleanup`](Snapshotter::cleanup) removes those that were noted. What
//! else is there is somebody else's, or was made by a database that is lost: it stays, and
//! [`on_foreign`](External::on_foreign) is told how many there are.
//!
//! Removal waits for nothing: [`remove`](Snapshotter::remove) takes the record, and the next cleanup
//! the rest. Nor does [`walk_records`](Snapshotter::walk_records) wait. A program that is away, or
//! does not answer, is left alone by cleanups for a while.
//!
//! # What it has already
//!
//! Snapshotters that can mount a layer without unpacking it are asked by the label
//! [`TARGET_LABEL`] whether they have it, and answer a `prepare` with "already exists". Then the
//! snapshot that they have is entered under the name that the label says. It becomes ours, to be removed when
//! its records go, unless it is another database's: by its label [`STORE_LABEL`], or by its name, if that is of the
//! form that databases give.
//!
//! Source: containerd, `core/metadata/snapshot.go`. Its transactions stay open while it calls the
//! other program; ours are shared with others, and do not.

mod prune;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    EditLabels, Error, Fill, Info, Key, Kind, Labels, Mount, Snapshotter, Transactions, Usage,
    made::Made,
    records::{Commit, New, Record, Records},
};

/// The label that names the committed snapshot which a prepared one is to become.
pub const TARGET_LABEL: &str = "containerd.io/snapshot.ref";

/// The label of a snapshot that the other program has made by itself, there: whose it is.
pub const STORE_LABEL: &str = "gantry.io/store";

/// Labels with this before their name are the other program's business, too.
const INHERITED_PREFIX: &str = "containerd.io/snapshot/";

/// For how long a program that did not answer a cleanup is not asked again.
const RETRY_DELAY: Duration = Duration::from_secs(60);

/// In how many places databases that are opened in the same millisecond may begin to number snapshots.
const PLACES: u64 = 1_000_000;

/// A program that keeps snapshots.
///
/// Keys have the namespace that a call is for, and as name what the snapshot is called there. Each
/// call ends within a time that the implementation sets.
#[expect(clippy::missing_errors_doc, reason = "what the other program says")]
pub trait Backend: Send + Sync {
    /// Makes an active snapshot or a view.
    fn create(
        &self,
        kind: Kind,
        key: &Key,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Result<Vec<Mount>, Refused>;

    /// The mounts of an active snapshot or a view.
    fn mounts(&self, key: &Key) -> Result<Vec<Mount>, Refused>;

    /// Commits `key` as `name`, on top of `parent` if it is to have a new one.
    fn commit(
        &self,
        name: &Key,
        key: &Key,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Result<(), Refused>;

    /// Removes a snapshot.
    fn remove(&self, key: &Key) -> Result<(), Refused>;

    /// What is known of a snapshot there.
    fn stat(&self, key: &Key) -> Result<Outside, Refused>;

    /// Sets the labels named by `changed` to what they are in `labels`.
    fn update(&self, key: &Key, labels: &Labels, changed: &[String]) -> Result<(), Refused>;

    /// The disk space that a snapshot takes.
    fn usage(&self, key: &Key) -> Result<Usage, Refused>;

    /// All snapshots that are there.
    fn list(&self) -> Result<Vec<Outside>, Refused>;

    /// Frees the disk space of what was removed.
    fn cleanup(&self) -> Result<(), Refused>;
}

/// A snapshot as the other program knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as of `Info`")]
pub struct Outside {
    pub name: String,
    pub parent: Option<String>,
    pub kind: Kind,
    pub labels: Labels,
}

/// What another program said instead of doing what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// The text, which names the program.
    pub message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why another program did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as containerd's errors")]
pub enum Reason {
    NotFound,
    AlreadyExists,
    InvalidArgument,
    FailedPrecondition,
    NotImplemented,
    /// It is away, or was not in time, or does not speak our language.
    Unavailable,
    Other,
}

type TellForeign = dyn Fn(usize, &str) + Send + Sync;

/// A [`Snapshotter`] whose snapshots are kept by another program.
pub struct External<B> {
    backend: B,
    records: Records,
    made: Made,
    can_rebase: bool,
    state: Mutex<State>,
    /// Told how many snapshots there are somebody else's, and the name of one.
    foreign: Box<TellForeign>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Numbers whose record may not be there yet, and how many calls each is of.
    pending: BTreeMap<u64, usize>,
    /// Numbers that a call was about to which the answer did not come: it may still be done there.
    late: BTreeSet<u64>,
    /// Names there of which a record is about to be made, and those that are being removed.
    entering: BTreeMap<String, usize>,
    removing: BTreeSet<String>,
    /// Whether something may be there that has no record.
    dirty: bool,
    /// Numbers whose record is gone, or will be when a transaction of somebody else's is committed.
    removed: BTreeSet<u64>,
    /// When a cleanup may try again.
    not_before: Option<Instant>,
    /// How many snapshots there were told of as somebody else's.
    foreign: usize,
}

impl<B: Backend> External<B> {
    /// Opens the records of the snapshotter `name`; the other program is not asked for anything.
    ///
    /// # Errors
    ///
    /// - `Database`.
    pub fn open(
        name: &str,
        transactions: Arc<dyn Transactions>,
        backend: B,
        can_rebase: bool,
    ) -> Result<Self, Error> {
        let records = Records::open(Arc::clone(&transactions), name, String::new())?;
        let made = Made::open(transactions, name)?;
        own_recorded(&records, &made)?;
        let highest = records.ids()?.into_iter().max().unwrap_or_default();
        let next = highest.max(first_number(made.own())) + 1;
        let state = Mutex::new(State { next, dirty: true, ..State::default() });
        Ok(Self { backend, records, made, can_rebase, state, foreign: Box::new(|_, _| {}) })
    }

    /// Has `tell` called when the number of snapshots there changes that are somebody else's; it hears the number and
    /// the name of one. They are left alone.
    #[must_use]
    pub fn on_foreign(mut self, tell: impl Fn(usize, &str) + Send + Sync + 'static) -> Self {
        self.foreign = Box::new(tell);
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one operation, so a panic elsewhere left nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new number, which a cleanup leaves alone until the guard is dropped.
    fn number(&self) -> Pending<'_> {
        let id = {
            let mut state = self.state();
            state.next += 1;
            state.next - 1
        };
        self.pend(id)
    }

    fn pend(&self, id: u64) -> Pending<'_> {
        *self.state().pending.entry(id).or_default() += 1;
        Pending { state: &self.state, id }
    }

    /// Makes a snapshot there, then its record.
    fn create(
        &self,
        kind: Kind,
        key: &Key,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Result<Vec<Mount>, Error> {
        if let Ok(_exists) = self.records.get(key) {
            return Err(Error::AlreadyExists { key: key.clone() });
        }
        self.records.parent_chain(parent)?;
        let below =
            parent.map(|parent| Ok::<_, Error>(outside(parent, &self.records.get(parent)?)));
        let below = below.transpose()?;
        let pending = self.number();
        let there = backend_key(pending.id, key);
        let inherited = inherited(labels);
        self.made.enter(&[there.name()])?;
        let mounts = match self.backend.create(kind, &there, below.as_ref(), &inherited) {
            Err(Refused { reason: Reason::AlreadyExists, message }) => {
                let target = labels.get(TARGET_LABEL).filter(|_| kind == Kind::Active);
                let Some(target) = target else {
                    return Err(Refused { reason: Reason::Other, message }.into());
                };
                let target = key.sibling(target).map_err(|error| Refused {
                    reason: Reason::InvalidArgument,
                    message: error.to_string(),
                })?;
                self.made.forget(&[there.name()])?;
                return self.adopt(pending.id, target, parent, below.as_ref(), labels);
            }
            other => self.note(pending.id, other)?,
        };
        let external = Some(there.name());
        let new = New { id: pending.id, kind, key, parent, labels, external, is_volatile: false };
        self.records.create(&new).inspect_err(|_| self.state().dirty = true)?;
        Ok(mounts)
    }

    /// Enters the snapshot that is there already as `target`, and says that it exists.
    fn adopt(
        &self,
        id: u64,
        target: Key,
        parent: Option<&Key>,
        below: Option<&Key>,
        labels: &Labels,
    ) -> Result<Vec<Mount>, Error> {
        let is_target = |found: &Outside| {
            found.kind == Kind::Committed
                && found.labels.get(TARGET_LABEL).is_some_and(|name| name == target.name())
                && found.parent.as_deref() == below.map(Key::name)
        };
        let Some(found) = self.backend.list()?.into_iter().find(is_target) else {
            return Err(Error::NotFound { key: target });
        };
        let there = Key::stored(target.namespace(), &found.name);
        // From here on no cleanup removes it; one may have done so since it was listed.
        let _entering = self.begin_entering(&found.name)?;
        let found = match self.backend.stat(&there) {
            Ok(found) if is_target(&found) => found,
            Ok(_) => return Err(Error::NotFound { key: target }),
            Err(Refused { reason: Reason::NotFound, .. }) => {
                return Err(Error::NotFound { key: target });
            }
            Err(refused) => return Err(refused.into()),
        };
        self.own(&there, &found)?;
        let mut labels = labels.clone();
        for (name, value) in found.labels.into_iter().filter(|(name, _)| name != STORE_LABEL) {
            labels.entry(name).or_insert(value);
        }
        let external = Some(found.name.as_str());
        let new = New {
            id,
            kind: Kind::Committed,
            key: &target,
            parent,
            labels: &labels,
            external,
            is_volatile: false,
        };
        match self.records.create(&new) {
            Ok(()) | Err(Error::AlreadyExists { .. }) => Err(Error::AlreadyExists { key: target }),
            Err(error) => Err(error),
        }
    }

    /// Commits there, then in the record.
    fn commit_on(
        &self,
        name: &Key,
        key: &Key,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Result<(), Error> {
        if name.namespace() != key.namespace() {
            return Err(Error::OtherNamespace { key: name.clone(), other: key.clone() });
        }
        let record = self.records.get(key)?;
        if record.kind != Kind::Active {
            let (actual, needed) = (record.kind, Kind::Active);
            return Err(Error::WrongKind { key: key.clone(), actual, needed });
        }
        if let Ok(_exists) = self.records.get(name) {
            return Err(Error::AlreadyExists { key: name.clone() });
        }
        let below = match (record.parent_key(key), parent) {
            (Some(old), Some(new)) if old != *new => {
                return Err(Error::OtherParent { key: key.clone(), parent: new.clone() });
            }
            (None, Some(new)) => {
                self.records.parent_chain(Some(new))?;
                Some(outside(new, &self.records.get(new)?))
            }
            _ => None,
        };
        let (from, to) = (outside(key, &record), backend_key(record.id, name));
        // Both names of it are noted until it is gone; a cleanup finds out which of them is there.
        let pending = self.pend(record.id);
        self.made.enter(&[to.name()])?;
        match self.backend.commit(&to, &from, below.as_ref(), &inherited(labels)) {
            Ok(()) => {}
            // The answer to an earlier commit may have come too late.
            Err(refused) if self.is_committed(&refused, &to) => {}
            other => self.note(pending.id, other)?,
        }
        let external = Some(to.name());
        let commit = Commit { name, key, parent, labels, usage: None, external };
        self.records.commit(&commit).inspect_err(|_| self.state().dirty = true)
    }

    fn is_committed(&self, refused: &Refused, to: &Key) -> bool {
        matches!(refused.reason, Reason::NotFound | Reason::AlreadyExists)
            && self.backend.stat(to).is_ok_and(|found| found.kind == Kind::Committed)
    }

    /// Notes that a call that failed may have left something.
    fn note<T>(&self, id: u64, result: Result<T, Refused>) -> Result<T, Error> {
        result.map_err(|refused| {
            let mut state = self.state();
            state.dirty = true;
            if refused.reason == Reason::Unavailable {
                state.late.insert(id);
            }
            refused.into()
        })
    }

    /// Tells it what has changed of the labels that are its business, too.
    fn tell(&self, there: &Key, old: &Labels, new: &Labels) -> Result<(), Refused> {
        let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
        let changed = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
        let changed: Vec<_> = changed.cloned().collect();
        if changed.is_empty() {
            return Ok(());
        }
        self.backend.update(there, new, &changed)
    }
}

impl<B: Backend> Snapshotter for External<B> {
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
        let record = self.records.get(key)?;
        if record.kind == Kind::Committed {
            return Err(Error::NotMountable { key: key.clone() });
        }
        Ok(self.backend.mounts(&outside(key, &record))?)
    }

    fn commit(&self, name: &Key, key: &Key, labels: Labels) -> Result<(), Error> {
        self.commit_on(name, key, None, &labels)
    }

    fn rebase(&self, name: &Key, key: &Key, parent: &Key, labels: Labels) -> Result<(), Error> {
        if !self.can_rebase && self.records.get(key)?.parent.as_deref() != Some(parent.name()) {
            return Err(Error::Unsupported { key: key.clone(), feature: "a new parent" });
        }
        self.commit_on(name, key, Some(parent), &labels)
    }

    fn can_rebase(&self) -> bool {
        self.can_rebase
    }

    fn remove(&self, key: &Key) -> Result<(), Error> {
        self.records.remove(key)?;
        self.state().dirty = true;
        Ok(())
    }

    fn remove_within(
        &self,
        transaction: &redb::WriteTransaction,
        keys: &[Key],
    ) -> Result<Vec<Key>, Error> {
        let removed = self.records.remove_within(transaction, keys)?;
        self.state().removed.extend(removed.iter().map(|(_, id)| *id));
        Ok(removed.into_iter().map(|(key, _)| key).collect())
    }

    fn stat(&self, key: &Key) -> Result<Info, Error> {
        let record = self.records.get(key)?;
        let found = self.backend.stat(&outside(key, &record))?;
        Ok(merged(key.clone(), record, found.labels))
    }

    fn update(&self, key: &Key, edit: &mut EditLabels<'_>) -> Result<Info, Error> {
        // It is told first: what it refuses is not in the record then.
        let record = self.records.get(key)?;
        let there = outside(key, &record);
        let old = inherited(&record.labels);
        let mut labels = record.labels;
        edit(&mut labels);
        let told = inherited(&labels);
        self.tell(&there, &old, &told)?;
        let updated = self.records.update(key, edit).inspect_err(|_| {
            // It says no more than that in the record; if it cannot be told, it has labels too many.
            let _ = self.tell(&there, &told, &old);
        })?;
        // Of two updates at once, each was told what it found; the record has both.
        self.tell(&there, &told, &inherited(&updated.labels))?;
        Ok(updated.info(key.clone()))
    }

    fn walk(
        &self,
        namespace: Option<&str>,
        visit: &mut dyn FnMut(Info) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let there: BTreeMap<_, _> =
            self.backend.list()?.into_iter().map(|it| (it.name, it.labels)).collect();
        self.records.walk(namespace, &mut |key, record| {
            // What it has had already may be entered in several namespaces.
            let labels = there.get(outside(&key, &record).name()).cloned();
            visit(merged(key, record, labels.unwrap_or_default()))
        })
    }

    fn walk_records(
        &self,
        namespace: Option<&str>,
        visit: &mut dyn FnMut(Info) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        self.records.walk(namespace, &mut |key, record| visit(record.info(key)))
    }

    fn foreign(&self) -> Result<Option<Vec<String>>, Error> {
        Ok(Some(self.list_foreign()?))
    }

    fn usage(&self, key: &Key) -> Result<Usage, Error> {
        let record = self.records.get(key)?;
        Ok(self.backend.usage(&outside(key, &record))?)
    }

    /// Nothing: what is there is as durable as the other program makes it.
    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn suspects(&self) -> Result<Vec<Info>, Error> {
        Ok(Vec::new())
    }

    fn renew(&self, name: &Key, _fill: &mut Fill<'_>) -> Result<(), Error> {
        let record = self.records.get(name)?;
        if record.kind != Kind::Committed {
            let (actual, needed) = (record.kind, Kind::Committed);
            return Err(Error::WrongKind { key: name.clone(), actual, needed });
        }
        Err(Error::Unsupported { key: name.clone(), feature: "to be filled anew" })
    }

    fn cleanup(&self) -> Result<(), Error> {
        {
            let mut state = self.state();
            let early = state.not_before.is_some_and(|time| Instant::now() < time);
            let is_clean = !state.dirty && state.removed.is_empty();
            if early || is_clean {
                return Ok(());
            }
            state.dirty = false;
        }
        self.prune().map_err(|refused| {
            let mut state = self.state();
            state.dirty = true;
            if refused.reason == Reason::Unavailable {
                state.not_before = Some(Instant::now() + RETRY_DELAY);
            }
            refused.into()
        })
    }
}

/// A number that is in use without a record.
struct Pending<'s> {
    state: &'s Mutex<State>,
    id: u64,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        count_down(&mut state.pending, &self.id);
    }
}

/// Ends one of what is counted under `key`.
fn count_down<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// A number above those of calls that were cut short by a crash: they are in no record, but in the past. Databases that
/// are opened at the same time and use one program begin in different places.
fn first_number(own: &str) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or_default();
    let digits: String = own.chars().filter(|it| *it != '-').take(16).collect();
    let place = u64::from_str_radix(&digits, 16).unwrap_or_default() % PLACES;
    now.saturating_mul(PLACES).saturating_add(place)
}

/// Notes what records name under a number of theirs as made by this database, in case that an older program, or a
/// repair, has left no note of it.
fn own_recorded(records: &Records, made: &Made) -> Result<(), Error> {
    let noted: BTreeSet<String> = made.all()?.into_iter().collect();
    let named = records.select(Some)?;
    let own = named
        .iter()
        .filter(|(_, record)| record.external.as_deref().and_then(number_of) == Some(record.id));
    let names = own.filter_map(|(_, record)| record.external.as_deref());
    let missing: Vec<&str> = names.filter(|name| !noted.contains(*name)).collect();
    made.enter(&missing)
}

/// What the snapshot `key`, made as number `id`, is called there.
fn backend_key(id: u64, key: &Key) -> Key {
    let namespace = key.namespace();
    Key::stored(namespace, &format!("{namespace}/{id}/{}", key.name()))
}

/// The number in a name that [`backend_key`] made.
fn number_of(name: &str) -> Option<u64> {
    name.split('/').nth(1)?.parse().ok()
}

/// What the snapshot `key` is called there.
fn outside(key: &Key, record: &Record) -> Key {
    match &record.external {
        Some(name) => Key::stored(key.namespace(), name),
        None => backend_key(record.id, key),
    }
}

fn inherited(labels: &Labels) -> Labels {
    let is_inherited = |name: &str| name == TARGET_LABEL || name.starts_with(INHERITED_PREFIX);
    labels
        .iter()
        .filter(|(name, _)| is_inherited(name))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// What is known of a snapshot, with the labels of both; ours count.
fn merged(key: Key, record: Record, mut labels: Labels) -> Info {
    let mut info = record.info(key);
    labels.remove(STORE_LABEL);
    labels.append(&mut info.labels);
    info.labels = labels;
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_of_the_time_and_of_the_database() {
        let cases = [
            ("in hexadecimal", "00000000-0000-00ff-8000-000000000001", 255),
            ("a part of it", "00000000-000f-4241-8000-000000000000", 1),
            ("damaged", "not one", 0),
        ];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
        for (case, own, place) in cases {
            let number = first_number(own);
            assert_eq!(number % PLACES, place, "{case}");
            assert!(u128::from(number / PLACES) >= now, "{case}: {number}");
            assert!(u128::from(number) > now + 1_000_000_000, "{case}: above those of old");
        }
    }
}
