//! Decides where in an image everything goes.

use std::io;

use super::{
    Content, Node,
    format::{BLOCK, INODE_LEN, Place, SLOT, SUPERBLOCK_AT, SUPERBLOCK_LEN, directory_len},
};

/// The places of all nodes, and the length of the image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Places {
    /// By the numbers of nodes.
    pub(super) nodes: Vec<Place>,
    pub(super) blocks: u32,
}

/// Gives each node its place: inodes in the order of a walk by names, from the start; behind them
/// the data in the same order.
///
/// # Errors
///
/// There are more blocks than an image can have.
pub(super) fn place(nodes: &[Node]) -> io::Result<Places> {
    let unplaced = Place { inode: 0, len: 0, rest: 0, block: 0 };
    let mut places = vec![unplaced; nodes.len()];
    let order = order(nodes);
    let mut end = (SUPERBLOCK_AT + SUPERBLOCK_LEN) as u64;
    for &number in &order {
        let node = &nodes[number as usize];
        let (head, len) = (INODE_LEN + node.xattrs.len() as u64, data_len(node));
        // What is behind an inode must be in one block.
        let rest = if head + len % BLOCK <= BLOCK { len % BLOCK } else { 0 };
        let whole = head + rest;
        let mut inode = end.next_multiple_of(SLOT);
        if inode % BLOCK + whole > BLOCK {
            inode = inode.next_multiple_of(BLOCK);
        }
        end = inode + whole;
        places[number as usize] = Place { inode, len, rest, block: 0 };
    }
    let mut next = end.div_ceil(BLOCK);
    for &number in &order {
        let place = &mut places[number as usize];
        let blocks = place.in_blocks().div_ceil(BLOCK);
        if blocks > 0 {
            place.block = block(next)?;
        }
        next += blocks;
    }
    Ok(Places { nodes: places, blocks: block(next)? })
}

fn block(number: u64) -> io::Result<u32> {
    // The last number means "none".
    let number = u32::try_from(number).ok().filter(|number| *number != u32::MAX);
    number.ok_or_else(|| io::Error::other("the files are larger than an image can be"))
}

/// The length of a node's data.
fn data_len(node: &Node) -> u64 {
    match &node.content {
        Content::Directory { .. } => directory_len(names(node).into_iter()),
        Content::Regular { size } => *size,
        Content::Link(target) => target.len() as u64,
        Content::Special { .. } => 0,
    }
}

/// The names in a directory, with those of itself and of its parent, in order.
pub(super) fn names(node: &Node) -> Vec<&[u8]> {
    let Content::Directory { entries, .. } = &node.content else { return Vec::new() };
    let mut names: Vec<&[u8]> = entries.iter().map(|(name, _)| &**name).collect();
    for own in [b".".as_slice(), b".."] {
        if let Err(at) = names.binary_search(&own) {
            names.insert(at, own);
        }
    }
    names
}

/// All nodes, each directory before what is in it.
fn order(nodes: &[Node]) -> Vec<u32> {
    let (mut order, mut pending) = (Vec::with_capacity(nodes.len()), vec![0]);
    let mut seen = vec![false; nodes.len()];
    while let Some(number) = pending.pop() {
        // A file with several names has one place.
        if std::mem::replace(&mut seen[number as usize], true) {
            continue;
        }
        order.push(number);
        if let Content::Directory { entries, .. } = &nodes[number as usize].content {
            pending.extend(entries.iter().rev().map(|(_, child)| *child));
        }
    }
    order
}
