//! Directory trees as images of EROFS, a read-only filesystem of the kernel's.
//!
//! ```text
//!   block 0      superblock, first inodes
//!   ...          inodes, each with its extended attributes and the rest of its data that fills no block
//!   ...          whole blocks of data: directories, links, files
//! ```
//!
//! Nothing is compressed, so that the kernel reads files as it would from the filesystem below, and
//! an image is made about as fast as its bytes can be copied. Every inode is of the extended form: the
//! compact one has no time.
//!
//! The image of a tree is always the same: entries are in the order of their names, and nothing of
//! the time or the machine goes into it. The root's time is that of the newest file in it, because
//! no layer tells it and the directory was made when the layer was unpacked.
//!
//! # Who is trusted
//!
//! Images are made here and mounted where they were made; none that came from elsewhere is ever
//! given to the kernel, whose parser of filesystems is not for hostile ones. The tree, however, is
//! what a layer or a container made it: names, attributes and sizes are any that a filesystem can
//! hold, directories are nested without limit, and files may be changed meanwhile by who was told not
//! to. So the tree is walked by descriptors ([`sys::tree`]), sizes are those of one look, and what is
//! missing then is zeros.
//!
//! Source: kernel, `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`.

mod format;
mod gather;
mod place;
mod write;

use std::{fs::File, io, os::fd::OwnedFd, path::Path};

use sys::tree::open_root;

/// Writes the image of what is in the directory `tree` to the file `image`, which must not exist.
/// Not synced.
///
/// # Errors
///
/// A file cannot be read, the image cannot be written, the tree is larger than an image can be, or what is
/// not in its files takes too much memory.
pub(crate) fn build(tree: &Path, image: &Path) -> io::Result<()> {
    let tree = open_root(tree)?;
    let again: OwnedFd = tree.try_clone()?;
    let nodes = gather::gather(tree, gather::HELD_MAX)?;
    let places = place::place(&nodes)?;
    let image = File::options().read(true).write(true).create_new(true).open(image)?;
    write::write(again, &nodes, &places, &image)
}

/// What there is in a tree. The first node is the root.
type Nodes = Vec<Node>;

/// A file of whatever type.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    /// Type and permissions.
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    /// Seconds and nanoseconds since 1970.
    time: (i64, u32),
    /// As they stand behind the inode.
    xattrs: Vec<u8>,
    content: Content,
}

/// What is in a file.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    /// Names and numbers of nodes, in the order of the names.
    Directory { entries: Vec<(Box<[u8]>, u32)>, parent: u32 },
    /// So many bytes.
    Regular { size: u64 },
    /// To where it leads.
    Link(Box<[u8]>),
    /// The number of a device, in the kernel's form; 0 for pipes and sockets.
    Special { device: u32 },
}

#[cfg(test)]
mod tests;
