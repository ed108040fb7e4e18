//! The lock of a folder that belongs to one process at a time: a daemon's root and state.

use std::{
    fs::{File, TryLockError},
    path::Path,
    time::{Duration, Instant},
};

use crate::error::Error;

/// How long a daemon that is going away may still hold its locks.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// Takes the lock of a folder: two daemons on one root would destroy each other's state.
///
/// The kernel drops it with the process, however that ends; whoever is started in the place of a
/// daemon that was just killed may come a little too early, and waits.
///
/// # Errors
///
/// - `Unavailable`: another process has it.
/// - `File`.
pub(crate) fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("gantryd.lock");
    let file = File::create(&path).map_err(Error::file("create", &path))?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                let folder = folder.display();
                return Err(Error::Unavailable(format!("another gantryd uses {folder}")));
            }
            Err(TryLockError::Error(error)) => return Err(Error::file("lock", path)(error)),
        }
    }
}
