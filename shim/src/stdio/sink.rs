//! Where output goes, opened: a descriptor, or a stream that a client opens.

use std::{
    fs::{self, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use super::{Copies, Method, Owner, Uri};
use crate::poller::Poller;

/// Where output goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// Something to write to, and how.
    Fd(OwnedFd, Method),
    /// A stream that is kept for the process, by its number.
    Stream(u64),
}

/// Opens where output goes, of a terminal or not, if it goes anywhere.
///
/// # Errors
///
/// It cannot be opened; a stream is another process's, or another program's.
pub(super) fn open(
    uri: &Uri,
    terminal: bool,
    owner: Owner<'_>,
    copies: &mut Copies,
    poller: &mut Poller,
) -> io::Result<Option<Sink>> {
    if let Uri::Stream { socket, id } = uri {
        let number = reserve((socket, id), owner, copies, poller)?;
        return Ok(Some(Sink::Stream(number)));
    }
    let Some(target) = open_output(uri)? else { return Ok(None) };
    let method = if terminal { Method::Buffer(Vec::new()) } else { method_for(&target)? };
    Ok(Some(Sink::Fd(target, method)))
}

impl Sink {
    /// The same again, for standard error where it goes where standard output does: one
    /// description for both, so that they share an offset. There are no two of a stream.
    ///
    /// # Errors
    ///
    /// The kernel has no descriptor left.
    pub(super) fn share(&self) -> io::Result<Option<Self>> {
        match self {
            Self::Fd(target, _) => {
                let target = target.try_clone()?;
                let method = method_for(&target)?;
                Ok(Some(Self::Fd(target, method)))
            }
            Self::Stream(_) => Ok(None),
        }
    }

    /// Starts to move what comes from `source`, and returns the number of that.
    ///
    /// # Errors
    ///
    /// The source is nothing to wait for.
    pub(super) fn start(
        self,
        source: OwnedFd,
        copies: &mut Copies,
        poller: &mut Poller,
    ) -> io::Result<u64> {
        match self {
            Self::Fd(target, method) => Ok(copies.start(source, target, method, poller)?),
            Self::Stream(number) => {
                copies.relays.start_output(number, source, poller);
                Ok(number)
            }
        }
    }
}

/// Keeps the stream `id` at `socket`, which must be the shim's, for a process.
///
/// # Errors
///
/// The stream is another process's, or another program's.
pub(super) fn reserve(
    (socket, id): (&Path, &str),
    owner: Owner<'_>,
    copies: &mut Copies,
    poller: &mut Poller,
) -> io::Result<u64> {
    if socket != owner.socket {
        let text = format!("stream {id} is at {socket:?}, not at {:?}", owner.socket);
        return Err(io::Error::other(text));
    }
    copies.relays.reserve(id, poller).map_err(io::Error::other)
}

/// A stream cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path:?}")]
struct OpenError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Says which file an error is about.
pub(super) fn at(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> io::Error {
    let path = path.to_owned();
    move |source| io::Error::other(OpenError { operation, path: path.clone(), source })
}

/// Opens where output goes. A fifo is opened for reading too, so that it needs no reader.
fn open_output(uri: &Uri) -> io::Result<Option<OwnedFd>> {
    let mut options = OpenOptions::new();
    let path = match uri {
        Uri::Null => return Ok(None),
        Uri::Path(path) if is_fifo(path)? => {
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
            path
        }
        Uri::Path(path) => {
            options.append(true);
            path
        }
        Uri::File(path) => {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory).map_err(at("make", directory))?;
            }
            options.append(true).create(true).mode(0o644);
            path
        }
        Uri::Binary { .. } => {
            return Err(io::Error::other("a logging program takes stdout and stderr"));
        }
        Uri::Stream { id, .. } => {
            return Err(io::Error::other(format!("stream {id} cannot be opened")));
        }
    };
    Ok(Some(options.open(path).map_err(at("open", path))?.into()))
}

pub(super) fn is_fifo(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path).map_err(at("open", path))?.file_type().is_fifo())
}

/// Splices where it can.
fn method_for(target: &OwnedFd) -> io::Result<Method> {
    let mode = rustix::fs::fstat(target)?.st_mode;
    let is_pipe = rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Fifo;
    Ok(if is_pipe { Method::Splice } else { Method::Buffer(Vec::new()) })
}
