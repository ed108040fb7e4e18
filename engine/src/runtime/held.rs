//! A shim that an actor has, who it is, and how its end is noticed.

use std::{
    io,
    pin::pin,
    time::{Duration, Instant},
};

use proto::{containerd::task::v3, ttrpc::CallError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Error,
    actor::blocking,
    binary::Binary,
    bundle::Bundle,
    error::is_shortage,
    log::ShimLog,
    process::Process,
    shim::{Shim, remove_dead_socket},
};

/// How long after its connection broke a shim may take to be dead.
const DEATH_LIMIT: Duration = Duration::from_millis(500);

/// How long a shim that was killed may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(3);

/// How long to wait until a shim is tried again that could not be reached.
pub(super) const REACH_PAUSE: Duration = Duration::from_secs(1);

/// How often a shim that lives may drop a connection, one after the other, before it says who it is.
/// There are [`DEATH_LIMIT`]s in between.
pub(super) const CUTS_MAX: usize = 8;

/// How long calls wait for a shim that is lost, from its loss on.
pub(super) const LOST_WAIT: Duration = Duration::from_secs(2);

/// A shim that cannot be reached, and is tried again.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    /// Where it is, if that is known.
    pub(super) address: Option<String>,
    pub(super) since: Instant,
}

impl Lost {
    /// A loss of this moment.
    pub(super) fn now(address: Option<&str>) -> Self {
        Self { address: address.map(str::to_owned), since: Instant::now() }
    }

    /// How long ago that was, in whole seconds.
    pub(super) fn duration(&self) -> Duration {
        Duration::from_secs(self.since.elapsed().as_secs())
    }
}

/// What a phase says of the way to the shim.
pub(super) enum Way {
    There(Shim),
    /// It turns out soon whether there is one.
    Soon,
    Lost(Lost),
    /// There is none, or none any more.
    None,
}

/// The connection to a shim. Waits for as long as it is not known whether there is one, and for one
/// that is lost not for long.
///
/// # Errors
///
/// There is none; or it is lost.
pub(super) async fn way<P>(
    phase: &watch::Sender<P>,
    look: impl Fn(&P) -> Way,
) -> Result<Shim, Option<Lost>> {
    let mut phase = phase.subscribe();
    loop {
        let way = look(&phase.borrow_and_update());
        let until = match way {
            Way::There(shim) if !shim.is_closed() => return Ok(shim),
            // The actor is about to notice.
            Way::There(_) | Way::Soon => None,
            Way::Lost(lost) => Some(lost),
            Way::None => return Err(None),
        };
        let Some(lost) = until else {
            phase.changed().await.map_err(|_| None)?;
            continue;
        };
        let end = (lost.since + LOST_WAIT).into();
        let changed = tokio::time::timeout_at(end, phase.changed()).await;
        changed.map_err(|_| Some(lost))?.map_err(|_| None)?;
    }
}

/// A shim and what watches it.
pub(super) struct Held {
    pub(super) shim: Shim,
    pub(super) identity: Identity,
    /// Its log is copied for as long as this lives.
    pub(super) _log: ShimLog,
}

/// Who a shim is.
#[derive(Debug)]
pub(super) enum Identity {
    /// This process.
    Known(Process),
    /// It does not say. Then only its connection tells of its end.
    Unknown,
    /// There was too little here to take hold of it. That says nothing about the shim.
    Short,
    /// It was too slow to say so.
    Slow,
    /// The connection ended before it said so. A shim that has too little of something drops those who
    /// connect.
    Cut,
}

impl Identity {
    /// Who a shim is that says that it is this one.
    fn of(opened: io::Result<Process>) -> Self {
        match opened {
            Ok(process) => Self::Known(process),
            Err(error) if is_shortage(&error) => Self::Short,
            Err(_) => Self::Unknown,
        }
    }

    /// What it means that there is no answer of the shim's.
    fn without_answer(error: &Error) -> Self {
        match error {
            Error::NoAnswer { source: CallError::Deadline { .. }, .. } => Self::Slow,
            Error::NoAnswer { source: CallError::Closed, .. } => Self::Cut,
            _ => Self::Unknown,
        }
    }

    /// The process, if it is held.
    pub(super) fn process(&self) -> Option<&Process> {
        match self {
            Self::Known(process) => Some(process),
            Self::Unknown | Self::Short | Self::Slow | Self::Cut => None,
        }
    }

    /// Asks a shim, which serves the task or the sandbox `id`, who it is.
    pub(super) async fn ask(shim: &Shim, id: &str) -> Self {
        let request = v3::ConnectRequest { id: id.to_owned() };
        let identity = match shim.call(&request).await {
            Ok(answer) => Self::of(Process::open(answer.shim_pid)),
            Err(error) => return Self::without_answer(&error),
        };
        // The number was the shim's when it answered. If it lives still, it was when it was opened.
        match shim.call(&request).await {
            Ok(_) => identity,
            Err(error) => Self::without_answer(&error),
        }
    }

    /// As [`ask`](Self::ask), of a shim whose number may be in the bundle, which saves a question.
    pub(super) async fn ask_by(bundle: &Bundle, shim: &Shim, id: &str) -> Self {
        let Some(process) = bundle.shim_pid().and_then(|pid| Process::open(pid).ok()) else {
            return Self::ask(shim, id).await;
        };
        let request = v3::ConnectRequest { id: id.to_owned() };
        // The connection is older than the hold. So is the shim; if it still has the number now, it had
        // it when it was opened.
        match shim.call(&request).await {
            Ok(answer) if answer.shim_pid == process.pid() => Self::Known(process),
            _ => Self::ask(shim, id).await,
        }
    }
}

impl Held {
    /// The shim's process, if it is held.
    pub(super) fn process(&self) -> Option<&Process> {
        self.identity.process()
    }

    /// Waits until it is time to ask the shim again who it is, if there was too little to take hold of it.
    pub(super) async fn short(&self) {
        if matches!(self.identity, Identity::Short) {
            tokio::time::sleep(REACH_PAUSE).await;
        } else {
            std::future::pending().await
        }
    }

    /// Waits until something happens to the shim: its process exits, or its connection breaks.
    pub(super) async fn ended(&self) {
        tokio::select! {
            () = self.gone() => {}
            () = self.shim.closed() => {}
        }
    }

    /// Waits until the shim is gone.
    pub(super) async fn gone(&self) {
        match self.process() {
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

/// Kills a shim, and waits for its end: until then, what cleans up after it takes its socket for one
/// that is served. One that never said who it is is known by the socket that it listens at, as the
/// bundle says, and is left alone if others need it there.
pub(super) async fn end_process(
    known: Option<&Process>,
    bundle: &Bundle,
    binary: &Binary,
    is_shared: impl Fn(&str) -> bool,
) {
    let found = match known {
        Some(_) => None,
        None => listener(bundle, binary, is_shared).await,
    };
    if let Some(process) = known.or(found.as_ref()) {
        process.kill();
        let _ = tokio::time::timeout(KILL_LIMIT, process.exited()).await;
    }
}

/// Removes the socket of a shim that has ended and could not do that any more, unless others need it
/// there. Gives whether the bundle may go, which leads to it, and its address: the `known` one, or what
/// the bundle says.
pub(super) async fn remove_socket(
    known: Option<String>,
    bundle: &Bundle,
    is_shared: impl Fn(&str) -> bool,
) -> (bool, Option<String>) {
    let found = match known {
        Some(address) => Ok(Some(address)),
        None => bundle.find_bootstrap().map(|found| found.map(|it| it.address)),
    };
    match found {
        Ok(Some(address)) => {
            (is_shared(&address) || remove_dead_socket(&address).await, Some(address))
        }
        Ok(None) => (true, None),
        Err(error) => {
            let (bundle, error) = (bundle.path().display(), sys::error::Chain(&error));
            tracing::error!(%bundle, %error, "could not look for the shim's socket");
            (false, None)
        }
    }
}

async fn listener(
    bundle: &Bundle,
    binary: &Binary,
    is_shared: impl Fn(&str) -> bool,
) -> Option<Process> {
    let address = bundle.bootstrap()?.address;
    if is_shared(&address) {
        return None;
    }
    let left_alone = |error: String| {
        let bundle = bundle.path().display();
        tracing::warn!(%bundle, error, "whoever listens at the shim's socket is left alone");
        None
    };
    let program = match binary.of(bundle) {
        Ok(program) => program.to_owned(),
        Err(error) => return left_alone(error.to_string()),
    };
    let found = blocking(move || Ok(Process::listening_at(&address, &program)));
    found.await.ok()?.unwrap_or_else(|error| left_alone(error.to_string()))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn what_is_no_process() {
        let cases = [
            ("descriptors", Errno::MFILE, true),
            ("the machine's descriptors", Errno::NFILE, true),
            ("memory", Errno::NOMEM, true),
            ("what may be watched", Errno::NOSPC, true),
            ("nobody", Errno::SRCH, false),
            ("no number", Errno::INVAL, false),
        ];
        for (case, errno, want) in cases {
            let identity = Identity::of(Err(errno.into()));
            assert_eq!(matches!(identity, Identity::Short), want, "{case}: {identity:?}");
        }
    }
}
