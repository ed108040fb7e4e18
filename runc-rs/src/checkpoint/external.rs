//! The parts of a container that are not its own, and how criu is told of them.
//!
//! A mount of the host's has a name in the images, which is where the root filesystem, with
//! nothing mounted in it, has its target: the same at both times, and the same as with runc. On
//! dump criu is also told where it is really mounted, which is elsewhere when a symlink in
//! another mount is on the way.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat, stat},
    io::Errno,
};

use crate::{
    container::Container,
    criu::{Version, message::ExternalMount},
    error::Error,
    mount::{cgroupfs, target},
    spec::NamespaceKind,
    state::{State, record},
};

/// The kinds of namespaces that criu can leave out of a dump, with the oldest version that can.
const NAMESPACES: [(NamespaceKind, Version); 2] =
    [(NamespaceKind::Net, Version::EXTERNAL_NET), (NamespaceKind::Pid, Version::EXTERNAL_PID)];

/// Says whether criu can leave a namespace of this kind as it is.
pub(crate) fn is_supported(kind: NamespaceKind, version: Version) -> bool {
    NAMESPACES.iter().any(|&(known, needed)| known == kind && version >= needed)
}

/// The name of an external namespace in the images.
pub(crate) fn namespace_key(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Pid => "extRootPidNS",
        _ => "extRootNetNS",
    }
}

/// The namespaces that the container has joined by path and that are left as they are, with their
/// inodes.
pub(super) fn namespaces_of(state: &State) -> Result<Vec<(NamespaceKind, u64)>, Error> {
    let mut found = Vec::new();
    for (kind, _) in NAMESPACES {
        let recorded = state.config.namespaces.iter().find(|own| own.kind == kind.state_name());
        if recorded.is_none_or(|namespace| namespace.path.is_empty()) {
            continue;
        }
        // Not by the recorded path, which may lead elsewhere by now.
        let path = format!("/proc/{}/ns/{}", state.init_process_pid, kind.name());
        let namespace = stat(&path).map_err(|error| Error::file("stat", &path, error))?;
        found.push((kind, namespace.st_ino));
    }
    Ok(found)
}

/// The mounts of a running container that are not its own.
pub(super) fn mounts_of(container: &Container) -> Result<Vec<ExternalMount>, Error> {
    let state = container.state();
    let inside = open_root(&format!("/proc/{}/root", state.init_process_pid))?;
    let rootfs = open_root(&state.config.rootfs)?;
    let mut found = Vec::new();
    let has_cgroups = container.cgroup().is_unified()
        || state.config.namespaces.iter().any(|own| own.kind == "NEWCGROUP");
    let mut destinations = Vec::new();
    for mount in &state.config.mounts {
        match mount.device.as_str() {
            "bind" => destinations.push(mount.destination.clone()),
            "cgroup" if !has_cgroups => {
                let binds = cgroup_binds(&mount.destination, &state.cgroup_paths)?;
                destinations.extend(binds.into_iter().map(|bind| bind.destination));
            }
            _ => {}
        }
    }
    destinations.extend(state.config.devices.iter().map(|device| device.path.clone()));
    for destination in destinations {
        let name = name(rootfs.as_fd(), &destination)?;
        let key = match open_in(inside.as_fd(), &destination)? {
            Some((place, _)) => place,
            // The container has taken it away.
            None => name.clone(),
        };
        found.push(ExternalMount { key, value: name });
    }
    for path in &state.config.mask_paths {
        if let Some((place, false)) = open_in(inside.as_fd(), path)? {
            found.push(ExternalMount { key: place, value: NULL.to_owned() });
        }
    }
    Ok(found)
}

/// What hides files; the name of that mount, and its source.
const NULL: &str = "/dev/null";

/// The mounts that criu is to make again, of what is now at their sources.
pub(crate) fn mounts_for(
    rootfs: BorrowedFd<'_>,
    mounts: &[record::Mount],
    devices: &[record::Device],
    masks: bool,
) -> Result<Vec<ExternalMount>, Error> {
    let mut found = Vec::new();
    for mount in mounts {
        let key = name(rootfs, &mount.destination)?;
        found.push(ExternalMount { key, value: mount.source.clone() });
    }
    for device in devices {
        found.push(ExternalMount { key: name(rootfs, &device.path)?, value: device.path.clone() });
    }
    if masks {
        found.push(ExternalMount { key: NULL.to_owned(), value: NULL.to_owned() });
    }
    Ok(found)
}

/// The mounts that a v1 `cgroup` mount consists of: one of the container's group, or else of this
/// process's, in each hierarchy.
pub(crate) fn cgroup_binds(
    destination: &str,
    groups: &BTreeMap<String, PathBuf>,
) -> Result<Vec<record::Mount>, Error> {
    let binds = cgroupfs::hierarchies()?.into_iter().map(|hierarchy| {
        let own = hierarchy.controllers.split(',').find_map(|name| groups.get(name));
        let source = match own {
            Some(group) => group.display().to_string(),
            None => {
                let own = cgroupfs::own_path(&hierarchy.controllers).unwrap_or_default();
                format!("{}{own}", hierarchy.mount_point)
            }
        };
        record::Mount {
            source,
            destination: format!("{destination}/{}", hierarchy.name),
            device: "bind".to_owned(),
        }
    });
    Ok(binds.collect())
}

pub(crate) fn open_root(path: &str) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|error| Error::file("open", path, error))
}

/// Where below `root` a path leads, and whether there is a directory; `None` when it leads
/// nowhere.
fn open_in(root: BorrowedFd<'_>, path: &str) -> Result<Option<(String, bool)>, Error> {
    let fail = |error| Error::file("open", path, error);
    let found = match target::open(root, &target::clean(path), OFlags::PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        result => result.map_err(fail)?,
    };
    let place = target::path_below(root, found.as_fd()).map_err(fail)?;
    let is_directory = target::is_directory(found.as_fd()).map_err(fail)?;
    Ok(Some((format!("/{}", place.display()), is_directory)))
}

/// The name of a mount: where its target is in the root filesystem, or where it would be, if it is
/// in a directory that exists only in another mount.
fn name(rootfs: BorrowedFd<'_>, destination: &str) -> Result<String, Error> {
    let clean = target::clean(destination);
    let mut there = clean.as_str();
    let mut missing = "";
    loop {
        if let Some((place, _)) = open_in(rootfs, there)? {
            let place = place.trim_end_matches('/');
            return Ok(if missing.is_empty() {
                place.to_owned()
            } else {
                format!("{place}/{missing}")
            });
        }
        let end = there.rfind('/').unwrap_or(0);
        there = &clean[..end];
        missing = clean[end..].trim_start_matches('/');
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn names() {
        let top = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir_all(top.path().join("real/conf")).expect("make directory");
        symlink("/real/conf", top.path().join("conf")).expect("make link");
        symlink("/nowhere", top.path().join("out")).expect("make link");
        let root = open_root(top.path().to_str().expect("plain name")).expect("open root");
        let cases = [
            ("there", "/real/conf", "/real/conf"),
            ("unclean", "//real/./conf/", "/real/conf"),
            ("through a link", "/conf", "/real/conf"),
            ("missing below a link", "/conf/a/b", "/real/conf/a/b"),
            ("missing", "/x/y", "/x/y"),
            ("a link that leads nowhere", "/out", "/out"),
            ("out of the root", "/../../real", "/real"),
        ];
        for (case, destination, want) in cases {
            assert_eq!(name(root.as_fd(), destination).expect(case), want, "{case}");
        }
    }

    #[test]
    fn external_kinds() {
        let cases = [
            (NamespaceKind::Net, 31_100, true),
            (NamespaceKind::Net, 31_099, false),
            (NamespaceKind::Pid, 31_500, true),
            (NamespaceKind::Pid, 31_499, false),
            (NamespaceKind::Ipc, 40_000, false),
        ];
        for (kind, version, want) in cases {
            assert_eq!(is_supported(kind, Version(version)), want, "{kind:?} {version}");
        }
    }

    #[test]
    fn mounts_to_make_again() {
        let top = tempfile::tempdir().expect("temporary directory");
        let root = open_root(top.path().to_str().expect("plain name")).expect("open root");
        let mount = record::Mount {
            source: "/host/hosts".to_owned(),
            destination: "/etc/hosts".to_owned(),
            device: "bind".to_owned(),
        };
        let device = record::Device { path: "/dev/full".to_owned() };
        let external =
            |key: &str, value: &str| ExternalMount { key: key.to_owned(), value: value.to_owned() };
        let got = mounts_for(root.as_fd(), &[mount], &[device], true).expect("names");
        let want = [
            external("/etc/hosts", "/host/hosts"),
            external("/dev/full", "/dev/full"),
            external("/dev/null", "/dev/null"),
        ];
        assert_eq!(got, want);
    }
}
