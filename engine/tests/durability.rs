//! What the engine makes good after the machine stopped without warning. Needs root, for owners.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use engine::{
    content::{
        self,
        external::{Backend, Progress, Session},
    },
    diff::{self, CompareOptions, Compression, Limits},
    digest::Digest,
    durability::{Recovered, Syncer, recover},
    gc::Snapshotters,
    labels::{LABEL_UNCOMPRESSED, Labels},
    metadata,
    namespace::{Namespace, Scope},
    oci::chain_ids,
};
use snapshotter::{
    Info, Key, Mount, Overlay, OverlayOptions, Snapshotter, Transactions,
    external::{Reason, Refused},
};

/// A root directory, and what lives in it between two stops of the machine.
struct Machine {
    root: tempfile::TempDir,
    content: content::Store,
    snapshotters: Snapshotters,
}

fn open(root: tempfile::TempDir, boot: &str) -> Machine {
    let metadata = metadata::Store::open(&root.path().join("metadata.redb")).expect("opens");
    let content = content::Store::open(&root.path().join("content"), metadata.clone());
    let records: Arc<dyn Transactions> = Arc::new(metadata);
    let options = OverlayOptions::default();
    let overlay = Overlay::open_in_boot(&root.path().join("overlay"), records, options, boot);
    let overlay: Arc<dyn Snapshotter> = Arc::new(overlay.expect("opens"));
    let snapshotters = Snapshotters::from([("overlayfs".to_owned(), overlay)]);
    Machine { root, content: content.expect("opens"), snapshotters }
}

impl Machine {
    fn restart(self, boot: &str) -> Self {
        let Self { root, content, snapshotters } = self;
        drop((content, snapshotters));
        open(root, boot)
    }

    fn overlay(&self) -> &dyn Snapshotter {
        self.snapshotters["overlayfs"].as_ref()
    }

    /// Stores two layers, unpacks them, and gives the blobs and the chain IDs.
    fn unpack(&self) -> (Vec<Digest>, Vec<Digest>) {
        let (mut blobs, mut diff_ids) = (Vec::new(), Vec::new());
        for (name, compression) in
            [("lower", Compression::Gzip), ("upper", Compression::Uncompressed)]
        {
            let tree = tempfile::tempdir().expect("scratch");
            fs::write(tree.path().join(name), name).expect("writes");
            let source = vec![Mount::bind(tree.path().display().to_string(), true)];
            let options = CompareOptions { compression, mtime_max: None };
            let mut layer = Vec::new();
            diff::compare(&[], &source, &options, &mut layer).expect("compares");
            let diff_id = self.unpack_one(&layer, &diff_ids);
            let mut labels = Labels::new();
            if compression == Compression::Gzip {
                labels.insert(LABEL_UNCOMPRESSED.to_owned(), diff_id.to_string());
            }
            let scope = Scope::new("default".parse().expect("a namespace"));
            blobs.push(self.content.put(&scope, &layer, labels).expect("stores"));
            diff_ids.push(diff_id);
        }
        (blobs, chain_ids(&diff_ids))
    }

    fn unpack_one(&self, layer: &[u8], below: &[Digest]) -> Digest {
        let parent = chain_ids(below).pop().map(|id| key(&id.to_string()));
        let active = key("active");
        let mounts = self.overlay().prepare(&active, parent.as_ref(), Labels::new());
        let applied = diff::apply(layer, &mounts.expect("prepares"), &Limits::default());
        let diff_id = applied.expect("applies").diff_id;
        let ids = [below, std::slice::from_ref(&diff_id)].concat();
        let name = chain_ids(&ids).pop().expect("one at least").to_string();
        self.overlay().commit(&key(&name), &active, Labels::new()).expect("commits");
        diff_id
    }

    /// Truncates every file of every snapshot, as a power cut does to what was not written.
    fn lose(&self) {
        let mut directories = vec![self.root.path().join("overlay/snapshots")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("lists") {
                let entry = entry.expect("lists").path();
                if entry.is_dir() {
                    directories.push(entry);
                } else {
                    fs::write(entry, "").expect("truncates");
                }
            }
        }
    }

    /// What a view of `name` shows, nearest first.
    fn show(&self, name: &Digest) -> Vec<(String, String)> {
        let view = key("view");
        let mounts = self.overlay().view(&view, Some(&key(&name.to_string())), Labels::new());
        let mounts = mounts.expect("can be looked at");
        self.overlay().remove(&view).expect("removes");
        let mut shown = Vec::new();
        for layer in layers(&mounts) {
            for entry in fs::read_dir(layer).expect("lists") {
                let path = entry.expect("lists").path();
                let name = path.file_name().expect("has one").to_string_lossy().into_owned();
                shown.push((name, fs::read_to_string(path).expect("reads")));
            }
        }
        shown
    }
}

fn layers(mounts: &[Mount]) -> Vec<PathBuf> {
    let [mount] = mounts else { panic!("one mount: {mounts:?}") };
    match mount.option("lowerdir") {
        Some(all) => all.split(':').map(PathBuf::from).collect(),
        None => vec![Path::new(&mount.source).to_owned()],
    }
}

fn key(name: &str) -> Key {
    Key::new("default", name).expect("test names are short")
}

fn both() -> Vec<(String, String)> {
    ["upper", "lower"].map(|name| (name.to_owned(), name.to_owned())).to_vec()
}

#[test]
fn lost_layers_are_unpacked_again() {
    let machine = open(tempfile::tempdir().expect("scratch"), "first");
    let (_, chain) = machine.unpack();
    machine.lose();
    let machine = machine.restart("second");
    let recovered = recover(&machine.content, &machine.snapshotters).expect("recovers");
    assert_eq!(recovered, Recovered { renewed: 2, ..Recovered::default() });
    assert_eq!(machine.show(&chain[1]), both());
    let again = recover(&machine.content, &machine.snapshotters).expect("recovers");
    assert_eq!(again, Recovered::default(), "nothing is left to do");
}

#[test]
fn what_cannot_be_unpacked_again_is_removed() {
    let machine = open(tempfile::tempdir().expect("scratch"), "first");
    let (blobs, chain) = machine.unpack();
    machine.lose();
    let scope = Scope::new("default".parse().expect("a namespace"));
    machine.content.metadata().delete_content(&scope, &blobs[0]).expect("deletes");
    let machine = machine.restart("second");
    let recovered = recover(&machine.content, &machine.snapshotters).expect("recovers");
    assert_eq!(recovered, Recovered { removed: 2, ..Recovered::default() });
    for id in chain {
        let found = machine.overlay().stat(&key(&id.to_string()));
        assert!(matches!(found, Err(snapshotter::Error::NotFound { .. })), "{found:?}");
    }
}

#[test]
fn what_containers_are_on_refuses_instead_of_being_empty() {
    let machine = open(tempfile::tempdir().expect("scratch"), "first");
    let (blobs, chain) = machine.unpack();
    let top = key(&chain[1].to_string());
    let container = key("container");
    machine.overlay().prepare(&container, Some(&top), Labels::new()).expect("prepares");
    machine.lose();
    let scope = Scope::new("default".parse().expect("a namespace"));
    machine.content.metadata().delete_content(&scope, &blobs[1]).expect("deletes");
    let machine = machine.restart("second");
    let recovered = recover(&machine.content, &machine.snapshotters).expect("recovers");
    assert_eq!(recovered, Recovered { renewed: 1, refused: 1, ..Recovered::default() });
    let refused = machine.overlay().mounts(&container);
    assert!(matches!(refused, Err(snapshotter::Error::Suspect { .. })), "{refused:?}");
}

#[test]
fn the_syncer_syncs_at_its_end_at_the_latest() {
    let machine = open(tempfile::tempdir().expect("scratch"), "first");
    let syncer = Syncer::default();
    syncer.start(Arc::new(machine.snapshotters.clone()));
    let (_, chain) = machine.unpack();
    syncer.note_commit();
    syncer.stop();
    let machine = machine.restart("second");
    assert_eq!(machine.overlay().suspects().expect("lists"), Vec::<Info>::new());
    assert_eq!(machine.show(&chain[1]), both());
}

/// A program that has the blobs of a folder, when it is there.
#[derive(Clone)]
struct Elsewhere {
    folder: PathBuf,
    is_away: Arc<AtomicBool>,
}

impl Elsewhere {
    fn bytes(&self, digest: &Digest) -> Result<Vec<u8>, Refused> {
        let refused = |reason| Refused { reason, message: "it says no".to_owned() };
        if self.is_away.load(Ordering::Relaxed) {
            return Err(refused(Reason::Unavailable));
        }
        fs::read(self.folder.join(digest.hex())).map_err(|_| refused(Reason::NotFound))
    }
}

impl Backend for Elsewhere {
    fn name(&self) -> &str {
        "elsewhere"
    }
    fn size(&self, _: &Namespace, digest: &Digest) -> Result<Option<u64>, Refused> {
        self.bytes(digest).map(|bytes| Some(bytes.len() as u64))
    }
    fn read(
        &self,
        _: &Namespace,
        digest: &Digest,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, Refused> {
        Ok(self.bytes(digest)?.into_iter().skip(offset as usize).take(len).collect())
    }
    fn write(&self, _: &Namespace, _: &str, _: u64) -> Result<Box<dyn Session>, Refused> {
        unreachable!("nothing is written")
    }
    fn progress(&self, _: &Namespace, _: &str) -> Result<Option<Progress>, Refused> {
        unreachable!("nothing is written")
    }
    fn abort(&self, _: &Namespace, _: &str) -> Result<(), Refused> {
        unreachable!("nothing is written")
    }
    fn remove(&self, _: &Namespace, _: &Digest) -> Result<(), Refused> {
        unreachable!("nothing is removed")
    }
    fn blobs(&self, _: Option<&Namespace>) -> Result<Vec<Digest>, Refused> {
        unreachable!("nothing is swept")
    }
}

#[test]
fn a_program_with_the_blobs_that_is_away_is_waited_for() {
    let machine = open(tempfile::tempdir().expect("scratch"), "first");
    let (_, chain) = machine.unpack();
    machine.lose();
    let machine = machine.restart("second");
    let content = machine.root.path().join("content");
    let folder = content.join("blobs/sha256");
    let elsewhere = Elsewhere { folder, is_away: Arc::new(AtomicBool::new(true)) };
    let metadata = machine.content.metadata().clone();
    let external = content::Store::open_external(&content, metadata, elsewhere.clone());
    let external = external.expect("opens");
    let recovered = recover(&external, &machine.snapshotters).expect("recovers");
    assert_eq!(recovered, Recovered { waiting: 2, ..Recovered::default() });
    let top = key(&chain[1].to_string());
    let refused = machine.overlay().view(&key("view"), Some(&top), Labels::new());
    assert!(matches!(refused, Err(snapshotter::Error::Suspect { .. })), "{refused:?}");

    // It is tried again without being asked to.
    let syncer = Syncer::default();
    syncer.recover(&external, &Arc::new(machine.snapshotters.clone())).expect("waits");
    elsewhere.is_away.store(false, Ordering::Relaxed);
    let until = Instant::now() + Duration::from_secs(60);
    while !machine.overlay().suspects().expect("lists").is_empty() {
        assert!(Instant::now() < until, "nothing is unpacked again");
        std::thread::yield_now();
    }
    syncer.stop();
    assert_eq!(machine.show(&chain[1]), both());
}
