//! The other program, with a snapshotter of ours.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use snapshotter::{
    Error, Key, Kind, Labels, Mount, Overlay, OverlayOptions, Snapshotter, Transactions, Usage,
    external::{Backend, Outside, Reason, Refused},
};

/// A program that keeps its snapshots in a store of its own.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) store: Arc<Overlay>,
    pub(crate) away: Arc<AtomicBool>,
    /// What it was asked, and the namespace that it was asked in.
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
    /// What is done once while it removes something.
    pub(crate) meanwhile: Arc<Mutex<Option<Meanwhile>>>,
}

pub(crate) type Meanwhile = Box<dyn FnOnce() + Send>;

impl Program {
    pub(crate) fn open(root: &Path) -> Self {
        std::fs::create_dir_all(root).expect("scratch");
        let database = redb::Database::create(root.join("database")).expect("scratch");
        let database: Arc<dyn Transactions> = Arc::new(database);
        let store = Overlay::open(root, database, OverlayOptions::default()).expect("opens");
        Self {
            store: Arc::new(store),
            away: Arc::default(),
            calls: Arc::default(),
            meanwhile: Arc::default(),
        }
    }

    fn answer<T>(
        &self,
        call: &str,
        answer: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Refused> {
        self.calls.lock().expect("no panic").push(call.to_owned());
        if self.away.load(Ordering::Relaxed) {
            return Err(Refused { reason: Reason::Unavailable, message: "away".to_owned() });
        }
        answer().map_err(|error| {
            let reason = match error {
                Error::NotFound { .. } => Reason::NotFound,
                Error::AlreadyExists { .. } => Reason::AlreadyExists,
                Error::HasChildren { .. } => Reason::FailedPrecondition,
                _ => Reason::Other,
            };
            Refused { reason, message: error.to_string() }
        })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.list().expect("is there").into_iter().map(|it| it.name).collect()
    }
}

/// Keys there are of one namespace.
fn inner(key: &Key) -> Key {
    Key::new("there", key.name()).expect("short")
}

fn shown(info: snapshotter::Info) -> Outside {
    Outside {
        name: info.key.name().to_owned(),
        parent: info.parent.map(|parent| parent.name().to_owned()),
        kind: info.kind,
        labels: info.labels,
    }
}

impl Backend for Program {
    fn create(
        &self,
        kind: Kind,
        key: &Key,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Result<Vec<Mount>, Refused> {
        let (key, parent, labels) = (inner(key), parent.map(inner), labels.clone());
        self.answer("create", || match kind {
            Kind::View => self.store.view(&key, parent.as_ref(), labels),
            _ => self.store.prepare(&key, parent.as_ref(), labels),
        })
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>, Refused> {
        self.answer("mounts", || self.store.mounts(&inner(key)))
    }

    fn commit(
        &self,
        name: &Key,
        key: &Key,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Result<(), Refused> {
        let (name, key, labels) = (inner(name), inner(key), labels.clone());
        self.answer("commit", || match parent {
            Some(parent) => self.store.rebase(&name, &key, &inner(parent), labels),
            None => self.store.commit(&name, &key, labels),
        })
    }

    fn remove(&self, key: &Key) -> Result<(), Refused> {
        if let Some(act) = self.meanwhile.lock().expect("no panic").take() {
            act();
        }
        self.answer("remove", || self.store.remove(&inner(key)))
    }

    fn stat(&self, key: &Key) -> Result<Outside, Refused> {
        self.answer("stat", || self.store.stat(&inner(key))).map(shown)
    }

    fn update(&self, key: &Key, labels: &Labels, changed: &[String]) -> Result<(), Refused> {
        self.answer("update", || {
            let edit = &mut |now: &mut Labels| {
                for name in changed {
                    match labels.get(name) {
                        Some(value) => now.insert(name.clone(), value.clone()),
                        None => now.remove(name),
                    };
                }
            };
            self.store.update(&inner(key), edit).map(|_| ())
        })
    }

    fn usage(&self, key: &Key) -> Result<Usage, Refused> {
        self.answer("usage", || self.store.usage(&inner(key)))
    }

    fn list(&self) -> Result<Vec<Outside>, Refused> {
        let mut found = Vec::new();
        self.answer("list", || {
            self.store.walk(None, &mut |info| {
                found.push(shown(info));
                ControlFlow::Continue(())
            })
        })?;
        Ok(found)
    }

    fn cleanup(&self) -> Result<(), Refused> {
        self.answer("cleanup", || self.store.cleanup())
    }
}

/// A program that says of every layer that it has it.
#[derive(Clone)]
pub(crate) struct Lazy(pub(crate) Program);

impl Backend for Lazy {
    fn create(
        &self,
        _kind: Kind,
        _key: &Key,
        _parent: Option<&Key>,
        _labels: &Labels,
    ) -> Result<Vec<Mount>, Refused> {
        Err(Refused { reason: Reason::AlreadyExists, message: "have it".to_owned() })
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>, Refused> {
        self.0.mounts(key)
    }

    fn commit(
        &self,
        name: &Key,
        key: &Key,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Result<(), Refused> {
        self.0.commit(name, key, parent, labels)
    }

    fn remove(&self, key: &Key) -> Result<(), Refused> {
        self.0.remove(key)
    }

    fn stat(&self, key: &Key) -> Result<Outside, Refused> {
        self.0.stat(key)
    }

    fn update(&self, key: &Key, labels: &Labels, changed: &[String]) -> Result<(), Refused> {
        self.0.update(key, labels, changed)
    }

    fn usage(&self, key: &Key) -> Result<Usage, Refused> {
        self.0.usage(key)
    }

    fn list(&self) -> Result<Vec<Outside>, Refused> {
        self.0.list()
    }

    fn cleanup(&self) -> Result<(), Refused> {
        self.0.cleanup()
    }
}
