//! Attributes and data of single files.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use rustix::{
    fs::{
        AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
        fchmod, fchown, fgetxattr, flistxattr, fremovexattr, fsetxattr, ftruncate, futimens,
        lsetxattr, openat, utimensat,
    },
    io::Errno,
};

use super::directories::Directory;
use crate::diff::tar::{Entry, Time};

/// The longest list of names, and the longest value, of extended attributes (xattr(7)).
const XATTR_LEN_MAX: usize = 65536;

/// A name in a directory.
#[derive(Clone, Copy)]
pub(super) struct At<'d> {
    pub(super) directory: &'d Directory,
    pub(super) name: &'d CStr,
}

/// The identity with which this thread makes files.
#[derive(Clone, Copy)]
pub(super) struct Creator {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// What is taken from the modes of new files.
    pub(super) umask: u32,
}

impl Creator {
    pub(super) fn current() -> io::Result<Self> {
        // There is no call that only reads the mask.
        let status = std::fs::read_to_string("/proc/thread-self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        let umask = line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777);
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Ok(Self { uid, gid, umask })
    }

    /// Whether a new file needs no change of owner.
    fn owns(self, entry: &Entry, directory: &Directory) -> bool {
        !directory.sets_group && (entry.uid, entry.gid) == (self.uid, self.gid)
    }
}

/// Makes a regular file, for writing.
pub(super) fn create(at: At<'_>, entry: &Entry) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Not more than the owner may do, until the file has its owner.
    openat(at.directory, at.name, flags, Mode::from_raw_mode(entry.mode & 0o777))
}

/// A regular file that is being written.
pub(super) struct Writing<'e> {
    file: File,
    entry: &'e Entry,
    /// Where the next byte goes, and the piece of a sparse file that it belongs to.
    at: u64,
    piece: usize,
}

impl<'e> Writing<'e> {
    pub(super) fn new(file: OwnedFd, entry: &'e Entry) -> io::Result<Self> {
        let at = match &entry.pieces {
            None => 0,
            Some(pieces) => {
                ftruncate(&file, entry.size)?;
                pieces.first().map_or(0, |piece| piece.offset)
            }
        };
        Ok(Self { file: File::from(file), entry, at, piece: 0 })
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Some(pieces) = &self.entry.pieces else {
            return io::Write::write_all(&mut self.file, bytes);
        };
        while !bytes.is_empty() {
            // The map was checked to hold as much as the entry has.
            let piece = pieces[self.piece];
            let room = piece.offset + piece.len - self.at;
            if room == 0 {
                self.piece += 1;
                self.at = pieces[self.piece].offset;
                continue;
            }
            let len = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            self.file.write_all_at(&bytes[..len], self.at)?;
            self.at += len as u64;
            bytes = &bytes[len..];
        }
        Ok(())
    }

    /// Sets the attributes.
    pub(super) fn finish(self, at: At<'_>, creator: Creator) -> io::Result<()> {
        let (file, entry) = (self.file.as_fd(), self.entry);
        let owned = creator.owns(entry, at.directory);
        if !owned {
            fchown(file, uid(entry), gid(entry))?;
        }
        for (name, value) in settable(entry) {
            ignorable(fsetxattr(file, &name, value, XattrFlags::empty()), &name, true)?;
        }
        // After the owner, because a change of owner drops the set-ID bits.
        if entry.mode & 0o7000 != 0 || entry.mode & creator.umask != 0 {
            fchmod(file, mode(entry))?;
        }
        Ok(futimens(file, &timestamps(entry.mtime))?)
    }
}

/// Sets the attributes of a directory, except of those that must wait until it is full.
pub(super) fn set_directory(fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    fchown(fd, uid(entry), gid(entry))?;
    Ok(fchmod(fd, mode(entry))?)
}

/// Takes away the extended attributes that a directory has from a lower layer, and `entry` does not
/// have: an entry says all that there is.
pub(super) fn clear_xattrs(fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    for name in xattr_names(fd) {
        let bytes = name.to_bytes();
        let is_layers = (bytes.starts_with(b"user.") && !steers(bytes))
            || matches!(bytes, b"system.posix_acl_access" | b"system.posix_acl_default");
        if is_layers && !entry.xattrs.iter().any(|(kept, _)| kept == bytes) {
            fremovexattr(fd, &name)?;
        }
    }
    Ok(())
}

/// Sets the attributes of what cannot be opened: links, devices, fifos.
///
/// `creator` is given if the file was just made, so that its owner is known.
pub(super) fn set_unopened(
    at: At<'_>,
    entry: &Entry,
    is_symlink: bool,
    creator: Option<Creator>,
) -> io::Result<()> {
    let At { directory, name } = at;
    if !creator.is_some_and(|creator| creator.owns(entry, directory)) {
        chownat(directory, name, uid(entry), gid(entry), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    for (xattr, value) in settable(entry) {
        // There is no call with a directory and a name (setxattrat is of Linux 6.13).
        let path = [
            format!("/proc/self/fd/{}/", std::os::fd::AsRawFd::as_raw_fd(&directory.as_fd()))
                .as_bytes(),
            name.to_bytes(),
        ]
        .concat();
        ignorable(lsetxattr(path, &xattr, value, XattrFlags::empty()), &xattr, false)?;
    }
    if !is_symlink {
        // Nobody else writes here, so the name still is what was made; and it is no link.
        chmodat(directory, name, mode(entry), AtFlags::empty())?;
    }
    Ok(utimensat(directory, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The extended attributes that a layer may set: not those with which overlayfs and others steer
/// the kernel.
pub(super) fn settable(entry: &Entry) -> impl Iterator<Item = (CString, &[u8])> {
    entry.xattrs.iter().filter_map(|(name, value)| {
        if steers(name) {
            return None;
        }
        Some((CString::new(name.as_slice()).ok()?, value.as_slice()))
    })
}

/// Passes over that the filesystem has no such attributes, or the file may have none.
pub(super) fn ignorable(
    result: Result<(), Errno>,
    name: &CStr,
    is_file_or_directory: bool,
) -> io::Result<()> {
    match result {
        Err(Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::PERM) if !is_file_or_directory && name.to_bytes().starts_with(b"user.") => {
            Ok(())
        }
        result => Ok(result?),
    }
}

/// Copies what attributes can be copied, without those that steer the kernel.
pub(super) fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    for name in xattr_names(from).into_iter().filter(|name| !steers(name.to_bytes())) {
        let mut value = vec![0_u8; XATTR_LEN_MAX];
        if let Ok(len) = fgetxattr(from, &name, value.as_mut_slice()) {
            let _ = fsetxattr(to, &name, &value[..len], XattrFlags::empty());
        }
    }
}

/// The names of extended attributes; none where there are no such things.
fn xattr_names(fd: BorrowedFd<'_>) -> Vec<CString> {
    let mut names = vec![0_u8; XATTR_LEN_MAX];
    let len = flistxattr(fd, names.as_mut_slice()).unwrap_or(0);
    let names = names[..len].split_inclusive(|byte| *byte == 0);
    names.filter_map(|name| Some(CStr::from_bytes_with_nul(name).ok()?.to_owned())).collect()
}

/// Whether an extended attribute is for overlayfs and others that steer the kernel with it.
fn steers(name: &[u8]) -> bool {
    name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.")
}

/// The time of an entry for both times of a file; before 1970 becomes 1970, as in containerd.
pub(super) fn timestamps(time: Time) -> Timestamps {
    let time = if time.seconds < 0 { Time::default() } else { time };
    let time = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode)
}

fn uid(entry: &Entry) -> Option<Uid> {
    Some(Uid::from_raw(entry.uid))
}

fn gid(entry: &Entry) -> Option<Gid> {
    Some(Gid::from_raw(entry.gid))
}
