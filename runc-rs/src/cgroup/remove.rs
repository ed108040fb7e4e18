//! Removes groups.
//!
//! A group cannot be removed while a process is in it, and a process that has died is in it
//! until it has let go of everything. Whoever removes the group just after the container has
//! ended may therefore be too early, by microseconds mostly.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use rustix::fs::rmdir;

use sys::error::Chain;

use super::{
    Cgroup, Error,
    directory::Directory,
    processes::{children, is_gone},
};
use crate::log;

/// How long a group may stay busy.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The first and the longest pause between attempts.
const PAUSE_MIN: Duration = Duration::from_micros(200);
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// How deep groups are removed that the container has made itself.
const DEPTH_MAX: usize = 64;

impl Cgroup {
    /// Removes the groups, with those below them; groups that do not exist are removed already.
    ///
    /// All are tried, even after an error.
    ///
    /// # Errors
    ///
    /// - `File`: a group has processes that do not go away, or may not be removed. Of several
    ///   errors this is the first.
    pub fn destroy(&self) -> Result<(), Error> {
        if let Some(unit) = &self.unit
            && let Err(error) = unit.stop()
        {
            // The groups may be gone all the same, or go by hand.
            log::warn(&format!("stop unit: {}", Chain(&error)));
        }
        let deadline = Instant::now() + TIMEOUT;
        let mut result = Ok(());
        for group in &self.groups {
            if let Err(source) = remove(&group.path, deadline)
                && !group.left_out.get()
                && result.is_ok()
            {
                result = Err(Error::File {
                    operation: "remove",
                    path: group.path.clone(),
                    source: source.into(),
                });
            }
        }
        result
    }
}

impl Cgroup {
    /// Removes the group that says which processes there are, if it is empty, and says whether
    /// it was. There is nobody to be killed then, and the kernel has decided it in one step.
    pub(crate) fn remove_unused(&self) -> bool {
        self.tracking().is_ok_and(|group| rmdir(group.path()).is_ok())
    }

    /// Removes those groups that nobody uses, for it is not known whose they are.
    pub(crate) fn forget(&self) {
        for group in &self.groups {
            let _ = rmdir(&group.path);
        }
    }
}

fn remove(path: &std::path::Path, deadline: Instant) -> io::Result<()> {
    let mut pause = PAUSE_MIN;
    loop {
        let error = match rmdir(path) {
            Ok(()) => return Ok(()),
            Err(error) => io::Error::from(error),
        };
        if is_gone(&error) {
            return Ok(());
        }
        if error.kind() != io::ErrorKind::ResourceBusy || Instant::now() >= deadline {
            return Err(error);
        }
        if let Ok(directory) = Directory::open(path) {
            remove_below(&directory, DEPTH_MAX);
        }
        if rmdir(path).is_ok() {
            return Ok(());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Removes what can be removed, from the bottom.
fn remove_below(directory: &Directory, depth: usize) {
    if depth == 0 {
        return;
    }
    for child in children(directory).unwrap_or_default() {
        remove_below(&child, depth - 1);
        // What stays makes the group above stay, which is reported there.
        let _ = rmdir(child.path());
    }
}
