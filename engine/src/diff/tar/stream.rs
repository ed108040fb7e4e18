//! The uncompressed bytes of a layer, counted and hashed.

use std::io::{self, Read};

use super::{BLOCK_LEN, Block, TarError};
use crate::{
    diff::DiffError,
    digest::{Algorithm, Digest, Hasher},
};

/// The bytes that are read at once: more than fit the first caches gains nothing.
const BUFFER_LEN: usize = 256 * 1024;

/// Reads blocks and data, and computes the diff ID of all that passes.
pub(crate) struct Stream<R> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    hasher: Hasher,
    total: u64,
    total_max: u64,
}

/// Either a [`DiffError`] about the source, or what is wrong with the bytes.
pub(crate) enum StreamError {
    Diff(DiffError),
    Tar(TarError),
}

impl From<TarError> for StreamError {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

impl<R: Read> Stream<R> {
    pub(crate) fn new(source: R, total_max: u64) -> Self {
        Self {
            source,
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
            start: 0,
            end: 0,
            hasher: Hasher::new(Algorithm::Sha256),
            total: 0,
            total_max,
        }
    }

    /// The next block; `None` when the bytes end in front of it.
    pub(super) fn block(&mut self) -> Result<Option<Block>, StreamError> {
        if self.start == self.end && !self.fill()? {
            return Ok(None);
        }
        let mut block = [0; BLOCK_LEN];
        let mut filled = 0;
        while filled < BLOCK_LEN {
            let chunk = self.chunk((BLOCK_LEN - filled) as u64)?;
            block[filled..filled + chunk.len()].copy_from_slice(chunk);
            filled += chunk.len();
        }
        Ok(Some(block))
    }

    /// The next bytes, at least one and at most `max`.
    pub(super) fn chunk(&mut self, max: u64) -> Result<&[u8], StreamError> {
        if self.start == self.end && !self.fill()? {
            return Err(TarError::Truncated.into());
        }
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let start = self.start;
        self.start += max.min(self.end - start);
        Ok(&self.buffer[start..self.start])
    }

    pub(super) fn skip(&mut self, mut len: u64) -> Result<(), StreamError> {
        while len > 0 {
            len -= self.chunk(len)?.len() as u64;
        }
        Ok(())
    }

    /// Skips the rest of a block behind data. An archive may end there instead: umoci leaves out the
    /// padding of the last entry and the end marker, and Go's reader does not mind.
    pub(super) fn skip_padding(&mut self, mut len: u64) -> Result<(), StreamError> {
        while len > 0 && (self.start < self.end || self.fill()?) {
            len -= self.chunk(len)?.len() as u64;
        }
        Ok(())
    }

    /// Reads what is left, and returns the digest and the number of all bytes.
    pub(crate) fn finish(mut self) -> Result<(Digest, u64), DiffError> {
        loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return Ok((self.hasher.finish(), self.total)),
                Err(StreamError::Diff(error)) => return Err(error),
                Err(StreamError::Tar(source)) => {
                    return Err(DiffError::Tar { after: String::new(), source });
                }
            }
        }
    }

    /// Reads more into the empty buffer; `false` at the end.
    fn fill(&mut self) -> Result<bool, StreamError> {
        let len = loop {
            match self.source.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    break result.map_err(|error| StreamError::Diff(DiffError::Read(error)))?;
                }
            }
        };
        self.hasher.update(&self.buffer[..len]);
        self.total += len as u64;
        if self.total > self.total_max {
            let error = DiffError::TooLarge { what: "bytes", max: self.total_max };
            return Err(StreamError::Diff(error));
        }
        (self.start, self.end) = (0, len);
        Ok(len > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_may_be_missing_at_the_end() {
        let cases = [("whole", vec![0; 10]), ("part", vec![0; 3]), ("none", vec![])];
        for (case, bytes) in cases {
            let mut stream = Stream::new(&bytes[..], 100);
            assert!(stream.skip_padding(10).is_ok(), "{case}");
            assert_eq!(stream.finish().expect("ends").1, bytes.len() as u64, "{case}");
        }
    }
}
