//! The framing of gzip around raw deflate (RFC 1952).
//!
//! Own framing, because the checksum costs more than inflating where memory is fast, and the
//! digest of the blob proves the same.

use std::io::{self, Read, Write};

use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateFlush, Status, crc32};

/// The window of raw deflate, as a power of two.
const WINDOW_BITS: u8 = 15;

/// The longest name or comment in a header, in bytes.
const HEADER_TEXT_LEN_MAX: usize = 64 * 1024;

const FLAG_HEADER_CRC: u8 = 2;
const FLAG_EXTRA: u8 = 4;
const FLAG_NAME: u8 = 8;
const FLAG_COMMENT: u8 = 16;

/// Reads what gzip members hold, one after the other.
pub(super) struct GzipDecoder<R> {
    input: Input<R>,
    inflate: Inflate,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a member, of which there must be one.
    First,
    /// Behind a member, where there may be another, or padding.
    Next,
    /// In a member's data.
    Data,
    /// Behind the last member.
    End,
}

impl<R: Read> GzipDecoder<R> {
    pub(super) fn new(source: R, buffer_len: usize) -> Self {
        Self {
            input: Input { source, buffer: vec![0; buffer_len], start: 0, end: 0 },
            inflate: Inflate::new(false, WINDOW_BITS),
            state: State::First,
        }
    }

    /// Reads the header of a member; `false` when there is none any more.
    fn header(&mut self) -> io::Result<bool> {
        let Some(first) = self.input.byte()? else {
            return if self.state == State::First { Err(truncated()) } else { Ok(false) };
        };
        if self.state == State::Next && first == 0 {
            return self.padding().map(|()| false);
        }
        let head: [u8; 9] = self.input.bytes()?;
        let [second, method, flags, _time @ .., _level, _system] = head;
        if (first, second, method) != (0x1f, 0x8b, 8) {
            return Err(invalid("gzip: not a member"));
        }
        if flags & FLAG_EXTRA != 0 {
            let len = u16::from_le_bytes(self.input.bytes()?);
            self.input.skip(usize::from(len))?;
        }
        for flag in [FLAG_NAME, FLAG_COMMENT] {
            if flags & flag != 0 {
                self.input.skip_text()?;
            }
        }
        if flags & FLAG_HEADER_CRC != 0 {
            self.input.skip(2)?;
        }
        self.inflate.reset(false);
        Ok(true)
    }

    /// Reads zeros up to the end, which tools that write whole blocks leave.
    fn padding(&mut self) -> io::Result<()> {
        while let Some(byte) = self.input.byte()? {
            if byte != 0 {
                return Err(invalid("gzip: garbage behind the last member"));
            }
        }
        Ok(())
    }

    /// Inflates into `buffer`; `None` at the end of the member.
    fn data(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let ended = self.input.is_empty() && !self.input.fill()?;
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(self.input.available(), buffer, InflateFlush::NoFlush)
                .map_err(|error| invalid(error.as_str()))?;
            let taken = self.inflate.total_in() - before_in;
            let made = self.inflate.total_out() - before_out;
            self.input.start += usize::try_from(taken).expect("at most what was available");
            let made = usize::try_from(made).expect("at most the buffer");
            if status == Status::StreamEnd {
                // The checksum and the length.
                self.input.skip(8)?;
                self.state = State::Next;
                return Ok((made > 0).then_some(made));
            }
            if made > 0 {
                return Ok(Some(made));
            }
            if ended {
                return Err(truncated());
            }
        }
    }
}

impl<R: Read> Read for GzipDecoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.state {
                State::End => return Ok(0),
                State::Data => {
                    if let Some(len) = self.data(buffer)? {
                        return Ok(len);
                    }
                }
                State::First | State::Next => {
                    self.state = if self.header()? { State::Data } else { State::End };
                }
            }
        }
    }
}

/// A buffer in front of a reader.
struct Input<R> {
    source: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<R: Read> Input<R> {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn available(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Reads more into the empty buffer; `false` at the end.
    fn fill(&mut self) -> io::Result<bool> {
        self.start = 0;
        self.end = loop {
            match self.source.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        Ok(self.end > 0)
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        if self.is_empty() && !self.fill()? {
            return Ok(None);
        }
        self.start += 1;
        Ok(Some(self.buffer[self.start - 1]))
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.byte()?.ok_or_else(truncated)?;
        }
        Ok(bytes)
    }

    fn skip(&mut self, len: usize) -> io::Result<()> {
        for _ in 0..len {
            self.byte()?.ok_or_else(truncated)?;
        }
        Ok(())
    }

    /// Skips bytes up to and with a zero.
    fn skip_text(&mut self) -> io::Result<()> {
        for _ in 0..HEADER_TEXT_LEN_MAX {
            if self.byte()?.ok_or_else(truncated)? == 0 {
                return Ok(());
            }
        }
        Err(invalid("gzip: header too long"))
    }
}

/// Writes one gzip member without a name and a time.
pub struct GzipEncoder<W> {
    sink: W,
    deflate: Deflate,
    buffer: Vec<u8>,
    crc: u32,
    len: u32,
    started: bool,
}

impl<W: Write> GzipEncoder<W> {
    pub(super) fn new(sink: W, level: i32) -> Self {
        Self {
            sink,
            deflate: Deflate::new(level, false, WINDOW_BITS),
            buffer: vec![0; super::CHUNK_LEN],
            crc: 0,
            len: 0,
            started: false,
        }
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.start()?;
        while self.deflate(&[], DeflateFlush::Finish)?.1 != Status::StreamEnd {}
        self.sink.write_all(&self.crc.to_le_bytes())?;
        self.sink.write_all(&self.len.to_le_bytes())?;
        Ok(self.sink)
    }

    fn start(&mut self) -> io::Result<()> {
        if self.started {
            return Ok(());
        }
        self.started = true;
        // Magic, deflate, no flags, no time, no extra flags, unknown system.
        self.sink.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff])
    }

    /// Compresses some of `bytes`, and returns how many.
    fn deflate(&mut self, bytes: &[u8], flush: DeflateFlush) -> io::Result<(usize, Status)> {
        let (before_in, before_out) = (self.deflate.total_in(), self.deflate.total_out());
        let status = self
            .deflate
            .compress(bytes, &mut self.buffer, flush)
            .map_err(|error| io::Error::other(error.as_str()))?;
        let taken = usize::try_from(self.deflate.total_in() - before_in);
        let made = usize::try_from(self.deflate.total_out() - before_out);
        self.sink.write_all(&self.buffer[..made.expect("at most the buffer")])?;
        Ok((taken.expect("at most what was given"), status))
    }
}

impl<W: Write> Write for GzipEncoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.start()?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (taken, _) = self.deflate(rest, DeflateFlush::NoFlush)?;
            rest = &rest[taken..];
        }
        self.crc = crc32::crc32(self.crc, bytes);
        // The length is stored modulo 2^32.
        #[expect(clippy::cast_possible_truncation, reason = "RFC 1952, ISIZE")]
        let len = bytes.len() as u32;
        self.len = self.len.wrapping_add(len);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "gzip: cut short")
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
