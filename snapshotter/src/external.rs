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
//! What is made there is made before its record, and removed there after it; so a record has its
//! snapshot, and a crash, or an answer that came too late, leaves at most snapshots without records.
//! [`cleanup`](Snapshotter::cleanup) removes those: whatever is there that no record names. Like
//! containerd's, it takes the other program to serve one daemon.
//!
//! Removal waits for nothing: [`remove`](Snapshotter::remove) takes the record, and the next cleanup
//! the rest. Nor does [`walk_records`](Snapshotter::walk_records) wait. A program that is away, or
//! does not answer, is left alone by cleanups for a while.
//!
//! # What it has already
//!
//! Snapshotters that can mount a layer without unpacking it are asked by the label
//! [`TARGET_LABEL`] whether they have it, and answer a `prepare` with "already exists". Then the
//! snapshot that they have is entered under the name that the label says.
//!
//! Source: containerd, `core/metadata/snapshot.go`. Its transactions stay open while it calls the
//! other program; ours are shared with others, and do not.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    EditLabels, Error, Fill, Info, Key, Kind, Labels, Mount, Snapshotter, Transactions, Usage,
    records::{Commit, New, Record, Records},
};

/// The label that names the committed snapshot which a prepared one is to become.
pub const TARGET_LABEL: &str = "containerd.io/snapshot.ref";

/// Labels with this before their name are the other program's business, too.
const INHERITED_PREFIX: &str = "containerd.io/snapshot/";

/// For how long a program that did not answer a cleanup is not asked again.
const RETRY_DELAY: Duration = Duration::from_secs(60);

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

/// A [`Snapshotter`] whose snapshots are kept by another program.
pub struct External<B> {
    backend: B,
    records: Records,
    can_rebase: bool,
    state: Mutex<State>,
}

struct State {
    next: u64,
    /// Numbers whose record may not be there yet.
    pending: BTreeSet<u64>,
    /// Whether something may be there that has no record.
    dirty: bool,
    /// Numbers whose record is gone, or will be when a transaction of somebody else's is committed.
    removed: BTreeSet<u64>,
    /// When a cleanup may try again.
    not_before: Option<Instant>,
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
        let records = Records::open(transactions, name, String::new())?;
        // Numbers of calls that were cut short by a crash are in no record, but in the past.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or_default();
        let highest = records.ids()?.into_iter().max().unwrap_or_default();
        let next = highest.max(now) + 1;
        let (pending, removed) = (BTreeSet::new(), BTreeSet::new());
        let state = State { next, pending, dirty: true, removed, not_before: None };
        Ok(Self { backend, records, can_rebase, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one operation, so a panic elsewhere left nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new number, which a cleanup leaves alone until the guard is dropped.
    fn number(&self) -> Pending<'_> {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.pending.insert(id);
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
                return self.adopt(pending.id, target, parent, below.as_ref(), labels);
            }
            other => self.note(other)?,
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
        let mut labels = labels.clone();
        for (name, value) in found.labels {
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
        match self.backend.commit(&to, &from, below.as_ref(), &inherited(labels)) {
            Ok(()) => {}
            // The answer to an earlier commit may have come too late.
            Err(refused) if self.is_committed(&refused, &to) => {}
            Err(refused) => return Err(refused.into()),
        }
        let external = Some(to.name());
        self.records.commit(&Commit { name, key, parent, labels, usage: None, external })
    }

    fn is_committed(&self, refused: &Refused, to: &Key) -> bool {
        matches!(refused.reason, Reason::NotFound | Reason::AlreadyExists)
            && self.backend.stat(to).is_ok_and(|found| found.kind == Kind::Committed)
    }

    /// Notes that a call that failed may have left something.
    fn note<T>(&self, result: Result<T, Refused>) -> Result<T, Error> {
        result.map_err(|refused| {
            self.state().dirty = true;
            refused.into()
        })
    }

    /// Removes what is there without a record, children first.
    fn prune(&self) -> Result<(), Refused> {
        // In this order: what is seen there is pending second, or has its record third.
        let there = self.backend.list()?;
        let pending = self.state().pending.clone();
        let named = self.named().map_err(|error| Refused {
            reason: Reason::Other,
            message: sys::error::Chain(&error).to_string(),
        })?;
        {
            let mut state = self.state();
            // What the pending ones leave, or what is spared for them, is looked at again; and so is
            // what goes by a transaction that is not committed yet.
            state.dirty |= !pending.is_empty();
            state.removed.retain(|id| named.numbers.contains(id));
        }
        // A snapshot that the program has made by itself, of which there is no number, may be what
        // one that is pending is about to be entered as.
        let is_orphan = |found: &&Outside| {
            !named.names.contains(&found.name)
                && number_of(&found.name).map_or(pending.is_empty(), |id| {
                    !pending.contains(&id) && !named.numbers.contains(&id)
                })
        };
        let parents: HashMap<_, _> =
            there.iter().map(|found| (found.name.as_str(), found.parent.as_deref())).collect();
        let depth = |found: &&Outside| {
            let mut depth = 0;
            let mut next = found.parent.as_deref();
            // As many steps as there are snapshots, whatever the parents are said to be.
            while let Some(parent) = next.filter(|_| depth < there.len()) {
                depth += 1;
                next = parents.get(parent).copied().flatten();
            }
            depth
        };
        let mut orphans: Vec<_> = there.iter().filter(is_orphan).collect();
        orphans.sort_by_cached_key(|found| std::cmp::Reverse(depth(found)));
        let mut stays = Ok(());
        for found in orphans {
            let namespace = found.name.split('/').next().unwrap_or_default();
            match self.backend.remove(&Key::stored(namespace, &found.name)) {
                Ok(()) => {}
                Err(refused) if refused.reason == Reason::NotFound => {}
                Err(refused) if refused.reason == Reason::Unavailable => return Err(refused),
                Err(refused) => stays = Err(refused),
            }
        }
        match self.backend.cleanup() {
            Err(refused) if refused.reason != Reason::NotImplemented => Err(refused),
            _ => stays,
        }
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

    fn named(&self) -> Result<Named, Error> {
        let mut named = Named::default();
        for (_, (id, external)) in self.records.select(|it| Some((it.id, it.external)))? {
            named.numbers.insert(id);
            named.names.extend(external);
        }
        Ok(named)
    }
}

/// What the records name of what is there.
#[derive(Default)]
struct Named {
    numbers: BTreeSet<u64>,
    names: BTreeSet<String>,
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner).pending.remove(&self.id);
    }
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
    labels.append(&mut info.labels);
    info.labels = labels;
    info
}
