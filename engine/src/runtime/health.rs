//! Whether a shim answers.
//!
//! ```text
//!        missed a deadline          missed the actor's too
//!  Good ───────────────────> Suspect ────────────────────> Quarantined
//!    ^                          │                               │
//!    └──────────────────────────┴──────── any answer ───────────┘
//! ```
//!
//! Most deadlines are long, since what is asked for can take long. So a call that takes long is no
//! sign that a shim is stuck: it is one that the shim is asked at the side whether it is there, which
//! a shim can always answer.

use std::time::{Duration, Instant};

use proto::{containerd::task::v3, ttrpc::CallError};
use tokio::sync::watch;

use super::{Error, shim::Shim, task::Task};

/// How long a call is under way before the shim is asked whether it is there.
const DOUBT_AFTER: Duration = Duration::from_secs(5);

/// How long a suspect shim may take to say that it is there, and the pauses between.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
const PROBE_PAUSE_MIN: Duration = Duration::from_millis(500);
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(15);

/// What is known of a shim. See the [module](self).
#[derive(Debug)]
pub(super) struct Health(watch::Sender<State>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    Suspect,
    Quarantined(Instant),
}

impl Default for Health {
    fn default() -> Self {
        Self(watch::Sender::new(State::Good))
    }
}

impl Health {
    /// Whether nothing speaks against the shim.
    pub(super) fn is_good(&self) -> bool {
        *self.0.borrow() == State::Good
    }

    /// Notes that a deadline was missed.
    pub(super) fn doubt(&self) {
        self.0.send_if_modified(|state| {
            let good = *state == State::Good;
            if good {
                *state = State::Suspect;
            }
            good
        });
    }

    /// Lets calls fail from now on; `false` when they did before.
    pub(super) fn quarantine(&self) -> bool {
        self.0.send_if_modified(|state| {
            let new = !matches!(state, State::Quarantined(_));
            if new {
                *state = State::Quarantined(Instant::now());
            }
            new
        })
    }

    /// Notes an answer, and gives how long the shim was in quarantine.
    pub(super) fn clear(&self) -> Option<Duration> {
        // Most answers change nothing, and need not wake who watches.
        if self.is_good() {
            return None;
        }
        match self.0.send_replace(State::Good) {
            State::Quarantined(since) => Some(since.elapsed()),
            State::Good | State::Suspect => None,
        }
    }

    /// Waits until the shim is suspected.
    async fn doubted(&self) {
        // The sender is here, so there is no error.
        let _ = self.0.subscribe().wait_for(|state| *state != State::Good).await;
    }

    /// Waits until the shim is in quarantine, and gives since when. It is suspected when this takes
    /// long, since whoever waits has a call under way.
    pub(super) async fn quarantined(&self) -> Instant {
        let mut state = self.0.subscribe();
        loop {
            let found = *state.borrow_and_update();
            if let State::Quarantined(since) = found {
                return since;
            }
            if tokio::time::timeout(DOUBT_AFTER, state.changed()).await.is_err() {
                self.doubt();
            }
        }
    }
}

/// Waits until the shim is suspected, and then until it answers.
pub(super) async fn probe(task: &Task, shim: &Shim) {
    task.health().doubted().await;
    let request = v3::ConnectRequest { id: task.id().to_owned() };
    let mut pause = PROBE_PAUSE_MIN;
    loop {
        let answer = shim.call_within(&request, Some(PROBE_LIMIT)).await;
        task.judge(&answer);
        match answer {
            Err(Error::NoAnswer { source: CallError::Deadline { .. }, .. }) => task.quarantine(),
            // The end of the connection is for others to notice.
            Err(Error::NoAnswer { .. }) => {}
            _ => return,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PROBE_PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn transitions() {
        let health = Health::default();
        assert!(health.is_good());
        assert_eq!(health.clear(), None);
        health.doubt();
        assert!(!health.is_good());
        health.doubted().await;
        assert_eq!(health.clear(), None, "a suspect that answers was not in quarantine");
        assert!(health.is_good());
        assert!(health.quarantine());
        assert!(!health.quarantine(), "once");
        health.doubt();
        let since = health.quarantined().await;
        assert!(since <= Instant::now(), "a doubt does not end it");
        assert!(health.clear().is_some());
        assert!(health.is_good());
    }
}
