//! Images that the kernel checks when they are read.
//!
//! Most of it needs a kernel with fs-verity. Without one that is said, and the tests pass, unless
//! `GANTRY_REQUIRE_FSVERITY` is set, as it is on the emulated machine.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use snapshotter::{Erofs, Error, Images, Labels, OverlayOptions, Snapshotter, Transactions};

use crate::mounted::{Mounted, database, key};

/// An ext4 of its own, unmounted on drop with what is mounted in it.
struct Disk {
    scratch: tempfile::TempDir,
}

impl Disk {
    fn new(features: &str) -> Self {
        let scratch = tempfile::tempdir().expect("scratch");
        let file = fs::File::create(scratch.path().join("image")).expect("created");
        file.set_len(64 << 20).expect("sized");
        let mut command = Command::new("mkfs.ext4");
        command.args(["-q", "-b", "4096", "-O", features]).arg(scratch.path().join("image"));
        assert!(command.status().expect("mkfs.ext4").success());
        fs::create_dir(scratch.path().join("at")).expect("made");
        let disk = Self { scratch };
        disk.mount();
        disk
    }

    fn at(&self) -> PathBuf {
        self.scratch.path().join("at")
    }

    fn mount(&self) {
        let one = sys::mount::Mount {
            kind: "ext4".to_owned(),
            source: self.scratch.path().join("image").display().to_string(),
            target: String::new(),
            options: vec!["loop".to_owned()],
        };
        one.mount(&self.at()).unwrap_or_else(|error| panic!("{}", sys::error::Chain(&error)));
    }

    fn unmount(&self) {
        let points = sys::mount::holders::points_below(&self.at()).expect("lists");
        for point in points.iter().rev() {
            sys::mount::unmount_all(point).expect("unmounts");
        }
    }

    /// Makes each `from` on the disk a `to`.
    fn change(&self, from: &[u8], to: &[u8]) {
        self.unmount();
        let mut options = fs::File::options();
        let image = options.read(true).write(true).open(self.scratch.path().join("image"));
        let mut image = image.expect("opens");
        let mut bytes = Vec::new();
        image.read_to_end(&mut bytes).expect("reads");
        let places = (0..bytes.len() - from.len()).step_by(512);
        let places: Vec<_> = places.filter(|at| bytes[*at..].starts_with(from)).collect();
        assert!(!places.is_empty(), "it is not on the disk");
        for at in places {
            image.write_all_at(to, at as u64).expect("writes");
        }
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

fn open(root: &Path, database: &Arc<dyn Transactions>, has_verity: bool) -> Result<Erofs, Error> {
    let images = Images::new(OverlayOptions::default()).with_verity(has_verity);
    Erofs::open(&root.join("root"), Arc::clone(database), images)
}

/// Commits a layer of a file with this text at the start of each block.
fn layer(erofs: &Erofs, name: &str, text: &str) -> PathBuf {
    let mounts = erofs.prepare(&key("active"), None, Labels::new()).expect("prepares");
    let files = Path::new(&mounts[0].source);
    fs::write(files.join("file"), format!("{text:4096}").repeat(16)).expect("writes");
    erofs.commit(&key(name), &key("active"), Labels::new()).expect("commits");
    files.parent().expect("has one").join("layer.erofs")
}

fn read(erofs: &Erofs, layer: &str) -> std::io::Result<String> {
    let view = erofs.view(&key("view"), Some(&key(layer)), Labels::new()).expect("makes a view");
    let text = fs::read_to_string(Mounted::new(&view).path().join("file"));
    erofs.remove(&key("view")).expect("removes");
    text
}

/// The words of a refusal.
fn said<T: std::fmt::Debug>(refused: Result<T, Error>) -> String {
    sys::error::Chain(&refused.expect_err("was made without")).to_string()
}

#[test]
fn needs_erofs_verity_that_cannot_be() {
    let disk = Disk::new("^verity");
    fs::create_dir(disk.at().join("root")).expect("made");
    let database = database();
    let refused = open(&disk.at(), &database, true).err().expect("is refused");
    let said = sys::error::Chain(&refused).to_string();
    let wants = ["enable fs-verity in", "/at/root", "this kernel or filesystem does not do"];
    assert!(wants.iter().all(|want| said.contains(want)), "{said}");
    assert_eq!(fs::read_dir(disk.at().join("root")).expect("lists").count(), 1, "snapshots");
    open(&disk.at(), &database, false).expect("is not asked for");
}

#[test]
fn needs_fsverity_of_images() {
    let disk = Disk::new("verity");
    let database = database();
    let without = open(&disk.at(), &database, false).expect("opens");
    layer(&without, "unchecked", "unchecked");
    // The image stays mounted.
    let parent = key("unchecked");
    without.prepare(&key("before"), Some(&parent), Labels::new()).expect("prepares");
    drop(without);
    let mut erofs = match open(&disk.at(), &database, true) {
        Ok(erofs) => erofs,
        Err(error) => {
            let error = sys::error::Chain(&error);
            assert!(std::env::var_os("GANTRY_REQUIRE_FSVERITY").is_none(), "{error}");
            eprintln!("SKIPPED: {error}");
            return;
        }
    };
    let image = layer(&erofs, "checked", "checked");
    assert!(sys::verity::is_enabled(&image).expect("is there"));
    assert!(fs::File::options().write(true).open(&image).is_err(), "nobody can write to it");
    assert!(read(&erofs, "checked").expect("reads").starts_with("checked "));
    let unshown = erofs.take_unshown();
    let [(unshown, error)] = &unshown[..] else { panic!("{unshown:?}") };
    assert_eq!(*unshown, key("before"));
    let refused = [
        sys::error::Chain(error).to_string(),
        said(erofs.mounts(&key("before"))),
        said(erofs.view(&key("view"), Some(&parent), Labels::new())),
    ];
    for refused in refused {
        assert!(refused.contains("the image was made without"), "{refused}");
    }
    drop(erofs);

    disk.change(b"checked ", b"changed ");
    disk.change(b"unchecked ", b"unchanged ");
    let erofs = open(&disk.at(), &database, true).expect("opens");
    let damaged = read(&erofs, "checked");
    assert!(damaged.is_err(), "what the disk has changed is an error: {damaged:?}");
    drop(erofs);
    let without = open(&disk.at(), &database, false).expect("opens");
    assert!(read(&without, "unchecked").expect("nobody checks").starts_with("unchanged "));
}
