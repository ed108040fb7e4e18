//! What becomes of snapshots when the machine stops without warning. Needs no mounts.

use std::{fs, path::Path, sync::Arc};

use snapshotter::{
    Copies, Error, Images, Key, Labels, Layout, Mount, OverlayOptions, Snapshotter, Store,
    Transactions,
};

const FIRST: &str = "first boot";
const SECOND: &str = "second boot";

fn open<L: Layout + 'static>(root: &Path, layout: L, boot: &str) -> Store<L> {
    let database = redb::Database::create(root.join("database")).expect("scratch");
    let database: Arc<dyn Transactions> = Arc::new(database);
    Store::open_in_boot(root, database, layout, boot).expect("opens")
}

fn key(name: &str) -> Key {
    Key::new("tests", name).expect("test names are short")
}

/// The directory in which a snapshot's own files are.
fn files(mounts: &[Mount]) -> std::path::PathBuf {
    let [mount] = mounts else { panic!("one mount: {mounts:?}") };
    mount.option("upperdir").unwrap_or(&mount.source).into()
}

/// Commits `name`, with a file of this name, on `parent`.
fn layer(store: &dyn Snapshotter, name: &str, parent: Option<&str>) {
    let mounts = store.prepare(&key("active"), parent.map(key).as_ref(), Labels::new());
    fs::write(files(&mounts.expect("prepares")).join(name), name).expect("writes");
    store.commit(&key(name), &key("active"), Labels::new()).expect("commits");
}

fn suspects(store: &dyn Snapshotter) -> Vec<String> {
    let suspects = store.suspects().expect("lists");
    suspects.into_iter().map(|info| info.key.name().to_owned()).collect()
}

fn renew(store: &dyn Snapshotter, name: &str, file: &str) -> Result<(), Error> {
    store.renew(&key(name), &mut |mounts| Ok(fs::write(files(mounts).join(file), file)?))
}

fn suspects_are_what_was_not_synced<L: Layout + 'static>(layout: fn() -> L) {
    let cases: [(&str, bool, &str, &[&str]); 4] = [
        ("same boot", false, FIRST, &[]),
        ("same boot, synced", true, FIRST, &[]),
        ("other boot", false, SECOND, &["lower", "upper"]),
        ("other boot, synced", true, SECOND, &[]),
    ];
    for (case, synced, boot, want) in cases {
        let scratch = tempfile::tempdir().expect("scratch");
        let store = open(scratch.path(), layout(), FIRST);
        layer(&store, "lower", None);
        layer(&store, "upper", Some("lower"));
        if synced {
            store.sync().expect("syncs");
        }
        drop(store);
        let store = open(scratch.path(), layout(), boot);
        assert_eq!(suspects(&store), want, "{case}");
        let usable = store.prepare(&key("container"), Some(&key("upper")), Labels::new());
        assert_eq!(usable.is_ok(), want.is_empty(), "{case}: {usable:?}");
    }
}

fn suspects_are_renewed<L: Layout + 'static>(layout: fn() -> L) {
    let scratch = tempfile::tempdir().expect("scratch");
    let store = open(scratch.path(), layout(), FIRST);
    layer(&store, "lower", None);
    layer(&store, "upper", Some("lower"));
    let container = key("container");
    let lost = store.prepare(&container, Some(&key("upper")), Labels::new()).expect("prepares");
    drop(store);
    let lost = files(&lost);
    let lost = if lost.ends_with("fs") { lost.parent().expect("has one").to_owned() } else { lost };
    fs::remove_dir_all(&lost).expect("loses a directory");

    let store = open(scratch.path(), layout(), SECOND);
    let refused = store.mounts(&container);
    assert!(
        matches!(&refused, Err(Error::Suspect { key: of }) if *of == key("upper")),
        "{refused:?}"
    );
    let early = renew(&store, "upper", "new upper");
    assert!(matches!(&early, Err(Error::Suspect { key: of }) if *of == key("lower")), "{early:?}");
    let failed = store.renew(&key("lower"), &mut |_| Err("on purpose".into()));
    assert!(matches!(failed, Err(Error::Fill { .. })), "{failed:?}");
    assert_eq!(suspects(&store), ["lower", "upper"], "a failure changes nothing");
    renew(&store, "lower", "new lower").expect("renews");
    renew(&store, "upper", "new upper").expect("renews");
    assert_eq!(suspects(&store), [""; 0]);
    drop(store);

    let store = open(scratch.path(), layout(), SECOND);
    assert_eq!(suspects(&store), [""; 0], "that was noted");
    let mounts = store.mounts(&container).expect("what is on top can be mounted again");
    assert!(files(&mounts).is_dir(), "its directory is there again");
    let [mount] = mounts.as_slice() else { panic!("one mount: {mounts:?}") };
    let nearest = mount.option("lowerdir").and_then(|all| all.split(':').next());
    let below = nearest.map_or_else(|| files(&mounts), Into::into);
    assert!(below.join("new upper").is_file(), "{below:?} has the new file");
    assert!(!below.join("upper").exists(), "{below:?} has no old one");
}

#[test]
fn overlay() {
    suspects_are_what_was_not_synced(OverlayOptions::default);
    suspects_are_renewed(OverlayOptions::default);
}

#[test]
fn needs_erofs() {
    // So that no layer stays mounted.
    let images = || Images::new(OverlayOptions::default()).for_a_look();
    suspects_are_what_was_not_synced(images);
    suspects_are_renewed(images);
}

#[test]
fn native() {
    suspects_are_what_was_not_synced(|| Copies);
    suspects_are_renewed(|| Copies);
}

#[test]
fn whoever_syncs_is_told_of_commits() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    let scratch = tempfile::tempdir().expect("scratch");
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let store = open(scratch.path(), Copies, FIRST).on_commit(move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    layer(&store, "lower", None);
    assert_eq!(told.load(Ordering::Relaxed), 1);
}
