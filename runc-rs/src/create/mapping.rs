//! Ids of user namespaces: of the container's, and of those that idmapped mounts take them from.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::Command,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    process::{Pid, WaitOptions, getpid, getppid, set_parent_process_death_signal, waitpid},
};
use sys::mount_attributes::{Attributes, set_attributes};

use crate::{
    error::Error,
    init::clone::{Request, Side, clone3},
    mount::IdMap,
    proc,
    spec::{IdMapping, Linux, NamespaceKind},
};

/// Writes the mappings of the container's user namespace.
pub(super) fn write(pid: i32, linux: &Linux, rootless: bool) -> Result<(), Error> {
    if rootless {
        return write_rootless(pid, linux);
    }
    write_file(pid, "uid_map", &lines(&linux.uid_mappings))?;
    write_file(pid, "gid_map", &lines(&linux.gid_mappings))
}

/// Without rights, one's own id can be mapped; for more there are helpers that have them.
fn write_rootless(pid: i32, linux: &Linux) -> Result<(), Error> {
    let single = |mappings: &[IdMapping]| matches!(mappings, [one] if one.size == 1);
    if single(&linux.uid_mappings) {
        write_file(pid, "uid_map", &lines(&linux.uid_mappings))?;
    } else {
        run_helper("newuidmap", pid, &linux.uid_mappings)?;
    }
    if single(&linux.gid_mappings) {
        write_file(pid, "setgroups", "deny")?;
        write_file(pid, "gid_map", &lines(&linux.gid_mappings))
    } else {
        run_helper("newgidmap", pid, &linux.gid_mappings)
    }
}

fn run_helper(program: &'static str, pid: i32, mappings: &[IdMapping]) -> Result<(), Error> {
    let numbers = mappings.iter().flat_map(|map| [map.container_id, map.host_id, map.size]);
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .output()
        .map_err(|error| Error::system("run", program, error))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(Error::Process(format!("{program}: {}", text.trim())))
}

fn write_file(pid: i32, name: &str, text: &str) -> Result<(), Error> {
    let path = format!("/proc/{pid}/{name}");
    proc::write(CWD, &path, text).map_err(|error| Error::file("write", &path, error))
}

fn lines(mappings: &[IdMapping]) -> String {
    mappings
        .iter()
        .map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.size))
        .collect()
}

/// Maps the ids of a detached tree.
pub(super) fn map_tree(tree: BorrowedFd<'_>, idmap: &IdMap, linux: &Linux) -> Result<(), Error> {
    let namespace = user_namespace(idmap, linux)?;
    let attributes = Attributes {
        set: libc::MOUNT_ATTR_IDMAP,
        user_namespace: Some(namespace.as_fd()),
        ..Attributes::default()
    };
    set_attributes(tree, idmap.recursive, &attributes)
        .map_err(|error| Error::system("map ids of", "mount", error))
}

/// A user namespace with the mount's mappings, or else the container's. It lives as long as the
/// descriptor; the process in which it was made is gone when this returns.
fn user_namespace(idmap: &IdMap, linux: &Linux) -> Result<OwnedFd, Error> {
    let own = idmap.uids.is_empty();
    if let (true, Some(user)) = (own, linux.namespace(NamespaceKind::User))
        && !user.path.is_empty()
    {
        return open(&user.path);
    }
    let (uids, gids) =
        if own { (&linux.uid_mappings, &linux.gid_mappings) } else { (&idmap.uids, &idmap.gids) };
    if uids.is_empty() || own && linux.namespace(NamespaceKind::User).is_none() {
        return Err(Error::Process(
            "id-mapped mounts must have both uid and gid mappings specified".to_owned(),
        ));
    }
    let fail = |error| Error::system("make", "user namespace for mount", error);
    let request = Request { namespaces: NamespaceKind::User.flag(), ..Request::default() };
    let own = getpid();
    let child = match clone3(&request).map_err(fail)? {
        Side::Parent(child) => child,
        Side::Child => wait_to_be_killed(own),
    };
    let result = write_file(child.pid, "uid_map", &lines(uids))
        .and_then(|()| write_file(child.pid, "gid_map", &lines(gids)))
        .and_then(|()| open(&format!("/proc/{}/ns/user", child.pid)));
    sys::pidfd::send_signal(child.pidfd.as_fd(), libc::SIGKILL).map_err(fail)?;
    if let Some(pid) = Pid::from_raw(child.pid) {
        waitpid(Some(pid), WaitOptions::empty()).map_err(|error| fail(error.into()))?;
    }
    result
}

fn wait_to_be_killed(parent: Pid) -> ! {
    // Not longer than its parent lives, which may have ended before it could be asked for that.
    let kill = Some(rustix::process::Signal::KILL);
    if set_parent_process_death_signal(kill).is_err() || getppid() != Some(parent) {
        sys::execute::exit_now(1);
    }
    loop {
        let _ = rustix::event::poll(&mut [], None);
    }
}

fn open(path: &str) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|error: Errno| Error::file("open", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_lines() {
        let map = |container_id, host_id, size| IdMapping { container_id, host_id, size };
        let maps = [map(0, 1000, 1), map(1, 100_000, 65_535)];
        assert_eq!(lines(&maps), "0 1000 1\n1 100000 65535\n");
    }
}
