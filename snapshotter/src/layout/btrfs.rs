//! Snapshots as subvolumes of btrfs: a copy that takes no time, and shares what does not change.
//!
//! ```text
//!   <root>/snapshots/<n>/fs      a subvolume, cloned from the parent's
//! ```
//!
//! Nothing is stacked, so a mount is a bind mount of one directory however many layers there are.
//! The disk space that is told of is what the files of a snapshot take, shared or not: btrfs knows
//! what is exclusive only where quotas are on.
//!
//! Source: containerd, `plugins/snapshots/btrfs/btrfs.go`. It names subvolumes by their number to
//! whoever mounts; a bind mount shows the same and needs no device.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use crate::{
    Error, Key, Kind, Labels, Mount, Store,
    layout::{Layout, text},
    tree,
};

/// Snapshots as subvolumes.
pub type Btrfs = Store<Subvolumes>;

/// The layout of [`Btrfs`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Subvolumes;

impl Layout for Subvolumes {
    const NAME: &'static str = "btrfs";
    const REBASE: bool = false;

    fn check(&self, _key: &Key, _labels: &Labels) -> Result<(), Error> {
        Ok(())
    }

    fn fill(
        &self,
        directory: &Path,
        kind: Kind,
        parent: Option<&Path>,
        _labels: &Labels,
    ) -> Result<(), Error> {
        tree::set_mode(directory, 0o755).map_err(Error::file("change the mode of", directory))?;
        let content = self.content(directory);
        let opened = File::open(directory).map_err(Error::file("open", directory))?;
        let opened = std::os::fd::AsFd::as_fd(&opened);
        match (kind, parent) {
            (Kind::Active, Some(parent)) => {
                let source = self.content(parent);
                let from = File::open(&source).map_err(Error::file("open", &source))?;
                sys::btrfs::clone(from, opened, c"fs").map_err(Error::file("clone", source))
            }
            // A view shows the parent's own.
            (_, Some(_)) => Ok(()),
            (_, None) => {
                sys::btrfs::create(opened, c"fs")
                    .map_err(Error::file("create subvolume", &content))?;
                tree::set_mode(&content, 0o755).map_err(Error::file("change the mode of", content))
            }
        }
    }

    fn mounts(
        &self,
        kind: Kind,
        directory: &Path,
        parents: &[PathBuf],
        _labels: &Labels,
    ) -> Vec<Mount> {
        match (kind, parents.first()) {
            (Kind::Active, _) => vec![Mount::bind(text(&self.content(directory)), false)],
            (_, None) => vec![Mount::bind(text(&self.content(directory)), true)],
            (_, Some(parent)) => vec![Mount::bind(text(&self.content(parent)), true)],
        }
    }

    fn content(&self, directory: &Path) -> PathBuf {
        directory.join("fs")
    }
}
