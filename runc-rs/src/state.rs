//! What is kept of a container between two commands: `<root>/<id>/state.json`.
//!
//! The file has the names of runc's, so that tools that look into runc's find what they look for:
//! ids, pids, paths of cgroups and namespaces. It holds what cannot be found out otherwise; the
//! status is not in it (see [`crate::container`]). It is written whole and renamed, so a reader
//! sees all of one version.
//!
//! | file in `<root>/<id>` | means                                                   |
//! |-----------------------|---------------------------------------------------------|
//! | `planned.json`        | these cgroups may have been made                        |
//! | `creating.json`       | these cgroups are the container's, and what is in them  |
//! | `state.json`          | the container exists                                    |
//! | `exec.fifo`           | its init waits for `start`                              |
//!
//! The first two, of which the second is the first one renamed, are for `delete --force` after a
//! `create` that was killed: a group that was only planned may be another container's, so nothing
//! in it is killed. They stay, for the case that `state.json` cannot be read.

pub mod record;

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{error::Error, id::ContainerId, spec};

const STATE: &str = "state.json";
const NEW: &str = ".state.json.new";
const FIFO: &str = "exec.fifo";
const PLANNED: &str = "planned.json";
const CREATING: &str = "creating.json";

/// The most bytes of a record that are read.
const RECORD_SIZE_MAX: u64 = 32 << 20;

/// The mode of the directories: their content is the runtime's own business.
const MODE: u32 = 0o700;

/// A container's record.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
    /// Its resctrl group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intel_rdt_path: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intel_rdt_mon_path: Option<PathBuf>,
    /// Whether the group was made for it.
    #[serde(default)]
    pub intel_rdt_owned: bool,
    /// The number of the mount that it has made at its root filesystem, if it has no mount namespace
    /// of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_mount: Option<u64>,
    /// What the init's standard streams were when it was made.
    #[serde(default)]
    pub external_descriptors: Vec<String>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<spec::IntelRdt>,
    pub namespaces: Vec<record::Namespace>,
    pub mounts: Vec<record::Mount>,
    /// Only those that are mounts.
    pub devices: Vec<record::Device>,
    pub mask_paths: Vec<String>,
}

impl State {
    /// The bundle's path: the last label that says so, since annotations, which may have any name,
    /// come before it.
    pub fn bundle(&self) -> &str {
        let labels = self.config.labels.iter().rev();
        labels.filter_map(|label| label.strip_prefix("bundle=")).next().unwrap_or("")
    }

    /// The annotations of the configuration.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let labels = &self.config.labels;
        let bundle = labels.iter().rposition(|label| label.starts_with("bundle="));
        let annotations = labels.iter().enumerate().filter(|(at, _)| Some(*at) != bundle);
        annotations
            .filter_map(|(_, label)| label.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    /// What can be understood of a record that is damaged, or somebody else's.
    pub(crate) fn salvage(text: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(text).unwrap_or_default();
        fn part<T: serde::de::DeserializeOwned + Default>(value: &Value) -> T {
            T::deserialize(value).unwrap_or_default()
        }
        Self {
            init_process_pid: part(&value["init_process_pid"]),
            init_process_start: part(&value["init_process_start"]),
            config: part(&value["config"]),
            cgroup_paths: part(&value["cgroup_paths"]),
            intel_rdt_path: part(&value["intel_rdt_path"]),
            intel_rdt_mon_path: part(&value["intel_rdt_mon_path"]),
            intel_rdt_owned: part(&value["intel_rdt_owned"]),
            host_mount: part(&value["host_mount"]),
            ..Self::default()
        }
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
    /// [`Error::System`] when the directory cannot be read, or does not exist.
    pub fn ids(&self) -> Result<Vec<ContainerId>, Error> {
        let fail = |error| Error::file("read", &self.0, error);
        let entries = fs::read_dir(&self.0).map_err(fail)?;
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
                .mode(MODE)
                .create(root)
                .map_err(|error| Error::file("mkdir", root, error))?;
        }
        match fs::DirBuilder::new().mode(MODE).create(&self.0) {
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
        // By name first: that takes no descriptor, the lack of which may be why this is removed.
        for name in [CREATING, PLANNED, NEW, STATE, FIFO] {
            let _ = fs::remove_file(self.0.join(name));
        }
        if fs::remove_dir(&self.0).is_ok() {
            return Ok(());
        }
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
        let text = match self.read(STATE) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoSuchContainer);
            }
            Err(error) => return Err(Error::file("read", path, error)),
        };
        serde_json::from_slice(&text)
            .map_err(|error| Error::file("parse", path, io::Error::other(error)))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        fs::File::open(self.0.join(name))?.take(RECORD_SIZE_MAX).read_to_end(&mut text)?;
        Ok(text)
    }

    /// What there is to remove, however little of it is on record; `None` when there is not even a
    /// directory.
    pub(crate) fn remains(&self) -> Option<Remains> {
        if self.0.symlink_metadata().is_err() {
            return None;
        }
        let mut state = State::salvage(&self.read(STATE).unwrap_or_default());
        if state.cgroup_paths.is_empty() {
            let creating = self.read(CREATING).unwrap_or_default();
            state.cgroup_paths = serde_json::from_slice(&creating).unwrap_or_default();
        }
        let planned = self.read(PLANNED).unwrap_or_default();
        Some(Remains { state, planned: serde_json::from_slice(&planned).unwrap_or_default() })
    }

    /// Records where cgroups are about to be made.
    pub(crate) fn plan_cgroups(&self, paths: &BTreeMap<String, PathBuf>) -> Result<(), Error> {
        let path = self.0.join(PLANNED);
        let text = serde_json::to_vec(paths)
            .map_err(|error| Error::file("write", &path, io::Error::other(error)))?;
        write_private(&path, &text).map_err(|error| Error::file("write", &path, error))
    }

    /// Records that those cgroups are this container's.
    pub(crate) fn own_cgroups(&self) -> Result<(), Error> {
        let path = self.0.join(CREATING);
        fs::rename(self.0.join(PLANNED), &path).map_err(|error| Error::file("write", path, error))
    }

    /// Replaces the record.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when it cannot be written; then the old one is still there.
    pub fn store(&self, state: &State) -> Result<(), Error> {
        let path = self.0.join(STATE);
        let new = self.0.join(NEW);
        let fail = |error| Error::file("write", &path, error);
        let text = serde_json::to_vec(state).map_err(|error| fail(io::Error::other(error)))?;
        write_private(&new, &text).map_err(fail)?;
        fs::rename(&new, &path).map_err(fail)
    }

    /// The FIFO's path.
    pub fn fifo(&self) -> PathBuf {
        self.0.join(FIFO)
    }
}

fn write_private(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text)
}

/// What is left of a container whose record is missing or cannot be read.
pub(crate) struct Remains {
    /// What is known of it.
    pub(crate) state: State,
    /// Cgroups that may have been made, or may be another's.
    pub(crate) planned: BTreeMap<String, PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_do_not_pass_for_the_bundle() {
        let labels = ["bundle=/evil", "bundle=x=/evil", "a=b=c", "bundle=/real"];
        let state = State {
            config: Config {
                labels: labels.iter().map(|&label| label.to_owned()).collect(),
                ..Config::default()
            },
            ..State::default()
        };
        assert_eq!(state.bundle(), "/real");
        let annotations = state.annotations();
        let pairs: Vec<_> = annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("a", "b=c"), ("bundle", "x=/evil")]);
    }

    #[test]
    fn salvages_what_it_can() {
        let paths = BTreeMap::from([("pids".to_owned(), PathBuf::from("/sys/fs/cgroup/pids/x"))]);
        let whole = r#"{"init_process_pid": 7, "init_process_start": 9, "id": 5,
            "cgroup_paths": {"pids": "/sys/fs/cgroup/pids/x"}, "config": {"labels": ["bundle=/b"]}}"#;
        let cases = [
            ("other types", whole, (7, 9, "/b", paths.clone())),
            ("null", "null", (0, 0, "", BTreeMap::new())),
            ("cut short", &whole[..40], (0, 0, "", BTreeMap::new())),
            ("a list", "[1]", (0, 0, "", BTreeMap::new())),
            (
                "pid out of range",
                r#"{"init_process_pid": 99999999999, "cgroup_paths": {"pids": "/sys/fs/cgroup/pids/x"}}"#,
                (0, 0, "", paths),
            ),
        ];
        for (case, text, (pid, start, bundle, paths)) in cases {
            let state = State::salvage(text.as_bytes());
            assert_eq!((state.init_process_pid, state.init_process_start), (pid, start), "{case}");
            assert_eq!((state.bundle(), &state.cgroup_paths), (bundle, &paths), "{case}");
        }
    }
}
