//! Why a control group operation failed.

use std::{io, path::PathBuf};

use super::{devices::DeviceError, systemd};
use crate::error::Cause;

/// Why a control group operation failed.
///
/// Some texts are runc's, because its clients look for them.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum Error {
    /// Where the hierarchies are cannot be found out, or one that must be there is not.
    #[error("find the cgroup hierarchies: {what}")]
    Layout { what: &'static str, source: Option<io::Error> },

    /// The path in the spec is not of the form that the driver needs.
    #[error(
        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, \
         got {0:?} instead"
    )]
    SystemdPath(String),

    /// The group has processes already, so that it belongs to somebody else.
    #[error("container's cgroup is not empty: {processes} process(es) found")]
    NotEmpty { processes: usize },

    /// The group is frozen already, so that a process in it would never start.
    #[error("container's cgroup unexpectedly frozen")]
    Frozen,

    /// A limit is wanted for a controller that the group has not.
    #[error("cannot set {controller} limit: container could not join or create cgroup")]
    NoController { controller: String },

    /// A value cannot be what it is; the text names the field.
    #[error("{0}")]
    Resources(String),

    /// A device rule cannot be enforced.
    #[error("cgroup device rules")]
    Devices(#[from] DeviceError),

    /// A file operation failed; `operation` is its verb, as in "write".
    #[error("{operation} {}", path.display())]
    File { operation: &'static str, path: PathBuf, source: Cause },

    /// A value was refused by the kernel.
    #[error("failed to write {value:?}: write {}", path.display())]
    Write { value: String, path: PathBuf, source: Cause },

    /// The group did not do in time what was asked of it; `what` is a participle.
    #[error("cgroup {} is still not {what}", path.display())]
    Timeout { what: &'static str, path: PathBuf },

    /// systemd did not do what it was asked.
    #[error(transparent)]
    Systemd(#[from] systemd::Error),

    /// systemd did not start the unit.
    #[error("unable to start unit {unit:?}")]
    Unit { unit: String, source: systemd::Error },

    /// systemd did not take the unit's limits.
    #[error("unable to set unit properties")]
    UnitProperties { source: systemd::Error },
}
