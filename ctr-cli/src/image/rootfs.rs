//! Reads the account files of a root filesystem that is not mounted.
//!
//! A start needs `/etc/passwd` and `/etc/group`. Mounting the snapshot for that would put a mount
//! into the host's table and out of it for each container, so the layers are asked instead, from
//! the top: what overlayfs would show is decided from the entries themselves. Where that is not
//! plain (a symbolic link, a redirect, data in another layer, a filesystem other than an overlay)
//! the filesystem is mounted without being attached anywhere, seen by this process only, and gone
//! when its descriptor is closed.
//!
//! The files are opened inside the root (`RESOLVE_IN_ROOT`), must be regular, and are read up to
//! a limit (CVE-2026-47262).

use std::{
    fs::File,
    io::Read as _,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, bail};
use proto::containerd::types::Mount;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fgetxattr, fstat, openat, openat2},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};

use crate::spec::AccountFiles;

/// The most that is read of a file; real ones are far below 1 MiB.
const FILE_BYTES_MAX: u64 = 10 << 20;

/// The account files below a directory.
pub(crate) fn directory_accounts(directory: &Path) -> anyhow::Result<AccountFiles> {
    let root = open_directory(directory)?;
    in_root(root.as_fd())
}

/// The account files of a snapshot, by its mounts.
pub(crate) fn snapshot_accounts(mounts: &[Mount]) -> anyhow::Result<AccountFiles> {
    let [mount] = mounts else { bail!("a root filesystem of {} mounts", mounts.len()) };
    match mount.r#type.as_str() {
        "bind" | "rbind" => directory_accounts(Path::new(&mount.source)),
        "overlay" => {
            let layers = overlay_layers(&mount.options);
            match layers.as_slice() {
                [] => bail!("an overlay without layers"),
                [one] => directory_accounts(Path::new(one)),
                _ => overlay_accounts(&layers),
            }
        }
        _ => in_root(detached(mount)?.as_fd()),
    }
}

/// The directories of an overlay, the uppermost first.
fn overlay_layers(options: &[String]) -> Vec<&str> {
    let value = |key: &str| options.iter().find_map(|option| option.strip_prefix(key));
    let lower = value("lowerdir=").into_iter().flat_map(|list| list.split(':'));
    value("upperdir=").into_iter().chain(lower.filter(|layer| !layer.is_empty())).collect()
}

fn overlay_accounts(layers: &[&str]) -> anyhow::Result<AccountFiles> {
    let opened: Vec<OwnedFd> = layers
        .iter()
        .map(|layer| open_directory(Path::new(layer)))
        .collect::<anyhow::Result<_>>()?;
    let passwd = find(&opened, "passwd")?;
    let group = find(&opened, "group")?;
    match (passwd, group) {
        (Found::Plain(passwd), Found::Plain(group)) => {
            Ok(AccountFiles { passwd: text(passwd, "passwd")?, group: text(group, "group")? })
        }
        _ => in_root(detached_overlay(layers)?.as_fd()),
    }
}

/// What the layers say about a file.
enum Found {
    /// The file, or that there is none.
    Plain(Option<OwnedFd>),
    /// Only overlayfs itself can tell.
    Involved,
}

/// Looks for `/etc/<name>` in layers, the uppermost first.
fn find(layers: &[OwnedFd], name: &str) -> anyhow::Result<Found> {
    let context = || format!("open /etc/{name} of the image");
    for layer in layers {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let etc = match openat(layer, "etc", flags | OFlags::DIRECTORY, Mode::empty()) {
            Ok(etc) => etc,
            Err(Errno::NOENT) => continue,
            Err(Errno::LOOP | Errno::NOTDIR) => return Ok(Found::Involved),
            Err(error) => return Err(error).with_context(context),
        };
        if has_mark(&etc, "trusted.overlay.redirect") {
            return Ok(Found::Involved);
        }
        match openat(&etc, name, flags, Mode::empty()) {
            Ok(file) => {
                let kind = FileType::from_raw_mode(fstat(&file).with_context(context)?.st_mode);
                let plain =
                    kind == FileType::RegularFile && !has_mark(&file, "trusted.overlay.metacopy");
                return Ok(if plain { Found::Plain(Some(file)) } else { Found::Involved });
            }
            Err(Errno::NOENT) if has_mark(&etc, "trusted.overlay.opaque") => {
                return Ok(Found::Plain(None));
            }
            Err(Errno::NOENT) => {}
            // A whiteout is a device that nobody serves; a link is for overlayfs to follow.
            Err(Errno::NXIO | Errno::NODEV | Errno::LOOP) => return Ok(Found::Involved),
            Err(error) => return Err(error).with_context(context),
        }
    }
    Ok(Found::Plain(None))
}

fn has_mark(file: &OwnedFd, name: &str) -> bool {
    fgetxattr(file, name, &mut [0_u8; 1]) != Err(Errno::NODATA)
}

/// An overlay of nothing but lower directories, mounted nowhere.
fn detached_overlay(layers: &[&str]) -> anyhow::Result<OwnedFd> {
    let mount = || -> Result<OwnedFd, Errno> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for layer in layers {
            fsconfig_set_string(context.as_fd(), "lowerdir+", *layer)?;
        }
        create(context)
    };
    mount().context("look into the image's layers")
}

/// A filesystem of any kind, mounted read-only and nowhere.
fn detached(mount: &Mount) -> anyhow::Result<OwnedFd> {
    let attempt = || -> Result<OwnedFd, Errno> {
        let context = fsopen(mount.r#type.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "source", mount.source.as_str())?;
        fsconfig_set_flag(context.as_fd(), "ro")?;
        for option in mount.options.iter().filter(|option| !matches!(option.as_str(), "rw" | "ro"))
        {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(context.as_fd(), key, value)?,
                None => fsconfig_set_flag(context.as_fd(), option.as_str())?,
            }
        }
        create(context)
    };
    attempt().with_context(|| format!("look into {} of type {}", mount.source, mount.r#type))
}

fn create(context: OwnedFd) -> Result<OwnedFd, Errno> {
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

fn open_directory(path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))
}

fn in_root(root: BorrowedFd<'_>) -> anyhow::Result<AccountFiles> {
    let open = |name: &str| -> anyhow::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match openat2(root, format!("etc/{name}"), flags, Mode::empty(), resolve) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("open /etc/{name} of the image")),
        }
    };
    Ok(AccountFiles {
        passwd: text(open("passwd")?, "passwd")?,
        group: text(open("group")?, "group")?,
    })
}

fn text(file: Option<OwnedFd>, name: &str) -> anyhow::Result<String> {
    let Some(file) = file else { return Ok(String::new()) };
    let file = File::from(file);
    let metadata = file.metadata().with_context(|| format!("stat /etc/{name} of the image"))?;
    if !metadata.is_file() {
        bail!("/etc/{name} of the image is not a regular file");
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("read /etc/{name} of the image"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("/etc/{name} of the image is larger than {FILE_BYTES_MAX} bytes");
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn overlay(layers: &[&Path]) -> Mount {
        let [upper, lower @ ..] = layers else { panic!("no layers") };
        let lower: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
        Mount {
            r#type: "overlay".to_owned(),
            options: vec![
                format!("upperdir={}", upper.display()),
                format!("lowerdir={}", lower.join(":")),
                "workdir=/nowhere".to_owned(),
            ],
            ..Default::default()
        }
    }

    #[test]
    fn uppermost_wins() {
        let root = tempfile::tempdir().expect("a directory");
        let layers = ["upper", "middle", "lower"].map(|name| root.path().join(name));
        for layer in &layers {
            fs::create_dir_all(layer.join("etc")).expect("makes a directory");
        }
        fs::write(layers[2].join("etc/passwd"), "lower").expect("writes");
        fs::write(layers[1].join("etc/passwd"), "middle").expect("writes");
        fs::write(layers[2].join("etc/group"), "group").expect("writes");
        let mount = overlay(&[&layers[0], &layers[1], &layers[2]]);
        let got = snapshot_accounts(&[mount]).expect("reads");
        assert_eq!(got, AccountFiles { passwd: "middle".to_owned(), group: "group".to_owned() });
    }

    #[test]
    fn links_stay_inside() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("etc")).expect("makes a directory");
        fs::create_dir_all(root.path().join("usr")).expect("makes a directory");
        fs::write(root.path().join("usr/passwd"), "inside").expect("writes");
        std::os::unix::fs::symlink("/usr/passwd", root.path().join("etc/passwd")).expect("links");
        std::os::unix::fs::symlink("../../../../etc/hostname", root.path().join("etc/group"))
            .expect("links");
        let got = directory_accounts(root.path()).expect("reads");
        assert_eq!(got, AccountFiles { passwd: "inside".to_owned(), group: String::new() });
    }

    #[test]
    fn refused() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("etc/passwd")).expect("makes a directory");
        let error = directory_accounts(root.path()).expect_err("is a directory");
        assert!(error.to_string().contains("not a regular file"), "{error}");
        let huge = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(huge.path().join("etc")).expect("makes a directory");
        let file = File::create(huge.path().join("etc/group")).expect("creates");
        file.set_len(FILE_BYTES_MAX * 1000).expect("makes a hole");
        let error = directory_accounts(huge.path()).expect_err("is too large");
        assert!(error.to_string().contains("larger than"), "{error}");
    }
}
