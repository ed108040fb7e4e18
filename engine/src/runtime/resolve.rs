//! Which binary runs a container.
//!
//! | runtime's name                  | binary                                                  |
//! |---------------------------------|---------------------------------------------------------|
//! | an absolute path                | that file                                               |
//! | in the configuration's table    | what the table says                                     |
//! | `io.containerd.runc.v2`         | `containerd-shim-runc-rs-v2`                            |
//! | `<prefix>.<name>.<version>`     | `containerd-shim-<name>-<version>`                      |
//!
//! A binary without a slash is looked for beside this program first, then in `PATH`: programs of
//! one installation belong together. containerd looks in `PATH` first.
//!
//! Source: containerd, `core/runtime/v2/shim_manager.go`, `resolveRuntimePath`.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::Error;

/// This project's shim.
pub(super) const OWN_SHIM: &str = "containerd-shim-runc-rs-v2";

/// The runtime that clients name when they have no wish.
const RUNC: &str = "io.containerd.runc.v2";

/// How the configuration changes what a runtime's name means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// The shim: a path, or a name to look for. Empty for the usual one.
    pub shim: String,
    /// The OCI runtime that the shim runs, where a container's options do not name one. Empty to
    /// leave the choice to the shim.
    pub binary_name: String,
}

/// Runtimes by name.
pub type RuntimeTable = BTreeMap<String, RuntimeConfig>;

/// Finds the shim of a runtime.
///
/// # Errors
///
/// - `Invalid`: `runtime` is no name of a runtime.
/// - `NotInstalled`: there is no such binary.
pub(super) fn resolve(runtime: &str, table: &RuntimeTable) -> Result<PathBuf, Error> {
    let binary = binary(runtime, table)?;
    let found = if binary.contains('/') {
        Some(PathBuf::from(&binary)).filter(|path| path.is_file())
    } else {
        search(&binary)
    };
    found.ok_or_else(|| Error::NotInstalled { runtime: runtime.to_owned(), binary })
}

/// The name or path of a runtime's shim.
fn binary(runtime: &str, table: &RuntimeTable) -> Result<String, Error> {
    if runtime.starts_with('/') {
        return Ok(runtime.to_owned());
    }
    if let Some(entry) = table.get(runtime).filter(|entry| !entry.shim.is_empty()) {
        return Ok(entry.shim.clone());
    }
    if runtime == RUNC {
        return Ok(OWN_SHIM.to_owned());
    }
    if runtime.is_empty() {
        return Err(Error::Invalid("no runtime name".to_owned()));
    }
    let mut parts = runtime.rsplit('.');
    let named = match (parts.next(), parts.next()) {
        (Some(version), Some(name)) if !runtime.starts_with('.') => Some((name, version)),
        _ => None,
    };
    match named {
        Some((name, version)) if !runtime.contains('/') => {
            Ok(format!("containerd-shim-{name}-{version}"))
        }
        _ => Err(Error::Invalid(format!(
            "invalid runtime name {runtime}, correct runtime name should be either format like \
             `io.containerd.runc.v2` or a full path to the binary"
        ))),
    }
}

/// Looks for a binary by its name.
pub(super) fn search(binary: &str) -> Option<PathBuf> {
    let beside = env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    let path = env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(env::split_paths(&path).filter(|folder| folder.is_absolute()))
        .map(|folder| folder.join(binary))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let mut table = RuntimeTable::default();
        let crun = RuntimeConfig { shim: "/opt/shim".to_owned(), ..RuntimeConfig::default() };
        table.insert("my.crun".to_owned(), crun);
        let options = RuntimeConfig { binary_name: "crun".to_owned(), ..Default::default() };
        table.insert("io.containerd.crun.v2".to_owned(), options);
        let cases = [
            ("absolute path", "/usr/bin/shim", Some("/usr/bin/shim")),
            ("default", "io.containerd.runc.v2", Some("containerd-shim-runc-rs-v2")),
            ("ours", "io.containerd.runc-rs.v2", Some("containerd-shim-runc-rs-v2")),
            ("old", "io.containerd.runc.v1", Some("containerd-shim-runc-v1")),
            ("other", "io.containerd.kata.v2", Some("containerd-shim-kata-v2")),
            ("two parts", "wasm.v1", Some("containerd-shim-wasm-v1")),
            ("table", "my.crun", Some("/opt/shim")),
            ("table without shim", "io.containerd.crun.v2", Some("containerd-shim-crun-v2")),
            ("empty", "", None),
            ("one part", "runc", None),
            ("no prefix", ".runc.v2", None),
            ("relative path", "bin/shim.runc.v2", None),
            ("climbing path", "../shim.runc.v2", None),
        ];
        for (case, runtime, want) in cases {
            let got = binary(runtime, &table);
            assert_eq!(got.ok().as_deref(), want, "{case}");
        }
    }

    #[test]
    fn missing_binary_is_named() {
        let error =
            resolve("io.containerd.missing.v7", &RuntimeTable::default()).expect_err("missing");
        assert_eq!(
            error.to_string(),
            "failed to start shim: failed to resolve runtime path: runtime \
             \"io.containerd.missing.v7\" binary not installed \"containerd-shim-missing-v7\": \
             file does not exist"
        );
    }
}
