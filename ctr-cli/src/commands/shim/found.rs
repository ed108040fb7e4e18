//! The shims that a daemon's state directory tells of.
//!
//! Source: containerd, `core/runtime/v2/shim.go`: `bootstrap.json` has version, address and
//! protocol; shims before containerd 1.7.6 leave `address`, with the address alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// The folder of bundles.
const FOLDER: &str = "io.containerd.runtime.v2.task";

/// The largest file that is read here, in bytes.
const FILE_LEN_MAX: u64 = 64 << 10;

/// A bundle with a shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) namespace: String,
    pub(super) id: String,
    /// The shim's socket; empty when the bundle names none.
    pub(super) address: String,
    /// The version of the task API.
    pub(super) version: u32,
}

/// The state directory of the daemon at `socket`, as daemons have it by default.
pub(super) fn state_directory(socket: &Path) -> PathBuf {
    socket.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

impl Found {
    /// The shim of a container.
    pub(super) fn read(state: &Path, namespace: &str, id: &str) -> anyhow::Result<Self> {
        let is_name =
            |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains('/');
        if !is_name(namespace) || !is_name(id) {
            bail!("{namespace}/{id} is no container's name");
        }
        let bundle = state.join(FOLDER).join(namespace).join(id);
        if !bundle.is_dir() {
            bail!("no shim of {id}: {} is not there (--state)", bundle.display());
        }
        let found = Self::of_bundle(&bundle, namespace, id);
        if found.address.is_empty() {
            bail!("{} does not name a shim's socket", bundle.display());
        }
        Ok(found)
    }

    /// The shims of `namespace`, or of all, by namespace and name.
    pub(super) fn all(state: &Path, namespace: Option<&str>) -> anyhow::Result<Vec<Self>> {
        let folder = state.join(FOLDER);
        // A daemon makes it when it starts.
        if !folder.is_dir() {
            bail!(
                "no daemon keeps its state in {}: {FOLDER} is not there (--state)",
                state.display()
            );
        }
        let namespaces = match namespace {
            Some(namespace) => vec![namespace.to_owned()],
            None => names(&folder)?,
        };
        let mut found = Vec::new();
        for namespace in namespaces {
            let folder = folder.join(&namespace);
            let ids = names(&folder)?;
            found.extend(ids.iter().map(|id| Self::of_bundle(&folder.join(id), &namespace, id)));
        }
        Ok(found)
    }

    fn of_bundle(bundle: &Path, namespace: &str, id: &str) -> Self {
        let (address, version) = reach(bundle).unwrap_or_default();
        Self { namespace: namespace.to_owned(), id: id.to_owned(), address, version }
    }
}

fn reach(bundle: &Path) -> Option<(String, u32)> {
    #[derive(Deserialize)]
    struct Bootstrap {
        version: u32,
        address: String,
    }

    if let Some(text) = read(&bundle.join("bootstrap.json"))
        && let Ok(bootstrap) = serde_json::from_str::<Bootstrap>(&text)
    {
        return Some((bootstrap.address, bootstrap.version));
    }
    let legacy = ["bootstrap.json", "address"].map(|name| read(&bundle.join(name)));
    let address = legacy.into_iter().flatten().find(|text| !text.trim().is_empty())?;
    Some((address.trim().to_owned(), 2))
}

fn read(path: &Path) -> Option<String> {
    let small = fs::metadata(path).is_ok_and(|data| data.is_file() && data.len() <= FILE_LEN_MAX);
    small.then(|| fs::read_to_string(path).ok()).flatten()
}

/// The names of the directories in `folder` that are not hidden; none when it is not there.
fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {}", folder.display()))?,
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let json = r#"{"version":3,"address":"unix:///s/a","protocol":"ttrpc"}"#;
        let cases = [
            ("json", "ns1", Some(("bootstrap.json", json)), "unix:///s/a", 3),
            ("address", "ns1", Some(("address", "unix:///s/b\n")), "unix:///s/b", 2),
            ("bare", "ns1", Some(("bootstrap.json", "unix:///s/c")), "unix:///s/c", 2),
            ("none", "ns2", None, "", 0),
        ];
        let found = |namespace: &str, id: &str, address: &str, version| Found {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            address: address.to_owned(),
            version,
        };
        for (id, namespace, file, _, _) in &cases {
            let bundle = state.path().join(FOLDER).join(namespace).join(id);
            fs::create_dir_all(&bundle).expect("made");
            if let Some((name, text)) = file {
                fs::write(bundle.join(name), text).expect("written");
            }
        }
        fs::create_dir_all(state.path().join(FOLDER).join("ns1/.hidden")).expect("made");
        for (id, namespace, _, address, version) in &cases {
            let got = Found::read(state.path(), namespace, id).ok();
            let want = found(namespace, id, address, *version);
            assert_eq!(got, Some(want).filter(|_| !address.is_empty()), "{id}");
        }
        let ids = |namespace| {
            let all = Found::all(state.path(), namespace).expect("readable");
            all.into_iter().map(|found| found.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(None), ["address", "bare", "json", "none"]);
        assert_eq!(ids(Some("ns2")), ["none"]);
        assert!(ids(Some("ns3")).is_empty());
        Found::all(&state.path().join("ns1"), None).expect_err("no daemon's");
        for id in ["", "..", "../ns2", "missing"] {
            Found::read(state.path(), "ns1", id).expect_err(id);
        }
    }
}
