//! Calls that meet on one snapshot.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use snapshotter::{
    Error, Key, Kind, Labels, Layout, Mount, OverlayOptions, Snapshotter, Store, Transactions,
};

/// How long a removal that does not wait may take to be over.
const PATIENCE: Duration = Duration::from_millis(500);

/// Shows like EROFS, and has a test wait in the middle of it.
#[derive(Clone, Default)]
struct Slow {
    overlay: OverlayOptions,
    users: Arc<Mutex<BTreeSet<u64>>>,
    gate: Arc<Mutex<Option<Gate>>>,
}

/// Where a call says that it is in the middle, and until when it stays there.
struct Gate {
    reached: mpsc::Sender<()>,
    open: mpsc::Receiver<()>,
}

impl Layout for Slow {
    const NAME: &'static str = "slow";
    const REBASE: bool = true;
    const SHOWS: bool = true;

    fn check(&self, key: &Key, labels: &Labels) -> Result<(), Error> {
        self.overlay.check(key, labels)
    }

    fn fill(
        &self,
        directory: &Path,
        kind: Kind,
        parent: Option<&Path>,
        labels: &Labels,
    ) -> Result<(), Error> {
        self.overlay.fill(directory, kind, parent, labels)
    }

    fn mounts(
        &self,
        kind: Kind,
        directory: &Path,
        parents: &[PathBuf],
        labels: &Labels,
    ) -> Vec<Mount> {
        self.overlay.mounts(kind, directory, parents, labels)
    }

    fn show(&self, _directory: &Path, user: u64) -> Result<(), Error> {
        let gate = self.gate.lock().expect("no panic").take();
        if let Some(gate) = gate {
            gate.reached.send(()).expect("the test waits");
            gate.open.recv().expect("the test opens it");
        }
        self.users.lock().expect("no panic").insert(user);
        Ok(())
    }

    fn release(&self, user: u64) {
        self.users.lock().expect("no panic").remove(&user);
    }

    fn content(&self, directory: &Path) -> PathBuf {
        self.overlay.content(directory)
    }
}

/// What is shown for a snapshot that goes meanwhile would stay shown for ever.
#[test]
fn a_snapshot_that_is_removed_while_it_is_shown() {
    type Remove = fn(&Store<Slow>, &dyn Transactions, &Key);
    let cases: [(&str, Remove); 2] = [
        ("at once", |store, _, key| store.remove(key).expect("removes")),
        ("with others", |store, database, key| {
            let remove = database.write(&mut |change| {
                store.remove_within(change, std::slice::from_ref(key)).map(drop)
            });
            remove.expect("removes");
            store.cleanup().expect("cleans up");
        }),
    ];
    for (case, remove) in cases {
        let scratch = tempfile::tempdir().expect("scratch");
        let database = redb::Database::create(scratch.path().join("database")).expect("scratch");
        let database: Arc<dyn Transactions> = Arc::new(database);
        let layout = Slow::default();
        let store = Store::open(scratch.path(), Arc::clone(&database), layout.clone());
        let store = store.expect("opens");
        let [active, base, container] =
            ["active", "base", "container"].map(|name| Key::new("test", name).expect("short"));
        store.prepare(&active, None, Labels::new()).expect("prepares");
        store.commit(&base, &active, Labels::new()).expect("commits");
        store.prepare(&container, Some(&base), Labels::new()).expect("prepares");

        let (reached, middle) = mpsc::channel();
        let (open, opened) = mpsc::channel();
        *layout.gate.lock().expect("no panic") = Some(Gate { reached, open: opened });
        thread::scope(|scope| {
            let asked = scope.spawn(|| store.mounts(&container));
            middle.recv().expect("asks for mounts");
            let (done, removed) = mpsc::channel();
            let (store, container, database) = (&store, &container, &*database);
            scope.spawn(move || {
                remove(store, database, container);
                done.send(()).expect("somebody listens");
            });
            // One that does not wait for its turn is over by then; of the other nothing is to be seen.
            let _ = removed.recv_timeout(PATIENCE);
            open.send(()).expect("waits");
            // Whichever was first.
            let _ = asked.join().expect("no panic");
            removed.recv().expect("is removed");
        });
        assert_eq!(*layout.users.lock().expect("no panic"), BTreeSet::new(), "{case}");
    }
}
