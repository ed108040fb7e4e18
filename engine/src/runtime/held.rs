//! A shim that an actor has, and how its end is noticed.

use std::{pin::pin, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Error, log::ShimLog, process::Process, shim::Shim};

/// How long after its connection broke a shim may take to be dead.
const DEATH_LIMIT: Duration = Duration::from_millis(500);

/// How long to wait until a shim is tried again that could not be reached.
pub(super) const REACH_PAUSE: Duration = Duration::from_secs(1);

/// A shim and what watches it.
pub(super) struct Held {
    pub(super) shim: Shim,
    /// `None` when the shim did not say who it is; then only its connection tells of its end.
    pub(super) process: Option<Process>,
    /// Its log is copied for as long as this lives.
    pub(super) _log: ShimLog,
}

impl Held {
    /// Waits until something happens to the shim: its process exits, or its connection breaks.
    pub(super) async fn ended(&self) {
        tokio::select! {
            () = self.gone() => {}
            () = self.shim.closed() => {}
        }
    }

    /// Waits until the shim is gone.
    pub(super) async fn gone(&self) {
        match &self.process {
            Some(process) => process.exited().await,
            None => self.shim.closed().await,
        }
    }
}

/// What came of connecting again to a shim.
pub(super) enum Reached {
    Shim(Shim),
    /// It is dead.
    Nobody,
    /// The daemon stops.
    Stop,
}

/// Connects again to a shim whose connection broke, unless its `process` has ended, for as long as
/// nothing speaks against its life. `waits` is called before the first pause.
pub(super) async fn reach_again<C: Future<Output = Result<Shim, Error>>>(
    process: Option<&Process>,
    stop: &CancellationToken,
    connect: impl Fn() -> C,
    waits: impl Fn(),
) -> Reached {
    let died = async {
        match process {
            Some(process) => process.exited().await,
            None => std::future::pending().await,
        }
    };
    let mut died = pin!(died);
    // A shim that dies closes its connections before its end can be seen.
    if tokio::time::timeout(DEATH_LIMIT, &mut died).await.is_ok() {
        return Reached::Nobody;
    }
    loop {
        match connect().await {
            Ok(shim) => return Reached::Shim(shim),
            Err(error) if error.is_unreachable_for_now() => {
                waits();
                tracing::error!(error = %sys::error::Chain(&error), "could not reach a shim again");
            }
            Err(_) => return Reached::Nobody,
        }
        tokio::select! {
            () = tokio::time::sleep(REACH_PAUSE) => {}
            () = &mut died => return Reached::Nobody,
            () = stop.cancelled() => return Reached::Stop,
        }
    }
}
