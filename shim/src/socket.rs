//! The socket that a shim listens on: its name, how it is made, and who may connect.
//!
//! The name follows containerd's scheme, so that a shim of the same pod is found by whoever starts
//! the next container in it: `<directory>/<sha256 of address, namespace and group>`. It is always
//! a path, never abstract: an abstract socket belongs to a network namespace, and a container that
//! shares the host's could connect to it (CVE-2020-15257).
//!
//! Whether a socket is dead, to be replaced or removed, is seen by connecting to it. Between that
//! and what follows another could put a living one in its place, so whoever does either holds a
//! lock on the directory meanwhile.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{DirBuilderExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use sys::sockets::{connect_now, lock_directory};

use crate::sha256;

/// Where containerd keeps the sockets of its shims.
pub(crate) const DEFAULT_DIRECTORY: &str = "/run/containerd/s";

/// The path of the socket for `group` in `namespace` of the containerd at `address`.
pub(crate) fn path(directory: &Path, address: &str, namespace: &str, group: &str) -> PathBuf {
    let name = [address, namespace, group]
        .iter()
        .flat_map(|part| part.split('/'))
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("/");
    let root = if address.starts_with('/') { "/" } else { "" };
    directory.join(sha256::hex(format!("{root}{name}").as_bytes()))
}

/// The form in which containerd takes the path.
pub(crate) fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// How long another may hold the directory.
const LOCK_LIMIT: Duration = Duration::from_secs(3);

/// What listens at a path.
#[derive(Debug)]
pub(crate) enum Bound {
    /// Nobody did; this does now.
    New(UnixListener),
    /// A shim, that of the same group.
    Served,
}

/// Listens at `path`, readable for the owner only, unless a shim does so already.
///
/// A socket that nobody listens on is what a killed shim leaves behind; it is replaced.
///
/// # Errors
///
/// The directory or the socket cannot be made.
pub(crate) fn bind(path: &Path) -> io::Result<Bound> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let _lock = lock(path)?;
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if connect_now(path).is_ok() {
                return Ok(Bound::Served);
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .inspect_err(|_| drop(fs::remove_file(path)))?;
    Ok(Bound::New(listener))
}

/// Removes the socket at `path` if nobody listens there any more; `false` when somebody does.
///
/// A process that is about to end may listen a little longer than it answers. Whoever waits for it
/// is told when it stops, and this waits for `limit`.
///
/// # Errors
///
/// The socket is dead and cannot be removed.
pub(crate) fn remove_dead(path: &Path, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let lock = lock(path);
        match connect_now(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return fs::remove_file(path).map(|()| true);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(_) | Ok(None) => return Ok(false),
            Ok(Some(stream)) => {
                drop(lock);
                let left = deadline.saturating_duration_since(Instant::now());
                let left = Timespec {
                    tv_sec: left.as_secs().cast_signed(),
                    tv_nsec: left.subsec_nanos().into(),
                };
                let mut watched = [PollFd::new(&stream, PollFlags::IN)];
                if !poll(&mut watched, Some(&left)).is_ok_and(|ready| ready > 0) {
                    return Ok(false);
                }
            }
        }
    }
}

/// Locks the directory that `path` is in, until the file is closed. What somebody holds who is stopped
/// keeps nobody from starting a container: then two starts of one may part, and no more.
fn lock(path: &Path) -> io::Result<Option<File>> {
    lock_directory(path, LOCK_LIMIT)
}

/// Whether the process at the other end of `stream` may use the shim: root or the shim's own user.
pub(crate) fn peer_is_trusted(stream: &impl AsFd) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_containerds() {
        let got =
            path(Path::new("/run/containerd/s"), "/run/containerd/containerd.sock", "moby", "c1");
        let want = sha256::hex(b"/run/containerd/containerd.sock/moby/c1");
        assert_eq!(got, Path::new("/run/containerd/s").join(want));
    }

    #[test]
    fn binds_once_and_replaces_what_is_dead() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s").join("a");
        let Ok(Bound::New(listener)) = bind(&path) else { panic!("first") };
        assert!(matches!(bind(&path), Ok(Bound::Served)), "second");
        drop(listener);
        assert!(matches!(bind(&path), Ok(Bound::New(_))), "after the first is gone");
        let mode = fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn only_dead_sockets_are_removed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("a");
        let remove = |limit| remove_dead(&path, limit).expect("removed or left");
        assert!(remove(Duration::ZERO), "there is none");
        let listener = UnixListener::bind(&path).expect("bound");
        assert!(!remove(Duration::ZERO), "somebody listens");
        let ends = std::thread::spawn(move || {
            // What waits is not taken; its end is the listener's.
            let (first, _) = listener.accept().expect("somebody connects");
            drop((first, listener));
        });
        while !remove(Duration::from_secs(60)) {}
        ends.join().expect("no panic");
        assert!(!path.exists());
    }
}
