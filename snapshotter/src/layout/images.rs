//! Snapshots as the layers of overlayfs, each of them one file.
//!
//! ```text
//!   <root>/snapshots/<n>/fs             upper directory while active; where the image is mounted
//!   <root>/snapshots/<n>/work           for overlayfs, of active snapshots only
//!   <root>/snapshots/<n>/layer.erofs    what was committed
//!   <root>/snapshots/<n>/fs.old         what it was made from, until nobody has it mounted and it is deleted
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
//! stays mounted until a container's snapshot is removed and none is left on top of it. An overlay has a
//! copy of the mount of its own, which is not in the tree of mounts, so containers do not notice.
//!
//! Somebody may have been given the mounts of a snapshot, and not used them yet. So images that something
//! is on top of stay mounted when the snapshotter is closed, and are mounted for all that is on top of
//! them when it is opened, as after a start of the machine. Others that are found mounted then, as after a
//! crash, are unmounted.
//!
//! Whoever uses the mounts must be in the mount namespace of this program, or one that its mounts are
//! propagated to: shims are; a client elsewhere sees empty layers.
//!
//! # Emptying the directory
//!
//! What an image was made from is put aside as a whole, and deleted when an empty directory is in its
//! place: to delete a tree takes long, and nothing can be shown meanwhile. A crash in between leaves no
//! directory, or the old one beside it. The first is made, and the second deleted, when the layer is
//! shown.
//!
//! Clients unmount a snapshot before they commit it, but need not. One that is mounted still goes on as
//! with overlayfs: who writes to it reads that again. So while it is mounted, its upper and its work
//! directory stay ([`holders`]), and are deleted at the removal of another snapshot, or a cleanup, after
//! that. What is written after the commit is not in the layer, which nothing can change. A bind mount that
//! only another mount namespace has is not noticed.
//!
//! # Images are not checked
//!
//! They are made by this program from files, and mounted from where only its owner may write. None
//! that was made elsewhere is mounted.
//!
//! With fs-verity ([`Images::with_verity`]) the kernel says so when the disk returns other bytes than were
//! written, instead of handing them on. An image without it is then not used, and unmounted if it was mounted:
//! it was made before that was asked for, or put there by somebody else. Containers that run keep what they have. The hash of an image is not kept elsewhere.
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
use sys::{
    mount::{MountError, holders},
    verity,
};

use crate::{
    Error, Key, Kind, Labels, Mount, OverlayOptions, Store, erofs,
    layout::{Layout, text},
};

/// Snapshots as the layers of overlayfs, in images.
pub type Erofs = Store<Images>;

/// The file with the image of a committed snapshot, and its name until it is whole.
const IMAGE: &str = "layer.erofs";
const UNFINISHED: &str = "layer.erofs.new";

/// The operation, in errors.
const ENABLE: &str = "enable fs-verity in";

/// What overlayfs works in, of an active snapshot.
const WORK: &str = "work";

/// Where the files are that an image was made from, until they are deleted.
const OLD: &str = "fs.old";

/// What statfs(2) says of an image that is mounted.
const EROFS_MAGIC: i64 = 0xE0F5_E1E2;

/// An image that is mounted.
#[derive(Debug)]
struct Shown {
    /// The numbers of the snapshots for which it is.
    users: BTreeSet<u64>,
    /// Whether it was not mounted before.
    is_new: bool,
}

/// The layout of [`Erofs`].
#[derive(Debug)]
pub struct Images {
    overlay: OverlayOptions,
    /// Whether the kernel is to check images when they are read.
    has_verity: bool,
    /// Whether images stay mounted after the end of this.
    outlives: bool,
    /// By the directories of snapshots. The lock is held while an image is mounted.
    shown: Mutex<BTreeMap<PathBuf, Shown>>,
    /// Directories of snapshots that were committed while they were mounted.
    held: Mutex<BTreeSet<PathBuf>>,
}

impl Images {
    /// Overlays with these options.
    pub fn new(overlay: OverlayOptions) -> Self {
        Self {
            overlay,
            has_verity: false,
            outlives: true,
            shown: Mutex::default(),
            held: Mutex::default(),
        }
    }

    /// The same, and with `has_verity` images whose bytes the kernel checks, and no others.
    #[must_use]
    pub fn with_verity(mut self, has_verity: bool) -> Self {
        self.has_verity = has_verity;
        self
    }

    /// For a look at snapshots that nobody is to use: whatever is mounted for it is unmounted at its end.
    #[must_use]
    pub fn for_a_look(mut self) -> Self {
        self.outlives = false;
        self
    }

    /// Whether the kernel has this filesystem.
    pub fn is_supported() -> bool {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        known.lines().any(|line| line.split_whitespace().last() == Some("erofs"))
    }

    fn shown(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Shown>> {
        // Every change is one operation, so a panic elsewhere left nothing half-done.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes what only an active snapshot needs, and what an image was made from, unless somebody has
    /// that mounted. What cannot be deleted now goes with the snapshot.
    fn free(&self, directory: &Path) {
        let (old, work) = (directory.join(OLD), directory.join(WORK));
        if is_held(&old, &work, &self.content(directory)) {
            self.held().insert(directory.to_owned());
            return;
        }
        self.held().remove(directory);
        for path in [old, work] {
            let _ = sys::tree::remove(&path);
        }
    }

    /// Puts aside what is in the directory that an image was made from. [`free`](Self::free) deletes it.
    fn empty(&self, directory: &Path) -> Result<(), Error> {
        let (content, old) = (self.content(directory), directory.join(OLD));
        match fs::read_dir(&content).map(|mut entries| entries.next().is_none()) {
            // A crash came between the two steps below.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("list", &content)(error)),
            // Else a snapshot without a file, which may be mounted.
            Ok(true) if old.exists() || !directory.join(WORK).exists() => return Ok(()),
            Ok(_) => {
                // Of an earlier attempt, which a crash has ended.
                sys::tree::remove(&old).map_err(Error::file("delete", &old))?;
                fs::rename(&content, old).map_err(Error::file("rename", &content))?;
            }
        }
        fs::create_dir(&content).map_err(Error::file("create directory", content))
    }

    /// Refuses an image that the kernel does not check, if it is to.
    fn need_verity(&self, image: PathBuf) -> Result<(), Error> {
        if !self.has_verity || verity::is_enabled(&image).map_err(Error::file("stat", &image))? {
            return Ok(());
        }
        let text = "fs-verity is asked for, and the image was made without: unpack it again";
        let source = std::io::Error::other(text);
        Err(Error::File { operation: "mount", path: image, source })
    }

    /// Mounts the image of a committed snapshot for `user`, if it is not, and tells whether it did.
    fn mount(&self, directory: &Path, user: u64) -> Result<bool, Error> {
        let mut shown = self.shown();
        let content = self.content(directory);
        if let Some(found) = shown.get_mut(directory) {
            found.users.insert(user);
            return Ok(false);
        }
        // Also of one that is mounted, which was perhaps before this was asked for.
        self.need_verity(directory.join(IMAGE))?;
        let is_new = !is_mounted(&content);
        if is_new {
            self.empty(directory)?;
            let image = sys::mount::Mount {
                kind: "erofs".to_owned(),
                source: text(&directory.join(IMAGE)),
                target: String::new(),
                options: vec!["ro".to_owned(), "loop".to_owned()],
            };
            image.mount(&content).map_err(failed("mount the image on", content))?;
        }
        let users = BTreeSet::from([user]);
        shown.insert(directory.to_owned(), Shown { users, is_new });
        Ok(true)
    }
}

/// Whether somebody has mounted the upper directory that is now `old`, with `work`. `empty` is a directory.
fn is_held(old: &Path, work: &Path, empty: &Path) -> bool {
    if !old.exists() {
        return false;
    }
    // What cannot be looked at is deleted as if nobody did.
    if holders::is_bound(old).unwrap_or(false) {
        return true;
    }
    // Something is in it since the first overlay.
    let was_overlay = fs::read_dir(work).is_ok_and(|mut entries| entries.next().is_some());
    was_overlay && holders::is_upper(old, work, empty)
}

impl Drop for Images {
    fn drop(&mut self) {
        let shown = std::mem::take(&mut *self.shown());
        let goes = |one: &Shown| one.users.is_empty() || (one.is_new && !self.outlives);
        for (directory, _) in shown.into_iter().filter(|(_, one)| goes(one)) {
            // What stays mounted is found again.
            let _ = sys::mount::unmount_all(&self.content(&directory));
        }
    }
}

impl Layout for Images {
    const NAME: &'static str = "erofs";
    const REBASE: bool = OverlayOptions::REBASE;
    const SHOWS: bool = true;

    fn check_place(&self, root: &Path) -> Result<(), Error> {
        if !self.has_verity {
            return Ok(());
        }
        // A file for which it cannot be taken back.
        let path = root.join("verity");
        // That of an attempt that was cut short cannot be written to.
        remove(&path)?;
        let made = fs::write(&path, "verity").and_then(|()| verity::enable(&path));
        let removed = fs::remove_file(&path);
        made.map_err(|error| {
            let source = std::io::Error::new(
                error.kind(),
                format!(
                    "fs-verity is asked for, which this kernel or filesystem does not do (an ext4 needs \
                     `tune2fs -O verity`): {error}"
                ),
            );
            Error::File { operation: ENABLE, path: root.to_owned(), source }
        })?;
        removed.map_err(Error::file("delete", path))
    }

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
        remove(&unfinished)?;
        erofs::build(&self.content(directory), &unfinished)
            .map_err(Error::file("make image", &image))?;
        if self.has_verity {
            verity::enable(&unfinished).map_err(Error::file(ENABLE, &unfinished))?;
        }
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
        self.free(directory);
    }

    fn show(&self, directory: &Path, user: u64) -> Result<(), Error> {
        if self.mount(directory, user)? {
            self.free(directory);
        }
        Ok(())
    }

    fn release(&self, user: u64) {
        for one in self.shown().values_mut() {
            one.users.remove(&user);
        }
    }

    fn hide_unused(&self) {
        self.shown().retain(|directory, one| {
            !one.users.is_empty() || sys::mount::unmount_all(&self.content(directory)).is_err()
        });
        let held = self.held().clone();
        for directory in held {
            self.free(&directory);
        }
    }

    fn hide_forgotten(&self, snapshots: &Path) {
        let entries = fs::read_dir(snapshots).into_iter().flatten().flatten();
        for directory in entries.map(|entry| entry.path()) {
            if directory.join(OLD).exists() {
                self.free(&directory);
            }
        }
        let shown = self.shown();
        for point in holders::points_below(snapshots).unwrap_or_default() {
            // The table has another name for it where there are symbolic links.
            let number = point.parent().and_then(Path::file_name);
            let Some(directory) = number.map(|number| snapshots.join(number)) else { continue };
            let content = self.content(&directory);
            if !shown.contains_key(&directory) && is_mounted(&content) {
                let _ = sys::mount::unmount_all(&content);
            }
        }
    }

    fn hide(&self, directory: &Path) -> Result<(), Error> {
        let mut shown = self.shown();
        let content = self.content(directory);
        if is_mounted(&content) {
            sys::mount::unmount_all(&content).map_err(failed("unmount the image on", content))?;
        }
        shown.remove(directory);
        self.held().remove(directory);
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

/// Deletes a file, if it is there.
fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file("delete", path)(error))
        }
        _ => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever mounted it: it may be from before that was asked for.
    #[test]
    fn needs_erofs_unchecked_images_that_are_mounted() {
        let scratch = tempfile::tempdir().expect("scratch");
        let directory = scratch.path();
        fs::create_dir(directory.join("fs")).expect("made");
        let without = Images::new(OverlayOptions::default());
        without.seal(directory).expect("makes an image");
        without.show(directory, 1).expect("mounts");
        let with = Images::new(OverlayOptions::default()).with_verity(true);
        let refused = with.show(directory, 2);
        let again = without.show(directory, 3);
        without.hide(directory).expect("unmounts");
        let refused = sys::error::Chain(&refused.expect_err("is unchecked")).to_string();
        assert!(refused.contains("the image was made without"), "{refused}");
        assert!(again.is_ok(), "{again:?}");
    }
}
