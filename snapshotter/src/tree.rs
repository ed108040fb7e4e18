//! What a snapshot's tree takes, and copies of it.

mod copy;

use std::{
    collections::HashSet,
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, statat},
    io::Errno,
};
use sys::tree::{Visit, open_root, walk};

pub(crate) use copy::{copy, copy_extents};

use crate::Usage;

/// The disk space of the tree `path`, its root included.
pub(crate) fn usage(path: &Path) -> io::Result<Usage> {
    let mut sum = Sum::default();
    let root = open_root(path)?;
    sum.add(&fstat(&root)?);
    walk(root, &mut sum)?;
    Ok(sum.usage)
}

/// Sets the mode of `path`, whatever the umask of this process is.
pub(crate) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Opens the regular file `name` in `directory` for reading.
///
/// To open a device can do something to it, and to open a pipe wakes who waits at its other end. So what
/// the name stands for is looked at first, through a descriptor that does neither, and then that very
/// file is opened.
///
/// # Errors
///
/// It is gone, or is no regular file: somebody has changed the tree.
pub(crate) fn open_file(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = match openat(directory, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Err(changed()),
        found => found?,
    };
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
        return Err(changed());
    }
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(openat(CWD, path, flags, Mode::empty())?))
}

/// What a tree is not supposed to be while it is read.
pub(crate) fn changed() -> io::Error {
    io::Error::other("the tree was changed while it was read")
}

/// Adds up [`Usage`].
#[derive(Default)]
struct Sum {
    usage: Usage,
    /// Files with several names, which count at the first.
    seen: HashSet<(u64, u64)>,
}

impl Sum {
    fn add(&mut self, stat: &Stat) {
        let linked =
            stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        if linked && !self.seen.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        self.usage.inodes += 1;
        self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
    }
}

impl Visit for Sum {
    fn file(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            stat => self.add(&stat?),
        }
        Ok(())
    }

    fn enter(
        &mut self,
        _directory: BorrowedFd<'_>,
        _name: &CStr,
        child: BorrowedFd<'_>,
    ) -> io::Result<()> {
        self.add(&fstat(child)?);
        Ok(())
    }

    fn leave(&mut self, _directory: BorrowedFd<'_>, _name: &CStr) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::mknodat;

    use super::*;

    /// A device that no driver has, and a socket, say `ENXIO` to who opens them.
    #[test]
    fn only_regular_files_are_opened() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::write(path("file"), "1").unwrap();
        std::fs::create_dir(path("directory")).unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        let device = rustix::fs::makedev(0, 0);
        for (name, kind) in [("pipe", FileType::Fifo), ("device", FileType::CharacterDevice)] {
            mknodat(CWD, path(name), kind, Mode::from_raw_mode(0o600), device).unwrap();
        }
        let directory = open_root(root.path()).unwrap();
        for case in [c"directory", c"link", c"socket", c"pipe", c"device", c"nothing"] {
            let refused = open_file(directory.as_fd(), case).expect_err("is no file").to_string();
            assert_eq!(refused, changed().to_string(), "{case:?}");
        }
        let file = open_file(directory.as_fd(), c"file").unwrap();
        assert_eq!(io::read_to_string(file).unwrap(), "1");
    }

    #[test]
    fn usage_counts_links_once() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a"), vec![1; 5000]).unwrap();
        std::fs::hard_link(root.path().join("a"), root.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("c")).unwrap();
        let one = usage(root.path()).unwrap();
        assert_eq!(one.inodes, 3);
        assert!((8192..=16384).contains(&one.bytes), "{one:?}");
    }
}
