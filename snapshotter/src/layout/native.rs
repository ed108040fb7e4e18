//! Snapshots as whole copies, which every filesystem can hold.
//!
//! ```text
//!   <root>/snapshots/<n>    the root directory of the snapshot
//! ```
//!
//! The reference against which others are compared, and the fallback where overlayfs is missing.
//! A view of a committed snapshot copies nothing.
//!
//! Source: containerd, `plugins/snapshots/native/native.go`.

use std::path::{Path, PathBuf};

use crate::{
    Error, Key, Kind, Labels, Mount, Store,
    layout::{Layout, text},
    tree,
};

/// Snapshots as whole copies.
pub type Native = Store<Copies>;

/// The layout of [`Native`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Copies;

impl Layout for Copies {
    const NAME: &'static str = "native";
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
        match (kind, parent) {
            (Kind::Active, Some(parent)) => {
                tree::copy(parent, directory).map_err(Error::file("copy", parent))
            }
            _ => tree::set_mode(directory, 0o755)
                .map_err(Error::file("change the mode of", directory)),
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
            (Kind::Active, _) => vec![Mount::bind(text(directory), false)],
            (_, None) => vec![Mount::bind(text(directory), true)],
            (_, Some(parent)) => vec![Mount::bind(text(parent), true)],
        }
    }

    fn content(&self, directory: &Path) -> PathBuf {
        directory.to_owned()
    }
}
