//! The tar format, as far as layers use it.
//!
//! Reads the forms of v7, ustar, pax, GNU and star, with long names and sparse files of all
//! kinds; writes pax. Own code, because layers must be read in one pass at the speed of the
//! inflater, within limits, and written in a form that never changes.
//!
//! Sources: POSIX.1-2024 `pax`; GNU tar manual, "Tar Internals"; Go `archive/tar`, whose output
//! is what others make and expect.

mod header;
mod numbers;
mod pax;
mod reader;
mod sparse;
mod stream;
mod writer;

pub(crate) use header::{Entry, Kind, Time};
pub(crate) use reader::Reader;
pub(crate) use stream::Stream;
pub(crate) use writer::Writer;

/// The unit of the format, in bytes.
pub(super) const BLOCK_LEN: usize = 512;

/// A header.
pub(super) type Block = [u8; BLOCK_LEN];

/// The largest extended header or long name, in bytes; Go's limit too.
const SPECIAL_LEN_MAX: u64 = 1 << 20;

/// Extended headers in front of one entry.
const SPECIAL_COUNT_MAX: usize = 16;

/// The pieces that a sparse file may have.
const SPARSE_PIECES_MAX: usize = 1 << 16;

/// The longest path of an entry, in bytes: what the kernel takes.
const PATH_LEN_MAX: usize = 4096;

/// Extended attributes of one entry.
const XATTR_COUNT_MAX: usize = 1024;

/// Why bytes are not a tar archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum TarError {
    /// It ends within a header or an entry.
    #[error("archive is cut short")]
    Truncated,
    /// The checksum of a header is wrong, so it is no header.
    #[error("header checksum is wrong")]
    Checksum,
    /// A field that should hold a number holds none, or one out of range.
    #[error("header field {field} is invalid")]
    Number { field: &'static str },
    /// An extended header does not follow the grammar.
    #[error("extended header is malformed")]
    Pax,
    /// The pieces of a sparse file overlap, or do not fit its sizes.
    #[error("sparse file map is invalid")]
    Sparse,
    /// Something is larger than any archive that was not made to do harm.
    #[error("{what} is larger than {max}")]
    TooLarge { what: &'static str, max: u64 },
}
