//! The conformance suite over the real kernel. Needs root.

use std::{
    collections::BTreeSet,
    fs::File,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use snapshotter::{
    Copies, Images, Kind, Layout, OverlayOptions, Snapshotter, Store, Subvolumes, Transactions,
    testsuite,
};

fn open<L: Layout + 'static>(root: &Path, layout: L) -> Box<dyn Snapshotter> {
    let database = redb::Database::create(root.join("database")).expect("scratch");
    let database: Arc<dyn Transactions> = Arc::new(database);
    Box::new(Store::open(root, database, layout).expect("opens"))
}

#[test]
fn overlay() {
    let scratch = tempfile::tempdir().unwrap();
    testsuite::run(scratch.path(), &|root| open(root, OverlayOptions::default()));
}

#[test]
fn overlay_with_late_removal() {
    let scratch = tempfile::tempdir().unwrap();
    let options = OverlayOptions { async_remove: true, ..OverlayOptions::default() };
    testsuite::run(scratch.path(), &|root| open(root, options.clone()));
}

#[test]
fn needs_erofs() {
    let scratch = tempfile::tempdir().unwrap();
    let roots = Mutex::new(BTreeSet::new());
    let images = || Images::new(OverlayOptions::default());
    testsuite::run(scratch.path(), &|root| {
        roots.lock().unwrap().insert(root.to_owned());
        open(root, images())
    });
    // Layers of what is there still stay mounted.
    for root in roots.into_inner().unwrap() {
        let snapshotter = open(&root, images());
        let mut users = Vec::new();
        let list = snapshotter.walk(None, &mut |info| {
            users.extend((info.kind != Kind::Committed).then_some(info.key));
            ControlFlow::Continue(())
        });
        list.unwrap();
        users.iter().for_each(|key| snapshotter.remove(key).unwrap());
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let left: Vec<_> =
        table.lines().filter(|line| line.contains(scratch.path().to_str().unwrap())).collect();
    assert!(left.is_empty(), "no image is mounted any more: {left:?}");
}

#[test]
fn native() {
    let scratch = tempfile::tempdir().unwrap();
    testsuite::run(scratch.path(), &|root| open(root, Copies));
}

/// On a filesystem in a file. Needs mkfs.btrfs.
#[test]
fn needs_btrfs() {
    let scratch = tempfile::tempdir().unwrap();
    let disk = Disk::make(scratch.path());
    testsuite::run(&disk.0, &|root| open(root, Subvolumes));
}

/// A mounted filesystem, unmounted on drop.
struct Disk(PathBuf);

impl Disk {
    /// Makes a btrfs of a gigabyte, most of it a hole, and mounts it below `scratch`.
    fn make(scratch: &Path) -> Self {
        let (image, place) = (scratch.join("image"), scratch.join("disk"));
        File::create(&image).expect("scratch").set_len(1 << 30).expect("scratch");
        let made = Command::new("mkfs.btrfs").arg("--quiet").arg(&image).status();
        assert!(made.expect("mkfs.btrfs is installed").success());
        std::fs::create_dir(&place).expect("scratch");
        let mount = sys::mount::Mount {
            kind: "btrfs".to_owned(),
            source: image.display().to_string(),
            target: String::new(),
            options: vec!["loop".to_owned()],
        };
        mount.mount(&place).unwrap_or_else(|error| panic!("{}", sys::error::Chain(&error)));
        Self(place)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = sys::mount::unmount_all(&self.0);
    }
}
