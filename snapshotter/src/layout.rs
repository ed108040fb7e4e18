//! How a snapshot's directory is laid out, which is all that implementations differ in.

pub(crate) mod btrfs;
pub(crate) mod images;
pub(crate) mod native;
pub(crate) mod overlay;

use std::path::{Path, PathBuf};

use crate::{Error, Key, Kind, Labels, Mount};

/// What a kind of snapshotter does with the directories of [`Store`](crate::Store).
pub trait Layout: Send + Sync + 'static {
    /// The name in records and in containerd's API.
    const NAME: &'static str;

    /// Whether what a directory holds does not depend on the parent.
    const REBASE: bool;

    /// Whether [`show`](Self::show) does anything.
    const SHOWS: bool = false;

    /// Refuses to keep snapshots below `root`, if what is asked for cannot be done there.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    fn check_place(&self, _root: &Path) -> Result<(), Error> {
        Ok(())
    }

    /// Refuses labels that ask for what is not done.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], [`Error::Label`].
    fn check(&self, key: &Key, labels: &Labels) -> Result<(), Error>;

    /// Fills the new, empty directory of a snapshot on top of that in `parent`. Its labels were
    /// [checked](Self::check).
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    fn fill(
        &self,
        directory: &Path,
        kind: Kind,
        parent: Option<&Path>,
        labels: &Labels,
    ) -> Result<(), Error>;

    /// Makes the root of the snapshot in `directory`, which was filled without a parent, like that
    /// of the snapshot in `parent`, on top of which it comes to be.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    fn adopt(&self, _directory: &Path, _parent: &Path) -> Result<(), Error> {
        Ok(())
    }

    /// The mounts for the snapshot in `directory`, on top of those in `parents`, nearest first.
    fn mounts(
        &self,
        kind: Kind,
        directory: &Path,
        parents: &[PathBuf],
        labels: &Labels,
    ) -> Vec<Mount>;

    /// Whether what is written through such mounts is lost when the machine stops without warning.
    fn is_volatile(&self, _kind: Kind, _parents: &[PathBuf]) -> bool {
        false
    }

    /// Takes away what keeps the kernel from mounting the snapshot in `directory` once more. The
    /// caller knows that nothing was lost.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    fn readmit(&self, _directory: &Path) -> Result<(), Error> {
        Ok(())
    }

    /// Whether there is what [`readmit`](Self::readmit) takes away.
    fn is_marked(&self, _directory: &Path) -> bool {
        false
    }

    /// Gives what was written to an active snapshot the form in which it is kept, shortly before
    /// that is committed, and tells how many bytes that takes, if not what the files took. Done once
    /// more if the commit fails.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    fn seal(&self, _directory: &Path) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    /// Frees what [`seal`](Self::seal) has left over, once the snapshot is committed. What cannot be
    /// freed now, or is mounted still, is freed when the snapshot is shown or removed, or unused ones
    /// are hidden.
    fn settle(&self, _directory: &Path) {}

    /// Makes the files of a committed snapshot be where [`content`](Self::content) says, for the
    /// snapshot with the number `user`.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    fn show(&self, _directory: &Path, _user: u64) -> Result<(), Error> {
        Ok(())
    }

    /// Notes that the snapshot with the number `user` needs nothing any more that was shown to it.
    fn release(&self, _user: u64) {}

    /// Hides what is shown to no snapshot any more. What cannot be hidden stays.
    fn hide_unused(&self) {}

    /// Hides what is shown to nobody in the directories below `snapshots`, and frees what is left over in
    /// them, since an earlier program ended.
    fn hide_forgotten(&self, _snapshots: &Path) {}

    /// Takes back what [`show`](Self::show) did, before the directory goes. Whoever has mounted the
    /// snapshot keeps it.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    fn hide(&self, _directory: &Path) -> Result<(), Error> {
        Ok(())
    }

    /// Where in a snapshot's directory its own files are.
    fn content(&self, directory: &Path) -> PathBuf;

    /// Adds labels that are made up from where the snapshot is.
    fn add_labels(&self, _directory: &Path, _labels: &mut Labels) {}

    /// Whether the data of removed snapshots stays until `cleanup`.
    fn defers_removal(&self) -> bool {
        false
    }
}

/// `path` as text; [`Store::open`](crate::Store::open) made sure that it is.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
