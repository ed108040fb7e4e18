//! What a container without a mount namespace of its own has mounted on the host.
//!
//! Its root filesystem is mounted on itself before anything is mounted in it, so all of it is below
//! that one mount: taking it away takes everything away, and nothing that was at the root filesystem
//! before. It is known by its number, so that nobody else's mount at that path is taken for it.

use std::path::{Path, PathBuf};

use rustix::{
    fs::{AtFlags, CWD, StatxFlags, statx},
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use crate::{
    error::Error,
    spec::{NamespaceKind, Spec},
};

/// The root filesystem of a container that mounts on the host, before it does.
#[derive(Debug)]
pub(crate) struct Before {
    rootfs: PathBuf,
    number: u64,
}

impl Before {
    /// Looks at `rootfs`, unless the container's mounts are not this process's to see.
    pub(crate) fn of(spec: &Spec, rootfs: &Path) -> Option<Self> {
        if spec.linux.namespace(NamespaceKind::Mnt).is_some() {
            return None;
        }
        let number = number_at(rootfs).ok()?;
        Some(Self { rootfs: rootfs.to_owned(), number })
    }

    /// The number of the mount that the container has made since, if it has.
    pub(crate) fn made(&self) -> Option<u64> {
        number_at(&self.rootfs).ok().filter(|&number| number != self.number)
    }

    /// Takes it away.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when it stays.
    pub(crate) fn restore(&self) -> Result<(), Error> {
        self.made().map_or(Ok(()), |number| take_away(&self.rootfs, number))
    }
}

/// Takes away the mount of this number at `rootfs`, and all below it; if it is not there any more,
/// or something else is above it, nothing is done.
///
/// # Errors
///
/// [`Error::System`] when it stays.
pub(crate) fn take_away(rootfs: &Path, number: u64) -> Result<(), Error> {
    if number_at(rootfs) != Ok(number) {
        return Ok(());
    }
    match unmount(rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // No mount begins here: it was another's that is taken away already.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::file("unmount", rootfs, error)),
    }
}

/// `STATX_MNT_ID_UNIQUE`: a number that no other mount gets after this one, from Linux 6.8 on.
const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// The number of the mount that is seen at `path`.
fn number_at(path: &Path) -> Result<u64, Errno> {
    let wanted = StatxFlags::MNT_ID.union(UNIQUE);
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted)?;
    Ok(found.stx_mnt_id)
}
