//! The life of a task's init, and of an exec: one table.
//!
//! ```text
//!               Start          Started          Pause           Paused
//!   Created ─────────> Starting ──────> Running ─────> Pausing ───────> Paused
//!      │  ^               │              ^   ^            │               │ Resume
//!      │  └─ StartFailed ─┘              │   └PauseFailed─┘               v
//!      │                                 └────────── Resumed ────────  Resuming
//!      │ Exit, from any of these
//!      └───────> Stopped ──Delete──> Deleting ──> gone
//!                   ^                   │
//!                   └── DeleteFailed ───┘    (a task that never ran: Created)
//! ```
//!
//! The states with an end in `-ing` last as long as a runtime process does. A result that comes
//! when the process has exited in the meantime changes nothing.

use proto::containerd::v1::types::Status;

use crate::{error::Error, reaper::Exit};

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Made, not started. An exec is known, and no process yet.
    Created,
    /// The runtime starts it.
    Starting,
    /// It runs.
    Running,
    /// The runtime freezes the task.
    Pausing,
    /// The task is frozen.
    Paused,
    /// The runtime thaws the task.
    Resuming,
    /// It has exited.
    Stopped(Exit),
    /// Someone deletes it; with the exit, unless it never ran.
    Deleting(Option<Exit>),
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Start,
    Started,
    StartFailed,
    Pause,
    Paused,
    PauseFailed,
    Resume,
    Resumed,
    ResumeFailed,
    Exit(Exit),
    Delete,
    DeleteFailed,
}

impl State {
    /// The state after `event`.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`: what is asked for does not fit the state.
    pub(crate) fn next(self, event: Event) -> Result<Self, Error> {
        use Event as E;

        Ok(match (self, event) {
            (Self::Created, E::Start) => Self::Starting,
            (Self::Starting, E::Started) => Self::Running,
            (Self::Starting, E::StartFailed) => Self::Created,
            (Self::Running, E::Pause) => Self::Pausing,
            (Self::Pausing, E::Paused) => Self::Paused,
            (Self::Pausing, E::PauseFailed) => Self::Running,
            (Self::Paused, E::Resume) => Self::Resuming,
            (Self::Resuming, E::Resumed) => Self::Running,
            (Self::Resuming, E::ResumeFailed) => Self::Paused,
            (Self::Created, E::Delete) => Self::Deleting(None),
            (Self::Stopped(exit), E::Delete) => Self::Deleting(Some(exit)),
            (Self::Deleting(None), E::DeleteFailed) => Self::Created,
            (Self::Deleting(Some(exit)), E::DeleteFailed) => Self::Stopped(exit),
            (Self::Deleting(_), E::Exit(exit)) => Self::Deleting(Some(exit)),
            (Self::Stopped(first), E::Exit(_)) => Self::Stopped(first),
            (_, E::Exit(exit)) => Self::Stopped(exit),
            (state @ (Self::Stopped(_) | Self::Deleting(_)), event) if event.is_result() => state,
            (state, event) => return Err(refusal(event, state)),
        })
    }

    /// How the process ended, if it has.
    pub(crate) fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) => Some(exit),
            Self::Deleting(exit) => exit,
            _ => None,
        }
    }

    /// The state in the task API's words.
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Created | Self::Starting => Status::Created,
            Self::Running | Self::Resuming => Status::Running,
            Self::Pausing => Status::Pausing,
            Self::Paused => Status::Paused,
            Self::Stopped(_) | Self::Deleting(_) => Status::Stopped,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting | Self::Running | Self::Resuming => "running",
            Self::Pausing | Self::Paused => "paused",
            Self::Stopped(_) => "stopped",
            Self::Deleting(_) => "deleted",
        }
    }
}

impl Event {
    /// Whether it is what a runtime came to, as against what a caller or the kernel wants.
    fn is_result(self) -> bool {
        matches!(
            self,
            Self::Started
                | Self::StartFailed
                | Self::Paused
                | Self::PauseFailed
                | Self::Resumed
                | Self::ResumeFailed
                | Self::DeleteFailed
        )
    }
}

fn refusal(event: Event, state: State) -> Error {
    let verb = match event {
        Event::Start => "start",
        Event::Pause => "pause",
        Event::Resume => "resume",
        Event::Delete => "delete",
        _ => "change",
    };
    // The Go shim's words, down to where they differ.
    let text = match (event, state) {
        (Event::Pause | Event::Resume, State::Created) => {
            format!("cannot {verb} task in created state")
        }
        (Event::Pause, State::Pausing | State::Paused | State::Stopped(_))
        | (Event::Resume, State::Stopped(_)) => {
            format!("cannot {verb} a {} container", state.word())
        }
        _ => format!("cannot {verb} a {} process", state.word()),
    };
    Error::FailedPrecondition(text)
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    const EXIT: Exit = Exit { status: 7, at: Timestamp { seconds: 1, nanos: 0 } };

    /// The state after `events` from `Created`.
    fn after(events: &[Event]) -> Result<State, Error> {
        events.iter().try_fold(State::Created, |state, &event| state.next(event))
    }

    #[test]
    fn lives() {
        use Event::*;

        let refused = |text: &str| Err(Error::FailedPrecondition(text.to_owned()));
        let cases: [(&str, &[Event], Result<State, Error>); 16] = [
            ("runs", &[Start, Started], Ok(State::Running)),
            ("cannot be started", &[Start, StartFailed], Ok(State::Created)),
            ("twice", &[Start, Started, Start], refused("cannot start a running process")),
            ("exits", &[Start, Started, Exit(EXIT)], Ok(State::Stopped(EXIT))),
            ("exits before it starts", &[Exit(EXIT)], Ok(State::Stopped(EXIT))),
            ("paused", &[Start, Started, Pause, Paused], Ok(State::Paused)),
            ("resumed", &[Start, Started, Pause, Paused, Resume, Resumed], Ok(State::Running)),
            (
                "exits while it is paused",
                &[Start, Started, Pause, Exit(EXIT), Paused],
                Ok(State::Stopped(EXIT)),
            ),
            ("pause too early", &[Pause], refused("cannot pause task in created state")),
            (
                "pause twice",
                &[Start, Started, Pause, Paused, Pause],
                refused("cannot pause a paused container"),
            ),
            (
                "resume too late",
                &[Start, Started, Exit(EXIT), Resume],
                refused("cannot resume a stopped container"),
            ),
            (
                "resume what runs",
                &[Start, Started, Resume],
                refused("cannot resume a running process"),
            ),
            (
                "delete what runs",
                &[Start, Started, Delete],
                refused("cannot delete a running process"),
            ),
            (
                "delete fails",
                &[Start, Started, Exit(EXIT), Delete, DeleteFailed],
                Ok(State::Stopped(EXIT)),
            ),
            ("delete what never ran", &[Delete, Exit(EXIT)], Ok(State::Deleting(Some(EXIT)))),
            ("delete what never ran fails", &[Delete, DeleteFailed], Ok(State::Created)),
        ];
        for (case, events, want) in cases {
            assert_eq!(after(events), want, "{case}");
        }
    }

    #[test]
    fn words_of_the_api() {
        let cases = [
            (State::Starting, Status::Created),
            (State::Pausing, Status::Pausing),
            (State::Resuming, Status::Running),
            (State::Deleting(None), Status::Stopped),
        ];
        for (state, want) in cases {
            assert_eq!(state.status(), want, "{state:?}");
        }
    }
}
