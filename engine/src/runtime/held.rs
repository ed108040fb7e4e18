//! A shim that an actor has, and how its end is noticed.

use super::{log::ShimLog, process::Process, shim::Shim};

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
