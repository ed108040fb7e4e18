//! Reads a bolt database, in which containerd keeps its records.
//!
//! The file is an array of pages. Two of them say where the root is, of which the newer that is
//! whole counts; so a database whose writer was killed can be read as it was at its last commit.
//!
//! ```text
//! page     id u64, flags u16, count u16, overflow u32, then the elements, then their bytes
//! meta     magic u32, version u32, page size u32, flags u32, root u64, root's sequence u64,
//!          free list u64, next page u64, transaction u64, checksum u64
//! branch   for each child: position u32, length of key u32, page u64
//! leaf     for each pair: flags u32, position u32, length of key u32, length of value u32
//! bucket   the value of a pair with flag 1: root u64, sequence u64, and if the root is 0, its page
//! ```
//!
//! Positions count from their element, numbers are in the machine's order. Nothing is believed: a
//! file that contradicts itself is an error, however it does.
//!
//! Source: bbolt, `internal/common/{page,meta,bucket}.go`.

use std::collections::BTreeMap;

/// What a meta page has first.
const MAGIC: u32 = 0xed0c_daed;

/// The version of the format, which never changed.
const VERSION: u32 = 2;

const HEADER_LEN: usize = 16;
const ELEMENT_LEN: usize = 16;
/// The fields of a meta page before their checksum.
const META_LEN: usize = 56;

const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const IS_BUCKET: u32 = 1;

/// How large a page may be, as far as any machine goes.
const PAGE_LENS: [usize; 5] = [4096, 8192, 16384, 32768, 65536];

/// How deep pages may lie below each other.
const DEPTH_MAX: usize = 64;

/// What a key stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Node<'a> {
    /// Bytes.
    Value(&'a [u8]),
    /// More keys.
    Bucket(Bucket<'a>),
}

/// Keys, and what they stand for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket<'a>(pub(super) BTreeMap<&'a [u8], Node<'a>>);

/// Why a file is no bolt database, or a damaged one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BoltError {
    /// There is no whole meta page.
    #[error("not a bolt database")]
    NoMeta,
    /// Something lies beyond the end of the file or of its page.
    #[error("bolt database is cut short")]
    CutShort,
    /// A page has a kind that it cannot have where it is.
    #[error("bolt database has a page of kind {0:#x} in a tree")]
    Kind(u16),
    /// Pages lie below themselves, or too deep.
    #[error("bolt database has a tree without end")]
    Endless,
}

impl<'a> Bucket<'a> {
    /// Reads a whole file.
    ///
    /// # Errors
    ///
    /// See [`BoltError`].
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, BoltError> {
        let meta = PAGE_LENS
            .iter()
            .flat_map(|len| [Meta::read(bytes, 0, *len), Meta::read(bytes, *len, *len)]);
        let meta = meta.flatten().max_by_key(|meta| meta.transaction).ok_or(BoltError::NoMeta)?;
        let pages_left = bytes.len() / meta.page_len;
        let mut reader = Reader { bytes, page_len: meta.page_len, pages_left };
        let mut root = Self::default();
        let page = reader.page(meta.root)?;
        reader.collect(page, 0, &mut root)?;
        Ok(root)
    }

    /// The bucket under `key`; one that is not there is empty.
    pub(super) fn bucket(&self, key: &str) -> &Self {
        const EMPTY: &Bucket<'_> = &Bucket(BTreeMap::new());
        match self.0.get(key.as_bytes()) {
            Some(Node::Bucket(bucket)) => bucket,
            _ => EMPTY,
        }
    }

    /// The value under `key`; one that is not there is empty.
    pub(super) fn value(&self, key: &str) -> &'a [u8] {
        match self.0.get(key.as_bytes()) {
            Some(Node::Value(value)) => value,
            _ => &[],
        }
    }

    /// The value under `key` as text.
    pub(super) fn text(&self, key: &str) -> String {
        String::from_utf8_lossy(self.value(key)).into_owned()
    }

    /// The buckets in this one, with their keys as text.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (String, &Self)> {
        self.0.iter().filter_map(|(key, node)| match node {
            Node::Bucket(bucket) => Some((String::from_utf8_lossy(key).into_owned(), bucket)),
            Node::Value(_) => None,
        })
    }

    /// The values in this bucket, with their keys as text.
    pub(super) fn values(&self) -> impl Iterator<Item = (String, &'a [u8])> {
        self.0.iter().filter_map(|(key, node)| match node {
            Node::Value(value) => Some((String::from_utf8_lossy(key).into_owned(), *value)),
            Node::Bucket(_) => None,
        })
    }
}

/// What a meta page says.
struct Meta {
    page_len: usize,
    root: u64,
    transaction: u64,
}

impl Meta {
    /// Reads the meta page at `start`, if there is a whole one, of a file with pages of `page_len`.
    fn read(bytes: &[u8], start: usize, page_len: usize) -> Option<Self> {
        let meta = bytes.get(start + HEADER_LEN..start + HEADER_LEN + META_LEN + 8)?;
        let fits = number(meta, 0).ok()? == MAGIC
            && number(meta, 4).ok()? == VERSION
            && number(meta, 8).ok()? as usize == page_len
            && long(meta, META_LEN).ok()? == checksum(&meta[..META_LEN]);
        let (root, transaction) = (long(meta, 16).ok()?, long(meta, 48).ok()?);
        fits.then_some(Self { page_len, root, transaction })
    }
}

/// FNV-1a, of 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

struct Reader<'a> {
    bytes: &'a [u8],
    page_len: usize,
    /// How many pages may be read still: in a tree each is there once.
    pages_left: usize,
}

impl<'a> Reader<'a> {
    fn page(&mut self, id: u64) -> Result<&'a [u8], BoltError> {
        self.pages_left = self.pages_left.checked_sub(1).ok_or(BoltError::Endless)?;
        let start = usize::try_from(id).ok().and_then(|id| id.checked_mul(self.page_len));
        let rest = start.and_then(|start| self.bytes.get(start..)).ok_or(BoltError::CutShort)?;
        let pages = (number(rest, 12)? as usize).checked_add(1);
        let len = pages.and_then(|pages| pages.checked_mul(self.page_len));
        len.and_then(|len| rest.get(..len)).ok_or(BoltError::CutShort)
    }

    /// Adds what is on a page and below it to a bucket.
    fn collect(
        &mut self,
        page: &'a [u8],
        depth: usize,
        into: &mut Bucket<'a>,
    ) -> Result<(), BoltError> {
        if depth > DEPTH_MAX {
            return Err(BoltError::Endless);
        }
        let (kind, count) = (short(page, 8)?, usize::from(short(page, 10)?));
        for at in (0..count).map(|index| HEADER_LEN + index * ELEMENT_LEN) {
            match kind {
                BRANCH => {
                    let child = self.page(long(page, at + 8)?)?;
                    self.collect(child, depth + 1, into)?;
                }
                LEAF => {
                    let part =
                        |index: usize| number(page, at + 4 * index).map(|number| number as usize);
                    let key = slice(page, at + part(1)?, part(2)?)?;
                    let value = slice(page, at + part(1)? + part(2)?, part(3)?)?;
                    let node = match number(page, at)? & IS_BUCKET {
                        0 => Node::Value(value),
                        _ => Node::Bucket(self.bucket(value, depth + 1)?),
                    };
                    into.0.insert(key, node);
                }
                other => return Err(BoltError::Kind(other)),
            }
        }
        Ok(())
    }

    fn bucket(&mut self, value: &'a [u8], depth: usize) -> Result<Bucket<'a>, BoltError> {
        let page = match long(value, 0)? {
            0 => value.get(HEADER_LEN..).ok_or(BoltError::CutShort)?,
            root => self.page(root)?,
        };
        let mut bucket = Bucket::default();
        self.collect(page, depth, &mut bucket)?;
        Ok(bucket)
    }
}

fn slice(bytes: &[u8], start: usize, len: usize) -> Result<&[u8], BoltError> {
    let end = start.checked_add(len).ok_or(BoltError::CutShort)?;
    bytes.get(start..end).ok_or(BoltError::CutShort)
}

fn array<const LEN: usize>(bytes: &[u8], at: usize) -> Result<[u8; LEN], BoltError> {
    slice(bytes, at, LEN)?.try_into().map_err(|_| BoltError::CutShort)
}

fn short(bytes: &[u8], at: usize) -> Result<u16, BoltError> {
    array(bytes, at).map(u16::from_ne_bytes)
}

fn number(bytes: &[u8], at: usize) -> Result<u32, BoltError> {
    array(bytes, at).map(u32::from_ne_bytes)
}

fn long(bytes: &[u8], at: usize) -> Result<u64, BoltError> {
    array(bytes, at).map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 4096;

    fn page(kind: u16, elements: &[u8], count: u16) -> Vec<u8> {
        let mut page = vec![0; 8];
        page.extend(kind.to_ne_bytes());
        page.extend(count.to_ne_bytes());
        page.extend([0; 4]);
        page.extend(elements);
        page
    }

    fn leaf(pairs: &[(u32, &[u8], &[u8])]) -> Vec<u8> {
        let (mut elements, mut bytes) = (Vec::new(), Vec::new());
        for (index, (flags, key, value)) in pairs.iter().enumerate() {
            let position = (pairs.len() - index) * ELEMENT_LEN + bytes.len();
            for number in [*flags as usize, position, key.len(), value.len()] {
                elements.extend(u32::try_from(number).expect("small").to_ne_bytes());
            }
            bytes.extend([*key, *value].concat());
        }
        page(LEAF, &[elements, bytes].concat(), u16::try_from(pairs.len()).expect("few"))
    }

    fn branch(children: &[u64]) -> Vec<u8> {
        let element = |id: &u64| [vec![0; 8], id.to_ne_bytes().to_vec()].concat();
        let elements: Vec<u8> = children.iter().flat_map(element).collect();
        page(BRANCH, &elements, u16::try_from(children.len()).expect("few"))
    }

    fn meta(root: u64, transaction: u64) -> Vec<u8> {
        let mut meta = Vec::new();
        for number in [MAGIC, VERSION, 4096, 0] {
            meta.extend(number.to_ne_bytes());
        }
        for long in [root, 0, 0, 0, transaction] {
            meta.extend(long.to_ne_bytes());
        }
        meta.extend(checksum(&meta).to_ne_bytes());
        page(4, &meta, 0)
    }

    fn file(pages: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        for page in pages {
            file.extend(page);
            file.resize(file.len().next_multiple_of(LEN), 0);
        }
        file
    }

    /// A bucket whose page is in the value, one with a page of its own, and a branch.
    fn sample() -> Vec<u8> {
        let inline = [vec![0; 16], leaf(&[(0, b"k", b"v")])].concat();
        let own = [5u64.to_ne_bytes(), [0; 8]].concat();
        file(&[
            meta(2, 6),
            meta(9, 5),
            branch(&[3, 4]),
            leaf(&[(1, b"inline", &inline), (0, b"name", b"value")]),
            leaf(&[(1, b"own", &own)]),
            leaf(&[(0, b"a", b"b")]),
        ])
    }

    #[test]
    fn read() {
        let bytes = sample();
        let root = Bucket::read(&bytes).expect("whole");
        assert_eq!(root.text("name"), "value");
        assert_eq!(root.bucket("inline").text("k"), "v");
        assert_eq!(root.bucket("own").text("a"), "b");
        assert_eq!(root.bucket("none").text("a"), "");
        let names: Vec<String> = root.buckets().map(|(name, _)| name).collect();
        assert_eq!(names, ["inline", "own"]);
        let values: Vec<_> = root.values().collect();
        assert_eq!(values, [("name".to_owned(), b"value".as_slice())]);
    }

    #[test]
    fn what_is_damaged_is_an_error() {
        let mut torn = sample();
        torn[HEADER_LEN + 20] ^= 1;
        let own = |id: u64| [id.to_ne_bytes(), [0; 8]].concat();
        let below_itself = [meta(2, 1), meta(2, 0), leaf(&[(1, b"b", &own(2))])];
        let cases = [
            ("nothing", vec![], BoltError::NoMeta),
            ("zeros", vec![0; 3 * LEN], BoltError::NoMeta),
            ("the newer meta is torn, the older leads nowhere", torn, BoltError::CutShort),
            ("a page of itself", file(&below_itself), BoltError::Endless),
            ("no tree", file(&[meta(2, 1), meta(2, 0), page(4, &[], 1)]), BoltError::Kind(4)),
            (
                "an end too early",
                file(&[meta(2, 1), meta(2, 0), page(LEAF, &[255; 16], 1)]),
                BoltError::CutShort,
            ),
        ];
        for (case, bytes, want) in cases {
            assert_eq!(Bucket::read(&bytes).err(), Some(want), "{case}");
        }
    }

    #[test]
    fn any_byte_may_be_wrong() {
        let whole = sample();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] = !bytes[at];
            // Whatever it says, it says it.
            let _ = Bucket::read(&bytes);
        }
        for len in 0..whole.len() / 64 {
            let _ = Bucket::read(&whole[..len * 64]);
        }
    }
}
