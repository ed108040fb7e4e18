//! Which processes are in the groups, moving them in, and killing them.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::OFlags,
    process::{Pid, Signal, kill_process},
};

use super::{Cgroup, Error, directory::Directory, systemd};

/// How long a process may be too new to be moved.
const JOIN_TIMEOUT: Duration = Duration::from_millis(200);

/// How deep groups below a container's are looked for.
const DEPTH_MAX: usize = 64;

/// The file with the threads of a v1 group.
const THREADS: &str = "tasks";

/// The file with the processes of a group.
const PROCESSES: &str = "cgroup.procs";

impl Cgroup {
    /// Moves the process `pid` into every group.
    ///
    /// # Errors
    ///
    /// - `File`, `Write`: a group is gone, or the kernel refuses the process.
    pub fn join(&self, pid: u32) -> Result<(), Error> {
        let pid = pid.to_string();
        for group in self.groups.iter().filter(|group| !group.left_out.get()) {
            join(group.must_open()?, &pid)?;
        }
        Ok(())
    }

    /// Moves the process `pid` into the groups of those controllers that systemd does not know.
    pub(super) fn join_where_systemd_does_not(&self, pid: u32) -> Result<(), Error> {
        let pid = pid.to_string();
        for group in &self.groups {
            if !(group.has("") || group.has("name=systemd")) {
                join(group.must_open()?, &pid)?;
            }
        }
        Ok(())
    }

    /// What a new process comes in by: the v2 group's directory, for `CLONE_INTO_CGROUP`, and for
    /// each v1 group a file to which the process itself writes `0`, and which needs no rights
    /// any more.
    ///
    /// This is [`join`](Self::join) without its price. To move a process from outside, or a
    /// whole one, the kernel locks out every fork and exit on the machine and waits for an RCU
    /// grace period, often 10 ms; a thread that moves itself (`tasks`, not `cgroup.procs`)
    /// holds up nobody (`cgroup_procs_write_start` in the kernel).
    ///
    /// # Errors
    ///
    /// - `File`: a group is gone.
    pub fn entrances(&self) -> Result<(Option<BorrowedFd<'_>>, Vec<OwnedFd>), Error> {
        let mut unified = None;
        let mut files = Vec::new();
        if self.moves_by_systemd() || self.unit.is_some() && !self.exists() {
            return Ok((unified, files));
        }
        for group in self.groups.iter().filter(|group| !group.left_out.get()) {
            let directory = group.must_open()?;
            if self.unified || group.has("") {
                unified = Some(directory.as_fd());
                continue;
            }
            let file = directory.open_file(THREADS, OFlags::WRONLY);
            files.push(file.map_err(|source| directory.error("open", THREADS, source))?);
        }
        Ok((unified, files))
    }

    /// Whether a new process is to be moved in by systemd: a user may write to groups only below
    /// the one that systemd has delegated, and need not be there.
    pub fn moves_by_systemd(&self) -> bool {
        self.unit.as_ref().is_some_and(systemd::Unit::is_users)
    }

    /// Has systemd move the process `pid` in, or into the group `below`.
    ///
    /// # Errors
    ///
    /// - `Systemd`: it did not.
    pub fn attach(&self, below: &str, pid: u32) -> Result<(), Error> {
        match &self.unit {
            Some(unit) => Ok(unit.attach(below, pid)?),
            None => Ok(()),
        }
    }

    /// The v2 group in which the process `pid` is, if that is this one or one below it, or if this
    /// one is gone.
    ///
    /// A container may move its init, and once it switches controllers on for groups below, no
    /// process may be in its own any more. One without a cgroup namespace, with the host's groups
    /// writable, may have moved it anywhere, and the empty group may have been removed since.
    pub fn directory_of(&self, pid: u32) -> Option<OwnedFd> {
        let root = Path::new(super::path::ROOT);
        let group = self.group("").filter(|_| self.unified)?;
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let own = match group.directory() {
            Ok(own) => own,
            Err(error) if is_gone(&error) => {
                let path = below(root, Path::new(path)).ok()?;
                return Directory::open(&path).ok()?.as_fd().try_clone_to_owned().ok();
            }
            Err(_) => return None,
        };
        let below = root.join(path).strip_prefix(&group.path).ok()?.to_owned();
        if below.as_os_str().is_empty() {
            return own.as_fd().try_clone_to_owned().ok();
        }
        own.open_below(&below).ok()
    }

    /// Moves the process `pid` into the groups `below` these, each of which must exist.
    ///
    /// # Errors
    ///
    /// - `Resources`: `below` leads out of the group.
    /// - `File`, `Write`: a group does not exist, or the kernel refuses the process.
    pub fn join_below(&self, below: &Path, pid: u32) -> Result<(), Error> {
        let pid = pid.to_string();
        for group in self.groups.iter().filter(|group| !group.left_out.get()) {
            join_in(&group.path, below, &pid)?;
        }
        Ok(())
    }

    /// Moves the process `pid` into the group `below` that of one controller.
    ///
    /// # Errors
    ///
    /// As [`join_below`](Self::join_below), and `NoController`.
    pub fn join_controller_below(
        &self,
        controller: &str,
        below: &Path,
        pid: u32,
    ) -> Result<(), Error> {
        let controller = if controller == "systemd" { "name=systemd" } else { controller };
        let directory = match self.controller(controller) {
            Err(Error::NoController { controller }) => {
                return Err(Error::Resources(format!("unknown controller {controller}")));
            }
            result => result?,
        };
        join_in(directory.path(), below, &pid.to_string())
    }

    /// The processes in the group and, if `recursive`, in the groups below it.
    ///
    /// # Errors
    ///
    /// - `File`: the group is gone or cannot be read.
    pub fn pids(&self, recursive: bool) -> Result<Vec<u32>, Error> {
        let mut pids = Vec::new();
        collect(self.tracking()?, if recursive { DEPTH_MAX } else { 0 }, &mut pids)?;
        Ok(pids)
    }

    /// The processes in the group and below it; none when it is gone, or half of its v1 groups are:
    /// systemd removes those of a unit that has ended.
    ///
    /// # Errors
    ///
    /// - `File`: the group cannot be read.
    pub fn pids_left(&self) -> Result<Vec<u32>, Error> {
        match self.pids(true) {
            Err(Error::File { source, .. }) if is_gone(&source) => Ok(Vec::new()),
            result => result,
        }
    }

    /// Sends `signal` to every process in the group and below it.
    ///
    /// No process escapes by forking: v2 kills the whole group at once, and for other signals,
    /// and on v1, the group is frozen meanwhile.
    ///
    /// # Errors
    ///
    /// - `File`, `Write`: the group cannot be used. That it is gone, as systemd has it go with its
    ///   last process, is no error.
    pub fn kill_all(&self, signal: Signal) -> Result<(), Error> {
        match self.kill_in_group(signal) {
            Err(Error::File { source, .. } | Error::Write { source, .. }) if is_gone(&source) => {
                Ok(())
            }
            result => result,
        }
    }

    fn kill_in_group(&self, signal: Signal) -> Result<(), Error> {
        if signal == Signal::KILL && self.kill_unified() {
            // A process that is frozen by v1 does not die before it is thawed.
            return if self.unified { Ok(()) } else { self.thaw() };
        }
        let frozen = self.freeze().is_ok();
        // Groups may be removed already, by a runtime that did not come further.
        let result = self.pids_left().map(|pids| {
            for pid in pids {
                // It may be gone since; and there is nothing to do about one that is not ours.
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                let _ = pid.map(|pid| kill_process(pid, signal));
            }
        });
        if frozen {
            self.thaw()?;
        }
        result
    }

    /// Kills everything by way of the v2 hierarchy, since Linux 5.14.
    fn kill_unified(&self) -> bool {
        let Some(group) = self.group("") else { return false };
        group.directory().is_ok_and(|directory| directory.write("cgroup.kill", "1").is_ok())
    }
}

fn join(directory: &Directory, pid: &str) -> Result<(), Error> {
    let deadline = Instant::now() + JOIN_TIMEOUT;
    loop {
        match directory.write(PROCESSES, pid) {
            Ok(()) => return Ok(()),
            // The kernel says so while a process is still being made (TASK_NEW).
            Err(error)
                if error.raw_os_error() == Some(libc::EINVAL) && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(5));
            }
            Err(source) => {
                return Err(Error::Write {
                    value: pid.to_owned(),
                    path: directory.path().join(PROCESSES),
                    source: source.into(),
                });
            }
        }
    }
}

/// The path `inner` below `base`, and nowhere else.
pub(super) fn below(base: &Path, inner: &Path) -> Result<PathBuf, Error> {
    use std::path::Component::{CurDir, Normal, RootDir};
    let mut path = base.to_owned();
    for component in inner.components() {
        match component {
            Normal(name) => path.push(name),
            RootDir | CurDir => {}
            _ => {
                return Err(Error::Resources(format!("bad sub cgroup path: {}", inner.display())));
            }
        }
    }
    Ok(path)
}

fn join_in(base: &Path, inner: &Path, pid: &str) -> Result<(), Error> {
    let path = below(base, inner)?;
    let open = Directory::open(&path);
    let directory = open.map_err(|source| Error::File {
        operation: "open cgroup",
        path,
        source: source.into(),
    })?;
    join(&directory, pid)
}

fn collect(directory: &Directory, depth: usize, pids: &mut Vec<u32>) -> Result<(), Error> {
    // Threaded groups have no list of processes; theirs are in the group above.
    match directory.read(PROCESSES) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(source) => return Err(directory.error("read", PROCESSES, source)),
    }
    if depth == 0 {
        return Ok(());
    }
    for child in children(directory)? {
        match collect(&child, depth - 1, pids) {
            // Removed in between.
            Err(Error::File { source, .. }) if is_gone(&source) => {}
            result => result?,
        }
    }
    Ok(())
}

/// The groups directly below.
pub(super) fn children(directory: &Directory) -> Result<Vec<Directory>, Error> {
    let fail = |source: io::Error| Error::File {
        operation: "list",
        path: directory.path().to_owned(),
        source: source.into(),
    };
    let mut children = Vec::new();
    let entries = rustix::fs::Dir::read_from(directory).map_err(|error| fail(error.into()))?;
    for entry in entries {
        let entry = entry.map_err(|error| fail(error.into()))?;
        let name = entry.file_name().to_bytes();
        if entry.file_type() != rustix::fs::FileType::Directory || matches!(name, b"." | b"..") {
            continue;
        }
        let name = std::os::unix::ffi::OsStrExt::from_bytes(name);
        match directory.open_child(name) {
            Ok(child) => children.push(child),
            Err(error) if is_gone(&error) => {}
            Err(source) => return Err(fail(source)),
        }
    }
    Ok(children)
}

/// Whether `error` says that a group has been removed.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}
