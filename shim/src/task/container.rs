//! What the shim knows of a container and its processes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proto::containerd::runc::v1::Options;
use rustix::process::Pid;

use crate::{
    bundle::Bundle,
    error::Error,
    metrics::Paths,
    reaper::Exit,
    runtime::Runtime,
    server::Call,
    stdio::{DRAIN_MAX, Io, Prepared, Streams},
    task::state::{Event, State},
};

/// How long a logging program may go on when its input has ended.
const LOGGER_MAX: Duration = Duration::from_secs(2);

/// A container: init and the execs in it.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its ID.
    pub id: String,
    /// Its bundle.
    pub bundle: Bundle,
    /// How to call its runtime.
    pub runtime: Runtime,
    /// The options that it was created with.
    pub options: Options,
    /// Its first process.
    pub init: Process,
    /// The other processes that clients have added.
    pub execs: BTreeMap<String, Exec>,
    /// Whether the kernel kills all of its processes with init.
    pub has_own_pid_namespace: bool,
    /// What init is restored from when it is started.
    pub checkpoint: Option<Checkpoint>,
    /// The exit of init, as long as it may not be told: a start or an exec is not over.
    pub held_exit: Option<Exit>,
    /// Where its control groups are, once it has a process.
    pub(crate) cgroups: Paths,
    /// Whether the runtime has forgotten the container; what is left to delete is the shim's.
    pub runtime_deleted: bool,
}

/// What a container is restored from.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// criu's images.
    pub image: String,
    /// The images that these are based on; empty for none.
    pub parent: String,
    /// Its streams, which the runtime gets when it is started.
    pub prepared: Box<Prepared>,
}

/// An exec: another process in a container.
#[derive(Debug)]
pub(crate) struct Exec {
    /// The process.
    pub process: Process,
    /// What to run: a `process` of the OCI specification, as JSON.
    pub spec: Vec<u8>,
}

/// A process and those who wait for it.
#[derive(Debug)]
pub(crate) struct Process {
    /// Where it is in its life.
    pub state: State,
    /// Its process ID, once it has one.
    pub pid: Option<Pid>,
    /// What the client asked for.
    pub streams: Streams,
    /// What the shim holds of its streams.
    pub io: Io,
    /// Calls that wait for its exit.
    pub waiters: Vec<Call>,
    /// Calls that wait for it to be deleted.
    pub deleters: Vec<Call>,
    /// When its output is given up, once someone deletes it.
    pub drain_until: Option<Instant>,
}

impl Process {
    /// A process that is not started.
    pub(crate) fn new(streams: Streams, io: Io) -> Self {
        Self {
            state: State::Created,
            pid: None,
            streams,
            io,
            waiters: Vec::new(),
            deleters: Vec::new(),
            drain_until: None,
        }
    }

    /// Changes the state.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`: the event does not fit the state, which stays.
    pub(crate) fn apply(&mut self, event: Event) -> Result<(), Error> {
        self.state = self.state.next(event)?;
        Ok(())
    }

    /// Its process ID as the API has it: 0 for none.
    pub(crate) fn raw_pid(&self) -> u32 {
        self.pid.map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// When its output is given up if someone deletes it now.
    pub(crate) fn drain_deadline(&self) -> Instant {
        let patience = if self.io.logger().is_some() { LOGGER_MAX } else { DRAIN_MAX };
        Instant::now() + patience
    }
}

impl Container {
    /// Init, or the exec `exec`.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no such exec.
    pub(crate) fn process(&self, exec: &str) -> Result<&Process, Error> {
        match exec {
            "" => Ok(&self.init),
            exec => self.execs.get(exec).map(|exec| &exec.process).ok_or_else(|| no_exec(exec)),
        }
    }

    /// The same, to change it.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no such exec.
    pub(crate) fn process_mut(&mut self, exec: &str) -> Result<&mut Process, Error> {
        match exec {
            "" => Ok(&mut self.init),
            exec => match self.execs.get_mut(exec) {
                Some(exec) => Ok(&mut exec.process),
                None => Err(no_exec(exec)),
            },
        }
    }

    /// The exec, or nothing for init, whose process is `pid` and has not exited.
    pub(crate) fn find(&self, pid: Pid) -> Option<String> {
        let alive = |process: &Process| process.pid == Some(pid) && process.state.exit().is_none();
        if alive(&self.init) && self.held_exit.is_none() {
            return Some(String::new());
        }
        let found = self.execs.iter().find(|(_, exec)| alive(&exec.process));
        found.map(|(id, _)| id.clone())
    }

    /// Whether init has begun, and has not ended.
    pub(crate) fn is_live(&self) -> bool {
        self.init.pid.is_some() && self.init.state.exit().is_none()
    }

    /// Whether an exec is being started or runs.
    pub(crate) fn has_live_execs(&self) -> bool {
        let live = [State::Starting, State::Running];
        self.execs.values().any(|exec| live.contains(&exec.process.state))
    }
}

fn no_exec(exec: &str) -> Error {
    Error::NotFound(format!("process does not exist {exec}"))
}

/// Checks an ID before it becomes part of a path or a command line.
///
/// # Errors
///
/// `InvalidArgument`: it is empty, long, or has letters that containerd's grammar has not.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    const ID_LEN_MAX: usize = 128;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let begins_well = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins_well && id.len() <= ID_LEN_MAX && id.bytes().all(good) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("identifier {id:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let long = "a".repeat(129);
        let cases = [
            ("c1", true),
            ("a_b.c-d", true),
            ("", false),
            ("-x", false),
            ("..", false),
            ("a/b", false),
            (long.as_str(), false),
        ];
        for (id, want) in cases {
            assert_eq!(check_id(id).is_ok(), want, "{id:?}");
        }
    }
}
