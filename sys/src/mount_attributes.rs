//! `mount_setattr(2)`, which rustix lacks.

#![expect(unsafe_code, reason = "mount_setattr has no safe wrapper in rustix")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// What [`set_attributes`] changes on a mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'fd> {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear, before those in `set` are set.
    pub clear: u64,
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`; 0 leaves it as it is.
    pub propagation: u64,
    /// The user namespace whose mappings an idmapped mount gets; needs `MOUNT_ATTR_IDMAP` in `set`.
    pub user_namespace: Option<BorrowedFd<'fd>>,
}

/// Changes the attributes of the mount that `mount` refers to, and with `recursive` of all mounts
/// below it, or of none.
///
/// # Errors
///
/// Those of mount_setattr(2); `EPERM` when a bit to clear is locked by a more privileged mount
/// namespace.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    recursive: bool,
    attributes: &Attributes<'_>,
) -> io::Result<()> {
    let user_namespace = attributes.user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64);
    let argument = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: user_namespace,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: mount_setattr reads `size_of` bytes of the structure, which lives on this stack, and
    // a C string, which is a literal; it writes to neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const argument,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
