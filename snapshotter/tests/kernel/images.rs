//! Layers that are images.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use snapshotter::{
    Erofs, Error, Images, Key, Labels, OverlayOptions, Remap, Snapshotter, Transactions,
};

use crate::mounted::{Mounted, database, key};

/// The directories of a snapshotter in which layers stay mounted, when this is dropped.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.0.join("snapshots")).into_iter().flatten().flatten() {
            let _ = sys::mount::unmount_all(&entry.path().join("fs"));
        }
    }
}

fn open(root: &Path, database: &Arc<dyn Transactions>) -> Erofs {
    let options = OverlayOptions { remap: Remap::known(true), ..OverlayOptions::default() };
    Erofs::open(root, Arc::clone(database), Images::new(options)).expect("opens")
}

/// Commits a layer with a file of its own and one that all have, and gives its directory.
fn layer(erofs: &Erofs, name: &str, parent: Option<&str>) -> PathBuf {
    let mounts = erofs.prepare(&key("active"), parent.map(key).as_ref(), Labels::new());
    let mounts = mounts.expect("prepares");
    let at = Mounted::new(&mounts);
    fs::write(at.path().join(name), name).expect("writes");
    fs::write(at.path().join("top"), name).expect("writes");
    let upper = mounts[0].option("upperdir").unwrap_or(&mounts[0].source);
    let directory = Path::new(upper).parent().expect("has one").to_owned();
    drop(at);
    erofs.commit(&key(name), &key("active"), Labels::new()).expect("commits");
    directory
}

fn is_mounted(path: &Path) -> bool {
    let (own, above) = (fs::metadata(path), fs::metadata(path.join("..")));
    own.expect("is there").dev() != above.expect("is there").dev()
}

fn container(erofs: &Erofs, name: &str, parent: &str, labels: Labels) -> Mounted {
    let made: Result<_, snapshotter::Error> = erofs.prepare(&key(name), Some(&key(parent)), labels);
    Mounted::new(&made.expect("prepares"))
}

fn read(at: &Mounted, name: &str) -> String {
    fs::read_to_string(at.path().join(name)).unwrap_or_default()
}

/// What is in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("lists");
    let names = entries.map(|entry| entry.expect("lists").file_name().into_string());
    let mut names = names.collect::<Result<Vec<_>, _>>().expect("UTF-8");
    names.sort();
    names
}

#[test]
fn needs_erofs_layers_are_files() {
    let scratch = tempfile::tempdir().expect("scratch");
    let _unmount = Unmount(scratch.path().to_owned());
    let database = database();
    let erofs = open(scratch.path(), &database);
    let one = layer(&erofs, "one", None);
    assert_eq!(names(&one), ["fs", "layer.erofs"]);
    assert_eq!(names(&one.join("fs")), [""; 0], "what the image was made from is gone");
    let usage = erofs.usage(&key("one")).expect("is known");
    let image = fs::metadata(one.join("layer.erofs")).expect("is there");
    assert_eq!((usage.inodes, usage.bytes), (3, image.blocks() * 512));

    layer(&erofs, "two", Some("one"));
    assert!(is_mounted(&one.join("fs")), "by what is on top of it");
    let rw = container(&erofs, "rw", "two", Labels::new());
    assert_eq!(["one", "two", "top"].map(|name| read(&rw, name)), ["one", "two", "two"]);
    fs::write(rw.path().join("top"), "container").expect("is writable");
    let refused = fs::write(one.join("fs/one"), "changed");
    assert!(refused.is_err(), "nobody can write to a layer");
    let view = erofs.view(&key("ro"), Some(&key("two")), Labels::new()).expect("makes a view");
    let view = Mounted::new(&view);
    assert_eq!(read(&view, "top"), "two");
    assert!(fs::write(view.path().join("top"), "").is_err(), "a view is read-only");
    let alone = erofs.view(&key("alone"), Some(&key("one")), Labels::new()).expect("makes a view");
    assert_eq!(alone[0].kind, "bind", "whatever the caller is, it can mount that");
    assert_eq!(read(&Mounted::new(&alone), "top"), "one");

    erofs.cleanup().expect("cleans up");
    for name in ["ro", "alone"] {
        erofs.remove(&key(name)).expect("removes");
        assert!(is_mounted(&one.join("fs")), "for the other container");
    }
    drop(erofs);
    let erofs = open(scratch.path(), &database);
    assert_eq!(read(&rw, "one"), "one", "a container does not notice");
    let again = Mounted::new(&erofs.mounts(&key("rw")).expect("has mounts"));
    assert_eq!([read(&again, "one"), read(&again, "top")], ["one", "container"]);
    erofs.remove(&key("rw")).expect("removes");
    assert!(!is_mounted(&one.join("fs")), "nobody needs it");
}

#[test]
fn needs_erofs_mounts_from_before() {
    let scratch = tempfile::tempdir().expect("scratch");
    let _unmount = Unmount(scratch.path().to_owned());
    let database = database();
    let erofs = open(scratch.path(), &database);
    let one = layer(&erofs, "one", None);
    let two = layer(&erofs, "two", Some("one"));
    let rw = erofs.prepare(&key("rw"), Some(&key("two")), Labels::new()).expect("prepares");
    let ro = erofs.view(&key("ro"), Some(&key("one")), Labels::new()).expect("makes a view");
    let look = |when: &str| {
        assert_eq!(
            ["one", "two"].map(|name| read(&Mounted::new(&rw), name)),
            ["one", "two"],
            "{when}"
        );
        assert_eq!(read(&Mounted::new(&ro), "one"), "one", "{when}");
    };
    drop(erofs);
    look("closed");
    for directory in [&one, &two] {
        sys::mount::unmount_all(&directory.join("fs")).expect("unmounts");
    }
    let for_a_look = Images::new(OverlayOptions::default()).for_a_look();
    drop(Erofs::open(scratch.path(), Arc::clone(&database), for_a_look).expect("opens"));
    assert!(!is_mounted(&one.join("fs")), "nobody was to use it");
    let erofs = open(scratch.path(), &database);
    look("after another start of the machine");
    let for_a_look = Images::new(OverlayOptions::default()).for_a_look();
    drop(Erofs::open(scratch.path(), Arc::clone(&database), for_a_look).expect("opens"));
    look("after somebody else's look");
    erofs.remove(&key("rw")).expect("removes");
    assert!(is_mounted(&one.join("fs")), "for the view");
    assert!(!is_mounted(&two.join("fs")), "for nobody");
    erofs.remove(&key("ro")).expect("removes");
    assert!(!is_mounted(&one.join("fs")), "nobody needs it");
}

/// After a crash images are mounted still, files that became one are there still, and an image
/// may be half.
#[test]
fn needs_erofs_after_a_crash() {
    let scratch = tempfile::tempdir().expect("scratch");
    let _unmount = Unmount(scratch.path().to_owned());
    let database = database();
    let erofs = open(scratch.path(), &database);
    let (one, two) = (layer(&erofs, "one", None), layer(&erofs, "two", Some("one")));
    drop(container(&erofs, "first", "two", Labels::new()));
    std::mem::forget(erofs);
    assert!(is_mounted(&one.join("fs")) && is_mounted(&two.join("fs")));
    sys::mount::unmount_all(&two.join("fs")).expect("unmounts");
    fs::write(two.join("fs/left over"), "").expect("writes");
    fs::write(two.join("layer.erofs.new"), "half").expect("writes");

    let erofs = open(scratch.path(), &database);
    let at = container(&erofs, "second", "two", Labels::new());
    assert_eq!(["one", "two", "left over"].map(|name| read(&at, name)), ["one", "two", ""]);
    drop(at);
    let directories = [one, two];
    for name in ["second", "first", "two", "one"] {
        erofs.remove(&key(name)).expect("removes");
    }
    erofs.cleanup().expect("cleans up");
    assert!(directories.iter().all(|directory| !directory.exists()), "no mount holds them");
}

#[test]
fn needs_erofs_after_a_crash_while_the_directory_was_emptied() {
    type Crash = fn(&Path);
    let cases: [(&str, Crash); 4] = [
        ("before", |one| {
            fs::write(one.join("fs/left over"), "").expect("writes");
            fs::create_dir(one.join("work")).expect("makes");
        }),
        ("no directory", |one| {
            fs::remove_dir(one.join("fs")).expect("removes");
        }),
        ("put aside", |one| {
            fs::write(one.join("fs/left over"), "").expect("writes");
            fs::rename(one.join("fs"), one.join("fs.old")).expect("renames");
        }),
        ("two that were put aside", |one| {
            fs::create_dir_all(one.join("fs.old/left over")).expect("makes");
            fs::write(one.join("fs/left over"), "").expect("writes");
        }),
    ];
    for (case, crash) in cases {
        let scratch = tempfile::tempdir().expect("scratch");
        let _unmount = Unmount(scratch.path().to_owned());
        let database = database();
        let one = layer(&open(scratch.path(), &database), "one", None);
        crash(&one);
        let erofs = open(scratch.path(), &database);
        let at = container(&erofs, "container", "one", Labels::new());
        assert_eq!(["one", "left over"].map(|name| read(&at, name)), ["one", ""], "{case}");
        assert_eq!(names(&one), ["fs", "layer.erofs"], "{case}: what was left over is gone");
    }
}

/// What a snapshotter that has crashed has mounted, and nothing is on top of any more, is unmounted.
#[test]
fn needs_erofs_mounted_for_nobody() {
    let scratch = tempfile::tempdir().expect("scratch");
    let _unmount = Unmount(scratch.path().to_owned());
    let database = database();
    let erofs = open(scratch.path(), &database);
    let one = layer(&erofs, "one", None);
    let two = layer(&erofs, "two", Some("one"));
    drop(container(&erofs, "first", "two", Labels::new()));
    drop(container(&erofs, "second", "one", Labels::new()));
    database
        .write(&mut |change| erofs.remove_within(change, &[key("first")]).map(drop))
        .expect("removes the record alone");
    std::mem::forget(erofs);
    assert!(is_mounted(&two.join("fs")), "by the crash");
    let _erofs = open(scratch.path(), &database);
    assert_eq!([&one, &two].map(|layer| is_mounted(&layer.join("fs"))), [true, false]);
}

/// Whoever has a snapshot mounted when it is committed goes on with it, as with overlayfs.
#[test]
fn needs_erofs_committed_while_mounted() {
    let cases = [
        ("a bind mount", None, "early"),
        ("a bind mount without files", None, ""),
        ("an overlay", Some("below"), "early"),
        ("an overlay without files", Some("below"), ""),
    ];
    for (case, parent, early) in cases {
        let scratch = tempfile::tempdir().expect("scratch");
        let _unmount = Unmount(scratch.path().to_owned());
        let database = database();
        let erofs = open(scratch.path(), &database);
        layer(&erofs, "below", None);
        let parent = parent.map(key);
        let mounts = erofs.prepare(&key("active"), parent.as_ref(), Labels::new());
        let mounts = mounts.expect("prepares");
        let at = Mounted::new(&mounts);
        if !early.is_empty() {
            fs::write(at.path().join(early), "before").expect("writes");
        }
        erofs.commit(&key("name"), &key("active"), Labels::new()).expect("commits");
        let upper = mounts[0].option("upperdir").unwrap_or(&mounts[0].source);
        let directory = Path::new(upper).parent().expect("has one").to_owned();
        let go_on = |when: &str| {
            let file = at.path().join(when);
            fs::write(&file, when).unwrap_or_else(|error| panic!("{case}, {when}: {error}"));
            assert_eq!(fs::read_to_string(file).expect("reads"), when, "{case}");
            assert_eq!(at.path().join("early").exists(), !early.is_empty(), "{case}, {when}");
            if parent.is_some() {
                fs::write(at.path().join("below"), when).expect("copies up");
            }
        };
        go_on("committed");
        let layer = container(&erofs, "container", "name", Labels::new());
        go_on("shown");
        let seen = ["early", "committed", "shown"].map(|name| layer.path().join(name).exists());
        assert_eq!(seen, [!early.is_empty(), false, false], "{case}: the layer is what it was");
        erofs.cleanup().expect("cleans up");
        go_on("cleaned up");
        drop(erofs);
        let erofs = open(scratch.path(), &database);
        go_on("opened again");
        drop(at);
        erofs.cleanup().expect("cleans up");
        assert_eq!(names(&directory), ["fs", "layer.erofs"], "{case}: nobody needs it");
    }
}

/// A container whose directory cannot be made again is in nobody's way, and is there when it can.
#[test]
fn needs_erofs_lost_with_what_is_below() {
    let scratch = tempfile::tempdir().expect("scratch");
    let _unmount = Unmount(scratch.path().to_owned());
    let database = database();
    let erofs = open(scratch.path(), &database);
    let one = layer(&erofs, "one", None);
    for (name, parent) in [("first", Some("one")), ("last", None)] {
        let made = erofs.prepare(&key(name), parent.map(key).as_ref(), Labels::new());
        let made = made.expect("prepares");
        let files = made[0].option("upperdir").unwrap_or(&made[0].source);
        fs::remove_dir_all(Path::new(files).parent().expect("has one")).expect("loses it");
    }
    drop(erofs);
    sys::mount::unmount_all(&one.join("fs")).expect("unmounts");
    let (image, away) = (one.join("layer.erofs"), one.join("away"));
    fs::rename(&image, &away).expect("renames");

    let erofs = open(scratch.path(), &database);
    let last = erofs.mounts(&key("last")).expect("has mounts");
    assert!(Path::new(&last[0].source).is_dir(), "it was made again");
    let refused = erofs.mounts(&key("first"));
    assert!(matches!(&refused, Err(Error::File { .. })), "{refused:?}");
    erofs.cleanup().expect("nothing is half made");
    fs::rename(&away, &image).expect("renames");
    let first = Mounted::new(&erofs.mounts(&key("first")).expect("is made again"));
    assert_eq!(read(&first, "one"), "one");
}

#[test]
fn needs_erofs_other_owners() {
    let scratch = tempfile::tempdir().expect("scratch");
    let _unmount = Unmount(scratch.path().to_owned());
    let erofs = open(scratch.path(), &database());
    layer(&erofs, "one", None);
    layer(&erofs, "two", Some("one"));
    let map = |kind| (format!("containerd.io/snapshot/{kind}mapping"), "0:100000:65536".to_owned());
    let labels = Labels::from(["uid", "gid"].map(map));
    for (case, parent) in [("one layer", "one"), ("two layers", "two")] {
        let at = container(&erofs, case, parent, labels.clone());
        let owner = fs::metadata(at.path().join("one")).expect("is there").uid();
        assert_eq!(owner, 100_000, "{case}");
    }
}

/// What was unpacked without its parent becomes a layer on top of it.
#[test]
fn needs_erofs_many_layers() {
    let scratch = tempfile::tempdir().expect("scratch");
    let _unmount = Unmount(scratch.path().to_owned());
    let erofs = open(scratch.path(), &database());
    let mut parent: Option<Key> = None;
    for number in 0..130 {
        let (active, name) = (key("active"), key(&number.to_string()));
        let mounts = erofs.prepare(&active, None, Labels::new()).expect("prepares");
        fs::write(Path::new(&mounts[0].source).join(number.to_string()), "").expect("writes");
        match &parent {
            None => erofs.commit(&name, &active, Labels::new()).expect("commits"),
            Some(parent) => erofs.rebase(&name, &active, parent, Labels::new()).expect("rebases"),
        }
        parent = Some(name);
    }
    let at = container(&erofs, "container", "129", Labels::new());
    assert_eq!(fs::read_dir(at.path()).expect("lists").count(), 130);
}

/// What one container no longer needs, another one may need at that moment.
#[test]
fn needs_erofs_containers_that_come_and_go() {
    let scratch = tempfile::tempdir().expect("scratch");
    let erofs = open(scratch.path(), &database());
    let one = layer(&erofs, "one", None);
    let two = layer(&erofs, "two", Some("one"));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let erofs = &erofs;
            scope.spawn(move || {
                for round in 0..20 {
                    let name = format!("{thread} {round}");
                    let at = container(erofs, &name, "two", Labels::new());
                    assert_eq!([read(&at, "one"), read(&at, "two")], ["one", "two"], "{name}");
                    drop(at);
                    erofs.remove(&key(&name)).expect("removes");
                }
            });
        }
    });
    for directory in [one, two] {
        assert!(!is_mounted(&directory.join("fs")), "nobody needs it");
    }
}
