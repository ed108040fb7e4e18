//! Writes entries.
//!
//! The bytes are those that Go's `archive/tar` writes in its pax format, because that is what
//! containerd writes: the same tree has the same diff ID, whichever engine made the layer.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{
    BLOCK_LEN, Block,
    header::{Entry, Kind},
    pax::XATTR_PREFIX,
};

/// The largest number in seven and in eleven octal digits.
const OCTAL_7_MAX: u64 = 0o7_777_777;
const OCTAL_11_MAX: u64 = 0o77_777_777_777;

/// Writes an archive.
pub(crate) struct Writer<W> {
    sink: W,
    /// What the data of the last entry lacks.
    data: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(sink: W) -> Self {
        Self { sink, data: 0, padding: 0 }
    }

    /// Starts an entry; `entry.stored` bytes of data must follow.
    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.end_entry()?;
        let mut records = records(entry);
        // The two parts of the older format are used only if nothing else needs the newer one.
        let parts = split(&entry.path).filter(|_| records.is_empty());
        if parts.is_none() && !fits(&entry.path) {
            records.insert(b"path".to_vec(), entry.path.clone());
        }
        self.extended(&entry.path, &records)?;
        let (prefix, name) = parts.unwrap_or((&[], &entry.path));
        self.sink.write_all(&block(&Fields {
            name,
            prefix,
            link: &entry.link,
            mode: u64::from(entry.mode),
            uid: u64::from(entry.uid),
            gid: u64::from(entry.gid),
            size: entry.stored,
            mtime: u64::try_from(entry.mtime.seconds).unwrap_or(0),
            kind: type_flag(entry.kind),
            device: entry.device,
        }))?;
        self.data = entry.stored;
        self.padding = padding(entry.stored);
        Ok(())
    }

    /// Writes the extended header of an entry, if it needs one.
    fn extended(&mut self, path: &[u8], records: &Records) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let data = encode(records);
        let name = extended_name(path);
        let size = data.len() as u64;
        self.sink.write_all(&block(&Fields {
            name: &name,
            size,
            kind: b'x',
            ..Fields::default()
        }))?;
        self.sink.write_all(&data)?;
        self.sink.write_all(&[0; BLOCK_LEN][..padding(size)])
    }

    /// Writes data of the current entry.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.data = self
            .data
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("more data than announced"))?;
        self.sink.write_all(bytes)
    }

    /// Ends the archive, and gives the sink back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.end_entry()?;
        self.sink.write_all(&[0; 2 * BLOCK_LEN])?;
        Ok(self.sink)
    }

    fn end_entry(&mut self) -> io::Result<()> {
        if self.data > 0 {
            return Err(io::Error::other("less data than announced"));
        }
        self.sink.write_all(&[0; BLOCK_LEN][..self.padding])?;
        self.padding = 0;
        Ok(())
    }
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// What does not fit the header, by key, except of the path.
fn records(entry: &Entry) -> Records {
    let mut records = Records::new();
    if !fits(&entry.link) {
        records.insert(b"linkpath".to_vec(), entry.link.clone());
    }
    let numbers = [
        ("uid", u64::from(entry.uid), OCTAL_7_MAX),
        ("gid", u64::from(entry.gid), OCTAL_7_MAX),
        ("size", entry.stored, OCTAL_11_MAX),
    ];
    for (key, number, max) in numbers {
        if number > max {
            records.insert(key.into(), number.to_string().into_bytes());
        }
    }
    if !u64::try_from(entry.mtime.seconds).is_ok_and(|seconds| seconds <= OCTAL_11_MAX) {
        records.insert(b"mtime".to_vec(), entry.mtime.seconds.to_string().into_bytes());
    }
    for (name, value) in &entry.xattrs {
        records.insert([XATTR_PREFIX, name].concat(), value.clone());
    }
    records
}

/// Whether a path fits its field.
fn fits(path: &[u8]) -> bool {
    path.len() <= 100 && path.is_ascii()
}

fn encode(records: &Records) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut len = rest + digits(rest);
        len = rest + digits(len);
        data.extend_from_slice(format!("{len} ").as_bytes());
        data.extend_from_slice(key);
        data.push(b'=');
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    data
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// The name of an extended header: that of its entry, in a directory `PaxHeaders.0`.
fn extended_name(path: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let (directory, file) = path.split_at(at);
    let mut name = directory.to_vec();
    name.extend_from_slice(b"PaxHeaders.0");
    if !file.is_empty() {
        name.push(b'/');
        name.extend_from_slice(file);
    }
    name.retain(u8::is_ascii);
    name.truncate(100);
    let len = name.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    name.truncate(len);
    name
}

/// Splits a long path at the last slash that lets both parts fit their fields.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 || !path.is_ascii() {
        return None;
    }
    let end = match path.len() {
        len if len > 156 => 156,
        len if path.ends_with(b"/") => len - 1,
        len => len,
    };
    let at = path[..end].iter().rposition(|byte| *byte == b'/')?;
    let (prefix, name) = (&path[..at], &path[at + 1..]);
    (at > 0 && !name.is_empty() && name.len() <= 100).then_some((prefix, name))
}

#[derive(Default)]
struct Fields<'f> {
    name: &'f [u8],
    prefix: &'f [u8],
    link: &'f [u8],
    mode: u64,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    kind: u8,
    device: (u32, u32),
}

fn block(fields: &Fields<'_>) -> Block {
    let mut block = [0; BLOCK_LEN];
    text(&mut block[0..100], fields.name);
    octal(&mut block[100..108], fields.mode);
    octal(&mut block[108..116], fields.uid);
    octal(&mut block[116..124], fields.gid);
    octal(&mut block[124..136], fields.size);
    octal(&mut block[136..148], fields.mtime);
    block[148..156].fill(b' ');
    block[156] = fields.kind;
    text(&mut block[157..257], fields.link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    if fields.kind != b'x' {
        octal(&mut block[329..337], u64::from(fields.device.0));
        octal(&mut block[337..345], u64::from(fields.device.1));
    }
    text(&mut block[345..500], fields.prefix);
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum);
    block
}

/// Text without what is not ASCII, cut to the field.
fn text(field: &mut [u8], text: &[u8]) {
    let ascii = text.iter().filter(|byte| byte.is_ascii());
    for (to, from) in field.iter_mut().zip(ascii) {
        *to = *from;
    }
}

/// Octal digits and a zero byte; zero for what does not fit, which then has a record.
fn octal(field: &mut [u8], number: u64) {
    let width = field.len() - 1;
    let max = (1_u64 << (3 * width)) - 1;
    let number = if number > max { 0 } else { number };
    field[..width].copy_from_slice(format!("{number:0width$o}").as_bytes());
    field[width] = 0;
}

fn type_flag(kind: Kind) -> u8 {
    match kind {
        Kind::Regular => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharacterDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
        Kind::Other(flag) => flag,
    }
}

fn padding(len: u64) -> usize {
    usize::try_from(len.wrapping_neg() % BLOCK_LEN as u64).expect("less than a block")
}
