//! A database file that is opened as if for writing, but stays as it is.
//!
//! redb finds the last good commit of a file that was not closed by writing to it. What it writes
//! is kept in memory here, in blocks over those of the file.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::{Database, DatabaseError, StorageBackend};

use super::{commits::Commits, pages::HEADER_LEN};

/// The size of a block, in bytes.
const BLOCK_LEN: u64 = 4096;

/// Opens the database at `path` for a look, and tells whether the library took another commit than the last
/// for that.
pub(super) fn open(path: &Path) -> Result<(Database, bool), DatabaseError> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    if len == 0 {
        // redb would make a new one of it.
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is empty").into());
    }
    let kept = Arc::new(Mutex::new(Kept { len, stored: len, blocks: BTreeMap::new() }));
    let scratch = Scratch { file: Arc::new(file), kept };
    let before = scratch.commits();
    let database = Database::builder().create_with_backend(scratch.clone())?;
    let went_back = match (before, scratch.commits()) {
        (Ok(before), Ok(after)) => after.went_back(&before),
        _ => false,
    };
    Ok((database, went_back))
}

#[derive(Clone, Debug)]
struct Scratch {
    file: Arc<File>,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug)]
struct Kept {
    len: u64,
    /// How much of the file counts still: what was cut off does not come back.
    stored: u64,
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl Scratch {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commits(&self) -> io::Result<Commits> {
        let mut header = [0; HEADER_LEN];
        self.read(0, &mut header)?;
        Ok(Commits::of(&header))
    }

    /// The block as it is in the file.
    fn stored(&self, stored: u64, block: u64) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; BLOCK_LEN as usize].into_boxed_slice();
        let start = block * BLOCK_LEN;
        let len = stored.saturating_sub(start).min(BLOCK_LEN) as usize;
        self.file.read_exact_at(&mut bytes[..len], start)?;
        Ok(bytes)
    }
}

/// The parts of `len` bytes from `offset` on: block, start in it, and length.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        let (block, start) = (at / BLOCK_LEN, at % BLOCK_LEN);
        let len = (BLOCK_LEN - start).min(end - at);
        at += len;
        (len > 0).then_some((block, start as usize, len as usize))
    })
}

impl StorageBackend for Scratch {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let kept = self.lock();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > kept.len) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is too short"));
        }
        let mut done = 0;
        for (block, start, len) in parts(offset, out.len()) {
            let out = &mut out[done..done + len];
            match kept.blocks.get(&block) {
                Some(bytes) => out.copy_from_slice(&bytes[start..start + len]),
                None => out.copy_from_slice(&self.stored(kept.stored, block)?[start..start + len]),
            }
            done += len;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut kept = self.lock();
        if len < kept.len {
            kept.stored = kept.stored.min(len);
            drop(kept.blocks.split_off(&len.div_ceil(BLOCK_LEN)));
            let rest = (len % BLOCK_LEN) as usize;
            if let (Some(last), true) = (kept.blocks.get_mut(&(len / BLOCK_LEN)), rest > 0) {
                last[rest..].fill(0);
            }
        }
        kept.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut kept = self.lock();
        let mut done = 0;
        for (block, start, len) in parts(offset, data.len()) {
            if !kept.blocks.contains_key(&block) {
                let bytes = self.stored(kept.stored, block)?;
                kept.blocks.insert(block, bytes);
            }
            let bytes = kept.blocks.get_mut(&block).expect("just put there");
            bytes[start..start + len].copy_from_slice(&data[done..done + len]);
            done += len;
        }
        Ok(())
    }
}
