//! Entries, and the blocks that describe them.

use super::{Block, TarError, numbers};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// Of a type that layers do not have.
    Other(u8),
}

impl Kind {
    /// Whether data follows the header.
    fn has_data(self) -> bool {
        matches!(self, Self::Regular | Self::Other(_))
    }
}

/// A time; nanoseconds count forward from the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// A part of a sparse file that is not a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// One file, link or directory of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it stands in the archive.
    pub(crate) path: Vec<u8>,
    /// Where a link leads.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permissions, and the set-ID and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The length of the file, holes included.
    pub(crate) size: u64,
    /// The length of the data that follows.
    pub(crate) stored: u64,
    pub(crate) mtime: Time,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes, by name, without a name twice.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data goes; `None`: one piece.
    pub(crate) pieces: Option<Vec<Piece>>,
}

impl Entry {
    /// A file without content and attributes, of the time 0.
    pub(in crate::diff) fn empty_file(path: Vec<u8>) -> Self {
        Self {
            path,
            link: Vec::new(),
            kind: Kind::Regular,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            stored: 0,
            mtime: Time::default(),
            device: (0, 0),
            xattrs: Vec::new(),
            pieces: None,
        }
    }
}

/// The type of a header, which also says which headers are not entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    /// An entry of its own.
    Entry(Kind),
    /// A GNU sparse file, whose map starts in the header.
    GnuSparse,
    /// Extended attributes of the next entry.
    Pax,
    /// Extended attributes of all entries, which layers do not honour.
    PaxGlobal,
    /// The path of the next entry.
    GnuLongName,
    /// The link target of the next entry.
    GnuLongLink,
    /// The name of a volume.
    Label,
}

/// A header that was checked.
pub(super) struct Header<'b>(&'b Block);

impl<'b> Header<'b> {
    /// Checks the checksum; `None` for the block of zeros that ends an archive.
    pub(super) fn new(block: &'b Block) -> Result<Option<Self>, TarError> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let stored = numbers::parse(&block[148..156], "checksum")?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        // Old programs added the bytes up as signed ones.
        if stored == unsigned || stored == signed {
            Ok(Some(Self(block)))
        } else {
            Err(TarError::Checksum)
        }
    }

    /// The type; `path` decides for the oldest form, in which directories have no type.
    pub(super) fn kind(&self, path: &[u8]) -> Type {
        match self.0[156] {
            0 if path.ends_with(b"/") => Type::Entry(Kind::Directory),
            0 | b'0' | b'7' => Type::Entry(Kind::Regular),
            b'1' => Type::Entry(Kind::HardLink),
            b'2' => Type::Entry(Kind::Symlink),
            b'3' => Type::Entry(Kind::CharacterDevice),
            b'4' => Type::Entry(Kind::BlockDevice),
            b'5' => Type::Entry(Kind::Directory),
            b'6' => Type::Entry(Kind::Fifo),
            b'S' => Type::GnuSparse,
            b'x' | b'X' => Type::Pax,
            b'g' => Type::PaxGlobal,
            b'L' => Type::GnuLongName,
            b'K' => Type::GnuLongLink,
            b'V' => Type::Label,
            other => Type::Entry(Kind::Other(other)),
        }
    }

    /// The path, of its two parts.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[0..100]);
        let prefix: &[u8] = match () {
            () if self.is_gnu() || !self.is_ustar() => &[],
            () if self.0[508..512] == *b"tar\0" => text(&self.0[345..476]),
            () => text(&self.0[345..500]),
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// The length of what follows.
    pub(super) fn size(&self) -> Result<u64, TarError> {
        unsigned(&self.0[124..136], "size")
    }

    /// The map of a GNU sparse file.
    pub(super) fn gnu_sparse(&self) -> (&'b [u8], bool, Result<u64, TarError>) {
        (&self.0[386..482], self.0[482] != 0, unsigned(&self.0[483..495], "real size"))
    }

    /// The entry, as far as this block describes it.
    pub(super) fn entry(&self, path: Vec<u8>, kind: Kind) -> Result<Entry, TarError> {
        let stored = if kind.has_data() { self.size()? } else { 0 };
        let has_device = matches!(kind, Kind::CharacterDevice | Kind::BlockDevice);
        let device = if has_device {
            (narrow(&self.0[329..337], "device major")?, narrow(&self.0[337..345], "device minor")?)
        } else {
            (0, 0)
        };
        let mode = numbers::parse(&self.0[100..108], "mode")? & 0o7777;
        Ok(Entry {
            path,
            link: text(&self.0[157..257]).to_vec(),
            kind,
            mode: u32::try_from(mode).expect("twelve bits"),
            uid: id(numbers::parse(&self.0[108..116], "uid")?, "uid")?,
            gid: id(numbers::parse(&self.0[116..124], "gid")?, "gid")?,
            size: stored,
            stored,
            mtime: Time { seconds: numbers::parse(&self.0[136..148], "mtime")?, nanoseconds: 0 },
            device,
            xattrs: Vec::new(),
            pieces: None,
        })
    }

    fn is_ustar(&self) -> bool {
        self.0[257..262] == *b"ustar"
    }

    fn is_gnu(&self) -> bool {
        self.0[257..265] == *b"ustar  \0"
    }
}

/// A user or group id; the highest number means "none" to the kernel.
pub(super) fn id(number: i64, field: &'static str) -> Result<u32, TarError> {
    match u32::try_from(number) {
        Ok(u32::MAX) | Err(_) => Err(TarError::Number { field }),
        Ok(id) => Ok(id),
    }
}

/// The bytes up to a zero.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let len = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..len]
}

pub(super) fn unsigned(bytes: &[u8], field: &'static str) -> Result<u64, TarError> {
    u64::try_from(numbers::parse(bytes, field)?).map_err(|_| TarError::Number { field })
}

fn narrow(bytes: &[u8], field: &'static str) -> Result<u32, TarError> {
    u32::try_from(numbers::parse(bytes, field)?).map_err(|_| TarError::Number { field })
}
