//! /dev of the container: nodes, the usual links, and the multiplexer of terminals.
//!
//! The directory is opened once, without following symlinks (CVE-2026-41579), and everything is
//! made relative to its descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, chownat, fstat, makedev, mknodat, openat, stat,
        statat, symlinkat, unlinkat,
    },
    io::Errno,
    process::{Gid, Uid, umask},
};

use crate::{
    error::Error,
    mount::{attach, target},
    spec,
};

/// The devices that every container has: name, major and minor number.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("dev/null", 1, 3),
    ("dev/random", 1, 8),
    ("dev/full", 1, 7),
    ("dev/tty", 5, 0),
    ("dev/zero", 1, 5),
    ("dev/urandom", 1, 9),
];

const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// A node to make; the path is relative to the root and clean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    path: String,
    kind: FileType,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Node {
    /// The path, relative to the root and clean.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// Lists the nodes of a container: the default ones, replaced and followed by its own.
pub(crate) fn plan(devices: &[spec::Device]) -> Vec<Node> {
    let number = |number: i64| u32::try_from(number).unwrap_or(0);
    let own = devices.iter().map(|device| Node {
        path: target::clean(&device.path),
        kind: match device.kind.as_str() {
            "b" => FileType::BlockDevice,
            "p" => FileType::Fifo,
            _ => FileType::CharacterDevice,
        },
        major: number(device.major),
        minor: number(device.minor),
        mode: device.file_mode.unwrap_or(0o666) & 0o7777,
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
    });
    let mut nodes: Vec<Node> = DEFAULT
        .iter()
        .map(|&(path, major, minor)| Node {
            path: path.to_owned(),
            kind: FileType::CharacterDevice,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    for node in own {
        match nodes.iter_mut().find(|known| known.path == node.path) {
            Some(known) => *known = node,
            None => nodes.push(node),
        }
    }
    // Terminals are made by devpts, whatever the configuration says.
    nodes.retain(|node| node.path != "dev/ptmx");
    nodes
}

/// Makes nodes and links. With `bind` (in a user namespace, where nodes cannot be made) the host's
/// own devices are shown instead.
pub(super) fn make(root: BorrowedFd<'_>, nodes: &[Node], bind: bool) -> Result<(), Error> {
    let fail = |error| Error::file("open", "/dev", error);
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let dev = match target::open_plain(root, "dev", flags) {
        Err(Errno::NOENT) => target::make_directory(root, "dev")?,
        result => result.map_err(fail)?,
    };
    let old = umask(Mode::empty());
    let result = nodes.iter().try_for_each(|node| make_node(root, &dev, node, bind));
    umask(old);
    result?;
    links(&dev)
}

fn make_node(root: BorrowedFd<'_>, dev: &OwnedFd, node: &Node, bind: bool) -> Result<(), Error> {
    let fail = |error| Error::file("mknod", format!("/{}", node.path), error);
    let (parent, name) = node.path.rsplit_once('/').unwrap_or(("", &node.path));
    if name.is_empty() {
        return Err(fail(Errno::INVAL));
    }
    let other = (parent != "dev").then(|| target::make_directory(root, parent)).transpose()?;
    let directory = other.as_ref().unwrap_or(dev);
    if bind {
        return bind_node(directory, name, node);
    }
    let device = makedev(node.major, node.minor);
    match mknodat(directory, name, node.kind, Mode::from_raw_mode(node.mode), device) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
            let same = FileType::from_raw_mode(found.st_mode) == node.kind
                && (found.st_rdev == device || node.kind == FileType::Fifo);
            if !same {
                return Err(fail(Errno::EXIST));
            }
        }
        Err(Errno::PERM) => return bind_node(directory, name, node),
        Err(error) => return Err(fail(error)),
    }
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    if (node.uid, node.gid) != (0, 0) {
        chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
    }
    Ok(())
}

/// Shows the host's device of the same name.
fn bind_node(directory: &OwnedFd, name: &str, node: &Node) -> Result<(), Error> {
    let target = target::make_file(directory.as_fd(), name)?;
    let source = format!("/{}", node.path);
    let tree = attach::clone_tree(source.as_ref(), false)?;
    let fail = |error| Error::file("bind", &source, error);
    let found = fstat(&tree).map_err(fail)?;
    if FileType::from_raw_mode(found.st_mode) != node.kind {
        return Err(fail(Errno::NODEV));
    }
    attach::put(tree.as_fd(), target.as_fd()).map_err(fail)
}

fn links(dev: &OwnedFd) -> Result<(), Error> {
    let core = stat("/proc/kcore").is_ok().then_some(("core", "/proc/kcore"));
    for (name, to) in LINKS.into_iter().chain(core) {
        match symlinkat(to, dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::file("symlink", format!("/dev/{name}"), error)),
        }
    }
    let fail = |error| Error::file("symlink", "/dev/ptmx", error);
    match unlinkat(dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(fail(error)),
    }
    symlinkat("pts/ptmx", dev, "ptmx").map_err(fail)
}

/// Opens the container's /dev/null in place of every standard stream that is the host's, so that no
/// descriptor of a host's file is left.
pub(super) fn reopen_null() -> Result<(), Error> {
    let fail = |error| Error::file("open", "/dev/null", error);
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let null = match openat(CWD, "/dev/null", flags, Mode::empty()) {
        Ok(null) => null,
        Err(_) => return Ok(()),
    };
    let own = fstat(&null).map_err(fail)?;
    let device = own.st_rdev;
    if FileType::from_raw_mode(own.st_mode) != FileType::CharacterDevice || device != makedev(1, 3)
    {
        // What the image has there is no /dev/null.
        return Ok(());
    }
    for number in 0..=2 {
        let Some(stream) = sys::descriptors::standard(number) else { continue };
        let found = fstat(stream).map_err(fail)?;
        let is_device = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
        if !is_device || found.st_rdev != device {
            continue;
        }
        match number {
            0 => rustix::stdio::dup2_stdin(&null),
            1 => rustix::stdio::dup2_stdout(&null),
            _ => rustix::stdio::dup2_stderr(&null),
        }
        .map_err(fail)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_devices_replace_default_ones() {
        let device = |path: &str, kind: &str| spec::Device {
            path: path.to_owned(),
            kind: kind.to_owned(),
            major: 9,
            minor: 9,
            uid: Some(5),
            ..spec::Device::default()
        };
        let nodes =
            plan(&[device("/dev/null", "c"), device("/x/y", "b"), device("/dev/ptmx", "c")]);
        let paths: Vec<_> = nodes.iter().map(|node| node.path.as_str()).collect();
        let names =
            ["dev/null", "dev/random", "dev/full", "dev/tty", "dev/zero", "dev/urandom", "x/y"];
        assert_eq!(paths, names);
        assert_eq!((nodes[0].major, nodes[0].uid), (9, 5));
        assert_eq!(nodes[6].kind, FileType::BlockDevice);
    }
}
