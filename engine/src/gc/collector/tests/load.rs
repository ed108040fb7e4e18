//! Many who make and remove objects, while collections run back to back.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
};

use super::*;
use crate::{
    metadata::{DeleteImage, Image, Resource},
    oci::Descriptor,
};

const WORKERS: usize = 4;

/// How many images each makes.
const ROUNDS: usize = 8;

/// What is referred to in the end: blobs with their namespaces, and snapshots.
#[derive(Debug, Default, PartialEq)]
struct Left {
    content: BTreeSet<(String, String)>,
    snapshots: BTreeSet<(String, String)>,
}

struct Worker<'f> {
    content: &'f content::Store,
    native: &'f dyn Snapshotter,
    left: &'f Mutex<Left>,
}

impl Worker<'_> {
    /// Makes an image and a container by the rules, under a lease, and removes some of it.
    fn round(&self, name: &str, namespace: &str, round: usize) {
        let metadata = self.content.metadata();
        let mut scope = Scope::new(namespace.parse().expect("a namespace"));
        metadata.create_lease(&scope.namespace, name, Labels::new()).expect("creates a lease");
        scope.lease = Some(name.to_owned());
        let put = |bytes: &[u8], labels| self.put(&scope, bytes, labels);
        let (layer, shared) = (put(name.as_bytes(), Labels::new()), put(b"shared", Labels::new()));
        let snapshot = self.layer(&scope, name);
        let manifest = format!("manifest {name}").into_bytes();
        let refers = [
            ("containerd.io/gc.ref.content.0", layer.to_string()),
            ("containerd.io/gc.ref.content.1", shared.to_string()),
            ("containerd.io/gc.ref.snapshot.s", snapshot.name().to_owned()),
        ];
        let refers = refers.into_iter().map(|(label, value)| (label.to_owned(), value)).collect();
        let blobs = [put(&manifest, refers), layer, shared];
        // Goes with its lease.
        let mut writer = self.content.writer(&scope, NewWrite::new(name)).expect("opens");
        writer.write(b"unfinished").expect("writes");
        drop(writer);
        metadata.create_image(&scope, image(name, &manifest)).expect("creates an image");
        let active = round.is_multiple_of(2).then(|| self.container(&scope, name, &snapshot));
        metadata.delete_lease(&scope.namespace, name).expect("deletes the lease");

        for digest in &blobs {
            self.content.blob(&scope.namespace, digest).expect("the image keeps it");
        }
        for key in [Some(&snapshot), active.as_ref()].into_iter().flatten() {
            self.native.stat(key).expect("is kept");
        }
        let image_stays = round % 4 < 2;
        if !image_stays {
            let delete = DeleteImage { name: name.to_owned(), target: None };
            let scope = Scope::new(scope.namespace.clone());
            metadata.delete_image(&scope, &delete).expect("deletes the image");
        }
        let mut left = self.left.lock().expect("no panic");
        if image_stays {
            left.content.extend(blobs.map(|digest| (namespace.to_owned(), digest.to_string())));
        }
        let snapshot = (image_stays || active.is_some()).then_some(snapshot);
        let snapshots = [snapshot, active].into_iter().flatten();
        left.snapshots.extend(snapshots.map(|key| (namespace.to_owned(), key.name().to_owned())));
    }

    fn put(&self, scope: &Scope, bytes: &[u8], labels: Labels) -> Digest {
        loop {
            match self.content.put(scope, bytes, labels.clone()) {
                // Another worker is writing the same.
                Err(Error::Unavailable(_)) => thread::yield_now(),
                written => return written.expect("writes"),
            }
        }
    }

    fn lease(&self, scope: &Scope, key: &Key) {
        let resource = Resource::snapshot("s", key.name());
        self.content.metadata().lease(scope, &resource).expect("leases");
    }

    /// A committed snapshot.
    fn layer(&self, scope: &Scope, name: &str) -> Key {
        let key = |name: &str| Key::new(scope.namespace.as_str(), name).expect("a key");
        let (extract, layer) = (key(&format!("extract {name}")), key(&format!("layer {name}")));
        self.lease(scope, &extract);
        let mounts = self.native.prepare(&extract, None, Labels::new()).expect("prepares");
        fs::write(Path::new(&mounts[0].source).join("file"), name).expect("writes");
        self.lease(scope, &layer);
        self.native.commit(&layer, &extract, Labels::new()).expect("commits");
        layer
    }

    /// A container on a snapshot of its own, which is returned.
    fn container(&self, scope: &Scope, name: &str, layer: &Key) -> Key {
        let active = Key::new(scope.namespace.as_str(), name).expect("a key");
        self.lease(scope, &active);
        self.native.prepare(&active, Some(layer), Labels::new()).expect("prepares");
        let container = Container { id: name.to_owned(), ..container(name) };
        self.content.metadata().create_container(&scope.namespace, container).expect("creates");
        active
    }
}

fn image(name: &str, manifest: &[u8]) -> Image {
    let (created, updated) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
    let target = Descriptor::of("application/vnd.oci.image.manifest.v1+json", manifest);
    Image { name: name.to_owned(), labels: Labels::new(), target, created, updated }
}

fn left(f: &Fixture, native: &dyn Snapshotter) -> Left {
    let mut left = Left::default();
    let read = f.content.metadata().read(|view| {
        metadata::each(view, &mut |namespace, object| {
            match object {
                metadata::Object::Content(info) => {
                    left.content.insert((namespace.to_string(), info.digest.to_string()));
                }
                metadata::Object::Lease(lease) => panic!("lease {} is left", lease.id),
                _ => {}
            }
            Ok(())
        })
    });
    read.expect("reads");
    let walk = native.walk(None, &mut |info| {
        left.snapshots.insert((info.key.namespace().to_owned(), info.key.name().to_owned()));
        ControlFlow::Continue(())
    });
    walk.expect("walks");
    left
}

#[test]
fn nothing_is_lost_and_nothing_left_when_many_are_at_work() {
    let f = fixture();
    let native = f.native();
    let collector = f.collector(&native);
    let expected = Mutex::default();
    let working = AtomicBool::new(true);
    let worker = Worker { content: &f.content, native: &*native, left: &expected };
    let work = |number: usize| {
        let namespace = ["a", "b"][number % 2];
        (0..ROUNDS).for_each(|at| worker.round(&format!("{number}-{at}"), namespace, at));
    };
    let collections = thread::scope(|threads| {
        let collecting = threads.spawn(|| {
            let mut count = 0;
            while working.load(Ordering::Relaxed) {
                collector.collect(true).expect("collects");
                count += 1;
            }
            count
        });
        let work = &work;
        let workers: Vec<_> = (0..WORKERS).map(|one| threads.spawn(move || work(one))).collect();
        let results: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        working.store(false, Ordering::Relaxed);
        let failed = results.iter().filter(|result| result.is_err()).count();
        assert_eq!(failed, 0, "workers have failed");
        collecting.join().expect("collects")
    });
    assert!(collections > ROUNDS, "{collections} collections are too few to be in anybody's way");
    collector.collect(true).expect("collects");
    // On a busy machine the collection may not have waited until that was done.
    native.cleanup().expect("cleans up");
    let expected = expected.into_inner().expect("no panic");
    assert_eq!(left(&f, &*native), expected);

    let blobs: BTreeSet<_> = expected.content.iter().map(|(_, digest)| digest).collect();
    let folder = f.folder.path();
    assert_eq!(count(&folder.join("content/blobs/sha256")), blobs.len());
    assert_eq!(count(&folder.join("content/ingest")), 0);
    assert_eq!(count(&folder.join("content/gone")), 0);
    assert_eq!(count(&folder.join("native/snapshots")), expected.snapshots.len());
    for (namespace, digest) in &expected.content {
        let (namespace, digest) = (namespace.parse().expect("one"), digest.parse().expect("one"));
        let blob = f.content.blob(&namespace, &digest).expect("is there");
        assert_eq!(Digest::of(&blob.read_all(1024).expect("reads")), digest);
    }
    for (namespace, name) in &expected.snapshots {
        let key = Key::new(namespace, name).expect("a key");
        assert!(native.usage(&key).expect("is there").inodes >= 2, "{key} has its file");
    }
}
