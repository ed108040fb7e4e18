//! Directories behind mounts.
//!
//! A mount that is needed is made detached: it is a descriptor, no place in the tree of mounts
//! has it, and it goes when the descriptor does. So a crash leaks none, and thousands do not slow
//! the machine down.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, unmount,
    },
};
use snapshotter::Mount;

use super::DiffError;

/// What mounts show, as far as it is known without mounting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// A directory as it is.
    Directory { path: PathBuf, read_only: bool },
    /// Layers of overlayfs.
    Overlay {
        /// Where changes go.
        upper: Option<PathBuf>,
        /// Nearest first.
        lower: Vec<PathBuf>,
        /// Whether marks are in `user.` instead of `trusted.` attributes.
        user_xattr: bool,
        /// Whether a layer cannot be understood without the kernel's help.
        redirects: bool,
    },
    /// Something else, to be mounted.
    Other(Mount),
}

impl View {
    /// Finds out what `mounts` show. No mounts show nothing: `None`.
    pub(super) fn of(mounts: &[Mount]) -> Result<Option<Self>, DiffError> {
        let mount = match mounts {
            [] => return Ok(None),
            [mount] if mount.target.is_empty() => mount,
            _ => return Err(unusable("more than one mount")),
        };
        if mount.options.iter().any(|option| option.starts_with("uidmap=")) {
            return Err(unusable("id-mapped mounts are not supported"));
        }
        Ok(Some(match mount.kind.as_str() {
            "bind" | "rbind" | "none" | "" => {
                Self::Directory { path: PathBuf::from(&mount.source), read_only: mount.has("ro") }
            }
            "overlay" => Self::Overlay {
                upper: mount.option("upperdir").map(PathBuf::from),
                lower: mount.option("lowerdir").map(lower_directories).unwrap_or_default(),
                user_xattr: mount.has("userxattr"),
                redirects: has_redirects(mount),
            },
            _ => Self::Other(mount.clone()),
        }))
    }

    /// Opens the root of what is shown, for reading only.
    pub(super) fn open(&self) -> Result<OwnedFd, DiffError> {
        match self {
            Self::Directory { path, .. } => open(path),
            Self::Overlay { upper, lower, user_xattr, .. } => {
                // Without an upper directory nothing is written, so layers that are in use by
                // others may be looked at.
                let layers: Vec<_> = upper.iter().chain(lower).map(PathBuf::as_path).collect();
                match layers.as_slice() {
                    [] => Err(unusable("an overlay without directories")),
                    [only] => open(only),
                    layers => mount_overlay(layers, *user_xattr),
                }
            }
            Self::Other(mount) => mount_other(mount),
        }
    }
}

/// Opens a directory.
pub(super) fn open(path: &Path) -> Result<OwnedFd, DiffError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(failed("open", path))
}

/// The parts of a `lowerdir=` value, in which a backslash escapes a colon.
fn lower_directories(value: &str) -> Vec<PathBuf> {
    let (mut paths, mut path, mut escaped) = (Vec::new(), String::new(), false);
    for character in value.chars() {
        match character {
            '\\' if !escaped => escaped = true,
            ':' if !escaped => paths.push(PathBuf::from(std::mem::take(&mut path))),
            _ => {
                escaped = false;
                path.push(character);
            }
        }
    }
    paths.push(PathBuf::from(path));
    paths
}

/// Whether directories or data of a layer may be elsewhere in it than their name says.
fn has_redirects(mount: &Mount) -> bool {
    ["redirect_dir", "metacopy"].iter().any(|option| match mount.option(option) {
        Some(value) => value == "on" || value == "follow",
        None => {
            let default = format!("/sys/module/overlay/parameters/{option}");
            std::fs::read(default).is_ok_and(|value| value.starts_with(b"Y"))
        }
    })
}

fn mount_overlay(layers: &[&Path], user_xattr: bool) -> Result<OwnedFd, DiffError> {
    let place = Path::new("overlay");
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("mount", place))?;
    if user_xattr {
        fsconfig_set_flag(&context, "userxattr").map_err(failed("mount", place))?;
    }
    for layer in layers {
        match fsconfig_set_string(&context, "lowerdir+", *layer) {
            // Before Linux 6.8 layers cannot be given one by one.
            Err(Errno::INVAL) => return mount_overlay_by_path(layers, user_xattr),
            result => result.map_err(failed("mount", layer))?,
        }
    }
    fsconfig_create(&context).map_err(failed("mount", place))?;
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, read_only).map_err(failed("mount", place))
}

/// Mounts where everybody sees it, and takes it away at once: the descriptor keeps it alive.
fn mount_overlay_by_path(layers: &[&Path], user_xattr: bool) -> Result<OwnedFd, DiffError> {
    let layers: Vec<_> = layers.iter().map(|layer| layer.to_string_lossy()).collect();
    let options =
        format!("lowerdir={}{}", layers.join(":"), if user_xattr { ",userxattr" } else { "" });
    mount_at_temporary("overlay", "overlay", &options)
}

fn mount_other(described: &Mount) -> Result<OwnedFd, DiffError> {
    let is_flag = |option: &&String| !matches!(option.as_str(), "ro" | "rw");
    let options: Vec<_> = described.options.iter().filter(is_flag).map(String::as_str).collect();
    mount_at_temporary(&described.source, &described.kind, &options.join(","))
}

fn mount_at_temporary(source: &str, kind: &str, options: &str) -> Result<OwnedFd, DiffError> {
    let place = std::env::temp_dir().join(format!(".gantry-view-{}", unique()));
    std::fs::create_dir(&place).map_err(failed("create directory", &place))?;
    let options = std::ffi::CString::new(options).map_err(|_| unusable("a zero byte"))?;
    let opened = mount(source, &place, kind, MountFlags::RDONLY, options.as_c_str())
        .map_err(failed("mount", &place))
        .and_then(|()| {
            let opened = open(&place);
            let unmounted = unmount(&place, UnmountFlags::DETACH);
            unmounted.map_err(failed("unmount", &place)).and(opened)
        });
    // A directory that is still mounted cannot be removed, and the error above says so.
    let _ = std::fs::remove_dir(&place);
    opened
}

/// A number that no other call in this process has, and none of another process at this time.
fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn failed<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> DiffError {
    move |error| DiffError::View { operation, path: path.to_owned(), source: error.into() }
}

fn unusable(reason: &str) -> DiffError {
    DiffError::Mounts { reason: reason.to_owned() }
}
