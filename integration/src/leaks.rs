//! What a test has left behind.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Result, bail};

use crate::{
    stage::{self, Stage},
    wait,
};

/// How long what a test has ended may take to go: a leak is shown soon, a slow end is none.
const PATIENCE: Duration = Duration::from_secs(8);

/// Everything that a container can leave: each thing by a line that names it.
///
/// Taken before and after a test; the second must have nothing that the first has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory(BTreeSet<String>);

impl Inventory {
    /// Looks at the stage: processes, mounts, cgroups of `namespace`, and files below `/run`.
    pub fn take(namespace: &str) -> Self {
        let mut found = BTreeSet::new();
        for pid in Stage::outside().map(stage::descendants).unwrap_or_default() {
            let pid = pid.as_raw_nonzero();
            // A process that has ended meanwhile has no name, and is no leak.
            if let Ok(name) = fs::read_to_string(format!("/proc/{pid}/cmdline")) {
                found.insert(format!("process {}", name.replace('\0', " ").trim_end()));
            }
        }
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            found.insert(format!("mount {}", line.split(' ').nth(4).unwrap_or_default()));
        }
        for directory in stage::cgroups(namespace) {
            // The namespace's own cgroup stays for its next container, as runc leaves it.
            if directory.file_name().is_some_and(|name| name != namespace) {
                found.insert(format!("cgroup {}", directory.display()));
            }
        }
        files(Path::new("/run"), &mut found);
        Self(found)
    }

    /// Waits until nothing is there that was not in `self`.
    ///
    /// # Errors
    ///
    /// Something stays; the error names all of it.
    pub fn wait_restored(&self, namespace: &str) -> Result<()> {
        let mut more = Vec::new();
        let result = wait::until_true_within(PATIENCE, "nothing left", || {
            let now = Self::take(namespace);
            more = now.0.difference(&self.0).cloned().collect();
            more.is_empty()
        });
        match result {
            Ok(()) => Ok(()),
            Err(_) => bail!("left behind: {}", more.join("; ")),
        }
    }
}

/// Directories that daemons and runtimes make once and keep, by their last name.
///
/// Without these a first test would be blamed for what any first container makes.
fn kept(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("gantry-")
        || ["containerd", "fifo", "gantry", "s", "runc", "crun", "runc-rs"].contains(&&*name)
}

fn files(directory: &Path, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !(is_directory && kept(&path)) {
            found.insert(format!("file {}", path.display()));
        }
        if is_directory {
            files(&path, found);
        }
    }
}
