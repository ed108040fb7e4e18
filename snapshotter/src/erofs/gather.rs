//! Looks at a tree.

use std::{
    collections::HashMap,
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, Stat, fgetxattr, flistxattr, fstat, lgetxattr, llistxattr, readlinkat,
        statat,
    },
    io::Errno,
};
use sys::tree::{Visit, walk};

use super::{
    Content, Node, Nodes,
    format::{add_xattr, device},
};

/// The longest list of names, and the longest value, of extended attributes (xattr(7)).
const XATTR_LEN_MAX: usize = 65536;

/// The most files of a tree: what a layer may have, and as much again. Takes memory for each.
const NODES_MAX: usize = 1 << 23;

/// How many bytes the names, attributes and targets of links of a tree may have: 64 for each of the most
/// files. They are held in memory until the image is written, and those of a single file can be 128 KiB.
pub(super) const HELD_MAX: usize = NODES_MAX * 64;

/// All that is in `root`, if no more than `held_max` bytes of it have to be held in memory.
pub(super) fn gather(root: OwnedFd, held_max: usize) -> io::Result<Nodes> {
    let mut gather = Gather {
        nodes: Vec::new(),
        held: 0,
        held_max,
        path: Vec::new(),
        links: HashMap::new(),
        names: vec![0; XATTR_LEN_MAX],
        value: vec![0; XATTR_LEN_MAX],
    };
    let stat = fstat(&root)?;
    let xattrs = gather.xattrs(File::Opened(root.as_fd()))?;
    gather.push(&stat, xattrs, directory(0))?;
    gather.path.push(0);
    walk(root, &mut gather)?;
    gather.finish()?;
    let newest = gather.children(0).map(|node| gather.nodes[node as usize].time).max();
    gather.nodes[0].time = newest.unwrap_or_default();
    Ok(gather.nodes)
}

struct Gather {
    nodes: Nodes,
    /// The bytes of names, attributes and targets of links.
    held: usize,
    held_max: usize,
    /// The directories that the walk is in.
    path: Vec<u32>,
    /// Files with several names.
    links: HashMap<(u64, u64), u32>,
    names: Vec<u8>,
    value: Vec<u8>,
}

/// A file whose attributes are asked for.
enum File<'f> {
    Opened(BorrowedFd<'f>),
    /// By name, because it cannot be opened or need not be.
    Path(Vec<u8>),
}

impl Gather {
    fn push(&mut self, stat: &Stat, xattrs: Vec<u8>, content: Content) -> io::Result<u32> {
        if self.nodes.len() >= NODES_MAX {
            return Err(io::Error::other(format!("there are more than {NODES_MAX} files")));
        }
        let target = if let Content::Link(target) = &content { target.len() } else { 0 };
        self.hold(xattrs.len() + target)?;
        let number = u32::try_from(self.nodes.len()).map_err(io::Error::other)?;
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
        self.nodes.push(Node {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            links: if matches!(content, Content::Directory { .. }) { 2 } else { 1 },
            time: (stat.st_mtime, nanoseconds),
            xattrs,
            content,
        });
        Ok(number)
    }

    fn current(&self) -> u32 {
        *self.path.last().expect("the walk is in a directory")
    }

    fn hold(&mut self, bytes: usize) -> io::Result<()> {
        self.held += bytes;
        if self.held > self.held_max {
            let max = self.held_max;
            return Err(io::Error::other(format!(
                "the names, extended attributes and links of the files have more than {max} bytes"
            )));
        }
        Ok(())
    }

    fn add(&mut self, name: &CStr, node: u32) -> io::Result<()> {
        self.hold(name.to_bytes().len())?;
        let current = self.current() as usize;
        if let Content::Directory { entries, .. } = &mut self.nodes[current].content {
            entries.push((name.to_bytes().into(), node));
        }
        Ok(())
    }

    fn children(&self, node: u32) -> impl Iterator<Item = u32> {
        let entries = match &self.nodes[node as usize].content {
            Content::Directory { entries, .. } => entries.as_slice(),
            _ => &[],
        };
        entries.iter().map(|(_, child)| *child)
    }

    /// Ends the innermost directory.
    fn finish(&mut self) -> io::Result<()> {
        let Some(done) = self.path.pop() else { return Ok(()) };
        if let Content::Directory { entries, .. } = &mut self.nodes[done as usize].content {
            entries.sort_unstable();
            if entries.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return Err(io::Error::other("a directory was changed while it was read"));
            }
        }
        Ok(())
    }

    /// The attributes of a file, in the form of the image.
    fn xattrs(&mut self, file: File<'_>) -> io::Result<Vec<u8>> {
        let names = self.names.as_mut_slice();
        let len = match &file {
            File::Opened(file) => flistxattr(file, names),
            File::Path(path) => llistxattr(path.as_slice(), names),
        };
        let len = match len {
            Err(Errno::OPNOTSUPP) => 0,
            len => len?,
        };
        let mut sorted: Vec<_> = self.names[..len]
            .split_inclusive(|byte| *byte == 0)
            .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
            .collect();
        sorted.sort_unstable();
        let mut xattrs = Vec::new();
        for name in sorted {
            let value = self.value.as_mut_slice();
            let len = match &file {
                File::Opened(file) => fgetxattr(file, name, value),
                File::Path(path) => lgetxattr(path.as_slice(), name, value),
            };
            match len {
                Err(Errno::NODATA) => {}
                len => add_xattr(&mut xattrs, name.to_bytes(), &self.value[..len?])?,
            }
        }
        // It stays for as long as the image is made.
        xattrs.shrink_to_fit();
        Ok(xattrs)
    }
}

impl Visit for Gather {
    fn file(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let file = (stat.st_dev, stat.st_ino);
        if let Some(&first) = self.links.get(&file).filter(|_| stat.st_nlink > 1) {
            self.nodes[first as usize].links += 1;
            return self.add(name, first);
        }
        let content = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                Content::Regular { size: u64::try_from(stat.st_size).unwrap_or_default() }
            }
            FileType::Symlink => {
                Content::Link(readlinkat(directory, name, Vec::new())?.to_bytes().into())
            }
            FileType::Directory => return Err(io::Error::other("a file was replaced meanwhile")),
            _ => Content::Special { device: device(stat.st_rdev) },
        };
        // Through the descriptor, and without following a link at its end.
        let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
        path.extend(name.to_bytes());
        let xattrs = self.xattrs(File::Path(path))?;
        let node = self.push(&stat, xattrs, content)?;
        if stat.st_nlink > 1 {
            self.links.insert(file, node);
        }
        self.add(name, node)
    }

    fn enter(
        &mut self,
        _directory: BorrowedFd<'_>,
        name: &CStr,
        child: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let xattrs = self.xattrs(File::Opened(child))?;
        let above = self.current();
        let node = self.push(&fstat(child)?, xattrs, directory(above))?;
        self.nodes[above as usize].links += 1;
        self.add(name, node)?;
        self.path.push(node);
        Ok(())
    }

    fn leave(&mut self, _directory: BorrowedFd<'_>, _name: &CStr) -> io::Result<()> {
        self.finish()
    }
}

fn directory(parent: u32) -> Content {
    Content::Directory { entries: Vec::new(), parent }
}
