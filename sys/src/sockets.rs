//! Sockets with a path in a directory that several programs change at once, without waiting for ever.
//!
//! Sources: unix(7), connect(2), flock(2).

use std::{
    fs::File,
    io,
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

/// How often a lock that another holds is tried.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Locks the directory that `path` is in, until the file is closed. Blocks for `limit` at most:
/// `None` when another holds it for longer, who may be stopped, or have nothing to do with it.
///
/// # Errors
///
/// The directory cannot be opened.
pub fn lock_directory(path: &Path, limit: Duration) -> io::Result<Option<File>> {
    let directory = File::open(path.parent().unwrap_or(Path::new(".")))?;
    let deadline = Instant::now() + limit;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(directory)),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                thread::sleep(LOCK_PAUSE);
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Connects to the socket at `path`, and does not wait: `None` when somebody listens there whose queue
/// is full.
///
/// # Errors
///
/// As of connect(2): `ConnectionRefused` when nobody listens.
pub fn connect_now(path: &Path) -> io::Result<Option<UnixStream>> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) => Ok(Some(UnixStream::from(socket))),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::net::listen;

    use super::*;

    #[test]
    fn nobody_is_waited_for_ever() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let missing = connect_now(&path).expect_err("is not there");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);

        let listener = UnixListener::bind(&path).expect("bound");
        listen(&listener, 0).expect("a short queue");
        let first = connect_now(&path).expect("listens");
        assert!(first.is_some());
        let full = (0..8).any(|_| connect_now(&path).expect("listens").is_none());
        assert!(full, "nobody accepts");
        drop((listener, first));
        let dead = connect_now(&path).expect_err("nobody listens");
        assert_eq!(dead.kind(), io::ErrorKind::ConnectionRefused);

        let held = lock_directory(&path, Duration::ZERO).expect("there");
        assert!(held.is_some());
        assert!(lock_directory(&path, Duration::from_millis(20)).expect("there").is_none());
        drop(held);
        // A process that another test is starting has it until it has become its program.
        assert!(lock_directory(&path, Duration::from_secs(30)).expect("there").is_some());
    }
}
