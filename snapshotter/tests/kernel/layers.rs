//! Overlays of more layers than one page of mount options has room for.

use std::{fs, path::Path};

use snapshotter::{Labels, Overlay, OverlayOptions, Snapshotter};

use crate::mounted::{Mounted, database, key};

/// What a page of options has room for, in bytes.
const PAGE_LEN: usize = 4096;

/// Stacks `count` layers, each with a file of its own, and mounts a snapshot on top of them.
fn stack(root: &Path, count: usize) {
    fs::create_dir_all(root).expect("scratch");
    let overlay = Overlay::open(root, database(), OverlayOptions::default()).expect("opens");
    let mut parent = None;
    for number in 0..count {
        let (active, name) = (key("active"), key(&format!("layer {number}")));
        let mounts = overlay.prepare(&active, parent.as_ref(), Labels::new()).expect("prepares");
        let upper = match parent {
            None => mounts[0].source.clone(),
            Some(_) => mounts[0].option("upperdir").expect("is an overlay").to_owned(),
        };
        fs::write(Path::new(&upper).join(format!("file {number}")), "").expect("writes");
        fs::write(Path::new(&upper).join("top"), number.to_string()).expect("writes");
        overlay.commit(&name, &active, Labels::new()).expect("commits");
        parent = Some(name);
    }
    let writable = overlay.prepare(&key("rw"), parent.as_ref(), Labels::new()).expect("prepares");
    let view = overlay.view(&key("ro"), parent.as_ref(), Labels::new()).expect("makes a view");
    let lower = writable[0].option("lowerdir").expect("classic options, for whoever mounts them");
    assert_eq!(lower.split(':').count(), count);
    assert!(lower.len() > PAGE_LEN, "too few layers for this test");
    for (access, mounts) in [("rw", writable), ("ro", view)] {
        let at = Mounted::new(&mounts);
        let files = fs::read_dir(at.path()).expect("lists").count();
        assert_eq!(files, count + 1, "{access}");
        let top = fs::read_to_string(at.path().join("top")).expect("reads");
        assert_eq!(top, (count - 1).to_string(), "{access}");
        assert_eq!(fs::write(at.path().join("new"), "").is_ok(), access == "rw");
    }
}

#[test]
fn four_hundred() {
    let scratch = tempfile::tempdir().expect("scratch");
    stack(scratch.path(), 400);
}

/// A path of more than 255 bytes cannot be told to the kernel option by option, which is how an
/// older kernel takes none: then all options have to fit, with shorter paths.
#[test]
fn below_a_long_path() {
    let scratch = tempfile::tempdir().expect("scratch");
    let long = scratch.path().join("d".repeat(120)).join("e".repeat(120)).join("f".repeat(60));
    stack(&long, 150);
}
