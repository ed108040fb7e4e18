//! Calls that meet on one snapshot.

mod gated;

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use gated::Gated;
use snapshotter::{Key, Labels, Snapshotter, Store, Transactions};

/// How long a removal that does not wait may take to be over.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is shown for a snapshot that goes meanwhile would stay shown for ever.
#[test]
fn a_snapshot_that_is_removed_while_it_is_shown() {
    type Remove = fn(&Store<Gated>, &dyn Transactions, &Key);
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
        let layout = Gated::default();
        let store = Store::open(scratch.path(), Arc::clone(&database), layout.clone());
        let store = store.expect("opens");
        let [active, base, container] =
            ["active", "base", "container"].map(|name| Key::new("test", name).expect("short"));
        store.prepare(&active, None, Labels::new()).expect("prepares");
        store.commit(&base, &active, Labels::new()).expect("commits");
        store.prepare(&container, Some(&base), Labels::new()).expect("prepares");

        let gate = layout.show.close();
        thread::scope(|scope| {
            let asked = scope.spawn(|| store.mounts(&container));
            gate.reached();
            let (done, removed) = mpsc::channel();
            let (store, container, database) = (&store, &container, &*database);
            scope.spawn(move || {
                remove(store, database, container);
                done.send(()).expect("somebody listens");
            });
            // One that does not wait for its turn is over by then; of the other nothing is to be seen.
            let _ = removed.recv_timeout(PATIENCE);
            gate.open();
            // Whichever was first.
            let _ = asked.join().expect("no panic");
            removed.recv().expect("is removed");
        });
        assert_eq!(*layout.users.lock().expect("no panic"), BTreeSet::new(), "{case}");
    }
}
