//! What is kept of a container between two commands: `<root>/<id>/state.json`.
//!
//! The file has the names of runc's, so that tools that look into runc's find what they look for:
//! ids, pids, paths of cgroups and namespaces. It holds what cannot be found out otherwise; the
//! status is not in it (see [`crate::container`]). It is written whole and renamed, so a reader
//! sees all of one version.
//!
//! | file in `<root>/<id>` | means                                                   |
//! |-----------------------|---------------------------------------------------------|
//! | `state.json`          | the container exists                                    |
//! | `exec.fifo`           | its init waits for `start`                              |

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{error::Error, id::ContainerId, spec};

const STATE: &str = "state.json";
const FIFO: &str = "exec.fifo";

/// A container's record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are runc's")]
pub struct State {
    pub id: String,
    pub init_process_pid: i32,
    /// In clock ticks since boot, field 22 of /proc/pid/stat: tells the init from a later process
    /// with its pid.
    pub init_process_start: u64,
    pub created: String,
    pub config: Config,
    pub rootless: bool,
    pub cgroup_paths: BTreeMap<String, PathBuf>,
    pub namespace_paths: BTreeMap<String, String>,
}

/// What a container was made from, so far as later commands need it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are runc's")]
pub struct Config {
    pub version: String,
    pub rootfs: String,
    /// Annotations as `key=value`, and the bundle.
    pub labels: Vec<String>,
    pub hooks: spec::Hooks,
    pub no_new_keyring: bool,
    pub systemd: bool,
}

impl State {
    /// The bundle's path.
    pub fn bundle(&self) -> &str {
        self.config.labels.iter().find_map(|label| label.strip_prefix("bundle=")).unwrap_or("")
    }

    /// The annotations of the configuration.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let pairs = self.config.labels.iter().filter_map(|label| label.split_once('='));
        pairs
            .filter(|(key, _)| *key != "bundle")
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }
}

/// The directory in which a runtime keeps its containers.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The root at `path`, which need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The place of one container.
    pub fn entry(&self, id: &ContainerId) -> Entry {
        Entry(self.0.join(id))
    }

    /// The ids of all that looks like a container, in order.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the directory cannot be read; one that does not exist has none.
    pub fn ids(&self) -> Result<Vec<ContainerId>, Error> {
        let fail = |error| Error::file("read", &self.0, error);
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(fail)?.file_name();
            names.extend(name.to_str().and_then(|name| name.parse::<ContainerId>().ok()));
        }
        names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        Ok(names)
    }
}

/// One container's directory.
#[derive(Clone, Debug)]
pub struct Entry(PathBuf);

impl Entry {
    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory, and with that takes the id.
    ///
    /// # Errors
    ///
    /// [`Error::ContainerExists`] when there is one.
    pub fn create(&self) -> Result<(), Error> {
        if let Some(root) = self.0.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(root)
                .map_err(|error| Error::file("mkdir", root, error))?;
        }
        match fs::DirBuilder::new().mode(0o711).create(&self.0) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::ContainerExists)
            }
            Err(error) => Err(Error::file("mkdir", &self.0, error)),
        }
    }

    /// Removes the directory and what is in it, if it is there.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when something stays.
    pub fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("remove", &self.0, error))
            }
            _ => Ok(()),
        }
    }

    /// Reads the record.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchContainer`] when there is none.
    pub fn load(&self) -> Result<State, Error> {
        let path = self.0.join(STATE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoSuchContainer);
            }
            Err(error) => return Err(Error::file("read", path, error)),
        };
        serde_json::from_slice(&text)
            .map_err(|error| Error::file("parse", path, io::Error::other(error)))
    }

    /// Replaces the record.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when it cannot be written; then the old one is still there.
    pub fn store(&self, state: &State) -> Result<(), Error> {
        let path = self.0.join(STATE);
        let new = self.0.join(".state.json.new");
        let fail = |error| Error::file("write", &path, error);
        let text = serde_json::to_vec(state).map_err(|error| fail(io::Error::other(error)))?;
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(fail)?;
        file.write_all(&text).map_err(fail)?;
        fs::rename(&new, &path).map_err(fail)
    }

    /// The FIFO's path.
    pub fn fifo(&self) -> PathBuf {
        self.0.join(FIFO)
    }
}
