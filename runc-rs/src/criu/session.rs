//! One conversation with a criu that was started for it (`criu swrk`), over a pair of
//! `SOCK_SEQPACKET` sockets: one packet is one message.
//!
//! criu opens the descriptors that a request names in the process at the other end of the
//! socket, which is this one. A request is answered by notifications, each of which criu wants
//! to be answered before it goes on, and then by the result.
//!
//! criu is never killed from here: in the middle of a dump that would leave processes stopped.
//! When the socket is closed it takes back what it did, and ends.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    os::unix::process::CommandExt as _,
    process::Command,
};

use rustix::{
    io::{Errno, FdFlags, fcntl_setfd},
    net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair},
    process::{Pid, WaitOptions, WaitStatus, waitpid},
};
use sys::{error::Chain, spawn::CommandChild as _};

use super::message::{Kind, Request, Response};
use crate::{
    error::{Cause, Error},
    init::{
        channel::{Channel, Message, receive_with, send_with},
        clone::Child,
    },
    spawn::{Destination, Join, spawn},
};

/// The program, looked for in `PATH`.
const PROGRAM: &str = "criu";

/// The most bytes of an answer, which is runc's limit.
const ANSWER_LEN_MAX: usize = 10 * 4096;

/// What criu is started in.
#[derive(Default)]
pub(crate) struct Place<'a> {
    /// `CLONE_NEW*` bits of namespaces that are made for it.
    pub(crate) namespaces: u32,
    /// Its v2 cgroup.
    pub(crate) destination: Destination<'a>,
    /// Descriptors that it keeps, by the same numbers.
    pub(crate) inherited: Vec<BorrowedFd<'a>>,
}

/// A criu that waits for a request.
#[derive(Debug)]
pub(crate) struct Session {
    /// None when the conversation is over.
    socket: Option<OwnedFd>,
    /// None when its end was seen.
    process: Option<Child>,
}

impl Session {
    /// Starts criu; `prepare` is what its process does before.
    pub(crate) fn start(
        place: Place<'_>,
        prepare: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let fail = |error| Error::system("make", "socket for criu", error);
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).map_err(fail)?;
        let Place { namespaces, destination, inherited } = place;
        let body = move |channel: Channel| {
            let error = match prepare() {
                Ok(()) => run_program(theirs.as_fd(), &inherited),
                Err(error) => error,
            };
            let _ = channel.send(&Message::Failed(Chain(&error).to_string()));
        };
        let (child, channel) = spawn(&Join::Nothing, namespaces, &destination, body)?;
        let session = Self { socket: Some(ours), process: Some(child) };
        match channel.receive() {
            // The end of the channel is that of close-on-exec: the program runs.
            Ok(None) => Ok(session),
            Ok(Some(Message::Failed(text))) => Err(Error::Criu(text)),
            Ok(Some(message)) => Err(crate::process::unexpected(&message)),
            Err(error) => Err(Error::system("talk to", PROGRAM, error)),
        }
    }

    /// criu's pid.
    pub(crate) fn pid(&self) -> i32 {
        self.process.as_ref().map_or(0, |process| process.pid)
    }

    fn socket(&self) -> Result<BorrowedFd<'_>, Error> {
        let socket = self.socket.as_ref().map(|socket| socket.as_fd());
        socket.ok_or_else(|| Error::system("talk to", PROGRAM, Errno::PIPE))
    }

    /// Sends a request, and answers notifications by what `notified` does, until there is the
    /// result. A descriptor that comes with a notification is passed on to `notified`.
    pub(crate) fn ask(
        &self,
        request: &Request<'_>,
        mut notified: impl FnMut(&Response, Option<OwnedFd>) -> Result<(), Error>,
    ) -> Result<Response, Error> {
        let fail = |error| Error::system("talk to", PROGRAM, error);
        let socket = self.socket()?;
        send_with(socket, &request.encode(), None).map_err(fail)?;
        let mut bytes = vec![0; ANSWER_LEN_MAX];
        loop {
            let (length, descriptor) = receive_with(socket, &mut bytes).map_err(fail)?;
            let response = read(&bytes[..length])?;
            if response.kind != Kind::NOTIFY {
                return match response.kind == request.kind() {
                    true => Ok(response),
                    false => Err(Error::Criu(format!("unable to parse the response {response:?}"))),
                };
            }
            notified(&response, descriptor)?;
            send_with(socket, &Request::Proceed.encode(), None).map_err(fail)?;
        }
    }

    /// Ends the conversation, and waits for criu's end, which must be a good one unless the request
    /// was a pre-dump: after that criu waits for the dump, which comes in another session.
    pub(crate) fn finish(mut self, request: Kind) -> Result<(), Error> {
        if let Some(socket) = self.socket.take() {
            // It may be gone already.
            let _ = shutdown(&socket, Shutdown::Write);
            let status = self.wait();
            if request != Kind::PRE_DUMP
                && let Some(text) = status.and_then(describe)
            {
                return Err(Error::Criu(format!("criu failed: {text}")));
            }
        }
        Ok(())
    }

    fn wait(&mut self) -> Option<WaitStatus> {
        let pid = Pid::from_raw(self.process.take()?.pid)?;
        loop {
            match waitpid(Some(pid), WaitOptions::empty()) {
                Err(Errno::INTR) => {}
                result => return result.ok().flatten().map(|(_, status)| status),
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // First the end of the conversation, which makes it end.
        self.socket = None;
        self.wait();
    }
}

/// Becomes criu; returns when that is not possible.
fn run_program(socket: BorrowedFd<'_>, inherited: &[BorrowedFd<'_>]) -> Error {
    // What the caller has left open is nothing for it.
    if let Err(error) = sys::descriptors::close_on_exec_from(3) {
        return Error::system("close", "descriptors", error);
    }
    for fd in inherited.iter().chain([&socket]) {
        if let Err(error) = fcntl_setfd(fd, FdFlags::empty()) {
            return Error::system("pass on", "descriptor", error);
        }
    }
    let number = socket.as_raw_fd().to_string();
    let error = Command::new(PROGRAM).args(["swrk", &number]).unblock_signals().exec();
    Error::Criu(match error.kind() {
        // In Go's words, which clients know.
        std::io::ErrorKind::NotFound => {
            format!("exec: {PROGRAM:?}: executable file not found in $PATH")
        }
        _ => format!("exec: {PROGRAM:?}: {}", Cause(error)),
    })
}

/// Reads an answer; one that tells of a failure is an error.
pub(super) fn read(bytes: &[u8]) -> Result<Response, Error> {
    let fail = |text: &str| Err(Error::Criu(text.to_owned()));
    match bytes.len() {
        0 => return fail("unexpected EOF"),
        ANSWER_LEN_MAX => return fail("buffer is too small"),
        _ => {}
    }
    let response =
        Response::decode(bytes).map_err(|error| Error::Criu(format!("read answer: {error}")))?;
    if response.success {
        return Ok(response);
    }
    // Not the text that may come along: that is of the first error, which may have been overcome.
    let Response { kind, error_number, .. } = response;
    fail(&format!("criu failed: type {kind} errno {error_number}"))
}

/// Says how a process ended, in Go's words; nothing when all was well.
fn describe(status: WaitStatus) -> Option<String> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("exit status {code}")),
        (None, Some(signal)) => Some(format!("signal: {signal}")),
        (None, None) => Some("it ended".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let text = |bytes: &[u8]| read(bytes).map_err(|error| error.to_string()).err();
        let failed = [
            0x08, 1, 0x10, 0, 0x38, 0xcc, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0x4a, 2, b'n',
            b'o',
        ];
        let cases: [(&str, &[u8], Option<&str>); 6] = [
            ("success", &[0x08, 1, 0x10, 1], None),
            ("failure", &[0x08, 6, 0x10, 0], Some("criu failed: type NOTIFY errno 0")),
            ("failure with a text", &failed, Some("criu failed: type DUMP errno -52")),
            ("end", &[], Some("unexpected EOF")),
            ("too long", &[0; ANSWER_LEN_MAX], Some("buffer is too small")),
            ("malformed", &[0x08], Some("read answer: malformed message")),
        ];
        for (case, bytes, want) in cases {
            assert_eq!(text(bytes).as_deref(), want, "{case}");
        }
    }
}
