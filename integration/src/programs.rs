//! Where the programs are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directory of our built programs: `GANTRY_BIN`, or `target/dist` of this workspace.
///
/// # Panics
///
/// The crate lies outside a workspace.
pub fn ours() -> PathBuf {
    if let Some(chosen) = std::env::var_os("GANTRY_BIN") {
        return chosen.into();
    }
    target().join("dist")
}

/// Cargo's target directory: `CARGO_TARGET_DIR`, or `target` of this workspace.
///
/// # Panics
///
/// The crate lies outside a workspace.
pub fn target() -> PathBuf {
    if let Some(chosen) = std::env::var_os("CARGO_TARGET_DIR") {
        return chosen.into();
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    workspace.expect("this crate is a member of a workspace").join("target")
}

/// Finds `name` in `PATH` and in the directories of the administrator's programs.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"])
        .map(|directory| Path::new(directory).join(name))
        .find(|file| file.is_file())
}

/// Finds a program of Debian's.
///
/// # Errors
///
/// It is not installed; the error says so by name.
pub fn debian(name: &str) -> Result<PathBuf> {
    find(name).with_context(|| format!("{name} is not installed"))
}

/// Finds a program of a containerd newer than Debian's, in the directory that `GANTRY_CONTAINERD`
/// names.
///
/// # Errors
///
/// The variable is not set, or there is no such program; the error says so.
pub fn newer(name: &str) -> Result<PathBuf> {
    let directory = std::env::var_os("GANTRY_CONTAINERD")
        .context("GANTRY_CONTAINERD names no directory with a newer containerd")?;
    let file = Path::new(&directory).join(name);
    anyhow::ensure!(file.is_file(), "{} is missing", file.display());
    Ok(file)
}

/// Finds a program of our own.
///
/// # Errors
///
/// It was not built; the error says how to.
pub fn own(name: &str) -> Result<PathBuf> {
    let file = ours().join(name);
    anyhow::ensure!(file.is_file(), "{} is missing: run `cargo xtask dist`", file.display());
    Ok(file)
}
