//! Reads tar archives from a stream, entry by entry.
//!
//! Takes POSIX (ustar), pax and GNU long names, which is what archives of images have. What an
//! archive says about sizes is checked against limits before it is believed.

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, Take};

const BLOCK: usize = 512;

/// The most that a header record of its own (a long name, pax attributes) may have.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// An archive that is being read.
pub(crate) struct Archive<R> {
    reader: R,
    /// Bytes up to the next header: what is left of the entry, and its padding.
    left: u64,
}

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: String,
    /// The target of a link, else empty.
    pub(crate) link: String,
    pub(crate) size: u64,
    pub(crate) kind: EntryKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    Symlink,
    Hardlink,
    Other,
}

#[derive(Default)]
struct Overrides {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl<R: AsyncRead + Unpin> Archive<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, left: 0 }
    }

    /// The next entry. What was not read of the one before is skipped.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Entry>> {
        let mut overrides = Overrides::default();
        loop {
            let skipped = (&mut self.reader).take(self.left);
            let skipped = tokio::io::copy(&mut { skipped }, &mut tokio::io::sink()).await?;
            ensure!(skipped == self.left, "the archive is cut short");
            self.left = 0;
            let Some(header) = self.header().await? else { return Ok(None) };
            let size = number(&header[124..136]).context("size in a tar header")?;
            let text = |range: std::ops::Range<usize>| text(&header[range]);
            match header[156] {
                b'x' => self.pax(size, &mut overrides).await?,
                b'L' => overrides.path = Some(self.record(size).await?),
                b'K' => overrides.link = Some(self.record(size).await?),
                b'g' => drop(self.record(size).await?),
                kind => {
                    let is_ustar = &header[257..262] == b"ustar";
                    let prefix = if is_ustar { text(345..500) } else { String::new() };
                    let name = match prefix.as_str() {
                        "" => text(0..100),
                        prefix => format!("{prefix}/{}", text(0..100)),
                    };
                    let kind = entry_kind(kind);
                    let size = overrides.size.unwrap_or(size);
                    self.left = padded(size)?;
                    return Ok(Some(Entry {
                        path: overrides.path.unwrap_or(name),
                        link: overrides.link.unwrap_or_else(|| text(157..257)),
                        size,
                        kind,
                    }));
                }
            }
        }
    }

    /// The contents of the entry that was returned last, of which nothing has been read.
    pub(crate) fn contents(&mut self, entry: &Entry) -> Take<&mut R> {
        self.left -= entry.size;
        (&mut self.reader).take(entry.size)
    }

    async fn header(&mut self) -> anyhow::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]).await.context("read the archive")? {
                0 if filled == 0 => return Ok(None),
                0 => bail!("the archive is cut short"),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            // The end; what follows is padding of the medium.
            tokio::io::copy(&mut self.reader, &mut tokio::io::sink()).await?;
            return Ok(None);
        }
        let want = number(&block[148..156]).context("checksum in a tar header")?;
        let sum = |(at, byte): (usize, &u8)| {
            if (148..156).contains(&at) { u64::from(b' ') } else { u64::from(*byte) }
        };
        let got: u64 = block.iter().enumerate().map(sum).sum();
        ensure!(got == want, "not a tar archive, or a broken one: wrong header checksum");
        Ok(Some(block))
    }

    async fn record(&mut self, size: u64) -> anyhow::Result<String> {
        Ok(text(&self.record_bytes(size).await?))
    }

    async fn record_bytes(&mut self, size: u64) -> anyhow::Result<Vec<u8>> {
        ensure!(size <= RECORD_BYTES_MAX, "a tar header of {size} bytes");
        let mut bytes = Vec::new();
        (&mut self.reader).take(size).read_to_end(&mut bytes).await?;
        ensure!(bytes.len() as u64 == size, "the archive is cut short");
        self.left = padded(size)? - size;
        Ok(bytes)
    }

    /// Reads pax attributes: `<length> <key>=<value>\n`, the length being that of all of it.
    async fn pax(&mut self, size: u64, overrides: &mut Overrides) -> anyhow::Result<()> {
        let bytes = self.record_bytes(size).await?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let space = rest.iter().position(|byte| *byte == b' ').context("pax attribute")?;
            let len: usize = std::str::from_utf8(&rest[..space])?.parse()?;
            ensure!(len > space + 1 && len <= rest.len(), "pax attribute of {len} bytes");
            let (record, tail) = rest.split_at(len);
            rest = tail;
            let record = String::from_utf8_lossy(&record[space + 1..len - 1]).into_owned();
            match record.split_once('=') {
                Some(("path", value)) => overrides.path = Some(value.to_owned()),
                Some(("linkpath", value)) => overrides.link = Some(value.to_owned()),
                Some(("size", value)) => overrides.size = Some(value.parse()?),
                _ => {}
            }
        }
        Ok(())
    }
}

fn entry_kind(flag: u8) -> EntryKind {
    match flag {
        b'0' | 0 | b'7' => EntryKind::File,
        b'1' => EntryKind::Hardlink,
        b'2' => EntryKind::Symlink,
        _ => EntryKind::Other,
    }
}

fn padded(size: u64) -> anyhow::Result<u64> {
    size.checked_next_multiple_of(BLOCK as u64).context("size in a tar header")
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A number in octal digits, or in binary if the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        let is_small = high[0] == 0x80 && high[1..].iter().all(|byte| *byte == 0);
        return is_small.then(|| low.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    }
    let digits = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn header(path: &str, kind: u8, size: usize) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..path.len()].copy_from_slice(path.as_bytes());
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = kind;
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    fn entry(path: &str, kind: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = header(path, kind, data.len());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    async fn read(bytes: &[u8]) -> anyhow::Result<Vec<(String, String)>> {
        let mut archive = Archive::new(bytes);
        let mut found = Vec::new();
        while let Some(entry) = archive.next().await? {
            let mut data = String::new();
            if entry.kind == EntryKind::File {
                archive.contents(&entry).read_to_string(&mut data).await?;
            }
            found.push((entry.path, data));
        }
        Ok(found)
    }

    #[tokio::test]
    async fn entries() {
        let long = "d/".repeat(80) + "f";
        let pax = format!("{} path={long}\n", long.len() + 10);
        let archive = [
            entry("a", b'0', b"one"),
            entry("pax", b'x', pax.as_bytes()),
            entry("short", b'0', b"two"),
            entry("././@LongLink", b'L', format!("{long}\0").as_bytes()),
            entry("short", b'0', b""),
            entry("dir/", b'5', b""),
            vec![0; 1024],
        ]
        .concat();
        let got = read(&archive).await.expect("well formed");
        let want = [("a", "one"), (&long, "two"), (&long, ""), ("dir/", "")]
            .map(|(path, data)| (path.to_owned(), data.to_owned()));
        assert_eq!(got, want);
    }

    #[tokio::test]
    async fn broken() {
        let whole = entry("a", b'0', b"one");
        let mut flipped = whole.clone();
        flipped[3] = 1;
        let cases = [
            ("no archive", vec![b'x'; 600]),
            ("cut in the header", whole[..100].to_vec()),
            ("cut in the data", [header("a", b'5', 600), vec![0; 100]].concat()),
            ("wrong checksum", flipped),
            ("huge name", header("a", b'L', 1 << 30)),
            ("bad pax", entry("a", b'x', b"99 path=a\n")),
        ];
        for (case, bytes) in cases {
            assert!(read(&bytes).await.is_err(), "{case}");
        }
    }
}
