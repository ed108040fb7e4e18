//! The terminal of a task: a socket through which the runtime hands over the master's descriptor.
//!
//! The runtime makes the terminal inside the container and sends the master before it exits, so
//! when it has exited the message is there and nothing has to wait.
//!
//! Source: runc `docs/terminals.md`, "Detached New Terminal".

use std::{
    fs, io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    termios::{Winsize, tcsetwinsize},
};

/// A socket that waits for a terminal's master. Its path is gone when it is dropped.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens in `directory`, under a name made of `number`.
    ///
    /// The path is short, as socket addresses must be; a bundle's may be too long.
    ///
    /// # Errors
    ///
    /// The socket cannot be made.
    pub(crate) fn new(directory: &Path, number: u64) -> io::Result<Self> {
        let path = directory.join(format!("pty-{}-{number}", std::process::id()));
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    /// Where the runtime connects.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the master that the runtime has sent.
    ///
    /// # Errors
    ///
    /// None was sent.
    pub(crate) fn receive(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 4096];
        let mut data = [io::IoSliceMut::new(&mut name)];
        recvmsg(&stream, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let master = fd.ok_or_else(|| io::Error::other("no descriptor in the message"))?;
        if !rustix::termios::isatty(&master) {
            return Err(io::Error::other("the descriptor is no terminal"));
        }
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(master)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Nothing is to be done about one that cannot be removed.
        let _ = fs::remove_file(&self.path);
    }
}

/// Sets the size of a terminal, in characters.
///
/// # Errors
///
/// The terminal is gone.
pub(crate) fn resize(master: impl AsFd, width: u32, height: u32) -> io::Result<()> {
    let clamp = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
    let size = Winsize { ws_row: clamp(height), ws_col: clamp(width), ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(master, size)?)
}
