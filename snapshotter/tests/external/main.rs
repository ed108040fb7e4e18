//! Snapshots that another program keeps, with a snapshotter of ours as that program. Needs root.

mod ownership;
mod program;

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use snapshotter::{
    Error, External, Key, Kind, Labels, Snapshotter, Transactions,
    external::{Backend, TARGET_LABEL},
    testsuite,
};

use self::program::{Lazy, Program};

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
