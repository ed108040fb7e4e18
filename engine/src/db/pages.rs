//! Reads the rows of a database's file page by page, also where it is damaged.
//!
//! redb ends at the first page that is no good, or does not open the file at all. Here such a page
//! costs the rows that are on it and below it, and no more; where the last commit has lost some, those of
//! the one before, which redb keeps until the next, stand in for them. Sums of pages are not compared, so
//! who takes rows over has to look at what is in them.
//!
//! Nothing that a file holds makes this panic, go round in circles, or read beyond the file. Of one tree no
//! byte is read twice: there a page has one number, and none is in another one, as one may be in a file that
//! somebody has made to keep this busy.
//!
//! Source: redb 4.4, `docs/design.md` and `src/tree_store`.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt, path::Path};

const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
const VERSION: u8 = 3;

/// Where the flags are of which the lowest names the slot of the last commit.
pub(super) const FLAGS_AT: usize = 9;
const PAGE_SIZE_AT: usize = 12;
const REGION_HEADER_AT: usize = 16;
const REGION_DATA_AT: usize = 20;
pub(super) const SLOTS_AT: [usize; 2] = [64, 192];
pub(super) const HEADER_LEN: usize = 320;

const LEAF: u8 = 1;
const BRANCH: u8 = 2;

/// How deep trees are at most; redb's are a few pages deep.
const DEPTH_MAX: usize = 32;

/// How long a region is at most, in bytes; redb's have 4 GiB.
const REGION_LEN_MAX: u64 = 1 << 40;

/// The largest page, as a power of two of the smallest: 64 MiB, for no message that becomes a row has more
/// than 16.
const ORDER_MAX: u64 = 14;

/// A database's file.
pub(super) struct Pages {
    file: File,
    len: u64,
    page_size: u64,
    /// The length of the part of each region that is before its pages, and of the whole region.
    region_header: u64,
    region_len: u64,
    /// The roots of the tables' tree: that of the last commit, and of the one before.
    roots: Vec<u64>,
}

/// What a table has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Those of the commit before, where the last one has lost some.
    pub(super) earlier: BTreeMap<Vec<u8>, Vec<u8>>,
    /// How many of the last commit mean nothing, and have none of the commit before in their place.
    pub(super) meaningless: usize,
    /// How many pages could not be read, each with what was below it.
    pub(super) lost: usize,
    /// How many rows there should be.
    pub(super) len: usize,
}

impl Pages {
    /// Opens the database at `path`; nothing when its header is no good.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut header = [0; HEADER_LEN];
        if len < HEADER_LEN as u64 {
            return Ok(None);
        }
        file.read_exact_at(&mut header, 0)?;
        let number = |at: usize| u64::from(word(&header, at).unwrap_or(0));
        let page_size = number(PAGE_SIZE_AT);
        let good = page_size.is_power_of_two() && (512..=1 << 16).contains(&page_size);
        if !header.starts_with(MAGIC) || !good || number(REGION_DATA_AT) == 0 {
            return Ok(None);
        }
        let region_header = number(REGION_HEADER_AT) * page_size;
        let region_len = region_header + number(REGION_DATA_AT) * page_size;
        if region_len > REGION_LEN_MAX {
            return Ok(None);
        }
        let last = usize::from(header[FLAGS_AT] & 1);
        let slots = [SLOTS_AT[last], SLOTS_AT[1 - last]];
        let root = |at: usize| {
            let good = header[at] == VERSION && header[at + 1] != 0;
            long(&header, at + 8).filter(|_| good)
        };
        let roots = slots.into_iter().filter_map(root).collect();
        Ok(Some(Self { file, len, page_size, region_header, region_len, roots }))
    }

    /// The rows of the table `name` of which `is_good` says that they mean something.
    pub(super) fn table(&self, name: &str, is_good: impl Fn(&[u8], &[u8]) -> bool) -> Rows {
        let mut commits = self.roots.iter();
        let mut found = commits.next().map(|root| self.table_at(*root, name)).unwrap_or_default();
        let mut bad = Vec::new();
        found.rows.retain(|key, value| {
            let is_good = is_good(key, value);
            if !is_good {
                bad.push(key.clone());
            }
            is_good
        });
        if found.lost > 0 || found.rows.len() < found.len || !bad.is_empty() {
            for before in commits {
                let mut rows = self.table_at(*before, name).rows;
                rows.retain(|key, value| !found.rows.contains_key(key) && is_good(key, value));
                found.earlier.append(&mut rows);
            }
        }
        found.meaningless = bad.iter().filter(|key| !found.earlier.contains_key(*key)).count();
        found
    }

    /// The rows of the table `name` of one commit.
    fn table_at(&self, root: u64, name: &str) -> Rows {
        let mut tables = Rows::default();
        self.walk(root, 0, &mut Seen::default(), &mut tables);
        let Some(definition) = tables.rows.get(name.as_bytes()) else {
            // Whether it is on a page that is lost is not known.
            return Rows { lost: tables.lost, ..Rows::default() };
        };
        // A type, a count, whether there is a root, and the root.
        let root = long(definition, 10).filter(|_| definition.get(9).is_some_and(|it| *it != 0));
        // More than the file has bytes would be nonsense.
        let len = long(definition, 1).filter(|len| *len <= self.len).unwrap_or(0);
        let len = usize::try_from(len).unwrap_or(0);
        let mut found = Rows { len, ..Rows::default() };
        if let Some(root) = root {
            self.walk(root, 0, &mut Seen::default(), &mut found);
        }
        found
    }

    /// Takes all rows below a page.
    fn walk(&self, number: u64, depth: usize, seen: &mut Seen, found: &mut Rows) {
        let page = if depth < DEPTH_MAX { self.page(number, seen) } else { None };
        let done = match page.as_deref() {
            Some(page @ [LEAF, ..]) => leaf(page, found),
            Some(page @ [BRANCH, ..]) => match children(page) {
                Some(children) => {
                    for child in children {
                        self.walk(child, depth + 1, seen, found);
                    }
                    true
                }
                None => false,
            },
            _ => false,
        };
        found.lost += usize::from(!done);
    }

    /// The bytes of a page, if it is in the file, and none of them was seen.
    fn page(&self, number: u64, seen: &mut Seen) -> Option<Vec<u8>> {
        let order = Some(number >> 59).filter(|order| *order <= ORDER_MAX)?;
        let index = number & (0x000f_ffff >> order);
        let region = (number >> 20) & 0x000f_ffff;
        if number != order << 59 | region << 20 | index {
            // Another number of the same page.
            return None;
        }
        let len = self.page_size << order;
        let in_region = self.region_header + index * len;
        let start = self.page_size + region * self.region_len + in_region;
        if in_region + len > self.region_len || start + len > self.len || !seen.add(start, len) {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        self.file.read_exact_at(&mut bytes, start).ok()?;
        Some(bytes)
    }
}

/// The bytes that were read of a tree: where each part starts, and where it ends.
#[derive(Default)]
struct Seen(BTreeMap<u64, u64>);

impl Seen {
    /// Notes `len` bytes from `start` on; whether none of them was seen before.
    fn add(&mut self, start: u64, len: u64) -> bool {
        let end = start + len;
        let last = self.0.range(..end).next_back();
        let is_new = last.is_none_or(|(_, last_end)| *last_end <= start);
        if is_new {
            self.0.insert(start, end);
        }
        is_new
    }
}

/// Takes the rows of a leaf; whether it is one, all of it.
///
/// A type, a byte of nothing, and the count; the ends of keys, the ends of values, keys and values.
fn leaf(page: &[u8], found: &mut Rows) -> bool {
    let Some(count) = half(page, 2) else { return false };
    let keys = 4 + 8 * count;
    let end = |at: usize| word(page, at).and_then(|end| usize::try_from(end).ok());
    let last_key = match count {
        0 => Some(keys),
        _ => end(4 + 4 * (count - 1)),
    };
    let (Some(mut value_at), mut key_at) = (last_key, keys) else { return false };
    for row in 0..count {
        let ends = (end(4 + 4 * row), end(4 + 4 * (count + row)));
        let (Some(key_end), Some(value_end)) = ends else { return false };
        let parts = (page.get(key_at..key_end), page.get(value_at..value_end));
        let (Some(key), Some(value)) = parts else { return false };
        found.rows.insert(key.to_owned(), value.to_owned());
        (key_at, value_at) = (key_end, value_end);
    }
    true
}

/// The pages below a branch.
///
/// A type, a byte of nothing, the count of keys and four bytes of nothing; the children's sums,
/// their numbers, and keys.
fn children(page: &[u8]) -> Option<Vec<u64>> {
    let count = half(page, 2)? + 1;
    (0..count).map(|child| long(page, 8 + 16 * count + 8 * child)).collect()
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The names of a key that is a tuple of three: the lengths of the first two, then all.
pub(super) fn three(key: &[u8]) -> Option<[&str; 3]> {
    let (first, rest) = length(key)?;
    let (second, rest) = length(rest)?;
    let (first, rest) = rest.split_at_checked(first)?;
    let (second, third) = rest.split_at_checked(second)?;
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Some([text(first)?, text(second)?, text(third)?])
}

/// A length, of one byte, or of two or four behind a byte that says so.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match *bytes.first()? {
        254 => Some((half(bytes, 1)?, &bytes[3..])),
        255 => Some((usize::try_from(word(bytes, 1)?).ok()?, &bytes[5..])),
        short => Some((short.into(), &bytes[1..])),
    }
}

#[cfg(test)]
mod tests {
    use redb::{Database, TableDefinition};

    use super::*;

    type Names = (&'static str, &'static str, &'static str);

    const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("table");
    const OTHER: TableDefinition<'_, Names, &[u8]> = TableDefinition::new("other");

    /// A database with so many rows that there are branches, and a value of more than a page; its bytes.
    fn database(path: &Path) -> Vec<u8> {
        let database = Database::create(path).expect("makes");
        for round in 0..2_u8 {
            let change = database.begin_write().expect("begins");
            {
                let mut table = change.open_table(TABLE).expect("opens");
                for number in 0..500_u32 {
                    let value = [round; 100];
                    table.insert(&number.to_be_bytes()[..], &value[..]).expect("writes");
                }
                table.insert(&b"long"[..], &[7; 20_000][..]).expect("writes");
                let mut other = change.open_table(OTHER).expect("opens");
                let long = "n".repeat(300);
                other.insert(("s", "n", "k"), &b"x"[..]).expect("writes");
                other.insert(("", long.as_str(), ""), &b"y"[..]).expect("writes");
            }
            change.commit().expect("commits");
        }
        drop(database);
        std::fs::read(path).expect("reads")
    }

    #[test]
    fn as_redb_reads_it() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("d.redb");
        database(&path);
        let pages = Pages::open(&path).expect("opens").expect("is one");
        let all = |_: &[u8], _: &[u8]| true;
        let found = pages.table("table", all);
        assert_eq!((found.lost, found.rows.len()), (0, 501));
        assert_eq!(found.rows[&b"long"[..]], [7; 20_000]);
        assert_eq!(found.rows[&500_u32.wrapping_sub(1).to_be_bytes()[..]], [1; 100]);
        let found = pages.table("other", all);
        let names: Vec<_> = found.rows.keys().map(|key| three(key).expect("names")).collect();
        assert!(names.contains(&["s", "n", "k"]), "{names:?}");
        assert!(names.contains(&["", &"n".repeat(300), ""]), "{names:?}");
        assert_eq!(pages.table("none", all), Rows::default());
    }

    #[test]
    fn a_page_costs_what_is_on_it() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("d.redb");
        let good = database(&path);
        let mut counts = Vec::new();
        for page in 0..good.len() / 4096 {
            for fill in [0, 0xff, LEAF, BRANCH] {
                let mut bytes = good.clone();
                bytes[page * 4096..(page + 1) * 4096].fill(fill);
                std::fs::write(&path, bytes).expect("writes");
                let Some(pages) = Pages::open(&path).expect("opens") else {
                    assert_eq!(page, 0, "page {page} is no header");
                    continue;
                };
                let found = pages.table("table", |_, _| true);
                counts.push(found.rows.len() + found.earlier.len());
            }
        }
        counts.sort_unstable();
        // A root costs much, a leaf some, and what is in no table nothing.
        assert!(
            counts.contains(&501) && counts.iter().any(|it| (400..501).contains(it)),
            "{counts:?}"
        );
    }

    const PAGE: usize = 4096;

    /// A branch with these pages below it.
    fn branch(children: &[u64]) -> Vec<u8> {
        let mut page = vec![BRANCH, 0];
        page.extend(u16::try_from(children.len() - 1).expect("few").to_le_bytes());
        page.resize(8 + 16 * children.len(), 0);
        page.extend(children.iter().flat_map(|child| child.to_le_bytes()));
        page.resize(PAGE, 0);
        page
    }

    /// A leaf with one row.
    fn row(key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut page = vec![LEAF, 0, 1, 0];
        let key_end = 12 + key.len();
        for end in [key_end, key_end + value.len()] {
            page.extend(u32::try_from(end).expect("short").to_le_bytes());
        }
        page.extend([key, value].concat());
        page.resize(PAGE, 0);
        page
    }

    /// A file of one region in which the table `table` has its root in page 1, and pages from there on.
    fn crafted(path: &Path, pages: &[Vec<u8>]) -> Pages {
        let mut header = vec![0; PAGE];
        header[..MAGIC.len()].copy_from_slice(MAGIC);
        header[PAGE_SIZE_AT..][..4].copy_from_slice(&(PAGE as u32).to_le_bytes());
        header[REGION_DATA_AT..][..4].copy_from_slice(&64_u32.to_le_bytes());
        header[SLOTS_AT[0]..][..2].copy_from_slice(&[VERSION, 1]);
        let mut definition = vec![0; 9];
        definition.push(1);
        definition.extend(1_u64.to_le_bytes());
        let mut file = [header, row(b"table", &definition)].concat();
        file.extend(pages.concat());
        file.resize(65 * PAGE, 0);
        std::fs::write(path, file).expect("writes");
        Pages::open(path).expect("opens").expect("is one")
    }

    /// Each page below the root is named by all pages above it, in all the ways that there are.
    #[test]
    fn no_page_is_read_twice() {
        let leaf = row(b"key", b"value");
        let times = |children: &dyn Fn(u64) -> Vec<u64>| {
            let mut pages: Vec<_> = (2..6).map(|next| branch(&children(next))).collect();
            pages.push(leaf.clone());
            pages
        };
        let in_each_other = [branch(&[1 << 59 | 1, 2, 3]), leaf.clone(), leaf.clone()].to_vec();
        // Of each branch one child is read.
        let cases = [
            ("once", times(&|next| vec![next]), 0),
            ("twice", times(&|next| vec![next, next]), 4),
            ("a circle", times(&|next| vec![next, next - 1]), 4),
            (
                "under other numbers",
                times(&|next| (0..60).map(|it| next | it << 40).collect()),
                4 * 59,
            ),
            ("in each other", in_each_other, 2),
        ];
        let folder = tempfile::tempdir().expect("a temporary directory");
        for (case, pages, want) in cases {
            let pages = crafted(&folder.path().join("d.redb"), &pages);
            let found = pages.table("table", |_, _| true);
            let rows: Vec<_> = found.rows.keys().collect();
            assert_eq!((rows, found.lost), (vec![&b"key".to_vec()], want), "{case}");
        }
        let pages = crafted(&folder.path().join("d.redb"), &[branch(&[1 << 59 | 1 | 1 << 19])]);
        let found = pages.table("table", |_, _| true);
        assert_eq!((found.rows.len(), found.lost), (0, 1), "another number of a larger page");
    }

    #[test]
    fn rows_that_mean_nothing() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let pages = crafted(&folder.path().join("d.redb"), &[row(b"key", b"value")]);
        for (case, is_good, want) in [("good", true, (1, 0)), ("bad", false, (0, 1))] {
            let found = pages.table("table", |_, _| is_good);
            assert_eq!((found.rows.len(), found.meaningless), want, "{case}");
        }
    }

    #[test]
    fn parts_that_were_seen() {
        let cases = [
            ("the same", 8, 4, false),
            ("around", 4, 16, false),
            ("within", 9, 1, false),
            ("its start", 6, 3, false),
            ("its end", 11, 4, false),
            ("before", 4, 4, true),
            ("after", 12, 4, true),
        ];
        for (case, start, len, want) in cases {
            let mut seen = Seen::default();
            assert!(seen.add(8, 4) && seen.add(100, 4), "{case}");
            assert_eq!(seen.add(start, len), want, "{case}");
        }
    }

    #[test]
    fn a_file_that_is_cut_off() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("d.redb");
        let good = database(&path);
        for len in (0..good.len()).step_by(3001) {
            std::fs::write(&path, &good[..len]).expect("writes");
            if let Some(pages) = Pages::open(&path).expect("opens") {
                pages.table("table", |_, _| true);
            }
        }
    }
}
