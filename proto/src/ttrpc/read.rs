//! Frames from a byte stream.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    Kind,
    frame::{Frame, FrameError},
};

/// What a read asks the kernel for at least, in bytes: most messages fit.
const READ_LEN_MIN: usize = 1024;

/// The buffer that a connection keeps while it is idle, in bytes at most.
const KEPT_LEN_MAX: usize = 16 << 10;

/// A frame that owns its payload.
pub(super) struct OwnedFrame {
    pub(super) kind: Kind,
    pub(super) stream_id: u32,
    pub(super) payload: Vec<u8>,
}

/// Cuts a byte stream into frames.
///
/// Holds at most one frame and what came with it in one read; a connection on which nothing
/// arrives costs an empty buffer.
pub(super) struct FrameReader<R> {
    stream: R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Takes the next frame; `None` at the end of the stream, which cuts no frame.
    pub(super) async fn next(&mut self) -> Result<Option<OwnedFrame>, ReadError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_LEN_MIN);
            let count = self.stream.read_buf(&mut self.buffer).await.map_err(ReadError::Stream)?;
            if count == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ReadError::Truncated) };
            }
        }
    }

    #[cfg(test)]
    pub(super) fn into_inner(self) -> R {
        self.stream
    }

    fn take(&mut self) -> Result<Option<OwnedFrame>, FrameError> {
        let Some((frame, used)) = Frame::parse(&self.buffer)? else {
            return Ok(None);
        };
        let (kind, stream_id) = (frame.kind, frame.stream_id);
        let payload = frame.payload.to_vec();
        self.buffer.drain(..used);
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_LEN_MAX {
            self.buffer = Vec::new();
        }
        Ok(Some(OwnedFrame { kind, stream_id, payload }))
    }
}

/// Why no further frame can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The kernel's answer.
    #[error("read from ttrpc connection")]
    Stream(#[source] io::Error),
    /// The stream ended in the middle of a frame.
    #[error("ttrpc connection ended within a frame")]
    Truncated,
    /// What came is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}
