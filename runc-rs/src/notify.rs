//! Hands on, to whoever started this program, that a container's program is ready, sd_notify(3).
//!
//! The host's socket is not shown to the container: what is written there is believed. The container
//! gets a socket of its own, and of what it writes only that it is ready is handed on, followed by
//! the pid to watch instead of this program's.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{DirBuilderExt as _, PermissionsExt as _},
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{
    error::Error,
    init::channel,
    log,
    spec::{Mount, Spec},
    state::Entry,
};

const DIRECTORY: &str = "notify";
const SOCKET: &str = "notify.sock";
const IN_CONTAINER: &str = "/run/notify";

/// The longest message that is read.
const MESSAGE_LEN_MAX: usize = 4096;

/// How long the receiver may take to say that it has read the messages.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(30);

/// The variable with the host's socket, where somebody waits for a message.
pub(crate) fn host_socket() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())
}

/// Shows the container a socket, and tells its program where it is.
pub(crate) fn add_to(spec: &mut Spec, entry: &Entry) {
    let option = |option: &&str| (*option).to_owned();
    spec.mounts.push(Mount {
        destination: IN_CONTAINER.to_owned(),
        source: directory(entry).display().to_string(),
        options: ["bind", "nosuid", "noexec", "nodev", "ro"].iter().map(option).collect(),
        ..Mount::default()
    });
    if let Some(process) = &mut spec.process {
        process.env.push(format!("NOTIFY_SOCKET={IN_CONTAINER}/{SOCKET}"));
    }
}

/// Makes the directory for the socket, in the container's.
pub(crate) fn make_directory(entry: &Entry) -> Result<(), Error> {
    let path = directory(entry);
    let made = fs::DirBuilder::new().mode(0o755).create(&path);
    made.map_err(|error| Error::file("mkdir", &path, error))
}

fn directory(entry: &Entry) -> PathBuf {
    entry.path().join(DIRECTORY)
}

/// The container's socket.
#[derive(Debug)]
pub(crate) struct Notify {
    socket: UnixDatagram,
    host: OsString,
}

impl Notify {
    /// Makes the socket; to be done before the program starts.
    pub(crate) fn new(entry: &Entry, host: OsString) -> Result<Self, Error> {
        let directory = directory(entry);
        let fail = |error| Error::file("listen on", directory.join(SOCKET), error);
        // By descriptor, for the address of a socket is short and an id may be long.
        let opened = fs::File::open(&directory).map_err(fail)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", opened.as_raw_fd());
        let socket = UnixDatagram::bind(&path).map_err(fail)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).map_err(fail)?;
        Ok(Self { socket, host })
    }

    /// Reads a message, of which there is one, and hands it on with `main_pid` if it says that the
    /// program is ready. Returns whether it does.
    pub(crate) fn pass_on(&self, main_pid: i32) -> Result<bool, Error> {
        let mut message = [0; MESSAGE_LEN_MAX];
        let length = self
            .socket
            .recv(&mut message)
            .map_err(|error| Error::system("read", "notify socket", error))?;
        let Some(line) = ready_line(&message[..length]) else { return Ok(false) };
        self.tell_host(line, main_pid)
            .map_err(|error| Error::file("write to", Path::new(&self.host), error))?;
        Ok(true)
    }

    fn tell_host(&self, line: &[u8], main_pid: i32) -> io::Result<()> {
        let host = UnixDatagram::unbound()?;
        let bytes = self.host.as_bytes();
        match bytes.strip_prefix(b"@") {
            Some(name) => host.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            None => host.connect(Path::new(&self.host))?,
        }
        host.send(&[line, b"\n"].concat())?;
        host.send(format!("MAINPID={main_pid}\n").as_bytes())?;
        wait_until_read(&host)
    }

    /// Waits until the program is ready, or has ended.
    pub(crate) fn wait(&self, init: BorrowedFd<'_>, main_pid: i32) -> Result<(), Error> {
        loop {
            let mut waiting =
                [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&init, PollFlags::IN)];
            match poll(&mut waiting, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::system("wait for", "notify socket", error)),
            }
            let (news, ended) =
                (!waiting[0].revents().is_empty(), !waiting[1].revents().is_empty());
            if news && self.pass_on(main_pid)? || ended && !news {
                return Ok(());
            }
        }
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The first line of a message that begins with readiness.
fn ready_line(message: &[u8]) -> Option<&[u8]> {
    if !message.starts_with(b"READY=") {
        return None;
    }
    message.split(|byte| *byte == b'\n').next()
}

/// Sends the end of a pipe, which the receiver closes when it comes to it: sd_notify_barrier(3).
fn wait_until_read(host: &UnixDatagram) -> io::Result<()> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    channel::send_with(host.as_fd(), b"BARRIER=1", Some(writer.as_fd()))?;
    drop(writer);
    let timeout = Timespec { tv_sec: BARRIER_TIMEOUT.as_secs().cast_signed(), tv_nsec: 0 };
    let mut waiting = [PollFd::new(&reader, PollFlags::IN)];
    if poll(&mut waiting, Some(&timeout))? == 0 {
        log::warn("Timeout after waiting 30s for barrier. Ignored.");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let cases: [(&[u8], Option<&[u8]>); 5] = [
            (b"READY=1", Some(b"READY=1")),
            (b"READY=1\nMAINPID=1\n", Some(b"READY=1")),
            (b"STATUS=x\nREADY=1", None),
            (b"MAINPID=1", None),
            (b"", None),
        ];
        for (message, want) in cases {
            assert_eq!(ready_line(message), want, "{}", String::from_utf8_lossy(message));
        }
    }
}
