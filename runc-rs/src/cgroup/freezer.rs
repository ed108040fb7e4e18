//! Stops and continues all processes of a container.
//!
//! A v2 group says by an event when it is frozen. A v1 group must be asked, and asked again:
//! processes that are made meanwhile keep it "freezing", until it is told once more.

use std::{
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
};

use super::{Cgroup, Error, directory::Directory, processes::is_gone};

/// How long freezing may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How many times a v1 group is told to freeze before it is thawed for a moment, which helps
/// where processes keep appearing.
const ROUND: u32 = 50;

impl Cgroup {
    /// Stops all processes, and returns when they are stopped.
    ///
    /// # Errors
    ///
    /// - `Timeout`: they did not all stop; they are let go again.
    /// - `NoController`, `File`, `Write`: there is no such group.
    pub fn freeze(&self) -> Result<(), Error> {
        let result = if self.unified {
            let directory = self.controller("")?;
            directory.must_write("cgroup.freeze", "1")?;
            wait_frozen(directory)
        } else {
            freeze_legacy(self.controller("freezer")?)
        };
        if result.is_err() {
            // A group that is half frozen is worse than the error, which is returned.
            let _ = self.thaw();
        }
        result
    }

    /// Lets all processes go on.
    ///
    /// # Errors
    ///
    /// - `NoController`, `File`, `Write`: there is no such group.
    pub fn thaw(&self) -> Result<(), Error> {
        if self.unified {
            self.controller("")?.must_write("cgroup.freeze", "0")
        } else {
            self.controller("freezer")?.must_write("freezer.state", "THAWED")
        }
    }

    /// Lets all processes go on, if they are stopped and the group is not gone. Whoever has killed
    /// a container needs this, and may come after somebody who has removed it.
    ///
    /// # Errors
    ///
    /// - `NoController`, `File`, `Write`: the group cannot be read or told.
    pub fn thaw_if_frozen(&self) -> Result<(), Error> {
        let thawed = match self.is_frozen() {
            Ok(true) => self.thaw(),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        match thawed {
            Err(Error::File { source, .. } | Error::Write { source, .. }) if is_gone(&source) => {
                Ok(())
            }
            result => result,
        }
    }

    /// Whether the group is frozen, or is about to be.
    ///
    /// # Errors
    ///
    /// - `NoController`, `File`: there is no such group.
    pub fn is_frozen(&self) -> Result<bool, Error> {
        if self.unified {
            Ok(self.controller("")?.must_read("cgroup.freeze")?.trim_end() == "1")
        } else {
            let state = self.controller("freezer")?.must_read("freezer.state")?;
            Ok(state.trim_end() != "THAWED")
        }
    }
}

fn freeze_legacy(directory: &Directory) -> Result<(), Error> {
    let deadline = Instant::now() + TIMEOUT;
    for attempt in 1.. {
        directory.must_write("freezer.state", "FROZEN")?;
        if directory.must_read("freezer.state")?.trim_end() == "FROZEN" {
            return Ok(());
        }
        if Instant::now() >= deadline {
            break;
        }
        if attempt % ROUND == 0 {
            directory.must_write("freezer.state", "THAWED")?;
            thread::sleep(Duration::from_millis(10));
        }
    }
    Err(Error::Timeout { what: "frozen", path: directory.path().to_owned() })
}

fn wait_frozen(directory: &Directory) -> Result<(), Error> {
    let events = directory
        .open_file("cgroup.events", OFlags::RDONLY)
        .map_err(|source| directory.error("open", "cgroup.events", source))?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let mut text = [0; 256];
        let len = rustix::io::pread(&events, &mut text, 0)
            .map_err(|error| directory.error("read", "cgroup.events", error.into()))?;
        if text[..len].split(|&byte| byte == b'\n').any(|line| line == b"frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout { what: "frozen", path: directory.path().to_owned() });
        }
        let left = Timespec::try_from(left).ok();
        let mut poll_fd = [PollFd::new(&events, PollFlags::PRI)];
        // Interrupted or not, the file says what is the case.
        let _ = poll(&mut poll_fd, left.as_ref());
    }
}
