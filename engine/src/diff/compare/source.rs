//! Files that are compared.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, lgetxattr, llistxattr, openat,
        openat2, readlinkat, statat,
    },
    io::Errno,
};

/// The longest list of names, and the longest value, of extended attributes (xattr(7)).
const XATTR_LEN_MAX: usize = 65536;

/// The bytes that are compared at once.
const COMPARE_LEN: usize = 64 * 1024;

/// A name in an open directory.
#[derive(Clone, Copy)]
pub(super) struct At<'d> {
    pub(super) directory: BorrowedFd<'d>,
    pub(super) name: &'d CStr,
}

impl At<'_> {
    /// What the file is, if it is there.
    pub(super) fn stat(self) -> io::Result<Option<Stat>> {
        match statat(self.directory, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            stat => Ok(Some(stat?)),
        }
    }

    /// Where a symbolic link leads.
    pub(super) fn link(self) -> io::Result<Vec<u8>> {
        Ok(readlinkat(self.directory, self.name, Vec::new())?.into_bytes())
    }

    /// Opens a regular file.
    pub(super) fn open(self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(File::from(openat(self.directory, self.name, flags, Mode::empty())?))
    }

    /// The extended attributes that belong in a layer, by name.
    pub(super) fn xattrs(self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        // There is no call with a directory and a name (listxattrat is of Linux 6.13).
        let mut path = format!("/proc/self/fd/{}/", self.directory.as_raw_fd()).into_bytes();
        path.extend_from_slice(self.name.to_bytes());
        let path = CString::new(path)?;
        let mut names = [0_u8; 1024];
        let mut large = Vec::new();
        let names = match llistxattr(&path, names.as_mut_slice()) {
            Ok(len) => &names[..len],
            Err(Errno::RANGE) => {
                large.resize(XATTR_LEN_MAX, 0);
                let len = llistxattr(&path, large.as_mut_slice())?;
                &large[..len]
            }
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut xattrs = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|name| is_kept(name)) {
            let mut value = vec![0; XATTR_LEN_MAX];
            let len = lgetxattr(&path, CString::new(name)?, value.as_mut_slice())?;
            value.truncate(len);
            xattrs.push((name.to_vec(), value));
        }
        xattrs.sort();
        Ok(xattrs)
    }
}

/// Whether an extended attribute says something about the file, not about this machine.
fn is_kept(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        name => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

/// Opens the directory `path` below `root`, in which no part may be a link.
pub(super) fn open_directory(root: &OwnedFd, path: &[u8]) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(root, path, flags, Mode::empty(), resolve)?)
}

/// The names in a directory, in order.
pub(super) fn names(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// What type of file a stat is of.
pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether two files are the same, as far as layers tell.
pub(super) fn same(a: (At<'_>, &Stat), b: (At<'_>, &Stat)) -> io::Result<bool> {
    let ((a, stat_a), (b, stat_b)) = (a, b);
    if (stat_a.st_dev, stat_a.st_ino) == (stat_b.st_dev, stat_b.st_ino) {
        return Ok(true);
    }
    let attributes = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
    if attributes(stat_a) != attributes(stat_b) || a.xattrs()? != b.xattrs()? {
        return Ok(false);
    }
    if kind(stat_a) == FileType::Directory {
        return Ok(true);
    }
    let content = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    if content(stat_a) != content(stat_b) {
        return Ok(false);
    }
    if stat_a.st_mtime_nsec != 0 {
        return Ok(true);
    }
    match kind(stat_a) {
        FileType::Symlink => Ok(a.link()? == b.link()?),
        FileType::RegularFile if stat_a.st_size > 0 => same_content(a.open()?, b.open()?),
        _ => Ok(true),
    }
}

fn same_content(a: File, b: File) -> io::Result<bool> {
    let (mut buffer_a, mut buffer_b) = (Vec::new(), Vec::new());
    loop {
        for (file, buffer) in [(&a, &mut buffer_a), (&b, &mut buffer_b)] {
            buffer.clear();
            file.take(COMPARE_LEN as u64).read_to_end(buffer)?;
        }
        if buffer_a != buffer_b {
            return Ok(false);
        }
        if buffer_a.is_empty() {
            return Ok(true);
        }
    }
}

/// Borrows for [`At`].
pub(super) fn at<'d>(directory: &'d OwnedFd, name: &'d CStr) -> At<'d> {
    At { directory: directory.as_fd(), name }
}
