//! What shims log.
//!
//! A shim writes its log into a fifo of the bundle. It is read from before the shim starts, since
//! older shims wait for a reader, and it is opened for both ways, so that it has no end when the
//! shim closes it. Lines go to the daemon's own log.

use std::io;

use rustix::fs::{Mode, OFlags, open};
use tokio::{net::unix::pipe::Receiver, task::JoinHandle};

use super::bundle::Bundle;

/// The longest line that is kept together, in bytes.
const LINE_LEN_MAX: usize = 4096;

/// Reads a shim's log until it is dropped.
pub(super) struct ShimLog(Option<JoinHandle<()>>);

impl ShimLog {
    /// Starts to read; without a fifo there is nothing to read, and that is no error.
    pub(super) fn open(bundle: &Bundle, id: &str) -> Self {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = open(bundle.log(), flags, Mode::empty());
        let fifo = opened.map_err(io::Error::from).and_then(Receiver::from_owned_fd);
        let id = id.to_owned();
        Self(fifo.ok().map(|fifo| tokio::spawn(copy(fifo, id))))
    }
}

impl Drop for ShimLog {
    fn drop(&mut self) {
        if let Some(reading) = &self.0 {
            reading.abort();
        }
    }
}

async fn copy(fifo: Receiver, id: String) {
    let mut line = Vec::new();
    while fifo.readable().await.is_ok() {
        match read(&fifo, &mut line, &id) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
            Ok(()) => {}
        }
    }
}

/// Reads once. The buffer is on the stack, since a log that is silent shall cost nothing.
fn read(fifo: &Receiver, line: &mut Vec<u8>, id: &str) -> io::Result<()> {
    let mut buffer = [0; LINE_LEN_MAX];
    let count = fifo.try_read(&mut buffer)?;
    for &byte in &buffer[..count] {
        if byte != b'\n' {
            line.push(byte);
        }
        if byte == b'\n' || line.len() >= LINE_LEN_MAX {
            write(&String::from_utf8_lossy(line), id);
            line.clear();
        }
    }
    line.shrink_to(LINE_LEN_MAX);
    Ok(())
}

/// Shims write what they are about at their own level "info", which is the daemon's "debug".
fn write(line: &str, id: &str) {
    let has = |level: &str| line.contains(level);
    if has("level=error") || has("level=fatal") || has("panic") {
        tracing::error!(id, "shim: {line}");
    } else if has("level=warn") {
        tracing::warn!(id, "shim: {line}");
    } else {
        tracing::debug!(id, "shim: {line}");
    }
}
