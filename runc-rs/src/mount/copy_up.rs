//! `tmpcopyup`: fills a new tmpfs with what it is going to hide.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, Stat, chownat, fchmod, fchown, fstat, mkdirat,
        mknodat, openat, readlinkat, statat, symlinkat,
    },
    io::Errno,
    process::{Gid, Uid},
};

use crate::error::Error;

/// How deep the directories may be that are copied.
const DEPTH_MAX: usize = 64;

/// Copies the content of the directory `from` (an `O_PATH` descriptor) to the root of `to`.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Error> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |fd| openat(fd, ".", flags, Mode::empty());
    open(from)
        .and_then(|from| Ok((from, open(to)?)))
        .and_then(|(from, to)| copy_directory(&from, &to, 0))
        .map_err(|error| Error::system("tmpcopyup", "to tmpfs", error))
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<(), Errno> {
    if depth > DEPTH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let hidden = fstat(from)?;
    if depth > 0 {
        take_owner(to.as_fd(), &hidden)?;
    } else {
        // The mode of the tmpfs itself is among its options, or the kernel's.
        let (uid, gid) = owner(&hidden);
        fchown(to, Some(uid), Some(gid))?;
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let found = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let from = openat(from, name, flags, Mode::empty())?;
                let to = openat(to, name, flags, Mode::empty())?;
                copy_directory(&from, &to, depth + 1)?;
            }
            FileType::RegularFile => {
                // Another container may exchange the file for a FIFO, which would be waited for.
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let from = openat(from, name, read | OFlags::NOCTTY, Mode::empty())?;
                if FileType::from_raw_mode(fstat(&from)?.st_mode) != FileType::RegularFile {
                    return Err(Errno::AGAIN);
                }
                let to = openat(to, name, write, Mode::RUSR | Mode::WUSR)?;
                copy_bytes(&from, &to)?;
                take_owner(to.as_fd(), &found)?;
            }
            FileType::Symlink => {
                symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
                let (uid, gid) = owner(&found);
                chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            kind => {
                mknodat(to, name, kind, Mode::from_raw_mode(found.st_mode), found.st_rdev)?;
                let (uid, gid) = owner(&found);
                chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
    }
    Ok(())
}

fn owner(found: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid))
}

fn take_owner(to: BorrowedFd<'_>, found: &Stat) -> Result<(), Errno> {
    let (uid, gid) = owner(found);
    fchown(to, Some(uid), Some(gid))?;
    fchmod(to, Mode::from_raw_mode(found.st_mode & 0o7777))
}

fn copy_bytes(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    const CHUNK: usize = 1 << 20;
    while rustix::fs::sendfile(to, from, None, CHUNK)? > 0 {}
    Ok(())
}
