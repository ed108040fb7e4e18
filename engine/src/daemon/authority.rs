//! Lets in clients on gRPC's C core (Python, C++), which send the socket's path as the authority, with
//! percent signs for its slashes: `run%2Fgantry%2Fgantry.sock`.
//!
//! The HTTP library refuses a percent sign there, before any of this program's code is asked, and has
//! no setting for it. Nothing here looks at the authority of a request. So each percent sign in it is
//! replaced by a hyphen while the bytes come in: one byte by another, which changes no length, and so
//! neither frames nor the size of the compression's table, whose later references give what was put
//! there. What is not understood passes as it is, for the library to judge. Values in Huffman's code
//! pass too: the C core does not use it for these.
//!
//! Nothing is kept but a few numbers, and the bodies of other frames are skipped, not looked at.
//!
//! Sources: RFC 9113, sections 3.4, 4.1, 6.2, 6.10; RFC 7541, sections 5 and 6.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tonic::transport::server::Connected;

/// What a client begins with, in bytes.
const PREFACE_LEN: u64 = 24;

/// What a frame begins with, in bytes: length, kind, flags, stream.
const FRAME_HEADER_LEN: usize = 9;

/// The kinds of frames that have header blocks.
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// Flags of a frame with headers.
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Where `:authority` is in the table of all connections; the C core names it in full instead.
const AUTHORITY: u8 = 1;
const AUTHORITY_NAME: &[u8] = b":authority";

/// What a name is known to differ from [`AUTHORITY_NAME`] by: more than it is long.
const OTHER_NAME: usize = usize::MAX;

/// A client's connection, in whose requests' authorities are no percent signs.
pub(super) struct Tolerant {
    stream: UnixStream,
    frames: Frames,
}

impl Tolerant {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, frames: Frames::default() }
    }
}

impl Connected for Tolerant {
    type ConnectInfo = <UnixStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Tolerant {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.frames.pass(&mut buffer.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tolerant {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Where in the frames of a connection the next byte is.
struct Frames {
    /// So many bytes are none of a header block.
    skip: u64,
    /// So many bytes are of a header block, once what is to skip is over.
    block: u64,
    /// So many bytes after that are padding.
    padding: u64,
    /// Whether the next byte is the length of the padding; and what else to skip then.
    pad_length: Option<u64>,
    /// What was read of a frame's header.
    header: [u8; FRAME_HEADER_LEN],
    header_len: usize,
    fields: Fields,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            skip: PREFACE_LEN,
            block: 0,
            padding: 0,
            pad_length: None,
            header: [0; FRAME_HEADER_LEN],
            header_len: 0,
            fields: Fields::default(),
        }
    }
}

impl Frames {
    /// Changes what has come.
    fn pass(&mut self, mut bytes: &mut [u8]) {
        while let Some(first) = bytes.first().copied() {
            let used = if self.skip > 0 {
                take(&mut self.skip, bytes.len())
            } else if let Some(priority) = self.pad_length.take() {
                self.block -= 1;
                self.skip = priority.min(self.block);
                self.block -= self.skip;
                self.padding = u64::from(first).min(self.block);
                self.block -= self.padding;
                1
            } else if self.block > 0 {
                let used = take(&mut self.block, bytes.len());
                bytes[..used].iter_mut().for_each(|byte| self.fields.pass(byte));
                used
            } else if self.padding > 0 {
                take(&mut self.padding, bytes.len())
            } else {
                self.header[self.header_len] = first;
                self.header_len += 1;
                if self.header_len == FRAME_HEADER_LEN {
                    self.header_len = 0;
                    self.begin();
                }
                1
            };
            bytes = &mut bytes[used..];
        }
    }

    /// Begins the frame whose header was read.
    fn begin(&mut self) {
        let [a, b, c, kind, flags, ..] = self.header;
        let length = u64::from(u32::from_be_bytes([0, a, b, c]));
        match kind {
            HEADERS => {
                self.fields = Fields::default();
                let priority = if flags & PRIORITY == 0 { 0 } else { 5 };
                self.block = length;
                if flags & PADDED != 0 && length > 0 {
                    self.pad_length = Some(priority);
                } else {
                    self.skip = priority.min(length);
                    self.block -= self.skip;
                }
            }
            CONTINUATION => self.block = length,
            _ => self.skip = length,
        }
    }
}

/// Takes as much of `left` as there is, up to `available`.
fn take(left: &mut u64, available: usize) -> usize {
    let used = usize::try_from(*left).unwrap_or(usize::MAX).min(available);
    *left -= used as u64;
    used
}

/// Where in the fields of a header block the next byte is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fields {
    /// At the beginning of a field.
    #[default]
    Field,
    /// In the rest of a number that says nothing of interest; then comes what is named.
    Number(After),
    /// At the length of a string.
    Length(Text),
    /// In the rest of the length, of which so much is known.
    LengthRest { text: Text, known: u64, shift: u32 },
    /// In a string of which so much is left.
    Bytes { text: Text, left: u64 },
}

/// What comes after a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Field,
    Value,
}

/// What a string is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    /// A name, of which so many bytes are those of [`AUTHORITY_NAME`].
    Name(usize),
    Value,
    Authority,
}

impl Fields {
    fn pass(&mut self, byte: &mut u8) {
        *self = match *self {
            Self::Field => Self::begin(*byte),
            Self::Number(after) if *byte & 0x80 != 0 => Self::Number(after),
            Self::Number(After::Field) => Self::Field,
            Self::Number(After::Value) => Self::Length(Text::Value),
            Self::Length(text) => {
                // What is in Huffman's code is not looked at.
                let coded = *byte & 0x80 != 0;
                let text = match text {
                    Text::Name(_) if coded => Text::Name(OTHER_NAME),
                    Text::Authority if coded => Text::Value,
                    text => text,
                };
                match *byte & 0x7f {
                    0x7f => Self::LengthRest { text, known: 0x7f, shift: 0 },
                    length => Self::string(text, length.into()),
                }
            }
            Self::LengthRest { text, known, shift } => {
                let more = u64::from(*byte & 0x7f).checked_shl(shift).unwrap_or(u64::MAX);
                let known = known.saturating_add(more);
                match *byte & 0x80 {
                    0 => Self::string(text, known),
                    _ => Self::LengthRest { text, known, shift: shift.saturating_add(7) },
                }
            }
            Self::Bytes { text: Text::Name(same), left } => {
                let goes_on = AUTHORITY_NAME.get(same) == Some(byte);
                let same = if goes_on { same + 1 } else { OTHER_NAME };
                Self::string(Text::Name(same), left - 1)
            }
            Self::Bytes { text, left } => {
                if text == Text::Authority && *byte == b'%' {
                    *byte = b'-';
                }
                Self::string(text, left - 1)
            }
        };
    }

    /// The place after the first byte of a field.
    fn begin(byte: u8) -> Self {
        let (mask, after) = match byte {
            0x80.. => (0x7f, After::Field),
            0x40.. => (0x3f, After::Value),
            0x20.. => (0x1f, After::Field),
            _ => (0x0f, After::Value),
        };
        match (byte & mask, after) {
            (number, _) if number == mask => Self::Number(after),
            (_, After::Field) => Self::Field,
            (0, After::Value) => Self::Length(Text::Name(0)),
            (AUTHORITY, After::Value) => Self::Length(Text::Authority),
            (_, After::Value) => Self::Length(Text::Value),
        }
    }

    /// The place in a string of which `left` bytes are to come.
    fn string(text: Text, left: u64) -> Self {
        match (left, text) {
            (0, Text::Name(same)) if same == AUTHORITY_NAME.len() => Self::Length(Text::Authority),
            (0, Text::Name(_)) => Self::Length(Text::Value),
            (0, _) => Self::Field,
            _ => Self::Bytes { text, left },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], body].concat()
    }

    /// A string that is shorter than 127 bytes.
    fn string(text: &str) -> Vec<u8> {
        [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat()
    }

    fn literal(first: u8, text: &str) -> Vec<u8> {
        [&[first][..], &string(text)].concat()
    }

    #[test]
    fn percent_signs() {
        let authority = literal(0x41, "run%2Fs");
        let path = literal(0x44, "/a%2Fb");
        let named = [&[0x40][..], &string("x%"), &string("100%")].concat();
        let full = |name| [&[0x40][..], &string(name), &string("run%2Fs")].concat();
        let long = "%".repeat(300);
        let long = [&[0x01, 0x7f, 0xad, 0x01], long.as_bytes()].concat();
        let coded = [0x41, 0x82, b'%', b'%'].to_vec();
        let many = [&[0x83, 0x3f, 0xe1, 0x1f, 0xff, 0x80, 0x01][..], &path, &named, &authority];
        let padded = [&[3][..], &authority, b"%%%"].concat();
        let urgent = [b"%%%%%", &authority[..]].concat();
        let both = [&[2][..], b"%%%%%", &authority, b"%%"].concat();
        let split = [frame(1, 0, &authority[..4]), frame(9, 4, &authority[4..])].concat();
        let cases: &[(&str, Vec<u8>, usize)] = &[
            ("an authority", frame(1, 4, &authority), 1),
            ("one that is named", frame(1, 4, &full(":authority")), 1),
            ("part of the name", frame(1, 4, &full(":author")), 0),
            ("more than the name", frame(1, 4, &full(":authority2")), 0),
            ("another name of that length", frame(1, 4, &full(":authoritx")), 0),
            (
                "a coded name",
                frame(1, 4, &[&[0x40, 0x82], b"%%".as_slice(), &string("%")].concat()),
                0,
            ),
            ("no other field", frame(1, 4, &many.concat()), 1),
            ("a long one that is not kept", frame(1, 4, &long), 300),
            ("in Huffman's code", frame(1, 4, &coded), 0),
            ("with padding", frame(1, 0xc, &padded), 1),
            ("with a priority", frame(1, 0x24, &urgent), 1),
            ("with both", frame(1, 0x2c, &both), 1),
            ("in two frames", split, 1),
            ("data", frame(0, 0, &authority), 0),
            ("more padding than frame", frame(1, 0xc, &[200, b'%']), 0),
            ("an empty frame", frame(1, 0xc, &[]), 0),
            ("a length without end", frame(1, 4, &[[0x41].as_slice(), &[0xff; 40]].concat()), 0),
        ];
        for (case, bytes, want) in cases {
            let last = frame(1, 4, &authority);
            let input = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &bytes[..], &last].concat();
            for size in [1, 2, 3, 7, input.len()] {
                let (mut output, mut frames) = (input.clone(), Frames::default());
                output.chunks_mut(size).for_each(|chunk| frames.pass(chunk));
                let changed = input.iter().zip(&output).filter(|(before, after)| before != after);
                let changed: Vec<_> = changed.collect();
                assert!(changed.iter().all(|it| *it == (&b'%', &b'-')), "{case}");
                assert_eq!(changed.len(), want + 1, "{case} by {size}");
            }
        }
    }
}
