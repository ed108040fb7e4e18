//! The structures of an image, which are little-endian.

use std::io;

use super::{Content, Node};

pub(super) const BLOCK: u64 = 4096;
pub(super) const BLOCK_BITS: u8 = 12;

/// Where the superblock is, and its length.
pub(super) const SUPERBLOCK_AT: usize = 1024;
pub(super) const SUPERBLOCK_LEN: usize = 128;

/// Inodes start at multiples of this, by which they are numbered.
pub(super) const SLOT: u64 = 32;

/// The length of an inode of the extended form.
pub(super) const INODE_LEN: u64 = 64;

/// The length of an entry of a directory, without its name.
const ENTRY_LEN: usize = 12;

const MAGIC: u32 = 0xE0F5_E1E2;

/// There is a checksum; times are those of modification.
const FEATURES: u32 = 1 | 2;

/// How the data of an inode lies: in blocks, or the rest that fills no block behind the inode.
const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;

/// Where the parts of a node are in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Where the inode is, in bytes.
    pub(super) inode: u64,
    /// The length of the data.
    pub(super) len: u64,
    /// The length of what of it is behind the inode.
    pub(super) rest: u64,
    /// The first block of the others.
    pub(super) block: u32,
}

impl Place {
    /// The number of the node.
    pub(super) fn number(&self) -> u64 {
        self.inode / SLOT
    }

    /// How much of the data is in blocks, in bytes.
    pub(super) fn in_blocks(&self) -> u64 {
        self.len - self.rest
    }
}

/// The superblock, without its checksum.
pub(super) fn superblock(root: &Place, nodes: u64, blocks: u32) -> io::Result<Vec<u8>> {
    let root = u16::try_from(root.number()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(SUPERBLOCK_LEN);
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(FEATURES.to_le_bytes());
    bytes.extend([BLOCK_BITS, 0]);
    bytes.extend(root.to_le_bytes());
    bytes.extend(nodes.to_le_bytes());
    // The time of the build: none, so that images of the same tree are the same.
    bytes.extend([0; 12]);
    bytes.extend(blocks.to_le_bytes());
    // Inodes are numbered from the start; no attributes are shared; no name; no features that
    // others have to know.
    bytes.resize(SUPERBLOCK_LEN, 0);
    Ok(bytes)
}

/// Enters the checksum in the first block.
pub(super) fn seal(block: &mut [u8]) {
    let sum = checksum(&block[SUPERBLOCK_AT..]);
    block[SUPERBLOCK_AT + 4..SUPERBLOCK_AT + 8].copy_from_slice(&sum.to_le_bytes());
}

/// CRC-32C, without the last inversion.
fn checksum(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { (sum >> 1) ^ 0x82F6_3B78 } else { sum >> 1 };
    bytes.iter().fold(u32::MAX, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

/// An inode, with its attributes behind it.
pub(super) fn inode(number: u32, node: &Node, place: &Place) -> io::Result<Vec<u8>> {
    let layout = if place.rest > 0 { LAYOUT_INLINE } else { LAYOUT_PLAIN };
    let attributes = match node.xattrs.len() {
        0 => 0,
        len => u16::try_from((len - HEADER_LEN) / 4 + 1).map_err(io::Error::other)?,
    };
    let mode = u16::try_from(node.mode).map_err(io::Error::other)?;
    let union = match &node.content {
        Content::Special { device } => *device,
        _ => place.block,
    };
    let mut bytes = Vec::with_capacity(INODE_LEN as usize + node.xattrs.len());
    // The lowest bit: the extended form.
    bytes.extend((1 | layout << 1).to_le_bytes());
    bytes.extend(attributes.to_le_bytes());
    bytes.extend(mode.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(place.len.to_le_bytes());
    bytes.extend(union.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes.extend(node.uid.to_le_bytes());
    bytes.extend(node.gid.to_le_bytes());
    bytes.extend(node.time.0.to_le_bytes());
    bytes.extend(node.time.1.to_le_bytes());
    bytes.extend(node.links.to_le_bytes());
    bytes.resize(INODE_LEN as usize, 0);
    bytes.extend(&node.xattrs);
    Ok(bytes)
}

/// The length of the header of attributes.
const HEADER_LEN: usize = 12;

/// The most that the attributes of an inode may take: what its counter can tell.
pub(super) const XATTRS_LEN_MAX: usize = HEADER_LEN + 4 * (u16::MAX as usize - 1);

/// The prefixes of names that the format has numbers for. There are no others.
const PREFIXES: [(u8, &[u8]); 5] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
];

/// Appends an attribute to those of an inode. One whose name no image can hold is left out.
///
/// # Errors
///
/// They are larger than an inode's may be.
pub(super) fn add_xattr(xattrs: &mut Vec<u8>, name: &[u8], value: &[u8]) -> io::Result<()> {
    let known = PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        // Those of ACLs are whole names.
        (prefix.ends_with(b".") || rest.is_empty()).then_some((*index, rest))
    });
    let Some((index, rest)) = known else { return Ok(()) };
    let too_large = || io::Error::other("the extended attributes of a file are too large");
    let name_len = u8::try_from(rest.len()).map_err(|_| too_large())?;
    let value_len = u16::try_from(value.len()).map_err(|_| too_large())?;
    if xattrs.is_empty() {
        xattrs.resize(HEADER_LEN, 0);
    }
    xattrs.extend([name_len, index]);
    xattrs.extend(value_len.to_le_bytes());
    xattrs.extend(rest);
    xattrs.extend(value);
    xattrs.resize(xattrs.len().next_multiple_of(4), 0);
    if xattrs.len() > XATTRS_LEN_MAX { Err(too_large()) } else { Ok(()) }
}

/// How many entries with such names a block has room for: a name goes to the next block if it does
/// not fit.
struct Fill {
    used: usize,
}

impl Fill {
    /// Whether an entry starts a new block.
    fn add(&mut self, name: &[u8]) -> bool {
        let len = ENTRY_LEN + name.len();
        let is_new = self.used + len > BLOCK as usize;
        self.used = if is_new { len } else { self.used + len };
        is_new
    }
}

/// The length of a directory with these names, which are in order.
pub(super) fn directory_len<'n>(names: impl Iterator<Item = &'n [u8]>) -> u64 {
    let mut fill = Fill { used: 0 };
    let full = names.filter(|name| fill.add(name)).count() as u64;
    full * BLOCK + fill.used as u64
}

/// The data of a directory: names in order, each with the number of its node and its type.
pub(super) fn directory<'n>(entries: impl Iterator<Item = (&'n [u8], u64, u32)>) -> Vec<u8> {
    let (mut bytes, mut block) = (Vec::new(), Vec::new());
    let mut fill = Fill { used: 0 };
    for entry in entries {
        if fill.add(entry.0) {
            append(&mut bytes, &block);
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
            block.clear();
        }
        block.push(entry);
    }
    append(&mut bytes, &block);
    bytes
}

/// Appends a block: entries, then their names.
fn append(bytes: &mut Vec<u8>, block: &[(&[u8], u64, u32)]) {
    let mut name_at = block.len() * ENTRY_LEN;
    for (name, node, mode) in block {
        bytes.extend(node.to_le_bytes());
        // At most the length of a block.
        bytes.extend(u16::try_from(name_at).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend([file_type(*mode), 0]);
        name_at += name.len();
    }
    bytes.extend(block.iter().flat_map(|(name, ..)| name.iter()));
}

fn file_type(mode: u32) -> u8 {
    match mode & 0o170_000 {
        0o100_000 => 1,
        0o040_000 => 2,
        0o020_000 => 3,
        0o060_000 => 4,
        0o010_000 => 5,
        0o140_000 => 6,
        0o120_000 => 7,
        _ => 0,
    }
}

/// The number of a device as the kernel stores it.
pub(super) fn device(number: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
