//! Subvolumes of btrfs.
//!
//! A subvolume is a directory that can be cloned whole, at once, whatever is in it. One that is empty
//! is removed like a directory (Linux 4.18), so nothing is needed here for that.
//!
//! Source: linux/btrfs.h; btrfs-ioctl(2).

#![expect(unsafe_code, reason = "subvolumes are made by ioctl")]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use rustix::fs::statfs;

/// `_IOW(0x94, 14, struct btrfs_ioctl_vol_args)`
const SUBVOL_CREATE: libc::Ioctl = 0x5000_940E;

/// `_IOW(0x94, 23, struct btrfs_ioctl_vol_args_v2)`
const SNAP_CREATE_V2: libc::Ioctl = 0x5000_9417;

/// `BTRFS_SUPER_MAGIC` of linux/magic.h.
const MAGIC: u64 = 0x9123_683E;

const NAME_LEN: usize = 4088;
const NAME_V2_LEN: usize = 4040;

/// `struct btrfs_ioctl_vol_args` of linux/btrfs.h.
#[repr(C)]
struct Arguments {
    fd: i64,
    name: [u8; NAME_LEN],
}

/// `struct btrfs_ioctl_vol_args_v2` of linux/btrfs.h.
#[repr(C)]
struct ArgumentsV2 {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; NAME_V2_LEN],
}

const _: () = assert!(size_of::<Arguments>() == 4096 && size_of::<ArgumentsV2>() == 4096);

/// Whether `path` is on btrfs.
///
/// # Errors
///
/// `path` cannot be looked at.
pub fn is_on(path: &Path) -> io::Result<bool> {
    Ok(u64::try_from(statfs(path)?.f_type).is_ok_and(|magic| magic == MAGIC))
}

/// Makes the empty subvolume `name` in `directory`.
///
/// # Errors
///
/// As ioctl(2): `EEXIST`, `ENOTTY` where it is not btrfs.
pub fn create(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let mut arguments = Arguments { fd: 0, name: [0; NAME_LEN] };
    copy_name(&mut arguments.name, name)?;
    // SAFETY: the request takes a `struct btrfs_ioctl_vol_args`, which is only read, and which
    // `arguments` is and remains during the call.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), SUBVOL_CREATE, &raw const arguments) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the subvolume `name` in `directory`, with all that is in the subvolume `source` now.
///
/// # Errors
///
/// As ioctl(2): `EEXIST`; `EINVAL` where `source` is no subvolume.
pub fn clone(source: impl AsFd, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let mut arguments = ArgumentsV2 {
        fd: source.as_fd().as_raw_fd().into(),
        transaction: 0,
        flags: 0,
        unused: [0; 4],
        name: [0; NAME_V2_LEN],
    };
    copy_name(&mut arguments.name, name)?;
    // SAFETY: the request takes a `struct btrfs_ioctl_vol_args_v2`, which is only read, and which
    // `arguments` is and remains during the call; the descriptor in it is borrowed for as long.
    let result =
        unsafe { libc::ioctl(directory.as_raw_fd(), SNAP_CREATE_V2, &raw const arguments) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Copies a name with its final zero.
fn copy_name(to: &mut [u8], name: &CStr) -> io::Result<()> {
    let name = name.to_bytes_with_nul();
    let place = to.get_mut(..name.len());
    place.ok_or(io::ErrorKind::InvalidFilename)?.copy_from_slice(name);
    Ok(())
}
