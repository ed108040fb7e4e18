//! The Linux namespaces that a container joins by path.

use rustix::fs::{CWD, Mode, OFlags, fstat, openat, stat};

use crate::{
    error::Error,
    spawn::Join,
    spec::{self, NamespaceKind, Spec},
};

/// Opens them.
///
/// What is opened is looked at, not its path: `/proc/self/ns/net` and a bind mount of it are the
/// runtime's own network, whose parameters no container may set.
pub(super) fn open(spec: &Spec) -> Result<Join, Error> {
    let mut files = Vec::new();
    for namespace in &spec.linux.namespaces {
        if namespace.path.is_empty() {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(CWD, &namespace.path, flags, Mode::empty())
            .map_err(|error| Error::file("open namespace", &namespace.path, error))?;
        if namespace.kind == NamespaceKind::Net {
            refuse_own_network(spec, &file)?;
        }
        files.push((namespace.kind, file));
    }
    Ok(if files.is_empty() { Join::Nothing } else { Join::Files(files) })
}

fn refuse_own_network(spec: &Spec, namespace: impl std::os::fd::AsFd) -> Result<(), Error> {
    const OWN: &str = "/proc/self/ns/net";
    let is_of_network = |name: &&String| crate::init::sysctl::dotted(name).starts_with("net.");
    let Some(name) = spec.linux.sysctl.keys().find(is_of_network) else { return Ok(()) };
    let own = stat(OWN).map_err(|error| Error::file("stat", OWN, error))?;
    let joined = fstat(namespace).map_err(|error| Error::system("stat", "namespace", error))?;
    if (own.st_dev, own.st_ino) != (joined.st_dev, joined.st_ino) {
        return Ok(());
    }
    let reason = format!("{name:?} not allowed in host network namespace");
    Err(spec::Error::Invalid { field: "linux.sysctl".to_owned(), reason }.into())
}
