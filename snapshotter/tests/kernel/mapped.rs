//! Snapshots that show their layers as of other owners.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
};

use snapshotter::{Error, Key, Labels, Overlay, OverlayOptions, Remap, Snapshotter};

use crate::mounted::{Mounted, database, key};

const USERS: &str = "containerd.io/snapshot/uidmapping";
const GROUPS: &str = "containerd.io/snapshot/gidmapping";

fn mapping() -> Labels {
    let map = |(label, map): (&str, &str)| (label.to_owned(), map.to_owned());
    Labels::from([(USERS, "0:100000:65536"), (GROUPS, "0:200000:65536")].map(map))
}

fn open(root: &Path, remap_ids: bool) -> Overlay {
    let remap = Remap::known(remap_ids);
    let options = OverlayOptions { remap, ..OverlayOptions::default() };
    Overlay::open(root, database(), options).expect("opens")
}

/// Commits a layer with a file of this name and owner, and returns where it is.
fn layer(overlay: &Overlay, name: &str, parent: Option<&Key>, owner: u32) -> String {
    let mounts = overlay.prepare(&key("active"), parent, Labels::new()).expect("prepares");
    let at = Mounted::new(&mounts);
    let file = at.path().join(name);
    fs::write(&file, "").expect("writes");
    chown(&file, Some(owner), Some(owner)).expect("owned");
    drop(at);
    overlay.commit(&key(name), &key("active"), Labels::new()).expect("commits");
    let upper = mounts[0].option("upperdir").unwrap_or(&mounts[0].source);
    format!("{upper}/{name}")
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let found = fs::symlink_metadata(path).expect("is there");
    (found.uid(), found.gid())
}

#[test]
fn owners_are_shifted_and_layers_are_not_touched() {
    let scratch = tempfile::tempdir().expect("scratch");
    assert!(sys::mount::can_map_ids(scratch.path()), "this kernel cannot map mounts");
    let remap = Remap::on(&scratch.path().join("not/there"));
    assert!(remap.is_possible() && remap.clone().is_possible(), "on what is there above it");
    assert!(!Remap::on(Path::new("/proc/self")).is_possible(), "not on every filesystem");
    let overlay = open(scratch.path(), true);
    let one = key("one");
    let layers = [layer(&overlay, "one", None, 0), layer(&overlay, "two", Some(&one), 7)];
    let cases = [("on one layer", "one", false), ("on two", "two", true)];
    for (case, top, has_two) in cases {
        let (container, view) = (key(&format!("{case} rw")), key(&format!("{case} ro")));
        let rw = overlay.prepare(&container, Some(&key(top)), mapping()).expect("prepares");
        let ro = overlay.view(&view, Some(&key(top)), mapping()).expect("makes a view");
        assert_eq!(overlay.mounts(&container).expect("asks again"), rw, "{case}");
        for (access, mounts) in [("rw", rw), ("ro", ro)] {
            assert!(mounts[0].option("uidmap").is_some(), "{case}: {mounts:?}");
            let at = Mounted::new(&mounts);
            assert_eq!(owner(at.path()), (100_000, 200_000), "{case}, {access}: the root");
            assert_eq!(owner(at.path().join("one")), (100_000, 200_000), "{case}, {access}");
            if has_two {
                assert_eq!(owner(at.path().join("two")), (100_007, 200_007), "{case}, {access}");
            }
            let changed = fs::write(at.path().join("one"), "changed");
            assert_eq!(changed.is_ok(), access == "rw", "{case}, {access}: {changed:?}");
            assert_eq!(owner(at.path().join("one")), (100_000, 200_000), "{case}: copied up");
        }
        assert_eq!(layers.each_ref().map(owner), [(0, 0), (7, 7)], "{case}: as they were");
    }
    let alone = overlay.prepare(&key("alone"), None, mapping()).expect("prepares");
    assert_eq!(owner(Path::new(&alone[0].source)), (100_000, 200_000), "without a layer");
}

#[test]
fn refusals() {
    let scratch = tempfile::tempdir().expect("scratch");
    let cases = [
        ("the kernel cannot", false, mapping(), "is not supported"),
        ("users alone", true, Labels::from([(USERS.to_owned(), "0:1:1".to_owned())]), GROUPS),
    ];
    for (case, remap_ids, labels, want) in cases {
        let overlay = open(&scratch.path().join(case), remap_ids);
        let refused = overlay.prepare(&key("container"), None, labels).expect_err(case).to_string();
        assert!(refused.contains(want), "{case}: {refused}");
        let made = overlay.stat(&key("container"));
        assert!(matches!(made, Err(Error::NotFound { .. })), "{case}: {made:?}");
    }
}
