//! Walks over directory trees that containers made.
//!
//! # Why not `std::fs`
//!
//! A container can nest directories deeper than a path can name, than a process has descriptors,
//! and than a recursive function has stack (`std::fs::remove_dir_all` recurses and holds a
//! descriptor per level). So [`walk`] keeps its own stack, holds [`OPEN_MAX`] descriptors at most,
//! and climbs back over `..`, checking that it got where it came from. It follows no symbolic
//! link and enters no mount, so that deleting a snapshot never deletes what somebody mounted
//! there.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, statat,
        unlinkat,
    },
    io::Errno,
};

/// The descriptors that a walk holds open.
const OPEN_MAX: usize = 64;

/// Deletes the tree `path`, if it is there.
///
/// # Errors
///
/// That of the first file that could not be deleted.
pub fn remove(path: &Path) -> io::Result<()> {
    remove_unless(path, &AtomicBool::new(false))
}

/// [`remove`], of as much as there is until `stop` is set.
///
/// # Errors
///
/// That of the first file that could not be deleted. `Interrupted`: there is something left.
pub fn remove_unless(path: &Path, stop: &AtomicBool) -> io::Result<()> {
    let root = match open_root(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        root => root?,
    };
    walk(root, &mut Remove { stop })?;
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Deletes `name` in `directory`, whatever it is, if it is there.
///
/// # Errors
///
/// That of the first file that could not be deleted.
pub fn remove_at(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        result => return gone(result),
    }
    match descend(directory, name) {
        Err(Errno::NOENT) => return Ok(()),
        root => walk(root?, &mut Remove { stop: &AtomicBool::new(false) })?,
    }
    gone(unlinkat(directory, name, AtFlags::REMOVEDIR))
}

/// Opens the directory `path` for a walk.
///
/// # Errors
///
/// As open(2); `ELOOP` or `ENOTDIR` if it is a symbolic link.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, DIRECTORY, Mode::empty())?)
}

/// How directories are opened for a walk.
pub const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// What to do at each file of a tree.
pub trait Visit {
    /// At what is not a directory.
    ///
    /// # Errors
    ///
    /// Whatever ends the walk.
    fn file(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()>;

    /// Before what is in `child`, which is `name` in `directory`.
    ///
    /// # Errors
    ///
    /// Whatever ends the walk.
    fn enter(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        child: BorrowedFd<'_>,
    ) -> io::Result<()>;

    /// After all that is in `name` in `directory`.
    ///
    /// # Errors
    ///
    /// Whatever ends the walk.
    fn leave(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()>;
}

/// A directory in which a walk is.
struct Level {
    /// `None`: closed because there are too many.
    fd: Option<OwnedFd>,
    device: u64,
    inode: u64,
    /// Its name in the level above.
    name: CString,
    /// Directories in it that are still to be walked.
    directories: Vec<CString>,
}

/// Shows every file below `root` to `visit`, of each directory first those that are not directories.
///
/// What others remove or replace meanwhile is left out.
///
/// # Errors
///
/// That of `visit`, or of reading a directory. `EXDEV`: something is mounted in the tree.
pub fn walk(root: OwnedFd, visit: &mut dyn Visit) -> io::Result<()> {
    let mut levels = vec![level(root, CString::default(), visit)?];
    while let Some(current) = levels.last_mut() {
        let fd = current.fd.as_ref().expect("the innermost level is open");
        let Some(name) = current.directories.pop() else {
            climb(&mut levels, visit)?;
            continue;
        };
        let child = match descend(fd.as_fd(), &name) {
            // Somebody else deleted or replaced it, which races are free to do.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            child => child?,
        };
        visit.enter(fd.as_fd(), &name, child.as_fd())?;
        levels.push(level(child, name, visit)?);
        if let Some(far) = levels.len().checked_sub(OPEN_MAX + 1) {
            levels[far].fd = None;
        }
    }
    Ok(())
}

/// Ends the innermost level.
fn climb(levels: &mut Vec<Level>, visit: &mut dyn Visit) -> io::Result<()> {
    let Some(done) = levels.pop() else { return Ok(()) };
    let Some(above) = levels.last_mut() else { return Ok(()) };
    let fd = match above.fd.take() {
        Some(fd) => fd,
        None => {
            let inner = done.fd.as_ref().expect("the innermost level is open");
            let fd = openat(inner, c"..", DIRECTORY, Mode::empty())?;
            let stat = fstat(&fd)?;
            if (stat.st_dev, stat.st_ino) != (above.device, above.inode) {
                return Err(io::Error::other("the directory was moved during the walk"));
            }
            fd
        }
    };
    visit.leave(fd.as_fd(), &done.name)?;
    above.fd = Some(fd);
    Ok(())
}

fn descend(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    openat2(directory, name, DIRECTORY, Mode::empty(), resolve)
}

/// Visits the files in `fd` and collects the directories.
fn level(fd: OwnedFd, name: CString, visit: &mut dyn Visit) -> io::Result<Level> {
    let stat = fstat(&fd)?;
    let mut directories = Vec::new();
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        if kind == FileType::Directory {
            directories.push(name.to_owned());
        } else {
            visit.file(fd.as_fd(), name)?;
        }
    }
    Ok(Level { fd: Some(fd), device: stat.st_dev, inode: stat.st_ino, name, directories })
}

/// Deletes what it visits.
struct Remove<'s> {
    /// Whether that is to end.
    stop: &'s AtomicBool,
}

impl Remove<'_> {
    fn go_on(&self) -> io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            Err(io::ErrorKind::Interrupted.into())
        } else {
            Ok(())
        }
    }
}

impl Visit for Remove<'_> {
    fn file(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        self.go_on()?;
        gone(unlinkat(directory, name, AtFlags::empty()))
    }

    fn enter(
        &mut self,
        _directory: BorrowedFd<'_>,
        _name: &CStr,
        _child: BorrowedFd<'_>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn leave(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        self.go_on()?;
        gone(unlinkat(directory, name, AtFlags::REMOVEDIR))
    }
}

fn gone(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::mkdirat;

    use super::*;

    /// Makes `depth` nested directories, and a file in the last.
    fn nest(root: &Path, depth: usize) {
        let mut fd = open_root(root).unwrap();
        for _ in 0..depth {
            mkdirat(&fd, c"d", Mode::RWXU).unwrap();
            fd = openat(&fd, c"d", DIRECTORY, Mode::empty()).unwrap();
        }
        openat(&fd, c"f", OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR).unwrap();
    }

    #[test]
    fn deeper_than_paths_and_descriptors() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        std::fs::create_dir(&root).unwrap();
        nest(&root, 5000);
        remove(&root).unwrap();
        assert!(!root.exists());
        remove(&root).unwrap();
    }

    #[test]
    fn remove_follows_no_link() {
        let base = tempfile::tempdir().unwrap();
        let (root, other) = (base.path().join("root"), base.path().join("other"));
        std::fs::create_dir_all(root.join("x/y")).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("keep"), "").unwrap();
        std::os::unix::fs::symlink(&other, root.join("x/link")).unwrap();
        remove(&root).unwrap();
        assert!(!root.exists() && other.join("keep").exists());
    }
}
