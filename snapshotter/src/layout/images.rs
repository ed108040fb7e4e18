//! Snapshots as the layers of overlayfs, each of them one file.
//!
//! ```text
//!   <root>/snapshots/<n>/fs             upper directory while active; where the image is mounted
//!   <root>/snapshots/<n>/work           for overlayfs, of active snapshots only
//!   <root>/snapshots/<n>/layer.erofs    what was committed
//!   <root>/snapshots/<n>/fs.old         what it was made from, until that is deleted
//! ```
//!
//! A commit makes the upper directory an image of EROFS ([`erofs`]), and deletes what
//! was in it. So a layer is synced, deleted and measured as one file, and nothing can be written to
//! it: there is no directory in which anybody could. The files of a layer take no inodes of the
//! filesystem below.
//!
//! # Who mounts images
//!
//! Everywhere else mounting is the caller's work, for then there is nothing to leak. But an overlay
//! names directories, and clients of all kinds, with shims of all kinds, make overlays of what they
//! are given. So the image of a layer is mounted, once for all that is on top of it, on the
//! directory that was its upper one, when something is made on top of it or asks for its mounts.
//! Then everything is as with [`Overlay`](crate::Overlay): the same mounts, for the same callers. It
//! stays mounted until a container's snapshot is removed and none is left on top of it, or the
//! snapshotter is closed. An overlay has a copy of the mount of its own, which is not in the tree of
//! mounts, so containers do not notice.
//!
//! When the snapshotter is opened again, images are mounted for all that is on top of them:
//! somebody may have been given its mounts before, and not used them yet. Who uses them while the
//! snapshotter is closed sees empty layers.
//!
//! Whoever uses the mounts must be in the mount namespace of this program, or one that its mounts are
//! propagated to: shims are; a client elsewhere sees empty layers.
//!
//! After a crash images may be mounted still. They are found by what is on the directory, and used;
//! those that nothing is on top of any more are unmounted when the snapshot is removed.
//!
//! # Emptying the directory
//!
//! What an image was made from is put aside as a whole, and deleted when an empty directory is in its
//! place: to delete a tree takes long, and nothing can be shown meanwhile. A crash in between leaves no
//! directory, or the old one beside it. The first is made, and the second deleted, when the layer is
//! shown.
//!
//! # Images are not checked
//!
//! They are made by this program from files, and mounted from where only its owner may write. None
//! that was made elsewhere is mounted.
//!
//! fs-verity would say so when the disk returns other bytes than were written. Not done yet.
//!
//! Source: containerd, `plugins/snapshots/erofs`. Its mounts name the images, and a part of the
//! daemon that knows templates mounts them; older shims cannot use those.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::fs::statfs;
use sys::mount::MountError;

use crate::{
    Error, Key, Kind, Labels, Mount, OverlayOptions, Store, erofs,
    layout::{Layout, text},
};

/// Snapshots as the layers of overlayfs, in images.
pub type Erofs = Store<Images>;

/// The file with the image of a committed snapshot, and its name until it is whole.
const IMAGE: &str = "layer.erofs";
const UNFINISHED: &str = "layer.erofs.new";

/// Where the files are that an image was made from, until they are deleted.
const OLD: &str = "fs.old";

/// What statfs(2) says of an image that is mounted.
const EROFS_MAGIC: i64 = 0xE0F5_E1E2;

type Shown = BTreeMap<PathBuf, BTreeSet<u64>>;

/// The layout of [`Erofs`].
#[derive(Debug)]
pub struct Images {
    overlay: OverlayOptions,
    /// The directories of snapshots whose images were mounted, and the numbers of those for which
    /// they were. The lock is held while one is.
    shown: Mutex<Shown>,
}

impl Images {
    /// Overlays with these options.
    pub fn new(overlay: OverlayOptions) -> Self {
        Self { overlay, shown: Mutex::default() }
    }

    /// Whether the kernel has this filesystem.
    pub fn is_supported() -> bool {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        known.lines().any(|line| line.split_whitespace().last() == Some("erofs"))
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        // Every change is one operation, so a panic elsewhere left nothing half-done.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts aside what is in the directory that an image was made from. [`free`] deletes it.
    fn empty(&self, directory: &Path) -> Result<(), Error> {
        let (content, old) = (self.content(directory), directory.join(OLD));
        match fs::read_dir(&content).map(|mut entries| entries.next().is_none()) {
            // A crash came between the two steps below.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("list", &content)(error)),
            Ok(true) => return Ok(()),
            Ok(false) => {
                // Of an earlier attempt, which a crash has ended.
                sys::tree::remove(&old).map_err(Error::file("delete", &old))?;
                fs::rename(&content, old).map_err(Error::file("rename", &content))?;
            }
        }
        fs::create_dir(&content).map_err(Error::file("create directory", content))
    }

    /// Mounts the image of a committed snapshot for `user`, if it is not, and tells whether it did.
    fn mount(&self, directory: &Path, user: u64) -> Result<bool, Error> {
        let mut shown = self.shown();
        let content = self.content(directory);
        if let Some(users) = shown.get_mut(directory) {
            users.insert(user);
            return Ok(false);
        }
        if !is_mounted(&content) {
            self.empty(directory)?;
            let image = sys::mount::Mount {
                kind: "erofs".to_owned(),
                source: text(&directory.join(IMAGE)),
                target: String::new(),
                options: vec!["ro".to_owned(), "loop".to_owned()],
            };
            image.mount(&content).map_err(failed("mount the image on", content))?;
        }
        shown.insert(directory.to_owned(), BTreeSet::from([user]));
        Ok(true)
    }
}

/// Deletes what only an active snapshot needs, and what an image was made from. What cannot be deleted
/// now goes with the snapshot.
fn free(directory: &Path) {
    for name in [OLD, "work"] {
        let _ = sys::tree::remove(&directory.join(name));
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        let shown = std::mem::take(&mut *self.shown());
        for directory in shown.into_keys() {
            // What stays mounted is found again.
            let _ = sys::mount::unmount_all(&self.content(&directory));
        }
    }
}

impl Layout for Images {
    const NAME: &'static str = "erofs";
    const REBASE: bool = OverlayOptions::REBASE;
    const SHOWS: bool = true;

    fn check(&self, key: &Key, labels: &Labels) -> Result<(), Error> {
        self.overlay.check(key, labels)
    }

    fn fill(
        &self,
        directory: &Path,
        kind: Kind,
        parent: Option<&Path>,
        labels: &Labels,
    ) -> Result<(), Error> {
        self.overlay.fill(directory, kind, parent, labels)
    }

    fn adopt(&self, directory: &Path, parent: &Path) -> Result<(), Error> {
        self.overlay.adopt(directory, parent)
    }

    fn mounts(
        &self,
        kind: Kind,
        directory: &Path,
        parents: &[PathBuf],
        labels: &Labels,
    ) -> Vec<Mount> {
        self.overlay.mounts(kind, directory, parents, labels)
    }

    fn is_volatile(&self, kind: Kind, parents: &[PathBuf]) -> bool {
        self.overlay.is_volatile(kind, parents)
    }

    fn readmit(&self, directory: &Path) -> Result<(), Error> {
        self.overlay.readmit(directory)
    }

    fn is_marked(&self, directory: &Path) -> bool {
        self.overlay.is_marked(directory)
    }

    fn seal(&self, directory: &Path) -> Result<Option<u64>, Error> {
        let (image, unfinished) = (directory.join(IMAGE), directory.join(UNFINISHED));
        // From an earlier attempt, that is.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("delete", unfinished)(error));
            }
            _ => {}
        }
        erofs::build(&self.content(directory), &unfinished)
            .map_err(Error::file("make image", &image))?;
        fs::rename(&unfinished, &image).map_err(Error::file("rename", &unfinished))?;
        let found = fs::metadata(&image).map_err(Error::file("stat", image))?;
        Ok(Some(found.blocks() * 512))
    }

    fn settle(&self, directory: &Path) {
        {
            let shown = self.shown();
            // What is shown was emptied before.
            if !shown.contains_key(directory) && !is_mounted(&self.content(directory)) {
                // If it fails, it is tried again when the snapshot is shown.
                let _ = self.empty(directory);
            }
        }
        free(directory);
    }

    fn show(&self, directory: &Path, user: u64) -> Result<(), Error> {
        if self.mount(directory, user)? {
            free(directory);
        }
        Ok(())
    }

    fn release(&self, user: u64) {
        for users in self.shown().values_mut() {
            users.remove(&user);
        }
    }

    fn hide_unused(&self) {
        self.shown().retain(|directory, users| {
            !users.is_empty() || sys::mount::unmount_all(&self.content(directory)).is_err()
        });
    }

    fn hide(&self, directory: &Path) -> Result<(), Error> {
        let mut shown = self.shown();
        let content = self.content(directory);
        if is_mounted(&content) {
            sys::mount::unmount_all(&content).map_err(failed("unmount the image on", content))?;
        }
        shown.remove(directory);
        Ok(())
    }

    fn content(&self, directory: &Path) -> PathBuf {
        self.overlay.content(directory)
    }

    fn add_labels(&self, directory: &Path, labels: &mut Labels) {
        self.overlay.add_labels(directory, labels);
    }

    fn defers_removal(&self) -> bool {
        self.overlay.defers_removal()
    }
}

fn failed(operation: &'static str, path: PathBuf) -> impl FnOnce(MountError) -> Error {
    move |error| {
        let source = std::io::Error::other(sys::error::Chain(&error).to_string());
        Error::File { operation, path, source }
    }
}

/// Whether an image is mounted on a directory.
fn is_mounted(content: &Path) -> bool {
    statfs(content).is_ok_and(|found| found.f_type == EROFS_MAGIC)
}
