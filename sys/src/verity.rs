//! Files that the kernel checks when they are read (fs-verity).
//!
//! It makes a tree of hashes of a file, and never lets the file be written to again. What the disk returns
//! from then on has its hash, or is an error.
//!
//! Source: kernel, `Documentation/filesystems/fsverity.rst`; linux/fsverity.h.

#![expect(unsafe_code, reason = "files are given to fs-verity by ioctl")]

use std::{fs::File, io, os::fd::AsRawFd, path::Path, thread, time::Duration};

use rustix::{
    fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx},
    io::Errno,
};

/// `_IOW('f', 133, struct fsverity_enable_arg)`
const ENABLE: libc::Ioctl = 0x4080_6685;

const VERSION: u32 = 1;
const SHA256: u32 = 1;
const BLOCK_LEN: u32 = 4096;

/// How often, and how long after the last time, it is tried again while the file is open for writing: a process
/// that this program starts has all descriptors for a moment.
const ATTEMPTS_MAX: usize = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// `struct fsverity_enable_arg` of linux/fsverity.h.
#[repr(C)]
struct Arguments {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    reserved_too: [u64; 11],
}

const _: () = assert!(size_of::<Arguments>() == 128);

/// Has the kernel check the file `path` from now on. Waits for the disk. Done before is fine.
///
/// # Errors
///
/// `EOPNOTSUPP`, `ENOTTY`: the kernel or the filesystem does not do that. `ETXTBSY`: the file is open for
/// writing.
pub fn enable(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let arguments = Arguments {
        version: VERSION,
        hash_algorithm: SHA256,
        block_size: BLOCK_LEN,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved: 0,
        signature: 0,
        reserved_too: [0; 11],
    };
    for _ in 1..ATTEMPTS_MAX {
        match enable_once(&file, &arguments) {
            Err(Errno::TXTBSY | Errno::INTR) => thread::sleep(PAUSE),
            Err(Errno::EXIST) => return Ok(()),
            result => return Ok(result?),
        }
    }
    Ok(enable_once(&file, &arguments)?)
}

fn enable_once(file: &File, arguments: &Arguments) -> Result<(), Errno> {
    // SAFETY: the kernel reads one `fsverity_enable_arg`, which has neither salt nor signature behind it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), ENABLE, std::ptr::from_ref(arguments)) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(())
}

/// Whether the kernel checks the file `path`.
///
/// # Errors
///
/// It is not there.
pub fn is_enabled(path: &Path) -> io::Result<bool> {
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::VERITY))
}
