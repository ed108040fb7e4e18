//! Snapshots that another program keeps, with a snapshotter of ours as that program. Needs root.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use snapshotter::{
    Error, External, Key, Kind, Labels, Mount, Overlay, OverlayOptions, Snapshotter, Transactions,
    Usage,
    external::{Backend, Outside, Reason, Refused, TARGET_LABEL},
    testsuite,
};

/// A program that keeps its snapshots in a store of its own.
#[derive(Clone)]
struct Program {
    store: Arc<Overlay>,
    away: Arc<AtomicBool>,
    /// What it was asked, and the namespace that it was asked in.
    calls: Arc<Mutex<Vec<String>>>,
}

impl Program {
    fn open(root: &Path) -> Self {
        std::fs::create_dir_all(root).expect("scratch");
        let database = redb::Database::create(root.join("database")).expect("scratch");
        let database: Arc<dyn Transactions> = Arc::new(database);
        let store = Overlay::open(root, database, OverlayOptions::default()).expect("opens");
        Self { store: Arc::new(store), away: Arc::default(), calls: Arc::default() }
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

    fn names(&self) -> Vec<String> {
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

fn open(root: &Path, program: Program) -> External<Program> {
    let database = redb::Database::create(root.join("records")).expect("scratch");
    let database: Arc<dyn Transactions> = Arc::new(database);
    External::open("program", database, program, true).expect("opens")
}

fn key(namespace: &str, name: &str) -> Key {
    Key::new(namespace, name).expect("short")
}

#[test]
fn keeps_the_contract() {
    let scratch = tempfile::tempdir().expect("scratch");
    testsuite::run(scratch.path(), &|root| {
        Box::new(open(root, Program::open(&root.join("program"))))
    });
}

#[test]
fn namespaces_share_no_names_and_removal_is_late() {
    let scratch = tempfile::tempdir().expect("scratch");
    let program = Program::open(&scratch.path().join("program"));
    let external = open(scratch.path(), program.clone());
    let labels = Labels::from([
        ("containerd.io/snapshot/x".to_owned(), "1".to_owned()),
        ("mine".to_owned(), "2".to_owned()),
    ]);
    for namespace in ["a", "b"] {
        let active = key(namespace, "active");
        external.prepare(&active, None, labels.clone()).expect("prepares");
        external.commit(&key(namespace, "layer"), &active, labels.clone()).expect("commits");
        external.prepare(&active, Some(&key(namespace, "layer")), labels.clone()).expect("on top");
    }
    let names = program.names();
    assert_eq!(names.len(), 4, "{names:?}");
    for name in &names {
        let inside = program.stat(&key("any", name)).expect("is there");
        assert_eq!(inside.labels.len(), 1, "{name}: only inherited labels are told");
    }
    assert_eq!(external.stat(&key("a", "active")).expect("stat").labels, labels);

    // What it has refused is not in the record; what is not its business it is not asked for.
    program.away.store(true, Ordering::Relaxed);
    let set = |name: &'static str| {
        external.update(&key("a", "active"), &mut |labels: &mut Labels| {
            labels.insert(name.to_owned(), "3".to_owned());
        })
    };
    assert!(matches!(set("containerd.io/snapshot/x"), Err(Error::External { .. })));
    let updated = set("mine").expect("is ours alone").labels;
    program.away.store(false, Ordering::Relaxed);
    let mut want = labels.clone();
    want.insert("mine".to_owned(), "3".to_owned());
    assert_eq!(updated, want);
    assert_eq!(external.stat(&key("a", "active")).expect("stat").labels, want);
    let updated = set("containerd.io/snapshot/x").expect("updates").labels;
    let name = names.iter().find(|name| name.starts_with("a/") && name.ends_with("/active"));
    let inside = program.stat(&key("any", name.expect("is there"))).expect("is there").labels;
    assert_eq!(inside.get("containerd.io/snapshot/x"), updated.get("containerd.io/snapshot/x"));

    // A program that is away delays neither a removal nor what collects garbage.
    program.away.store(true, Ordering::Relaxed);
    program.calls.lock().expect("no panic").clear();
    external.remove(&key("a", "active")).expect("removes");
    external.remove(&key("a", "layer")).expect("removes");
    let mut left = Vec::new();
    let walked = external.walk_records(None, &mut |info| {
        left.push((info.key.namespace().to_owned(), info.key.name().to_owned()));
        ControlFlow::Continue(())
    });
    walked.expect("walks");
    let pair = |name: &str| ("b".to_owned(), name.to_owned());
    assert_eq!(left, [pair("active"), pair("layer")]);
    assert_eq!(*program.calls.lock().expect("no panic"), Vec::<String>::new());

    // A cleanup asks once, and then not again for a while.
    assert!(matches!(external.cleanup(), Err(Error::External { .. })));
    external.cleanup().expect("is not tried");
    assert_eq!(*program.calls.lock().expect("no panic"), ["list"]);

    // What is there without a record goes, children first; what has one stays.
    drop(external);
    program.away.store(false, Ordering::Relaxed);
    let external = open(scratch.path(), program.clone());
    external.cleanup().expect("cleans up");
    let left = program.names();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.iter().all(|name| name.starts_with("b/")), "{left:?}");
}

#[test]
fn what_a_transaction_removes_goes_after_its_commit() {
    let scratch = tempfile::tempdir().expect("scratch");
    let program = Program::open(&scratch.path().join("program"));
    let database = redb::Database::create(scratch.path().join("records")).expect("scratch");
    let database = Arc::new(database);
    let transactions: Arc<dyn Transactions> = Arc::<redb::Database>::clone(&database);
    let external = External::open("program", transactions, program.clone(), true).expect("opens");
    let (active, layer) = (key("a", "active"), key("a", "layer"));
    external.prepare(&active, None, Labels::new()).expect("prepares");
    external.commit(&layer, &active, Labels::new()).expect("commits");
    external.prepare(&active, Some(&layer), Labels::new()).expect("on top");
    external.cleanup().expect("cleans up");

    let transaction = database.begin_write().expect("begins");
    let keys = [layer.clone(), key("a", "none"), active.clone()];
    let removed = external.remove_within(&transaction, &keys).expect("removes");
    assert_eq!(removed, [active], "the layer has a child still");
    let removed = external.remove_within(&transaction, std::slice::from_ref(&layer));
    assert_eq!(removed.expect("removes"), [layer]);
    external.cleanup().expect("cleans up");
    assert_eq!(program.names().len(), 2, "the transaction may fail yet");
    transaction.commit().expect("commits");
    external.cleanup().expect("cleans up");
    assert_eq!(program.names(), Vec::<String>::new());
    program.calls.lock().expect("no panic").clear();
    external.cleanup().expect("cleans up");
    assert_eq!(*program.calls.lock().expect("no panic"), Vec::<String>::new());
}

#[test]
fn what_it_has_already_is_entered() {
    let scratch = tempfile::tempdir().expect("scratch");
    let program = Program::open(&scratch.path().join("program"));
    let external = open(scratch.path(), program.clone());
    let target = Labels::from([(TARGET_LABEL.to_owned(), "layer".to_owned())]);
    // It prepares whatever it is asked for, under the name that it chose itself.
    let own = key("any", "by itself");
    program.create(Kind::Active, &own, None, &Labels::new()).expect("prepares");
    program.commit(&key("any", "its layer"), &own, None, &target).expect("commits");
    let lazy = Lazy(program.clone());
    drop(external);
    let database = redb::Database::create(scratch.path().join("records")).expect("scratch");
    let external = External::open("program", Arc::new(database), lazy, false).expect("opens");
    let result = external.prepare(&key("a", "extract"), None, target.clone());
    assert!(
        matches!(&result, Err(Error::AlreadyExists { key }) if key.name() == "layer"),
        "{result:?}"
    );
    let info = external.stat(&key("a", "layer")).expect("is entered");
    assert_eq!((info.kind, info.labels), (Kind::Committed, target.clone()));
    external.cleanup().expect("cleans up");
    assert_eq!(program.names(), ["its layer"]);
    // Another namespace may enter it, too; what the program says of it is then true of both.
    let result = external.prepare(&key("b", "extract"), None, target.clone());
    assert!(matches!(&result, Err(Error::AlreadyExists { .. })), "{result:?}");
    let set = &mut |labels: &mut Labels| {
        labels.insert("its".to_owned(), "own".to_owned());
    };
    program.store.update(&key("there", "its layer"), set).expect("updates");
    let mut walked = Vec::new();
    let walk = external.walk(None, &mut |info| {
        walked.push((info.key.namespace().to_owned(), info.labels.contains_key("its")));
        ControlFlow::Continue(())
    });
    walk.expect("walks");
    assert_eq!(walked, [("a".to_owned(), true), ("b".to_owned(), true)]);
    external.remove(&key("b", "layer")).expect("removes");
    external.cleanup().expect("cleans up");
    assert_eq!(program.names(), ["its layer"]);
    let other = Labels::from([(TARGET_LABEL.to_owned(), "other".to_owned())]);
    let result = external.prepare(&key("a", "extract"), None, other);
    assert!(matches!(&result, Err(Error::NotFound { .. })), "{result:?}");
    external.remove(&key("a", "layer")).expect("removes");
    external.cleanup().expect("cleans up");
    assert_eq!(program.names(), Vec::<String>::new());
}

/// A program that says of every layer that it has it.
struct Lazy(Program);

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
