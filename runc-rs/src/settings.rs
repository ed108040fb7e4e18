//! What the global flags of the command line say.

use std::path::PathBuf;

use crate::state::Root;

/// What holds for every command.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where containers are recorded.
    pub root: Root,
    /// Whether that place was named, so that it must exist to be read.
    pub root_is_named: bool,
    /// Whether cgroups are made by systemd.
    pub systemd_cgroup: bool,
    /// Whether to do without what only root may, as far as that is possible.
    pub rootless: bool,
}

/// Where containers are recorded when nothing is said: for root in /run, for others in their
/// runtime directory.
pub fn default_root(is_root: bool, runtime_directory: Option<PathBuf>) -> PathBuf {
    match runtime_directory {
        Some(directory) if !is_root && !directory.as_os_str().is_empty() => directory.join("runc"),
        _ => PathBuf::from("/run/runc"),
    }
}
