//! Mounts snapshots where people ask for them.

use std::path::Path;

use anyhow::Context as _;
use proto::containerd::types::Mount;
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, mount_remount},
};

/// Options that are flags of mount(2).
const FLAGS: [(&str, MountFlags); 11] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("silent", MountFlags::SILENT),
];

/// Mounts one over the other on `target`, all or none.
pub(crate) fn mount_all(mounts: &[Mount], target: &Path) -> anyhow::Result<()> {
    for (count, own) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(own, target) {
            for _ in 0..count {
                // The first failure says more.
                let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
            }
            return Err(error)
                .with_context(|| format!("mount {} on {}", own.r#type, target.display()));
        }
    }
    Ok(())
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

fn mount_one(own: &Mount, target: &Path) -> Result<(), Errno> {
    let (flags, data) = split(&own.options);
    let is_bind = matches!(own.r#type.as_str(), "bind" | "rbind");
    if !is_bind {
        let data = std::ffi::CString::new(data.join(",")).map_err(|_| Errno::INVAL)?;
        return mount(&own.source, target, &own.r#type, flags, data.as_c_str());
    }
    let is_recursive = own.options.iter().any(|option| option == "rbind");
    if is_recursive {
        rustix::mount::mount_bind_recursive(&own.source, target)?;
    } else {
        rustix::mount::mount_bind(&own.source, target)?;
    }
    if flags.is_empty() {
        return Ok(());
    }
    // Flags of a bind mount are set in a second step.
    mount_remount(target, MountFlags::BIND | flags, c"").inspect_err(|_| {
        let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
    })
}

/// Splits options into flags and the filesystem's own.
fn split(options: &[String]) -> (MountFlags, Vec<&str>) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match FLAGS.iter().find(|(name, _)| name == option) {
            Some((_, flag)) => flags |= *flag,
            None if matches!(option.as_str(), "rw" | "bind" | "rbind" | "defaults") => {}
            None => data.push(option.as_str()),
        }
    }
    (flags, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let options = ["ro", "rbind", "lowerdir=/a:/b", "nosuid"].map(str::to_owned);
        let want = (MountFlags::RDONLY | MountFlags::NOSUID, vec!["lowerdir=/a:/b"]);
        assert_eq!(split(&options), want);
    }
}
