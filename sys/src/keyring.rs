//! Session keyrings, keyrings(7).

#![expect(unsafe_code, reason = "keyctl has no safe wrapper in rustix")]

use std::{ffi::CStr, io};

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
const KEYCTL_SETPERM: libc::c_int = 5;
const KEYCTL_DESCRIBE: libc::c_int = 6;

/// The serial number of a key or keyring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial(libc::c_long);

/// Makes the keyring called `name` this process's session keyring, creating it when there is none.
///
/// # Errors
///
/// `ENOSYS` when the kernel has no keys, `EDQUOT` when the user has too many.
pub fn join_session(name: &CStr) -> io::Result<Serial> {
    // SAFETY: the kernel reads one C string.
    let serial =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if serial < 0 { Err(io::Error::last_os_error()) } else { Ok(Serial(serial)) }
}

/// Adds `permissions` (the bits of keyctl_setperm(3)) to those the key has.
///
/// # Errors
///
/// `EACCES` when the key is not this process's own.
pub fn add_permissions(key: Serial, permissions: u32) -> io::Result<()> {
    let now = permissions_of(key)?;
    // SAFETY: the kernel takes two numbers.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, key.0, now | permissions) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn permissions_of(key: Serial) -> io::Result<u32> {
    let mut text = [0_u8; 512];
    // SAFETY: the kernel writes at most `text.len()` bytes to `text`.
    let length = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_DESCRIBE, key.0, text.as_mut_ptr(), text.len())
    };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    // "type;uid;gid;permissions in hex;description"
    let length = usize::try_from(length).unwrap_or(0).min(text.len());
    let text = String::from_utf8_lossy(&text[..length]);
    text.split(';')
        .nth(3)
        .and_then(|hex| u32::from_str_radix(hex, 16).ok())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}
