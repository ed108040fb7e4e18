//! A bundle's `config.json`: the parts of the OCI runtime-spec 1.3 that Linux has.
//!
//! The structures are lean (owned strings, no builders, unknown fields skipped) because each start
//! of a container parses one. As Go programs do, `null` is read as an absent value.
//! [`Spec::load`] is the only way in, and what it returns was [validated](validate).

mod hooks;
mod linux;
mod mount;
mod place;
mod process;
pub mod resources;
pub mod seccomp;
mod validate;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer};

use crate::error::Cause;

pub use self::{
    hooks::{Hook, Hooks},
    linux::{
        Device, IdMapping, IntelRdt, Linux, MemoryPolicy, Namespace, NamespaceKind, NetDevice,
        Personality, TimeOffset,
    },
    mount::Mount,
    place::Place,
    process::{
        Capabilities, ConsoleSize, CpuAffinity, IoPriority, Process, Rlimit, Scheduler, User,
    },
};

/// The version of the runtime-spec that is understood.
pub const VERSION: &str = "1.3.0";

/// The most bytes a configuration may have.
const CONFIG_SIZE_MAX: u64 = 16 << 20;

/// The name of the configuration in a bundle.
pub const CONFIG: &str = "config.json";

/// A container's configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Spec {
    #[serde(deserialize_with = "nullable")]
    pub oci_version: String,
    pub process: Option<Process>,
    pub root: Option<Root>,
    #[serde(deserialize_with = "nullable")]
    pub hostname: String,
    #[serde(deserialize_with = "nullable")]
    pub domainname: String,
    #[serde(deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
    #[serde(deserialize_with = "nullable")]
    pub hooks: Hooks,
    #[serde(deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub linux: Linux,
}

/// Where the root filesystem is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the runtime-spec describes the fields")]
pub struct Root {
    #[serde(deserialize_with = "nullable")]
    pub path: String,
    #[serde(deserialize_with = "nullable")]
    pub readonly: bool,
}

impl Spec {
    /// Reads and checks the configuration of `bundle`.
    ///
    /// # Errors
    ///
    /// [`Error`] names the file, the field where there is one, and the reason.
    pub fn load(bundle: &Path) -> Result<Self, Error> {
        Self::parse(&read(bundle)?)
    }

    /// Checks the text of a configuration.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let spec: Option<Self> = serde_json::from_slice(text)
            .map_err(|error| Error::Parse(Place::of(&error, text), error))?;
        let spec = spec.ok_or(Error::Null)?;
        validate::spec(&spec)?;
        Ok(spec)
    }
}

impl Process {
    /// Reads and checks a process description, as `exec --process` takes it.
    ///
    /// # Errors
    ///
    /// [`Error`] names the field where there is one, and the reason.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(CONFIG_SIZE_MAX + 1).read_to_end(&mut text))
            .map_err(|error| Error::ReadProcess(path.to_owned(), Cause(error)))?;
        if text.len() as u64 > CONFIG_SIZE_MAX {
            return Err(Error::ProcessTooLarge(path.to_owned()));
        }
        let process = Self::read_from(&text, path)?;
        process.check(path)?;
        Ok(process)
    }

    /// Checks a process that `place` describes.
    pub(crate) fn check(&self, place: impl AsRef<Path>) -> Result<(), Error> {
        validate::process(self).map_err(|error| match error {
            Error::Invalid { field, reason } => {
                Error::InvalidProcess { path: place.as_ref().to_owned(), field, reason }
            }
            error => error,
        })
    }

    /// Checks the text of a process description.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let process = Self::read_from(text, Path::new("process.json"))?;
        validate::process(&process)?;
        Ok(process)
    }

    fn read_from(text: &[u8], path: &Path) -> Result<Self, Error> {
        serde_json::from_slice(text).map_err(|error| Error::ParseProcess {
            path: path.to_owned(),
            place: Place::of(&error, text),
            source: error,
        })
    }
}

fn read(bundle: &Path) -> Result<Vec<u8>, Error> {
    let file = match File::open(bundle.join(CONFIG)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Error::Missing),
        Err(error) => return Err(Error::Read(Cause(error))),
    };
    let mut text = Vec::with_capacity(16 << 10);
    file.take(CONFIG_SIZE_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|error| Error::Read(Cause(error)))?;
    if text.len() as u64 > CONFIG_SIZE_MAX {
        return Err(Error::TooLarge);
    }
    Ok(text)
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum Error {
    /// The bundle has no configuration.
    #[error("JSON specification file config.json not found")]
    Missing,
    /// The file cannot be read.
    #[error("read config.json")]
    Read(#[source] Cause),
    /// The file is larger than any configuration.
    #[error("config.json is larger than 16 MiB")]
    TooLarge,
    /// The file with a process cannot be read.
    #[error("read process {}", .0.display())]
    ReadProcess(PathBuf, #[source] Cause),
    /// The file with a process is larger than any.
    #[error("process {} is larger than 16 MiB", .0.display())]
    ProcessTooLarge(PathBuf),
    /// The file is not JSON, or not that of a configuration.
    #[error("parse config.json{0}")]
    Parse(Place, #[source] serde_json::Error),
    /// The file is not JSON, or not that of a process.
    #[error("parse process {}{place}", path.display())]
    ParseProcess { path: PathBuf, place: Place, source: serde_json::Error },
    /// The file says `null`.
    #[error("config.json: config cannot be null")]
    Null,
    /// A field of a process has a value that cannot be.
    #[error("{}: {field}: {reason}", path.display())]
    InvalidProcess { path: PathBuf, field: String, reason: String },
    /// A field has a value that cannot be.
    #[error("config.json: {field}: {reason}")]
    Invalid { field: String, reason: String },
}

/// Reads `null` as the default value, which is what Go's decoder does.
pub(crate) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
