//! The fifos through which a shim passes a process's streams.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::names;

/// Where fifos are made when no flag says otherwise; the second if the first cannot be made.
const DIRECTORIES: [&str; 2] = ["/run/gantry/fifo", "/run/containerd/fifo"];

/// How the names of the directories begin.
const DIRECTORY_PREFIX: &str = "ctr-";

/// What becomes of a process's streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IoKind {
    /// They are `/dev/null`.
    Null,
    /// The shim writes them where a URI says.
    Log(String),
    /// They pass through fifos, all three, or a terminal's two.
    Fifos { terminal: bool },
}

/// The paths of a process's streams, as the daemon gets them.
///
/// The directory of the fifos is removed when this is dropped, unless it was kept.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
    directory: Option<PathBuf>,
}

impl Stdio {
    /// Makes what `kind` needs for the process `id`.
    pub(crate) fn create(
        kind: &IoKind,
        directory: Option<&Path>,
        id: &str,
    ) -> anyhow::Result<Self> {
        match kind {
            IoKind::Null => Ok(Self::paths("", "", "", false)),
            IoKind::Log(uri) => Ok(Self::paths("", &log_uri(uri)?, &log_uri(uri)?, false)),
            IoKind::Fifos { terminal } => Self::fifos(directory, id, *terminal),
        }
    }

    /// The streams of a process that somebody else has started.
    pub(crate) fn paths(stdin: &str, stdout: &str, stderr: &str, terminal: bool) -> Self {
        let [stdin, stdout, stderr] = [stdin, stdout, stderr].map(str::to_owned);
        Self { stdin, stdout, stderr, terminal, directory: None }
    }

    /// The streams of a task, with its fifos to be removed if this program once made them, or another
    /// client where clients do: containerd's `ctr` does not leave ours either.
    pub(crate) fn of(task: &proto::containerd::v1::types::Process) -> Self {
        let mut stdio = Self::paths(&task.stdin, &task.stdout, &task.stderr, task.terminal);
        let parent = Path::new(&task.stdin).parent();
        stdio.directory =
            parent.filter(|directory| is_made_by_a_client(directory)).map(Path::to_owned);
        stdio
    }

    /// Leaves the fifos to whoever attaches later.
    pub(crate) fn keep(&mut self) {
        self.directory = None;
    }

    fn fifos(parent: Option<&Path>, id: &str, terminal: bool) -> anyhow::Result<Self> {
        let directory = make_directory(parent)?;
        let path = |stream: &str| directory.join(format!("{id}-{stream}")).display().to_string();
        let mut stdio = Self::paths(&path("stdin"), &path("stdout"), "", terminal);
        stdio.directory = Some(directory.clone());
        if !terminal {
            stdio.stderr = path("stderr");
        }
        for path in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
            if !path.is_empty() {
                let mode = Mode::RUSR | Mode::WUSR;
                mknodat(CWD, path, FileType::Fifo, mode, 0)
                    .with_context(|| format!("make fifo {path}"))?;
            }
        }
        Ok(stdio)
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.take() {
            // The process has ended; a directory that is left behind takes no data. Only what
            // was made is removed, so a directory with anything else in it stays.
            for path in [&self.stdin, &self.stdout, &self.stderr] {
                let _ = fs::remove_file(path);
            }
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Whether `directory` is one that a client makes for a task's fifos.
fn is_made_by_a_client(directory: &Path) -> bool {
    let name = directory.file_name().unwrap_or_default().as_encoded_bytes();
    let parent = directory.parent();
    directory.is_absolute()
        && (name.starts_with(DIRECTORY_PREFIX.as_bytes())
            || DIRECTORIES.iter().any(|usual| parent == Some(Path::new(usual))))
}

/// Makes a directory that only this user enters.
fn make_directory(parent: Option<&Path>) -> anyhow::Result<PathBuf> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    let parent = match parent {
        Some(parent) => {
            builder.create(parent).with_context(|| format!("make {}", parent.display()))?;
            parent.to_owned()
        }
        None => DIRECTORIES
            .iter()
            .map(PathBuf::from)
            .find(|candidate| builder.create(candidate).is_ok())
            .unwrap_or_else(std::env::temp_dir),
    };
    let directory = parent.join(names::unique(DIRECTORY_PREFIX.trim_end_matches('-')));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&directory)
        .with_context(|| format!("make {}", directory.display()))?;
    Ok(directory)
}

/// Checks a URI for logs; a bare path means a file.
fn log_uri(uri: &str) -> anyhow::Result<String> {
    match uri.split_once("://") {
        Some(("file" | "binary" | "fifo" | "npipe", _)) => Ok(uri.to_owned()),
        Some((scheme, _)) => bail!("--log-uri: unknown scheme {scheme:?}"),
        None if uri.starts_with('/') => Ok(format!("file://{uri}")),
        None => bail!("--log-uri {uri:?} is neither a URI nor an absolute path"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn fifos_are_private_and_removed() {
        let parent = tempfile::tempdir().expect("a directory");
        for (terminal, want) in [(false, 3), (true, 2)] {
            let kind = IoKind::Fifos { terminal };
            let stdio = Stdio::create(&kind, Some(parent.path()), "c1").expect("makes fifos");
            let directory = stdio.directory.clone().expect("was made");
            assert_eq!(fs::metadata(&directory).expect("is there").mode() & 0o777, 0o700);
            let entries: Vec<_> = fs::read_dir(&directory).expect("reads").flatten().collect();
            assert_eq!(entries.len(), want, "terminal: {terminal}");
            assert!(entries.iter().all(|e| e.file_type().expect("has a type").is_fifo()));
            drop(stdio);
            assert!(!directory.exists());
        }
    }

    #[test]
    fn directories_of_clients() {
        let cases = [
            ("ours", "/run/gantry/fifo/ctr-1-2", true),
            ("ours elsewhere", "/tmp/ctr-1-2", true),
            ("containerd's", "/run/containerd/fifo/2154162806", true),
            ("dockerd's", "/run/docker/containerd/c1", false),
            ("the directory of all", "/run/containerd/fifo", false),
            ("relative", "ctr-1-2", false),
        ];
        for (case, directory, want) in cases {
            assert_eq!(is_made_by_a_client(Path::new(directory)), want, "{case}");
        }
    }

    #[test]
    fn log_uris() {
        let cases = [
            ("/var/log/c", Some("file:///var/log/c")),
            ("binary:///bin/logger?id=c", Some("binary:///bin/logger?id=c")),
            ("relative", None),
            ("http://x", None),
        ];
        for (uri, want) in cases {
            assert_eq!(log_uri(uri).ok().as_deref(), want, "{uri}");
        }
    }
}
