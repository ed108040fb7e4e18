//! A disk that fails, and of which a stop of the machine takes what was not synced.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::StorageBackend;

/// What a disk writes as a whole, in bytes.
const SECTOR_LEN: usize = 512;

/// A disk with one file. A clone is another handle on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What readers see.
    seen: Vec<u8>,
    /// What there is after a stop, if nothing more gets there.
    synced: Vec<u8>,
    /// What has come since, in order.
    since: Vec<Change>,
    /// How many changes and syncs succeed before the fault.
    fuse: Option<u32>,
    /// Whether the fault stops the machine.
    stops: bool,
    hit: bool,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

impl Disk {
    /// Lets changes and syncs fail, after so many, until it is [mended](Self::mend).
    pub(super) fn fail_after(&self, count: u32) {
        let mut shared = self.lock();
        (shared.fuse, shared.stops) = (Some(count), false);
    }

    /// Lets everything fail, after so many changes and syncs, until a [restart](Self::restart).
    pub(super) fn stop_after(&self, count: u32) {
        let mut shared = self.lock();
        (shared.fuse, shared.stops) = (Some(count), true);
    }

    pub(super) fn was_hit(&self) -> bool {
        self.lock().hit
    }

    pub(super) fn is_stopped(&self) -> bool {
        let shared = self.lock();
        shared.hit && shared.stops
    }

    pub(super) fn mend(&self) {
        let mut shared = self.lock();
        (shared.fuse, shared.hit) = (None, false);
    }

    /// Keeps what `choose` chooses of what was not synced, in sectors. The store must be closed.
    pub(super) fn restart(&self, choose: &mut dyn FnMut(u8) -> u8) {
        let mut shared = self.lock();
        let mut image = std::mem::take(&mut shared.synced);
        for change in std::mem::take(&mut shared.since) {
            match change {
                Change::Len(len) if choose(2) == 0 => image.resize(len.max(image.len()), 0),
                Change::Len(_) => {}
                Change::Write(offset, data) => {
                    for (number, sector) in data.chunks(SECTOR_LEN).enumerate() {
                        // Mostly whole writes, or none.
                        let takes =
                            if number == 0 || choose(8) == 0 { choose(2) == 0 } else { true };
                        let start = offset + number * SECTOR_LEN;
                        if takes && start + sector.len() <= image.len() {
                            image[start..start + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        shared.seen.clone_from(&image);
        shared.synced = image;
        (shared.fuse, shared.hit) = (None, false);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Whether a change or a sync may succeed.
    fn allow(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            None => return Ok(()),
            Some(0) => {}
            Some(left) => {
                *left -= 1;
                return Ok(());
            }
        }
        self.hit = true;
        Err(io::Error::other("a fault on purpose"))
    }

    fn alive(&self) -> io::Result<()> {
        if self.hit && self.stops { Err(io::Error::other("stopped on purpose")) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        let shared = self.lock();
        shared.alive()?;
        Ok(shared.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let shared = self.lock();
        shared.alive()?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = shared.seen.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut shared = self.lock();
        shared.allow()?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        shared.seen.resize(len, 0);
        shared.since.push(Change::Len(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut shared = self.lock();
        shared.allow()?;
        for change in std::mem::take(&mut shared.since) {
            match change {
                Change::Len(len) => shared.synced.resize(len, 0),
                Change::Write(offset, data) => {
                    shared.synced[offset..offset + data.len()].copy_from_slice(&data);
                }
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut shared = self.lock();
        shared.allow()?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let place = shared.seen.get_mut(start..start + data.len());
        place.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        shared.since.push(Change::Write(start, data.to_owned()));
        Ok(())
    }
}
