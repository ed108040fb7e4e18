//! What a snapshot's tree takes, and copies of it.

mod copy;

use std::{collections::HashSet, ffi::CStr, io, os::fd::BorrowedFd, path::Path};

use rustix::{
    fs::{AtFlags, FileType, Stat, fstat, statat},
    io::Errno,
};
use sys::tree::{Visit, open_root, walk};

pub(crate) use copy::{copy, copy_extents};

use crate::Usage;

/// The disk space of the tree `path`, its root included.
pub(crate) fn usage(path: &Path) -> io::Result<Usage> {
    let mut sum = Sum::default();
    let root = open_root(path)?;
    sum.add(&fstat(&root)?);
    walk(root, &mut sum)?;
    Ok(sum.usage)
}

/// Sets the mode of `path`, whatever the umask of this process is.
pub(crate) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Adds up [`Usage`].
#[derive(Default)]
struct Sum {
    usage: Usage,
    /// Files with several names, which count at the first.
    seen: HashSet<(u64, u64)>,
}

impl Sum {
    fn add(&mut self, stat: &Stat) {
        let linked =
            stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        if linked && !self.seen.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        self.usage.inodes += 1;
        self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
    }
}

impl Visit for Sum {
    fn file(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            stat => self.add(&stat?),
        }
        Ok(())
    }

    fn enter(
        &mut self,
        _directory: BorrowedFd<'_>,
        _name: &CStr,
        child: BorrowedFd<'_>,
    ) -> io::Result<()> {
        self.add(&fstat(child)?);
        Ok(())
    }

    fn leave(&mut self, _directory: BorrowedFd<'_>, _name: &CStr) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_counts_links_once() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a"), vec![1; 5000]).unwrap();
        std::fs::hard_link(root.path().join("a"), root.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("c")).unwrap();
        let one = usage(root.path()).unwrap();
        assert_eq!(one.inodes, 3);
        assert!((8192..=16384).contains(&one.bytes), "{one:?}");
    }
}
