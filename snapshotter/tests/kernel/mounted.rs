//! Mounts of snapshots, and what the kernel says of them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use snapshotter::{Key, Mount, Transactions};
use sys::mount::{MountError, mount_all, unmount_all};

/// A database that is gone when nobody has it.
pub(crate) fn database() -> Arc<dyn Transactions> {
    let database = redb::Database::builder();
    let database = database.create_with_backend(redb::backends::InMemoryBackend::new());
    Arc::new(database.expect("in memory"))
}

/// A key of the tests' namespace.
pub(crate) fn key(name: &str) -> Key {
    Key::new("test", name).expect("short")
}

/// A mounted directory, unmounted on drop.
pub(crate) struct Mounted(tempfile::TempDir);

impl Mounted {
    /// Mounts, as the daemon and the shim do.
    pub(crate) fn new(mounts: &[Mount]) -> Self {
        Self::try_new(mounts).unwrap_or_else(|error| panic!("{}", sys::error::Chain(&error)))
    }

    /// Mounts, or tells why the kernel does not.
    pub(crate) fn try_new(mounts: &[Mount]) -> Result<Self, MountError> {
        let place = tempfile::tempdir().expect("scratch");
        let mounts: Vec<_> = mounts
            .iter()
            .map(|mount| sys::mount::Mount {
                kind: mount.kind.clone(),
                source: mount.source.clone(),
                target: mount.target.clone(),
                options: mount.options.clone(),
            })
            .collect();
        mount_all(&mounts, place.path())?;
        Ok(Self(place))
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The options of the filesystem, as the kernel shows them.
    pub(crate) fn options(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("proc");
        let place: PathBuf = self.path().canonicalize().expect("is there");
        let line = table
            .lines()
            .find(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == place));
        let line = line.unwrap_or_else(|| panic!("{} is not in {table}", place.display()));
        let options = line.rsplit(' ').next().unwrap_or_default();
        options.split(',').map(str::to_owned).collect()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount_all(self.path());
    }
}
