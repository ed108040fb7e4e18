//! The files of a bundle: what containerd put there, and what the shim adds.
//!
//! | file | by | what |
//! |---|---|---|
//! | `config.json` | containerd | the OCI specification |
//! | `rootfs/` | shim, when `Create` brings mounts | where they go |
//! | `address` | shim | the socket's address |
//! | `shim.pid` | shim | its process ID |
//! | `log` | containerd | a fifo for the shim's log |
//! | `log.json` | runtime | its log |
//! | `init.pid`, `exec-<exec>.pid` | runtime | process IDs; no name of an exec makes it another file |
//! | `runtime` | shim | the runtime's program |
//! | `options.json` | shim | [`Options`] in the form of containerd's shim |
//! | `work/` | runtime | criu's scratch |
//!
//! `runtime` and `options.json` are for the `delete` command, which a shim of any make may have to
//! carry out for a shim that is gone.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use proto::containerd::runc::v1::Options;
use serde::{Deserialize, Serialize};

/// Annotations by which containers share a shim, the first one that is there.
const GROUP_ANNOTATIONS: [&str; 2] =
    ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// The largest `config.json` that is read, in bytes.
const CONFIG_LEN_MAX: u64 = 32 << 20;

/// A bundle's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bundle(PathBuf);

impl Bundle {
    /// The bundle in `directory`.
    pub(crate) fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where the container's root filesystem is mounted.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.file("rootfs")
    }

    /// Where the runtime writes the process ID of `exec`, or of init.
    pub(crate) fn pid_file(&self, exec: Option<&str>) -> PathBuf {
        match exec {
            Some(exec) => self.file(&format!("exec-{exec}.pid")),
            None => self.file("init.pid"),
        }
    }

    /// Reads what the shim needs of `config.json`.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is too large, or is not JSON.
    pub(crate) fn config(&self) -> io::Result<Config> {
        let path = self.file("config.json");
        if fs::metadata(&path)?.len() > CONFIG_LEN_MAX {
            return Err(io::Error::other("config.json is too large"));
        }
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// Writes down how `delete` finds the runtime.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub(crate) fn write_runtime(&self, program: &str, options: &Options) -> io::Result<()> {
        write_private(
            &self.file("options.json"),
            &serde_json::to_vec(&SavedOptions::from(options))?,
        )?;
        write_private(&self.file("runtime"), program.as_bytes())
    }

    /// What [`write_runtime`](Self::write_runtime) wrote: the program, where it is known, and the
    /// options.
    ///
    /// # Errors
    ///
    /// A file is there and cannot be read.
    pub(crate) fn read_runtime(&self) -> io::Result<(Option<String>, Options)> {
        let program = match optional(fs::read_to_string(self.file("runtime")))? {
            Some(program) if !program.trim().is_empty() => Some(program.trim().to_owned()),
            _ => None,
        };
        let options = match optional(fs::read(self.file("options.json")))? {
            Some(json) => serde_json::from_slice::<SavedOptions>(&json)?.into(),
            None => Options::default(),
        };
        Ok((program, options))
    }

    /// Reads a process ID that the runtime wrote.
    ///
    /// # Errors
    ///
    /// The file cannot be read or has no process ID in it.
    pub(crate) fn read_pid(&self, exec: Option<&str>) -> io::Result<rustix::process::Pid> {
        let text = fs::read_to_string(self.pid_file(exec))?;
        let pid = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
        pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a process ID"))
    }
}

/// Writes a file that only the owner can read.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;

    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the shim needs of an OCI specification.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    linux: Option<Linux>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
    #[serde(default)]
    cgroups_path: String,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Config {
    /// The group of containers that share a shim, if this container is in one.
    pub(crate) fn group(&self) -> Option<&str> {
        GROUP_ANNOTATIONS.iter().find_map(|&name| self.annotations.get(name)).map(String::as_str)
    }

    /// The control group that the specification names: not one that is systemd's to place.
    pub(crate) fn cgroups_path(&self) -> Option<&str> {
        let path = self.linux.as_ref().map(|linux| linux.cgroups_path.as_str())?;
        (!path.is_empty() && !path.contains(':')).then_some(path)
    }

    /// Whether the container has a pid namespace of its own, so that the kernel kills all of its
    /// processes when init ends.
    pub(crate) fn has_own_pid_namespace(&self) -> bool {
        let namespaces = self.linux.iter().flat_map(|linux| &linux.namespaces);
        namespaces.into_iter().any(|one| one.kind == "pid" && one.path.is_empty())
    }
}

/// [`Options`] as containerd's shim writes them: snake case, absent where zero.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedOptions {
    #[serde(skip_serializing_if = "is_default")]
    no_pivot_root: bool,
    #[serde(skip_serializing_if = "is_default")]
    no_new_keyring: bool,
    #[serde(skip_serializing_if = "is_default")]
    shim_cgroup: String,
    #[serde(skip_serializing_if = "is_default")]
    io_uid: u32,
    #[serde(skip_serializing_if = "is_default")]
    io_gid: u32,
    #[serde(skip_serializing_if = "is_default")]
    binary_name: String,
    #[serde(skip_serializing_if = "is_default")]
    root: String,
    #[serde(skip_serializing_if = "is_default")]
    systemd_cgroup: bool,
    #[serde(skip_serializing_if = "is_default")]
    criu_image_path: String,
    #[serde(skip_serializing_if = "is_default")]
    criu_work_path: String,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl From<&Options> for SavedOptions {
    fn from(options: &Options) -> Self {
        let options = options.clone();
        Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            criu_image_path: options.criu_image_path,
            criu_work_path: options.criu_work_path,
        }
    }
}

impl From<SavedOptions> for Options {
    fn from(saved: SavedOptions) -> Self {
        Self {
            no_pivot_root: saved.no_pivot_root,
            no_new_keyring: saved.no_new_keyring,
            shim_cgroup: saved.shim_cgroup,
            io_uid: saved.io_uid,
            io_gid: saved.io_gid,
            binary_name: saved.binary_name,
            root: saved.root,
            systemd_cgroup: saved.systemd_cgroup,
            criu_image_path: saved.criu_image_path,
            criu_work_path: saved.criu_work_path,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config() {
        let cases = [
            ("empty", "{}", None, false),
            ("own", r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#, None, true),
            (
                "joined",
                r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#,
                None,
                false,
            ),
            (
                "grouped, the first annotation wins",
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"p","io.containerd.runc.v2.group":"g"}}"#,
                Some("g"),
                false,
            ),
        ];
        for (case, json, group, own) in cases {
            let config: Config = serde_json::from_str(json).expect("JSON");
            assert_eq!((config.group(), config.has_own_pid_namespace()), (group, own), "{case}");
        }
    }

    #[test]
    fn runtime_survives() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let bundle = Bundle::new(directory.path());
        assert_eq!(bundle.read_runtime().expect("absent is fine"), (None, Options::default()));
        let options = Options { root: "/r".to_owned(), systemd_cgroup: true, ..Options::default() };
        bundle.write_runtime("crun", &options).expect("write");
        assert_eq!(bundle.read_runtime().expect("read"), (Some("crun".to_owned()), options));
    }

    #[test]
    fn pid_files() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let bundle = Bundle::new(directory.path());
        for exec in ["init", "shim", "exec-init"] {
            let taken = [bundle.pid_file(None), bundle.file("shim.pid")];
            assert!(!taken.contains(&bundle.pid_file(Some(exec))), "{exec}");
        }
        for (text, good) in [("12", true), ("12\n", true), ("", false), ("0", false), ("x", false)]
        {
            fs::write(bundle.pid_file(Some("e")), text).expect("write");
            assert_eq!(bundle.read_pid(Some("e")).is_ok(), good, "{text:?}");
        }
    }
}
