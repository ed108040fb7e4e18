//! Mounts snapshots where people ask for them.

use std::path::Path;

use anyhow::Context as _;
use proto::containerd::types::Mount;
use rustix::{io::Errno, mount::UnmountFlags};

/// Mounts one over the other on `target`, all or none.
pub(crate) fn mount_all(mounts: &[Mount], target: &Path) -> anyhow::Result<()> {
    let mounts: Vec<_> = mounts.iter().map(described).collect();
    Ok(sys::mount::mount_all(&mounts, target)?)
}

/// Takes off all that is mounted on `target`.
pub(crate) fn unmount(target: &Path) -> anyhow::Result<()> {
    loop {
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there.
            Err(Errno::INVAL) => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("unmount {}", target.display()));
            }
        }
    }
}

/// The mount as the part that makes it wants it.
pub(crate) fn described(own: &Mount) -> sys::mount::Mount {
    sys::mount::Mount {
        kind: own.r#type.clone(),
        source: own.source.clone(),
        target: own.target.clone(),
        options: own.options.clone(),
    }
}
