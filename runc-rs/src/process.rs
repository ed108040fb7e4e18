//! The runtime's side of a process, be it an init or an exec: its options, its terminal, who is
//! told of it, and waiting for its end.

mod relay;
mod wait;

use std::{
    io::Write as _,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, socketpair,
    },
    process::{PidfdGetfdFlags, pidfd_getfd},
};
use serde::Serialize;

use crate::{
    error::Error,
    init::{
        capability,
        channel::{self, Channel, Message},
        clone::Child,
    },
    log, seccomp, spec,
    state::State,
};

pub use self::wait::Waiter;

/// The most descriptors that a program gets, those for standard streams aside: no process has more.
const PRESERVED_MAX: i32 = 1 << 20;

/// The options that every process has.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Who gets the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// Who gets the process's descriptor.
    pub pidfd_socket: Option<PathBuf>,
    /// Where to write the process's pid.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 on the program gets, besides those of `listen_fds`.
    pub preserve_fds: i32,
    /// How many descriptors from 3 on are listening sockets, sd_listen_fds(3).
    pub listen_fds: Option<i32>,
    /// Whether nobody waits for the process.
    pub detach: bool,
}

/// A process that was started, a child of this one.
#[derive(Debug)]
pub struct Started {
    pub(crate) child: Child,
    /// Where the terminal's master comes from, when this runtime passes input and output on.
    pub(crate) terminal: Option<OwnedFd>,
}

impl Started {
    /// The process's pid.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }
}

impl Options {
    /// Checks that the options fit a process with or without a terminal, and that the descriptors
    /// to preserve are there.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] says what does not fit.
    pub fn check(&self, terminal: bool) -> Result<(), Error> {
        let refuse = |text: &str| Err(Error::Usage(text.to_owned()));
        if self.detach && terminal && self.console_socket.is_none() {
            return refuse(
                "cannot allocate tty if runc will detach without setting console socket",
            );
        }
        if (!self.detach || !terminal) && self.console_socket.is_some() {
            return refuse("cannot use console socket if runc will not detach or allocate tty");
        }
        if !(0..=PRESERVED_MAX).contains(&self.preserve_fds)
            || !(0..=PRESERVED_MAX).contains(&self.preserved())
        {
            return Err(Error::Usage(format!("invalid preserve-fds: {}", self.preserve_fds)));
        }
        match (3..3 + self.preserved()).find(|&number| !sys::descriptors::is_inherited(number)) {
            None => Ok(()),
            Some(number) => Err(Error::Usage(format!(
                "unable to stat preserved-fd {} (of {}): no such file or directory",
                number - 3,
                self.preserve_fds
            ))),
        }
    }

    /// How many descriptors from 3 on the program gets.
    pub(crate) fn preserved(&self) -> i32 {
        self.preserve_fds.saturating_add(self.listen_fds.unwrap_or(0))
    }

    /// Opens what the terminal's master is sent through: this process's end, if it is to receive
    /// it, and the new process's.
    pub(crate) fn console(
        &self,
        process: &spec::Process,
    ) -> Result<(Option<OwnedFd>, Option<OwnedFd>), Error> {
        if !process.terminal {
            return Ok((None, None));
        }
        if let Some(path) = &self.console_socket {
            return Ok((None, Some(connect_to(path)?)));
        }
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|error| Error::system("make", "socket for console", error))?;
        Ok((Some(ours), Some(theirs)))
    }

    /// Tells those who want to know of a process that is ready: the pid file is written last, and
    /// whole, since it is what shims wait for.
    pub(crate) fn announce(&self, child: &Child) -> Result<(), Error> {
        if let Some(path) = &self.pidfd_socket {
            let socket = connect_to(path)?;
            channel::send_with(socket.as_fd(), b"pidfd", Some(child.pidfd.as_fd()))
                .map_err(|error| Error::file("send pidfd to", path, error))?;
        }
        self.pid_file.as_deref().map_or(Ok(()), |path| write_pid_file(path, child.pid))
    }

    /// Takes back the pid file, since the process did not come to its program.
    pub(crate) fn withdraw(&self) {
        if let Some(path) = &self.pid_file {
            // What matters is the error that led here.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Writes a file of this process's own making, not one that somebody has put in its place, and
/// renames it.
fn write_pid_file(path: &Path, pid: i32) -> Result<(), Error> {
    let fail = |error| Error::file("write", path, error);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let new = path.with_file_name(format!(".{name}"));
    // That of an earlier one which was cut short.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&new);
    let written =
        file.and_then(|mut file| write!(file, "{pid}")).and_then(|()| std::fs::rename(&new, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&new);
        fail(error)
    })
}

fn connect_to(path: &Path) -> Result<OwnedFd, Error> {
    let fail = |error| Error::file("connect to", path, error);
    let address = SocketAddrUnix::new(path).map_err(fail)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(fail)?;
    connect(&socket, &address).map_err(fail)?;
    Ok(socket)
}

/// Checks that a label that is asked for can be set.
pub(crate) fn check_labels(process: &spec::Process) -> Result<(), Error> {
    const SELINUX_MAGIC: u64 = 0xf97c_ff8c;
    let enabled = || {
        let found = rustix::fs::statfs("/sys/fs/selinux");
        found.is_ok_and(|found| u64::try_from(found.f_type) == Ok(SELINUX_MAGIC))
    };
    if process.selinux_label.is_empty() || enabled() {
        return Ok(());
    }
    let text = "selinux label is specified in config, but selinux is disabled or not supported";
    Err(Error::Usage(text.to_owned()))
}

/// Warns of capabilities that a process is not going to get. In a user namespace `permitted` is
/// not known beforehand, so nothing is said of it.
pub(crate) fn warn_of_missing_capabilities(process: &spec::Process, new_user: bool) {
    for name in capability::not_ambient(process.capabilities.as_ref()) {
        log::warn(&format!("can't raise ambient capability {name}: operation not permitted"));
    }
    let mut ignored = capability::unknown(process.capabilities.as_ref());
    if !new_user {
        ignored.extend(capability::missing(process.capabilities.as_ref()));
    }
    if !ignored.is_empty() {
        let names = ignored.join(" ");
        log::warn(&format!("ignoring unknown or unavailable capabilities: [{names}]"));
    }
}

/// Waits for the next message of a process that is not an error.
pub(crate) fn next(channel: &Channel, child: &Child) -> Result<Message, Error> {
    match channel.receive() {
        Ok(Some(Message::Failed(text))) => {
            // The prefix is there once, whichever process it was that failed.
            let text = text.strip_prefix("unable to start container process: ").unwrap_or(&text);
            Err(Error::Process(text.to_owned()))
        }
        Ok(Some(message)) => Ok(message),
        // One that is killed may leave what it was told unread.
        Ok(None) | Err(Errno::CONNRESET) => Err(Error::Process(wait::describe_end(child))),
        Err(error) => Err(Error::system("talk to", "container process", error)),
    }
}

/// The error of a message that does not belong where it came.
pub(crate) fn unexpected(message: &Message) -> Error {
    Error::Process(format!("unexpected message {message:?}"))
}

/// The filter that a configuration asks for.
pub(crate) fn filter(spec: &spec::Spec) -> Result<Option<seccomp::Program>, Error> {
    let profile = spec.linux.seccomp.as_ref().filter(|profile| !profile.is_empty());
    let program = profile.map(seccomp::compile).transpose()?;
    if let Some(program) = &program {
        log::debug(&format!("seccomp filter flags: {}", program.flags));
    }
    Ok(program)
}

/// What the receiver of a seccomp listener is told, runtime-spec `config-linux.md`, "Container
/// process state".
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListenerState<'a> {
    oci_version: &'a str,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    state: serde_json::Value,
}

/// Takes a seccomp listener from a process that is under its filter already, and therefore may be
/// unable to send it. A runtime that may not look into the process, for it is in a container itself,
/// asks for it all the same.
pub(crate) fn take_listener(
    channel: &Channel,
    child: &Child,
    number: i32,
) -> Result<OwnedFd, Error> {
    let fail = |error| Error::system("take", "seccomp listener", error);
    match pidfd_getfd(&child.pidfd, number, PidfdGetfdFlags::empty()) {
        Err(Errno::PERM | Errno::NOSYS) => {}
        result => return result.map_err(fail),
    }
    channel.send(&Message::WantListener).map_err(fail)?;
    match next(channel, child)? {
        Message::Listener(fd) => Ok(fd),
        message => Err(unexpected(&message)),
    }
}

/// Sends a seccomp listener to the agent that the configuration names.
pub(crate) fn send_listener(
    listener: Option<&seccomp::Listener>,
    fd: &OwnedFd,
    (state, status): (&State, &'static str),
    pid: i32,
) -> Result<(), Error> {
    let Some(listener) = listener else {
        return Err(Error::Process("seccomp listenerPath is not set".to_owned()));
    };
    let told = ListenerState {
        oci_version: &state.config.version,
        fds: ["seccompFd"],
        pid,
        metadata: &listener.metadata,
        state: serde_json::json!({
            "ociVersion": state.config.version,
            "id": state.id,
            "status": status,
            "pid": state.init_process_pid,
            "bundle": state.bundle(),
            "annotations": state.annotations(),
        }),
    };
    let text = serde_json::to_vec(&told)
        .map_err(|error| Error::system("write", "seccomp state", std::io::Error::other(error)))?;
    let socket = connect_to(&listener.path).map_err(|error| Error::SeccompAgent {
        path: listener.path.clone(),
        source: Box::new(error),
    })?;
    channel::send_with(socket.as_fd(), &text, Some(fd.as_fd()))
        .map_err(|error| Error::file("send seccomp listener to", &listener.path, error))
}

/// Receives the terminal's master from the process.
fn receive_master(socket: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let fail = |error| Error::system("receive", "console", error);
    let mut name = [0; 64];
    let (_, master) = channel::receive_with(socket, &mut name).map_err(fail)?;
    master.ok_or_else(|| fail(Errno::PROTO))
}
