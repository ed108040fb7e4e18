//! Tells when processes of a container are killed for lack of memory.
//!
//! v1 signals an eventfd when the group runs out of memory; v2 changes the file
//! `memory.events`, which inotify reports. Both also happen for other reasons, one of which is
//! that the group is removed; so whoever is woken compares the [number of
//! kills](OomWatch::kills) with the last one. v1 signals before it kills, so that the number may
//! rise only a moment later: whoever finds the old one looks again.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{CWD, Mode, OFlags, inotify, openat},
    io::{Errno, pread, read},
};

use super::{Cgroup, Error};

impl Cgroup {
    /// Begins to watch for kills.
    ///
    /// # Errors
    ///
    /// - `NoController`: there is no memory controller.
    /// - `File`, `Write`: the group is gone, or the kernel refuses.
    pub fn oom_watch(&self) -> Result<OomWatch, Error> {
        let directory = self.controller("memory")?;
        let name = if self.unified { "memory.events" } else { "memory.oom_control" };
        let error = |operation: &'static str| {
            move |source: Errno| directory.error(operation, name, source.into())
        };
        let count = directory
            .open_file(name, OFlags::RDONLY)
            .map_err(|source| directory.error("open", name, source))?;
        let path = directory.path().join(name);
        if self.unified {
            let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
            let events = inotify::init(flags).map_err(error("watch"))?;
            inotify::add_watch(&events, &path, inotify::WatchFlags::MODIFY)
                .map_err(error("watch"))?;
            return Ok(OomWatch { events, count, path, unified: true });
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let events = eventfd(0, flags).map_err(error("watch"))?;
        let numbers = {
            use std::os::fd::AsRawFd;
            format!("{} {}", events.as_raw_fd(), count.as_raw_fd())
        };
        directory.must_write("cgroup.event_control", &numbers)?;
        Ok(OomWatch { events, count, path, unified: false })
    }

    /// How many processes have been killed for lack of memory.
    ///
    /// # Errors
    ///
    /// - `NoController`, `File`: there is no such group, or it does not say.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        let directory = self.controller("memory")?;
        let name = if self.unified { "memory.events" } else { "memory.oom_control" };
        let text = directory.must_read(name)?;
        parse(&text)
            .ok_or_else(|| directory.error("parse", name, io::ErrorKind::InvalidData.into()))
    }
}

/// A watch for kills; its descriptor is readable when there may be news.
#[derive(Debug)]
pub struct OomWatch {
    /// An eventfd, or an inotify instance.
    events: OwnedFd,
    /// The file with the count.
    count: OwnedFd,
    path: PathBuf,
    unified: bool,
}

impl OomWatch {
    /// Whether the descriptor may be readable before the kill that it tells of is counted, as on v1.
    pub fn counts_late(&self) -> bool {
        !self.unified
    }

    /// Takes the news, so that the descriptor is not readable until there are others; returns
    /// how many processes have been killed since the group was made, or nothing if the group is
    /// gone.
    ///
    /// # Errors
    ///
    /// - `File`: the group is there, but cannot be read.
    pub fn kills(&self) -> Result<Option<u64>, Error> {
        let mut bytes = [0; 4096];
        // Each read takes one eventfd count or some inotify events.
        while read(&self.events, &mut bytes).is_ok_and(|len| len == bytes.len()) {}
        let error = |operation, source: io::Error| Error::File {
            operation,
            path: self.path.clone(),
            source: source.into(),
        };
        let len = match pread(&self.count, &mut bytes, 0) {
            Ok(len) => len,
            Err(Errno::NODEV) => return Ok(None),
            Err(source) => return Err(error("read", source.into())),
        };
        // An open file of v1 can be read after its group is gone.
        if openat(CWD, &self.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).is_err() {
            return Ok(None);
        }
        let text = str::from_utf8(&bytes[..len]).unwrap_or_default();
        match parse(text) {
            Some(count) => Ok(Some(count)),
            None => Err(error("parse", io::ErrorKind::InvalidData.into())),
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim_end().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count() {
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        let v2 = "low 0\nhigh 0\nmax 3\noom 1\noom_kill 7\noom_group_kill 9\n";
        assert_eq!([v1, v2, ""].map(parse), [Some(3), Some(7), None]);
    }
}
