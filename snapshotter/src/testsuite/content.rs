//! Cases about what is in snapshots.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
    thread,
};

use super::{
    Case,
    bench::{Bench, Step, key, labels, tree},
};
use crate::{Error, Usage, external::Reason};

pub(super) const CASES: &[Case] = &[
    ("file update", |bench| stack(bench, &[hosts, hosts_changed])),
    ("directory removed and made again", |bench| stack(bench, &[lib, lib_again, lib_more])),
    ("owners", |bench| stack(bench, &[opt, opt_owned])),
    ("directory permissions", |bench| stack(bench, &[directories, directories_changed, redone])),
    ("removed files", |bench| stack(bench, &[two_files, one_removed, empty_layer])),
    ("moves and links", |bench| stack(bench, &[two_directories, moved])),
    ("special files", |bench| stack(bench, &[special, empty_layer])),
    ("root directory", root_directory),
    ("view is read-only", read_only_view),
    ("changes of one are not seen by another", isolation),
    ("many layers", many_layers),
    ("rebase", rebase),
    ("usage", usage),
    ("races to commit", commit_races),
];

/// Applies `steps` to a plain directory, and to one snapshot after the other; both must look the
/// same after each.
fn stack(bench: &mut Bench<'_>, steps: &[Step]) {
    let flat = bench.directory();
    let mut parent = String::new();
    for (number, step) in steps.iter().enumerate() {
        let name = format!("layer {number}");
        step(&flat);
        bench.layer(&name, &parent, *step);
        let mounts = bench.view(&format!("view {number}"), &name);
        let got = bench.mounted(&mounts, tree);
        assert_eq!(got, tree(&flat), "{}: step {number}", bench.case());
        parent = name;
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("write");
}

fn directory(path: &Path, mode: u32) {
    fs::create_dir(path).expect("mkdir");
    set_mode(path, mode);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn own(path: &Path, id: u32) {
    chown(path, Some(id), Some(id)).expect("chown");
}

fn remove(path: &Path) {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("remove");
}

fn hosts(root: &Path) {
    directory(&root.join("etc"), 0o700);
    write(&root.join("etc/hosts"), "mydomain 10.0.0.1");
    write(&root.join("etc/profile"), "PATH=/usr/bin");
}

fn hosts_changed(root: &Path) {
    write(&root.join("etc/hosts"), "mydomain 10.0.0.2");
    set_mode(&root.join("etc/profile"), 0o666);
    directory(&root.join("root"), 0o700);
}

fn lib(root: &Path) {
    directory(&root.join("lib"), 0o700);
    write(&root.join("lib/hidden"), "");
}

fn lib_again(root: &Path) {
    remove(&root.join("lib"));
    directory(&root.join("lib"), 0o700);
    write(&root.join("lib/not-hidden"), "");
}

fn lib_more(root: &Path) {
    write(&root.join("lib/new"), "");
}

fn opt(root: &Path) {
    fs::create_dir_all(root.join("opt/a/b")).expect("mkdir");
    write(&root.join("opt/a/b/file"), "hello");
}

fn opt_owned(root: &Path) {
    for path in ["opt", "opt/a", "opt/a/b", "opt/a/b/file"] {
        own(&root.join(path), 1);
    }
}

fn directories(root: &Path) {
    for name in ["1", "2", "3", "4", "5"] {
        directory(&root.join(name), 0o700);
    }
    for path in ["4/f", "5/f"] {
        write(&root.join(path), "...");
    }
    for path in ["1", "2", "3", "5", "5/f"] {
        own(&root.join(path), 1);
    }
}

fn directories_changed(root: &Path) {
    own(&root.join("2"), 0);
    remove(&root.join("3"));
    own(&root.join("4"), 1);
    own(&root.join("4/f"), 1);
}

fn redone(root: &Path) {
    directory(&root.join("3"), 0o1777);
    own(&root.join("3"), 1);
    remove(&root.join("5"));
    directory(&root.join("5"), 0o700);
}

fn two_files(root: &Path) {
    write(&root.join("foo"), "foo");
    directory(&root.join("a"), 0o755);
    write(&root.join("a/bar"), "bar");
}

fn one_removed(root: &Path) {
    remove(&root.join("foo"));
    remove(&root.join("a/bar"));
}

fn empty_layer(_root: &Path) {}

fn two_directories(root: &Path) {
    for name in ["1", "2"] {
        directory(&root.join(name), 0o700);
        write(&root.join(name).join("f"), name);
    }
}

fn moved(root: &Path) {
    directory(&root.join("3"), 0o700);
    fs::rename(root.join("1/f"), root.join("3/f")).expect("rename");
    remove(&root.join("1"));
    fs::hard_link(root.join("2/f"), root.join("3/g")).expect("link");
    remove(&root.join("2/f"));
}

fn special(root: &Path) {
    symlink("/nowhere", root.join("link")).expect("symlink");
    write(&root.join("setuid"), "#!");
    own(&root.join("setuid"), 7);
    set_mode(&root.join("setuid"), 0o4755);
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let null = rustix::fs::makedev(1, 3);
    for (name, kind, device) in [
        ("null", rustix::fs::FileType::CharacterDevice, null),
        ("fifo", rustix::fs::FileType::Fifo, 0),
    ] {
        rustix::fs::mknodat(rustix::fs::CWD, root.join(name), kind, mode, device).expect("mknod");
    }
}

fn root_directory(bench: &mut Bench<'_>) {
    let mode = |root: &Path| fs::metadata(root).expect("stat").mode() & 0o7777;
    let mounts = bench.prepare("active", "");
    assert_eq!(bench.mounted(&mounts, mode), 0o755, "of an empty snapshot");
    bench.mounted(&mounts, |root| own(root, 5));
    bench.commit("committed", "active");
    let mounts = bench.prepare("child", "committed");
    let seen = bench.mounted(&mounts, |root| (mode(root), fs::metadata(root).expect("stat").uid()));
    assert_eq!(seen, (0o755, 5), "of a child");
}

fn read_only_view(bench: &mut Bench<'_>) {
    bench.layer("one", "", two_files);
    bench.layer("two", "one", one_removed);
    for (view, parent) in [("of nothing", ""), ("of one", "one"), ("of two", "two")] {
        let mounts = bench.view(view, parent);
        let written = bench.mounted(&mounts, |root| fs::write(root.join("x"), "").is_ok());
        assert!(!written, "view {view} can be written");
        bench.remove(view);
    }
}

fn isolation(bench: &mut Bench<'_>) {
    bench.layer("base", "", two_files);
    let (left, right) = (bench.prepare("left", "base"), bench.prepare("right", "base"));
    bench.mounted(&left, |root| write(&root.join("left"), ""));
    bench.mounted(&left, |root| remove(&root.join("foo")));
    bench.mounted(&right, |root| {
        assert!(!root.join("left").exists(), "a sibling's file is seen");
        assert!(root.join("foo").exists(), "a file that a sibling removed is missing");
    });
    let again = bench.snapshotter().mounts(&key("left"));
    assert_eq!(bench.ok("mounts", "left", again), left, "mounts differ later");
}

fn many_layers(bench: &mut Bench<'_>) {
    const LAYERS: u32 = 128;
    let mut parent = String::new();
    for number in 0..LAYERS {
        let active = format!("active {number}");
        let mounts = bench.prepare(&active, &parent);
        bench.mounted(&mounts, |root| {
            write(&root.join("last"), &number.to_string());
            write(&root.join(format!("file {number}")), "");
        });
        parent = format!("layer {number}");
        bench.commit(&parent, &active);
    }
    let mounts = bench.view("top", &parent);
    bench.mounted(&mounts, |root| {
        assert_eq!(fs::read_to_string(root.join("last")).expect("read"), "127");
        assert_eq!(fs::read_dir(root).expect("list").count(), 129, "files of all layers");
    });
}

fn rebase(bench: &mut Bench<'_>) {
    bench.layer("base", "", two_files);
    let mounts = bench.prepare("active", "");
    bench.mounted(&mounts, |root| write(&root.join("new"), "new"));
    let snapshotter = bench.snapshotter();
    let result = snapshotter.rebase(&key("top"), &key("active"), &key("base"), labels());
    if !snapshotter.can_rebase() {
        assert!(matches!(result, Err(Error::Unsupported { .. })), "{result:?}");
        return;
    }
    bench.ok("rebase", "top", result);
    assert_eq!(bench.stat("top").parent, Some(key("base")));
    let mounts = bench.view("view", "top");
    bench.mounted(&mounts, |root| {
        assert!(root.join("foo").exists() && root.join("new").exists(), "both layers are seen");
    });
    let result = bench.snapshotter().remove(&key("base"));
    assert!(matches!(result, Err(Error::HasChildren { .. })), "{result:?}");

    bench.prepare("other", "top");
    let snapshotter = bench.snapshotter();
    let result = snapshotter.rebase(&key("x"), &key("other"), &key("base"), labels());
    assert!(matches!(result, Err(Error::OtherParent { .. })), "{result:?}");
    let result = snapshotter.rebase(&key("x"), &key("other"), &key("top"), labels());
    bench.ok("rebase to the same parent", "x", result);
}

fn usage(bench: &mut Bench<'_>) {
    let of = |bench: &Bench<'_>, name: &str| {
        bench.ok("usage", name, bench.snapshotter().usage(&key(name)))
    };
    let mounts = bench.prepare("active", "");
    let empty = of(bench, "active");
    bench.mounted(&mounts, |root| {
        write(&root.join("a"), &"x".repeat(100_000));
        fs::hard_link(root.join("a"), root.join("b")).expect("link");
        directory(&root.join("d"), 0o755);
    });
    let full = of(bench, "active");
    assert_eq!(full.inodes, empty.inodes + 2, "{empty:?} {full:?}");
    assert!(full.bytes - empty.bytes >= 100_000, "{empty:?} {full:?}");
    bench.commit("committed", "active");
    let kept = of(bench, "committed");
    assert_eq!(kept.inodes, full.inodes, "{kept:?} {full:?}");
    // It may be kept in another form than it was written in.
    assert!((100_000..=full.bytes).contains(&kept.bytes), "{kept:?} {full:?}");
    bench.view("view", "committed");
    assert_eq!(of(bench, "view"), Usage::default());
}

/// As of a client that calls again after its deadline: one commit wins, and what the others do
/// harms nothing of it.
fn commit_races(bench: &mut Bench<'_>) {
    const ROUNDS: u32 = 4;
    const CALLS: usize = 4;
    for (case, of_one_name) in [("one name", true), ("a name each", false)] {
        for round in 0..ROUNDS {
            let active = format!("{case} {round}");
            let mounts = bench.prepare(&active, "");
            let want = bench.mounted(&mounts, |root| {
                (0..32).for_each(|file| {
                    write(&root.join(file.to_string()), &"x".repeat(100_000 + file));
                });
                tree(root)
            });
            let name = |call: usize| format!("{active} {}", if of_one_name { 0 } else { call });
            let snapshotter = bench.snapshotter();
            let commit = |call| snapshotter.commit(&key(&name(call)), &key(&active), labels());
            let results: Vec<_> = thread::scope(|scope| {
                let calls: Vec<_> =
                    (0..CALLS).map(|call| scope.spawn(move || commit(call))).collect();
                calls.into_iter().map(|call| call.join().expect("no panic")).collect()
            });
            let is_expected = |result: &Result<(), Error>| match result {
                Ok(()) | Err(Error::NotFound { .. } | Error::AlreadyExists { .. }) => true,
                // Another program's word for the same.
                Err(Error::External { refused }) => refused.reason == Reason::NotFound,
                Err(_) => false,
            };
            assert!(results.iter().all(is_expected), "{case}: {results:?}");
            let won: Vec<_> = (0..CALLS).filter(|call| results[*call].is_ok()).collect();
            let [won] = won[..] else { panic!("{case}: one wins: {results:?}") };
            let late = commit(won);
            assert!(late.is_err() && is_expected(&late), "{case}: {late:?}");
            let view = bench.view(&format!("{active} view"), &name(won));
            let got = bench.mounted(&view, tree);
            assert!(got == want, "{case}: the layer is whole: {:?}", got.keys());
        }
    }
}
