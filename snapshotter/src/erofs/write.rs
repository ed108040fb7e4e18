//! Writes an image.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use sys::tree::{Visit, walk};

use super::{
    Content, Node,
    format::{BLOCK, Place, SUPERBLOCK_AT, directory, inode, seal, superblock},
    place::{Places, names},
};
use crate::tree::{changed, copy_extents, open_file};

/// Writes the image of `nodes`, which are what was seen in `root`.
pub(super) fn write(
    root: OwnedFd,
    nodes: &[Node],
    places: &Places,
    image: &File,
) -> io::Result<()> {
    // What nobody writes is a hole.
    image.set_len(u64::from(places.blocks) * BLOCK)?;
    let mut writer = Writer { nodes, places, image, path: vec![0], missing: 0 };
    let mut is_written = vec![false; nodes.len()];
    for (number, node) in nodes.iter().enumerate() {
        let place = &places.nodes[number];
        match &node.content {
            Content::Directory { entries, parent } => {
                writer.own(number, &writer.listing(number, entries, *parent))?;
            }
            Content::Link(target) => writer.own(number, target)?,
            Content::Special { .. } => writer.own(number, &[])?,
            Content::Regular { .. } if place.len == 0 => writer.own(number, &[])?,
            Content::Regular { .. } => {
                writer.missing += 1;
                continue;
            }
        }
        is_written[number] = true;
    }
    let mut files = Files { writer, is_written };
    walk(root, &mut files)?;
    if files.writer.missing > 0 {
        return Err(changed());
    }
    let count = nodes.len() as u64;
    let mut first = vec![0; BLOCK as usize];
    image.read_exact_at(&mut first, 0)?;
    let head = superblock(&places.nodes[0], count, places.blocks)?;
    first[SUPERBLOCK_AT..SUPERBLOCK_AT + head.len()].copy_from_slice(&head);
    seal(&mut first);
    image.write_all_at(&first, 0)
}

struct Writer<'w> {
    nodes: &'w [Node],
    places: &'w Places,
    image: &'w File,
    /// The directories that the walk is in.
    path: Vec<u32>,
    /// Files that were not come across yet.
    missing: usize,
}

impl Writer<'_> {
    /// Writes a node whose data is known.
    fn own(&self, number: usize, data: &[u8]) -> io::Result<()> {
        let place = &self.places.nodes[number];
        let in_blocks = usize::try_from(place.in_blocks()).map_err(io::Error::other)?;
        self.head(number, &data[in_blocks..])?;
        self.image.write_all_at(&data[..in_blocks], u64::from(place.block) * BLOCK)
    }

    /// Writes an inode and what is behind it.
    fn head(&self, number: usize, rest: &[u8]) -> io::Result<()> {
        let (node, place) = (&self.nodes[number], &self.places.nodes[number]);
        let visible = u32::try_from(number + 1).map_err(io::Error::other)?;
        let mut bytes = inode(visible, node, place)?;
        bytes.extend(rest);
        self.image.write_all_at(&bytes, place.inode)
    }

    /// The data of a directory.
    fn listing(&self, number: usize, entries: &[(Box<[u8]>, u32)], parent: u32) -> Vec<u8> {
        let target = |name: &[u8]| match name {
            b"." => number,
            b".." => parent as usize,
            name => {
                let at = entries.binary_search_by(|(own, _)| (**own).cmp(name));
                at.map_or(number, |at| entries[at].1 as usize)
            }
        };
        let entry = |name| {
            let target = target(name);
            (name, self.places.nodes[target].number(), self.nodes[target].mode)
        };
        directory(names(&self.nodes[number]).into_iter().map(entry))
    }

    /// The node that `name` is in the directory where the walk is.
    fn find(&self, name: &CStr) -> Option<u32> {
        let current = *self.path.last()?;
        let Content::Directory { entries, .. } = &self.nodes[current as usize].content else {
            return None;
        };
        let at = entries.binary_search_by(|(own, _)| (**own).cmp(name.to_bytes())).ok()?;
        Some(entries[at].1)
    }

    fn regular(&self, number: usize, file: &File) -> io::Result<()> {
        let place: &Place = &self.places.nodes[number];
        let mut rest = vec![0; usize::try_from(place.rest).map_err(io::Error::other)?];
        fill(file, &mut rest, place.in_blocks())?;
        self.head(number, &rest)?;
        let to = u64::from(place.block) * BLOCK;
        copy_extents(file.as_fd(), self.image.as_fd(), place.in_blocks(), to)
    }
}

/// Reads to all of `bytes`; where the file has ended they stay zeros.
fn fill(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, at) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                bytes = &mut bytes[len..];
                at += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes the files that a walk comes across.
struct Files<'w> {
    writer: Writer<'w>,
    is_written: Vec<bool>,
}

impl Visit for Files<'_> {
    fn file(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let Some(number) = self.writer.find(name) else { return Ok(()) };
        let number = number as usize;
        if std::mem::replace(&mut self.is_written[number], true) {
            return Ok(());
        }
        self.writer.regular(number, &open_file(directory, name)?)?;
        self.writer.missing -= 1;
        Ok(())
    }

    fn enter(
        &mut self,
        _directory: BorrowedFd<'_>,
        name: &CStr,
        _child: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let node = self.writer.find(name).ok_or_else(changed)?;
        self.writer.path.push(node);
        Ok(())
    }

    fn leave(&mut self, _directory: BorrowedFd<'_>, _name: &CStr) -> io::Result<()> {
        self.writer.path.pop();
        Ok(())
    }
}
