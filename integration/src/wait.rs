//! Waiting for a level.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything that a test waits for may take, on the slowest machine that counts.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How long a wait rests between two looks.
const STEP: Duration = Duration::from_millis(5);

/// Waits until `look` finds something, and gives it.
///
/// # Errors
///
/// `look` failed, or has found nothing within [`DEADLINE`]; then the error names `what`.
pub fn until<T>(what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(DEADLINE, what, look)
}

fn until_within<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(STEP);
    }
}

/// Waits until `holds` gives true.
///
/// # Errors
///
/// Those of [`until`].
pub fn until_true(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    until(what, || Ok(holds().then_some(())))
}

/// Waits until `holds` gives true, but no longer than `limit`.
///
/// # Errors
///
/// Those of [`until`], after `limit`.
pub fn until_true_within(
    limit: Duration,
    what: &str,
    mut holds: impl FnMut() -> bool,
) -> Result<()> {
    until_within(limit, what, || Ok(holds().then_some(())))
}
