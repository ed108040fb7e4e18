//! How layers are compressed.

mod gzip;

use std::{
    fmt,
    io::{self, BufReader, Read, Write},
    str::FromStr,
};

use gzip::{GzipDecoder, GzipEncoder};

/// The level of gzip, which is what everybody uses.
const GZIP_LEVEL: i32 = 6;

/// The level of zstd, its own default.
const ZSTD_LEVEL: i32 = 3;

/// The largest window that a zstd frame may ask for, as a power of two: 128 MiB, what the command
/// line tool allows too.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The bytes that are read at once.
const CHUNK_LEN: usize = 128 * 1024;

/// A compression of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// None.
    Uncompressed,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Compression {
    /// The compression of the bytes that start with `head`; four of them decide.
    pub fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame, with which zstd:chunked and others may start.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Uncompressed,
        }
    }

    /// The compression that a media type of OCI or Docker names by its ending; `None` when the
    /// type is not that of a layer.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        let (base, suffix) = match media_type.split_once('+') {
            Some((base, suffix)) => (base, Some(suffix)),
            None => (media_type, None),
        };
        match (base, suffix) {
            (
                "application/vnd.docker.image.rootfs.diff.tar"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar"
                | "application/vnd.oci.image.layer.v1.tar"
                | "application/vnd.oci.image.layer.nondistributable.v1.tar",
                None,
            ) => Some(Self::Uncompressed),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                None,
            ) => Some(Self::Gzip),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", None) => Some(Self::Zstd),
            (
                "application/vnd.oci.image.layer.v1.tar"
                | "application/vnd.oci.image.layer.nondistributable.v1.tar",
                Some(suffix),
            ) => suffix.parse().ok(),
            _ => None,
        }
    }
}

/// How many bytes [`Compression::detect`] needs.
pub const HEAD_LEN: usize = 4;

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uncompressed => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "uncompressed" => Ok(Self::Uncompressed),
            "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            _ => Err(UnknownCompression(text.to_owned())),
        }
    }
}

/// The name of a compression that there is not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("compression {0:?} is not supported")]
pub struct UnknownCompression(pub String);

/// Reads what a compressed stream holds.
///
/// The checksum that ends gzip members is not compared: whoever reads a blob has its digest,
/// which proves more and costs less.
pub struct Decoder<R: Read> {
    compression: Compression,
    inner: Inner<R>,
}

enum Inner<R: Read> {
    Plain(Joined<R>),
    Gzip(GzipDecoder<Joined<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<Joined<R>>>>),
}

/// The bytes that were looked at, and the rest.
type Joined<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

impl<R: Read> Decoder<R> {
    /// Reads the first bytes of `source`, and decides by them.
    ///
    /// # Errors
    ///
    /// That of `source`.
    pub fn new(mut source: R) -> io::Result<Self> {
        let mut head = Vec::with_capacity(HEAD_LEN);
        source.by_ref().take(HEAD_LEN as u64).read_to_end(&mut head)?;
        let compression = Compression::detect(&head);
        let source = io::Cursor::new(head).chain(source);
        let inner = match compression {
            Compression::Uncompressed => Inner::Plain(source),
            Compression::Gzip => Inner::Gzip(GzipDecoder::new(source, CHUNK_LEN)),
            Compression::Zstd => {
                let source = BufReader::with_capacity(CHUNK_LEN, source);
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Inner::Zstd(Box::new(decoder))
            }
        };
        Ok(Self { compression, inner })
    }

    /// What the first bytes told.
    pub fn compression(&self) -> Compression {
        self.compression
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Plain(source) => source.read(buffer),
            Inner::Gzip(decoder) => decoder.read(buffer),
            Inner::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// Compresses what is written.
pub enum Encoder<W: Write> {
    /// Writes the bytes as they are.
    Plain(W),
    /// See [`Compression::Gzip`].
    #[doc(hidden)]
    Gzip(GzipEncoder<W>),
    /// See [`Compression::Zstd`].
    #[doc(hidden)]
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Writes to `sink`. The same input gives the same output, whatever the time and the file.
    ///
    /// # Errors
    ///
    /// That of zstd's library.
    pub fn new(compression: Compression, sink: W) -> io::Result<Self> {
        Ok(match compression {
            Compression::Uncompressed => Self::Plain(sink),
            Compression::Gzip => Self::Gzip(GzipEncoder::new(sink, GZIP_LEVEL)),
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(sink, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Writes what is left, and gives the sink back.
    ///
    /// # Errors
    ///
    /// That of the sink.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(sink) => Ok(sink),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(sink) => sink.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(sink) => sink.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 3] = [Compression::Uncompressed, Compression::Gzip, Compression::Zstd];

    fn compressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decompressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(bytes)?.read_to_end(&mut out).map(|_| out)
    }

    /// Text that compresses, but not to nothing.
    fn sample(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"abcdefgh"[(state >> 29) as usize]
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    #[test]
    fn round_trip() {
        for compression in ALL {
            for len in [0, 1, 511, 300_000, 3_000_000] {
                let bytes = sample(len);
                let packed = compressed(compression, &bytes);
                assert!(decompressed(&packed).unwrap() == bytes, "{compression} {len}");
                assert!(packed == compressed(compression, &bytes), "{compression} {len} again");
            }
        }
    }

    #[test]
    fn several_members() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let mut packed = compressed(compression, b"one ");
            packed.extend(compressed(compression, b"two"));
            assert_eq!(decompressed(&packed).unwrap(), b"one two", "{compression}");
        }
    }

    #[test]
    fn damaged() {
        let gzip = compressed(Compression::Gzip, &sample(10_000));
        let mut garbage = gzip.clone();
        garbage.extend(b"garbage");
        let mut zeros = gzip.clone();
        zeros.extend([0; 100]);
        let mut flipped = gzip.clone();
        flipped[20] ^= 0xff;
        let zstd = compressed(Compression::Zstd, &sample(10_000));
        let cases = [
            ("gzip cut in the header", &gzip[..7], false),
            ("gzip cut in the data", &gzip[..gzip.len() / 2], false),
            ("gzip cut in the trailer", &gzip[..gzip.len() - 3], false),
            ("gzip and garbage", &garbage, false),
            ("gzip and padding", &zeros, true),
            ("gzip with an error", &flipped, false),
            ("zstd cut", &zstd[..zstd.len() / 2], false),
        ];
        for (case, bytes, want) in cases {
            assert_eq!(decompressed(bytes).is_ok(), want, "{case}");
        }
    }

    #[test]
    fn media_types() {
        use Compression as C;
        let cases = [
            ("application/vnd.oci.image.layer.v1.tar", Some(C::Uncompressed)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(C::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(C::Zstd)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(C::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", None),
            ("application/vnd.oci.image.config.v1+json", None),
            ("", None),
        ];
        for (media_type, want) in cases {
            assert_eq!(Compression::of_media_type(media_type), want, "{media_type}");
        }
    }
}
