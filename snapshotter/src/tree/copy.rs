//! Copies of whole trees.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
        copy_file_range, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, ftruncate,
        futimens, ioctl_ficlone, linkat, mkdirat, mknodat, openat, readlinkat, seek, statat,
        symlinkat, utimensat,
    },
    io::Errno,
};

use sys::tree::{DIRECTORY, Visit, open_root, walk};

use super::open_file;

/// The longest list of names, and the longest value, of extended attributes (xattr(7)).
const XATTR_LEN_MAX: usize = 65536;

/// Copies what is in the directory `from`, and its attributes, to the empty directory `to`.
///
/// Modes, owners, times, holes, links among the copied files and extended attributes are kept;
/// attributes that cannot be set are left out, sockets too. A descriptor per level of directories
/// is held open, so trees that are nested too deep fail.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let from = open_root(from)?;
    let to = open_root(to)?;
    let stat = fstat(&from)?;
    copy_xattrs(from.as_fd(), to.as_fd());
    let mut copy =
        Copy { to: vec![to], stats: vec![stat], path: Vec::new(), links: HashMap::new() };
    walk(from, &mut copy)?;
    copy.finish_directory()
}

struct Copy {
    /// The copies of the directories that the walk is in, outermost first.
    to: Vec<OwnedFd>,
    /// What they will be like when they are full.
    stats: Vec<Stat>,
    /// The names of those directories, of all but the outermost.
    path: Vec<CString>,
    /// Paths of the copies of files with several names, from the outermost directory.
    links: HashMap<(u64, u64), CString>,
}

impl Copy {
    fn current(&self) -> BorrowedFd<'_> {
        self.to.last().expect("the walk is in a directory").as_fd()
    }

    fn finish_directory(&mut self) -> io::Result<()> {
        let (Some(to), Some(stat)) = (self.to.pop(), self.stats.pop()) else { return Ok(()) };
        set_owner_mode(to.as_fd(), &stat)?;
        futimens(&to, &times(&stat))?;
        Ok(())
    }

    /// Makes `name` a link to an earlier copy of the same file, if there is one.
    fn link(&mut self, stat: &Stat, name: &CStr) -> io::Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let file = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&file) {
            linkat(&self.to[0], first, self.current(), name, AtFlags::empty())?;
            return Ok(true);
        }
        let directories = self.path.iter().map(CString::as_c_str);
        let path: Vec<_> = directories.chain([name]).map(CStr::to_bytes).collect();
        let path = CString::new(path.join(&b'/')).map_err(io::Error::other)?;
        self.links.insert(file, path);
        Ok(false)
    }
}

impl Visit for Copy {
    fn file(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Socket || self.link(&stat, name)? {
            return Ok(());
        }
        let to = self.current();
        match kind {
            FileType::RegularFile => return copy_file(directory, to, name, &stat),
            FileType::Symlink => {
                symlinkat(readlinkat(directory, name, Vec::new())?, to, name)?;
            }
            _ => mknodat(to, name, kind, mode(&stat), stat.st_rdev)?,
        }
        let (uid, gid) = owner(&stat);
        rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            rustix::fs::chmodat(to, name, mode(&stat), AtFlags::empty())?;
        }
        Ok(utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn enter(
        &mut self,
        _directory: BorrowedFd<'_>,
        name: &CStr,
        child: BorrowedFd<'_>,
    ) -> io::Result<()> {
        mkdirat(self.current(), name, Mode::RWXU)?;
        let to = openat(self.current(), name, DIRECTORY, Mode::empty())?;
        copy_xattrs(child, to.as_fd());
        self.to.push(to);
        self.path.push(name.to_owned());
        self.stats.push(fstat(child)?);
        Ok(())
    }

    fn leave(&mut self, _directory: BorrowedFd<'_>, _name: &CStr) -> io::Result<()> {
        self.path.pop();
        self.finish_directory()
    }
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let from = open_file(from, name)?;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let to = openat(to, name, write, Mode::RUSR | Mode::WUSR)?;
    if ioctl_ficlone(&to, &from).is_err() {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        ftruncate(&to, size)?;
        copy_extents(from.as_fd(), to.as_fd(), size, 0)?;
    }
    set_owner_mode(to.as_fd(), stat)?;
    // After the owner, because a change of owner drops file capabilities.
    copy_xattrs(from.as_fd(), to.as_fd());
    Ok(futimens(&to, &times(stat))?)
}

/// Copies what is between the holes of the first `size` bytes of a file to where `base` is in
/// another, which has holes there. Where the file ends before that, the holes stay.
pub(crate) fn copy_extents(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    size: u64,
    base: u64,
) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let start = match seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(()),
            start => start?,
        };
        let end = seek(from, SeekFrom::Hole(start))?.min(size);
        if start >= end {
            return Ok(());
        }
        copy_range(from, to, start..end, base)?;
        at = end;
    }
    Ok(())
}

fn copy_range(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    range: Range<u64>,
    base: u64,
) -> io::Result<()> {
    let (mut read, mut written) = (range.start, base + range.start);
    while read < range.end {
        let len = usize::try_from(range.end - read).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(from, Some(&mut read), to, Some(&mut written), len) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_bytes(from, to, read..range.end, base);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_bytes(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    range: Range<u64>,
    base: u64,
) -> io::Result<()> {
    let clone = |fd: BorrowedFd<'_>| Ok::<_, io::Error>(File::from(fd.try_clone_to_owned()?));
    let (from, to) = (clone(from)?, clone(to)?);
    seek(&from, SeekFrom::Start(range.start))?;
    seek(&to, SeekFrom::Start(base + range.start))?;
    io::copy(&mut io::Read::take(from, range.end - range.start), &mut &to)?;
    Ok(())
}

/// Copies attributes as far as they can be set: those of security modules often cannot.
fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    let mut names = vec![0_u8; XATTR_LEN_MAX];
    let Ok(len) = flistxattr(from, names.as_mut_slice()) else { return };
    let mut value = Vec::new();
    for name in names[..len].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        value.resize(XATTR_LEN_MAX, 0);
        if let Ok(len) = fgetxattr(from, name, value.as_mut_slice()) {
            let _ = fsetxattr(to, name, &value[..len], rustix::fs::XattrFlags::empty());
        }
    }
}

fn set_owner_mode(to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    fchown(to, uid, gid)?;
    // After the owner, because a change of owner drops set-user-ID bits.
    Ok(fchmod(to, mode(stat))?)
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

#[expect(clippy::cast_possible_wrap, reason = "nanoseconds are below 10^9")]
fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as i64 },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as i64 },
    }
}
