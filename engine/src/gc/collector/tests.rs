mod load;

use std::{
    fs,
    path::Path,
    sync::{Mutex, mpsc},
    thread,
    time::Duration,
};

use snapshotter::{Copies, Labels, Native};

use super::*;
use crate::{
    content::NewWrite,
    gc::cleaning::tests::Busy,
    metadata::{Container, Runtime},
    namespace::Scope,
};

/// How long something may take that nobody is to hold up.
const DEADLINE: Duration = Duration::from_secs(60);

struct Fixture {
    folder: tempfile::TempDir,
    content: content::Store,
    scope: Scope,
}

fn fixture() -> Fixture {
    let content::tests::Fixture { folder, store: content, scope } = content::tests::fixture();
    Fixture { folder, content, scope }
}

impl Fixture {
    fn native(&self) -> Arc<dyn Snapshotter> {
        let metadata = Arc::new(self.content.metadata().clone());
        Arc::new(Native::open(&self.folder.path().join("native"), metadata, Copies).expect("opens"))
    }

    fn collector(&self, snapshotter: &Arc<dyn Snapshotter>) -> Collector {
        let snapshotters = Snapshotters::from([("s".to_owned(), Arc::clone(snapshotter))]);
        Collector::new(self.content.clone(), Arc::new(snapshotters), |_| {})
    }
}

fn container(snapshot: &str) -> Container {
    Container {
        id: "c".to_owned(),
        labels: Labels::new(),
        image: String::new(),
        runtime: Runtime { name: "r".to_owned(), ..Runtime::default() },
        spec: Some(prost_types::Any::default()),
        snapshotter: "s".to_owned(),
        snapshot_key: snapshot.to_owned(),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
        extensions: BTreeMap::new(),
        sandbox: String::new(),
    }
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).expect("a folder").count()
}

#[test]
fn snapshots_go_with_their_directories() {
    let f = fixture();
    let native = f.native();
    let key = |name| Key::new("default", name).expect("a key");
    let mut parent = None;
    for name in ["1", "2", "3"] {
        native.prepare(&key("temporary"), parent.as_ref(), Labels::new()).expect("prepares");
        native.commit(&key(name), &key("temporary"), Labels::new()).expect("commits");
        parent = Some(key(name));
    }
    native.prepare(&key("active"), Some(&key("2")), Labels::new()).expect("prepares");
    let metadata = f.content.metadata();
    metadata.create_container(&f.scope.namespace, container("active")).expect("creates");
    let collected = f.collector(&native).collect(true).expect("collects");
    assert_eq!(collected.snapshots, [("s".to_owned(), key("3"))]);
    assert_eq!(count(&f.folder.path().join("native/snapshots")), 3);
    metadata.delete_container(&f.scope.namespace, "c").expect("deletes");
    let collected = f.collector(&native).collect(true).expect("collects");
    let gone = ["active", "2", "1"].map(|name| ("s".to_owned(), key(name)));
    assert_eq!(collected.snapshots, gone, "children before their parents");
    assert_eq!(count(&f.folder.path().join("native/snapshots")), 0);
}

#[test]
fn snapshots_of_a_snapshotter_that_is_not_loaded_keep_what_they_refer_to() {
    let f = fixture();
    let [referred, base] = ["referred", "base"]
        .map(|text| f.content.put(&f.scope, text.as_bytes(), Labels::new()).expect("writes"));
    let refer = |digest: &Digest| {
        Labels::from([("containerd.io/gc.ref.content".to_owned(), digest.to_string())])
    };
    let native = f.native();
    let key = |name| Key::new("default", name).expect("a key");
    native.prepare(&key("t"), None, Labels::new()).expect("prepares");
    native.commit(&key("layer"), &key("t"), refer(&base)).expect("commits");
    native.prepare(&key("active"), Some(&key("layer")), refer(&referred)).expect("prepares");
    drop(native);
    let metadata = f.content.metadata();
    let used = Container { snapshotter: "native".to_owned(), ..container("active") };
    metadata.create_container(&f.scope.namespace, used).expect("creates");
    let collector = Collector::new(f.content.clone(), Arc::default(), |_| {});
    let collected = collector.collect(true).expect("collects");
    assert_eq!((collected.content, collected.snapshots), (vec![], vec![]));
    metadata.delete_container(&f.scope.namespace, "c").expect("deletes");
    let mut gone: Vec<_> =
        collector.collect(true).expect("collects").content.into_iter().map(|it| it.1).collect();
    gone.sort();
    let mut want = vec![referred, base];
    want.sort();
    assert_eq!(gone, want, "nothing keeps the snapshots");
    f.native().stat(&key("active")).expect("is its snapshotter's to remove");
}

#[test]
fn a_crash_before_the_files_go_leaves_nothing_for_long() {
    let f = fixture();
    let digest = f.content.put(&f.scope, b"hello", Labels::new()).expect("writes");
    // The records went, and the program with them.
    f.content.metadata().delete_content(&f.scope, &digest).expect("deletes");
    let gone = f.folder.path().join("content/gone");
    fs::create_dir(gone.join("7")).expect("creates");
    fs::write(gone.join("7/data"), b"x").expect("writes");
    let content =
        content::Store::open(&f.folder.path().join("content"), f.content.metadata().clone())
            .expect("opens");
    assert_eq!(count(&gone), 0);
    let collector = Collector::new(content, Arc::default(), |_| {});
    let collected = collector.collect(true).expect("collects");
    assert!(collected.content.is_empty(), "it had no record");
    assert_eq!(count(&f.folder.path().join("content/blobs/sha256")), 0);
}

#[test]
fn writers_do_not_wait_for_files_to_be_deleted() {
    let f = fixture();
    let (written, wait) = mpsc::channel();
    let (store, namespace) = (f.content.metadata().clone(), f.scope.namespace.clone());
    let cleanup = move || {
        let (store, namespace, written) = (store.clone(), namespace.clone(), written.clone());
        let writer = thread::spawn(move || {
            store.create_lease(&namespace, "l", Labels::new()).expect("creates");
            written.send(()).expect("the test waits");
        });
        // Files are deleted for as long as this takes.
        wait.recv_timeout(DEADLINE)
            .expect("a writer is held up by a collection that deletes files");
        writer.join().expect("writes");
    };
    let busy: Arc<dyn Snapshotter> = Arc::new(Busy(Mutex::new(Box::new(cleanup))));
    f.collector(&busy).collect(true).expect("collects");
}

#[test]
fn a_collection_does_not_wait_for_a_write_to_be_hashed_again() {
    let f = fixture();
    let mut writer = f.content.writer(&f.scope, NewWrite::new("r")).expect("opens");
    writer.write(b"x").expect("writes");
    drop(writer);
    // Who hashes a pipe waits until somebody has written to it.
    let status = f.content.ingests().expect("lists").remove(0);
    let data = status.0.join("data");
    fs::remove_file(&data).expect("removes");
    rustix::fs::mkfifoat(rustix::fs::CWD, &data, 0o600.into()).expect("creates");
    let (content, scope) = (f.content.clone(), f.scope.clone());
    let hashing = thread::spawn(move || drop(content.writer(&scope, NewWrite::new("r"))));
    let pipe = fs::OpenOptions::new().write(true).open(&data).expect("once it is read");
    let (done, wait) = mpsc::channel();
    let native = f.native();
    let collector = f.collector(&native);
    let collecting = thread::spawn(move || {
        collector.collect(true).expect("collects");
        done.send(()).expect("the test waits");
    });
    wait.recv_timeout(DEADLINE).expect("a collection waits for a write to be hashed");
    assert!(data.exists(), "it is being written");
    // It goes on, to find that what it has hashed is no file.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let reader = rustix::fs::open(&data, flags, rustix::fs::Mode::empty()).expect("opens");
    drop(pipe);
    hashing.join().expect("ends");
    drop(reader);
    collecting.join().expect("ends");
}
