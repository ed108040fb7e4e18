//! Messages between the runtime and the process that it starts; see the table in [`super`].
//!
//! A pair of `SOCK_SEQPACKET` sockets: one packet is one message, a descriptor may come along, and
//! the end of either process is an end of file for the other.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

/// The most bytes of a message, an error's text included.
const MESSAGE_LEN_MAX: usize = 4096;

/// What one process tells the other.
#[derive(Debug)]
pub(crate) enum Message {
    /// To the child: the runtime has done its part.
    Proceed,
    /// The pid of the init or exec, as the helper that made it sees it.
    Created(i32),
    /// The mounts before the one of this number are made: it needs its tree.
    WantTree(usize),
    /// A detached tree to mount.
    Tree(OwnedFd),
    /// The mounts are made: it is time for the runtime's hooks.
    Hooks,
    /// The number of the descriptor from which seccomp notifications are read; the process waits
    /// until the runtime has it.
    ListenerAt(RawFd),
    /// To the child: the runtime may not take the descriptor, it has to be sent.
    WantListener,
    /// That descriptor.
    Listener(OwnedFd),
    /// All is set but the last step, the program.
    Ready,
    /// What went wrong, as text; nothing follows.
    Failed(String),
}

/// One end of the pair.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Channel {
    /// Makes both ends.
    pub(crate) fn pair() -> Result<(Self, Self), Errno> {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(one), Self(other)))
    }

    /// Another descriptor of this end, to report an error after the first one was given away.
    pub(crate) fn try_clone(&self) -> Option<Self> {
        self.0.try_clone().ok().map(Self)
    }

    /// Sends a message.
    pub(crate) fn send(&self, message: &Message) -> Result<(), Errno> {
        let mut descriptor = None;
        let bytes = match message {
            Message::Proceed => b"P".to_vec(),
            Message::Created(pid) => format!("C{pid}").into_bytes(),
            Message::WantTree(number) => format!("W{number}").into_bytes(),
            Message::Tree(fd) => {
                descriptor = Some(fd.as_fd());
                b"T".to_vec()
            }
            Message::Hooks => b"H".to_vec(),
            Message::ListenerAt(number) => format!("N{number}").into_bytes(),
            Message::WantListener => b"S".to_vec(),
            Message::Listener(fd) => {
                descriptor = Some(fd.as_fd());
                b"L".to_vec()
            }
            Message::Ready => b"R".to_vec(),
            Message::Failed(text) => {
                let mut text = format!("F{text}").into_bytes();
                text.truncate(MESSAGE_LEN_MAX);
                text
            }
        };
        if descriptor.is_some() {
            return send_with(self.0.as_fd(), &bytes, descriptor);
        }
        // After a seccomp filter is loaded, write(2) is the call that a filter surely allows.
        loop {
            match rustix::io::write(&self.0, &bytes) {
                Err(Errno::INTR) => {}
                result => return result.map(drop),
            }
        }
    }

    /// Waits for the next message; `None` when the other process is gone.
    pub(crate) fn receive(&self) -> Result<Option<Message>, Errno> {
        let mut bytes = [0; MESSAGE_LEN_MAX];
        let (length, descriptor) = receive_with(self.0.as_fd(), &mut bytes)?;
        Message::decode(&bytes[..length], descriptor)
    }

    /// Waits for the next message, one that has no descriptor, by read(2): a seccomp filter that is
    /// loaded already need not allow recvmsg(2).
    pub(crate) fn receive_plain(&self) -> Result<Option<Message>, Errno> {
        let mut bytes = [0; MESSAGE_LEN_MAX];
        loop {
            match rustix::io::read(&self.0, &mut bytes[..]) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
                Ok(length) => return Message::decode(&bytes[..length], None),
            }
        }
    }
}

impl Message {
    /// Reads a message; `None` for the end.
    pub(crate) fn decode(bytes: &[u8], descriptor: Option<OwnedFd>) -> Result<Option<Self>, Errno> {
        let Some((tag, rest)) = bytes.split_first() else { return Ok(None) };
        let text = || String::from_utf8_lossy(rest).into_owned();
        let message = match (tag, descriptor) {
            (b'P', _) => Message::Proceed,
            (b'C', _) => Message::Created(text().parse().map_err(|_| Errno::PROTO)?),
            (b'W', _) => Message::WantTree(text().parse().map_err(|_| Errno::PROTO)?),
            (b'T', Some(fd)) => Message::Tree(fd),
            (b'H', _) => Message::Hooks,
            (b'N', _) => Message::ListenerAt(text().parse().map_err(|_| Errno::PROTO)?),
            (b'S', _) => Message::WantListener,
            (b'L', Some(fd)) => Message::Listener(fd),
            (b'R', _) => Message::Ready,
            (b'F', _) => Message::Failed(text()),
            _ => return Err(Errno::PROTO),
        };
        Ok(Some(message))
    }
}

/// Sends bytes, and with them a descriptor.
pub(crate) fn send_with(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        let pushed = control.push(SendAncillaryMessage::ScmRights(&descriptors));
        assert!(pushed, "the buffer has space for one descriptor");
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Receives bytes, and the descriptor that came with them.
pub(crate) fn receive_with(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        let mut slices = [IoSliceMut::new(bytes)];
        match recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            result => break result?.bytes,
        }
    };
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((length, descriptor))
}
