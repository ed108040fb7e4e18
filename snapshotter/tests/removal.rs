//! What becomes of the directories of removed snapshots. Needs root.

mod gated;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use gated::Gated;
use snapshotter::{
    Copies, Error, Key, Labels, Layout, Mount, OverlayOptions, Snapshotter, Store, Transactions,
};

/// How long something that happens by itself may take.
const DEADLINE: Duration = Duration::from_secs(60);

fn open<L: Layout>(root: &Path, layout: L) -> Store<L> {
    let database = redb::Database::create(root.join("database")).expect("scratch");
    let database: Arc<dyn Transactions> = Arc::new(database);
    Store::open(root, database, layout).expect("opens")
}

fn key(name: &str) -> Key {
    Key::new("test", name).expect("short")
}

/// The numbered directories that there are.
fn directories(root: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(root.join("snapshots")).expect("is there");
    entries
        .map(|entry| entry.expect("lists").file_name().into_string().expect("a number"))
        .collect()
}

/// Waits until there are these directories, and no others.
fn until(case: &str, root: &Path, want: &[&str]) {
    let want: BTreeSet<String> = want.iter().map(|&name| name.to_owned()).collect();
    let end = Instant::now() + DEADLINE;
    while directories(root) != want {
        assert!(Instant::now() < end, "{case}: {:?} instead of {want:?}", directories(root));
        thread::sleep(Duration::from_millis(5));
    }
}

/// The file `name` in the snapshot that these mounts show.
fn file(mounts: &[Mount], name: &str) -> PathBuf {
    Path::new(&mounts.first().expect("has a mount").source).join(name)
}

#[test]
fn nobody_waits_for_files_to_be_deleted() {
    let scratch = tempfile::tempdir().expect("scratch");
    let layout = Gated::default();
    let store = open(scratch.path(), layout.clone());
    store.prepare(&key("a"), None, Labels::new()).expect("prepares");
    let gate = layout.hide.close();

    store.remove(&key("a")).expect("removes");
    assert!(matches!(store.stat(&key("a")), Err(Error::NotFound { .. })), "it is gone");
    let mounts = store.prepare(&key("a"), None, Labels::new()).expect("the key is free");
    fs::write(file(&mounts, "new"), "1").expect("writes");
    assert_eq!(directories(scratch.path()), ["1", "2"].map(str::to_owned).into());
    gate.reached();
    thread::scope(|scope| {
        let (done, cleaned) = mpsc::channel();
        let store = &store;
        scope.spawn(move || {
            store.cleanup().expect("cleans up");
            done.send(()).expect("the test waits");
        });
        let early = cleaned.recv_timeout(Duration::from_millis(100));
        assert!(early.is_err(), "a cleanup is over when the space is free");
        gate.open();
        cleaned.recv_timeout(DEADLINE).expect("is over then");
    });
    assert_eq!(directories(scratch.path()), BTreeSet::from(["2".to_owned()]));
    assert_eq!(fs::read_to_string(file(&mounts, "new")).expect("reads"), "1");
}

#[test]
fn directories_go_by_themselves() {
    fn case<L: Layout>(name: &str, layout: L) {
        let scratch = tempfile::tempdir().expect("scratch");
        let store = open(scratch.path(), layout);
        let mut kept = Vec::new();
        for _ in 0..20 {
            let mounts = store.prepare(&key("a"), None, Labels::new()).expect("prepares");
            fs::write(file(&mounts, "file"), "1").expect("writes");
            store.remove(&key("a")).expect("removes");
            let mounts = store.prepare(&key("a"), None, Labels::new()).expect("prepares");
            kept = vec![file(&mounts, "file")];
            fs::write(&kept[0], "2").expect("writes");
            store.commit(&key("b"), &key("a"), Labels::new()).expect("commits");
            store.remove(&key("b")).expect("removes");
        }
        until(name, scratch.path(), &[]);
        assert!(kept.iter().all(|file| !file.exists()), "{name}");
        let mounts = store.prepare(&key("a"), None, Labels::new()).expect("prepares");
        fs::write(file(&mounts, "file"), "3").expect("writes");
        until(name, scratch.path(), &["41"]);
        assert!(file(&mounts, "file").exists(), "{name}");
    }
    case("overlayfs", OverlayOptions::default());
    case("native", Copies);
}

/// With many files to delete in it, more than there is time for.
#[test]
fn what_was_not_deleted_in_time_goes_later() {
    let scratch = tempfile::tempdir().expect("scratch");
    let store = open(scratch.path(), OverlayOptions::default());
    let kept = store.prepare(&key("kept"), None, Labels::new()).expect("prepares");
    fs::write(file(&kept, "file"), "1").expect("writes");
    for name in ["a", "b", "c"] {
        let mounts = store.prepare(&key(name), None, Labels::new()).expect("prepares");
        for number in 0..500 {
            fs::write(file(&mounts, &number.to_string()), "").expect("writes");
        }
        store.remove(&key(name)).expect("removes");
    }
    // The database is free, so nobody is at work any more.
    drop(store);
    let store = open(scratch.path(), OverlayOptions::default());
    until("opened again", scratch.path(), &["1"]);
    assert_eq!(fs::read_to_string(file(&kept, "file")).expect("reads"), "1");
    store.stat(&key("kept")).expect("is there");
}

/// A mount in it, or a file that is immutable, must not keep a daemon from starting.
#[test]
fn what_cannot_be_deleted_is_in_nobodys_way() {
    let scratch = tempfile::tempdir().expect("scratch");
    let root = scratch.path();
    let store = open(root, OverlayOptions::default());
    let mounts = store.prepare(&key("a"), None, Labels::new()).expect("prepares");
    let place = file(&mounts, "place");
    fs::create_dir(&place).expect("makes");
    let mount = sys::mount::Mount {
        kind: "tmpfs".to_owned(),
        source: "tmpfs".to_owned(),
        target: String::new(),
        options: Vec::new(),
    };
    mount.mount(&place).expect("mounts");
    let _unmount = Unmount(place.clone());
    store.remove(&key("a")).expect("removes");
    drop(store);

    let store = open(root, OverlayOptions::default());
    store.prepare(&key("b"), None, Labels::new()).expect("prepares");
    store.remove(&key("b")).expect("removes");
    until("beside it", root, &["1"]);
    assert!(matches!(store.cleanup(), Err(Error::File { .. })), "somebody is told");
    sys::mount::unmount_all(&place).expect("unmounts");
    store.cleanup().expect("cleans up");
    assert_eq!(directories(root), BTreeSet::new());
}

/// A mount that a failing test leaves no trace of.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = sys::mount::unmount_all(&self.0);
    }
}
