//! Whose a snapshot is that is there without a record.

use std::{collections::BTreeSet, sync::Mutex};

use redb::Database;
use snapshotter::made::OUTSIDE;

use super::*;

fn with<B: Backend>(database: &Arc<Database>, backend: B) -> External<B> {
    let transactions: Arc<dyn Transactions> = Arc::<Database>::clone(database);
    External::open("program", transactions, backend, false).expect("opens")
}

fn database(path: &Path) -> Arc<Database> {
    Arc::new(Database::create(path).expect("scratch"))
}

/// Makes the layer `name` of namespace `a`.
fn make(external: &External<Program>, name: &str) {
    let active = key("a", "active");
    external.prepare(&active, None, Labels::new()).expect("prepares");
    external.commit(&key("a", name), &active, Labels::new()).expect("commits");
}

/// The layers that are there, without what is before their names.
fn layers(program: &Program) -> Vec<String> {
    let mut names: Vec<String> =
        program.names().iter().map(|it| it.rsplit('/').next().expect("one").to_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_database_removes_only_what_it_has_had_made() {
    let scratch = tempfile::tempdir().expect("scratch");
    let path = |name: &str| scratch.path().join(name);
    let program = Program::open(&path("program"));
    let own = database(&path("own"));
    let external = with(&own, program.clone());
    for name in ["old", "goes later"] {
        make(&external, name);
    }
    drop((external, own));
    std::fs::copy(path("own"), path("backup")).expect("copies");
    let own = database(&path("own"));
    let external = with(&own, program.clone());
    make(&external, "newer");
    external.remove(&key("a", "goes later")).expect("removes");
    let all = ["goes later", "newer", "old"];

    // In the place of a lost one, and for another daemon on the same program.
    let told = Arc::new(Mutex::new(Vec::new()));
    let hear = Arc::clone(&told);
    let empty = with(&database(&path("empty")), program.clone())
        .on_foreign(move |count, _| hear.lock().expect("no panic").push(count));
    make(&empty, "by another");
    empty.remove(&key("a", "by another")).expect("removes");
    empty.cleanup().expect("cleans up");
    assert_eq!(layers(&program), all, "an empty database");
    let foreign = empty.foreign().expect("lists").expect("there is a program");
    assert_eq!(foreign.iter().collect::<BTreeSet<_>>(), program.names().iter().collect());
    assert_eq!(external.foreign().expect("lists"), Some(Vec::new()), "all of it is its own");
    assert_eq!(*told.lock().expect("no panic"), [3]);

    // What is made after a backup is not the backup's.
    let backup = with(&database(&path("backup")), program.clone());
    backup.cleanup().expect("cleans up");
    assert_eq!(layers(&program), all, "a backup");
    backup.remove(&key("a", "old")).expect("removes");
    backup.cleanup().expect("cleans up");
    assert_eq!(layers(&program), ["goes later", "newer"], "what the backup told of");

    // What was left undone, as by a crash, is done by the database that has begun it.
    drop((external, own));
    with(&database(&path("own")), program.clone()).cleanup().expect("cleans up");
    assert_eq!(layers(&program), ["newer"]);
}

#[test]
fn records_of_an_older_program_are_a_note_of_what_was_made() {
    let scratch = tempfile::tempdir().expect("scratch");
    let program = Program::open(&scratch.path().join("program"));
    let own = database(&scratch.path().join("own"));
    let external = with(&own, program.clone());
    make(&external, "layer");
    drop(external);
    let transaction = own.begin_write().expect("begins");
    transaction.delete_table(OUTSIDE).expect("deletes");
    transaction.commit().expect("commits");
    let external = with(&own, program.clone());
    external.remove(&key("a", "layer")).expect("removes");
    external.cleanup().expect("cleans up");
    assert_eq!(layers(&program), Vec::<String>::new());
}

#[test]
fn a_crash_between_the_making_and_the_record_leaves_nothing() {
    let scratch = tempfile::tempdir().expect("scratch");
    let program = Program::open(&scratch.path().join("program"));
    let own = database(&scratch.path().join("own"));
    let external = with(&own, program.clone());
    external.prepare(&key("a", "active"), None, Labels::new()).expect("prepares");
    drop(external);
    let transaction = own.begin_write().expect("begins");
    let mut records = transaction.open_table(snapshotter::records::SNAPSHOTS).expect("opens");
    records.remove(("program", "a", "active")).expect("removes");
    drop(records);
    transaction.commit().expect("commits");
    with(&own, program.clone()).cleanup().expect("cleans up");
    assert_eq!(layers(&program), Vec::<String>::new());
}

/// Has the program make a layer by itself.
fn make_there(program: &Program, name: &str, target: &Labels) {
    let active = key("any", "by itself");
    program.create(Kind::Active, &active, None, &Labels::new()).expect("prepares");
    program.commit(&key("any", name), &active, None, target).expect("commits");
}

#[test]
fn what_another_database_has_entered_stays_its_own() {
    let scratch = tempfile::tempdir().expect("scratch");
    let program = Program::open(&scratch.path().join("program"));
    let target = Labels::from([(TARGET_LABEL.to_owned(), "layer".to_owned())]);
    make_there(&program, "its layer", &target);
    let [first, second] = ["first", "second"]
        .map(|name| with(&database(&scratch.path().join(name)), Lazy(program.clone())));
    for external in [&first, &second] {
        let entered = external.prepare(&key("a", "extract"), None, target.clone());
        assert!(matches!(&entered, Err(Error::AlreadyExists { .. })), "{entered:?}");
    }
    let shown = second.stat(&key("a", "layer")).expect("is entered").labels;
    assert_eq!(shown, target, "the label that says whose it is");
    second.remove(&key("a", "layer")).expect("removes");
    second.cleanup().expect("cleans up");
    assert_eq!(program.names(), ["its layer"], "it is the first one's");
    first.remove(&key("a", "layer")).expect("removes");
    first.cleanup().expect("cleans up");
    assert_eq!(program.names(), Vec::<String>::new());
}

#[test]
fn what_another_database_has_had_made_stays_its_own() {
    let scratch = tempfile::tempdir().expect("scratch");
    let program = Program::open(&scratch.path().join("program"));
    let target = Labels::from([(TARGET_LABEL.to_owned(), "layer".to_owned())]);
    let its = with(&database(&scratch.path().join("its")), program.clone());
    let active = key("a", "active");
    its.prepare(&active, None, target.clone()).expect("prepares");
    its.commit(&key("a", "layer"), &active, target.clone()).expect("commits");
    let there = program.names();
    let [own, other] = ["own", "other"]
        .map(|name| with(&database(&scratch.path().join(name)), Lazy(program.clone())));
    for external in [&own, &other] {
        let entered = external.prepare(&key("a", "extract"), None, target.clone());
        assert!(matches!(&entered, Err(Error::AlreadyExists { .. })), "{entered:?}");
        external.remove(&key("a", "layer")).expect("removes");
        external.cleanup().expect("cleans up");
        assert_eq!(program.names(), there, "it is the first one's");
    }
    its.remove(&key("a", "layer")).expect("removes");
    its.cleanup().expect("cleans up");
    assert_eq!(program.names(), Vec::<String>::new());
}

#[test]
fn what_is_entered_again_while_others_are_removed_is_there() {
    let scratch = tempfile::tempdir().expect("scratch");
    let program = Program::open(&scratch.path().join("program"));
    let own = database(&scratch.path().join("own"));
    let external = Arc::new(with(&own, Lazy(program.clone())));
    let enter = |name: &str| {
        let target = Labels::from([(TARGET_LABEL.to_owned(), name.to_owned())]);
        external.prepare(&key("a", "extract"), None, target)
    };
    for name in ["1", "2"] {
        make_there(&program, name, &Labels::from([(TARGET_LABEL.to_owned(), name.to_owned())]));
        assert!(matches!(enter(name), Err(Error::AlreadyExists { .. })));
        external.remove(&key("a", name)).expect("removes");
    }
    // While the first is removed, each of them is asked for again.
    let (again, heard) = (Arc::clone(&external), Arc::new(Mutex::new(Vec::new())));
    let hear = Arc::clone(&heard);
    *program.meanwhile.lock().expect("no panic") = Some(Box::new(move || {
        for name in ["1", "2"] {
            let target = Labels::from([(TARGET_LABEL.to_owned(), name.to_owned())]);
            let result = again.prepare(&key("a", "extract"), None, target);
            hear.lock().expect("no panic").push((name, result.expect_err("is there")));
        }
    }));
    external.cleanup().expect("cleans up");
    let there = program.names();
    for (name, error) in heard.lock().expect("no panic").drain(..) {
        match &error {
            Error::AlreadyExists { .. } => assert!(there.contains(&name.to_owned()), "{name}"),
            Error::External { refused } => assert!(refused.message.contains("try again")),
            error => panic!("{name}: {error}"),
        }
        let has_record = external.stat(&key("a", name)).is_ok();
        assert_eq!(has_record, there.contains(&name.to_owned()), "{name}");
    }
}
