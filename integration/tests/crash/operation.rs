//! What is done to a container while somebody is killed.

use std::fmt;

use anyhow::{Context, Result, ensure};
use integration::process::{Output, Running};

use crate::{
    check::{State, state},
    world::{ID, World},
};

/// The name of the exec.
pub(crate) const EXEC: &str = "e";

/// An operation of a client on the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Makes the container, its task, and starts it.
    Run,
    /// Runs a program in it, to its end.
    Exec,
    /// Starts a program in it that stays. Who is killed at the steps of the runtime shows whether one
    /// may stay that nobody knows of; all else is as for [`Self::Exec`].
    LongExec,
    /// Pauses it.
    Pause,
    /// Lets it go on.
    Resume,
    /// Kills it, and deletes its task.
    Delete,
}

pub(crate) const OPERATIONS: [Operation; 6] = [
    Operation::Run,
    Operation::Exec,
    Operation::LongExec,
    Operation::Pause,
    Operation::Resume,
    Operation::Delete,
];

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Run => "run",
            Self::Exec => "exec",
            Self::LongExec => "long-exec",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Delete => "delete",
        })
    }
}

impl Operation {
    /// Brings the container to where the operation can be done.
    pub(crate) fn prepare(self, world: &World) -> Result<()> {
        if self != Self::Run {
            world.run()?.ok().context("the container could not be made before")?;
        }
        if self == Self::Resume {
            world.cell.ok(&["tasks", "pause", ID])?;
        }
        Ok(())
    }

    /// Does it; what comes of it depends on who is killed. Not to come to an end is an error.
    pub(crate) fn act(self, world: &World) -> Result<Output> {
        self.spawn(world)?.finish()
    }

    /// Begins it.
    pub(crate) fn spawn(self, world: &World) -> Result<Running> {
        match self {
            Self::Run => world.spawn_run(),
            Self::Exec => world.cell.spawn(&["tasks", "exec", "--exec-id", EXEC, ID, "true"]),
            Self::LongExec => {
                // As for a run, nobody comes back for the fifos.
                let fifos = world.cell.file("fifos").display().to_string();
                let words = ["-d", "--fifo-dir", &fifos, "--exec-id", EXEC, ID, "sleep", "1000"];
                world.cell.spawn(&[&["tasks", "exec"], &words[..]].concat())
            }
            Self::Pause => world.cell.spawn(&["tasks", "pause", ID]),
            Self::Resume => world.cell.spawn(&["tasks", "resume", ID]),
            Self::Delete => world.cell.spawn(&["tasks", "rm", "-f", ID]),
        }
    }

    /// Whether the container is to run on when nobody kills its shim.
    pub(crate) fn keeps_running(self) -> bool {
        matches!(self, Self::Exec | Self::LongExec | Self::Pause | Self::Resume)
    }

    /// Checks that the operation can be done, or done again, on a container that runs still.
    pub(crate) fn repeat(self, world: &World) -> Result<()> {
        match self {
            Self::Run | Self::Delete => Ok(()),
            Self::Exec | Self::LongExec => {
                // Refused when the exec is gone already, or was never added.
                world.cell.ctr(&["tasks", "rm", "-f", "--exec-id", EXEC, ID])?;
                let words = ["tasks", "exec", "--exec-id", EXEC, ID, "echo", "again"];
                let said = world.cell.ok(&words).context("exec again")?;
                ensure!(said == "again\n", "exec again wrote {said:?}");
                Ok(())
            }
            Self::Pause | Self::Resume => {
                if state(world)?.status == "PAUSED" {
                    world.cell.ok(&["tasks", "resume", ID]).context("resume what was paused")?;
                }
                world.cell.ok(&["tasks", "pause", ID]).context("pause again")?;
                let State { status, frozen, .. } = state(world)?;
                ensure!(status == "PAUSED" && frozen, "{status} after a pause, frozen: {frozen}");
                world.cell.ok(&["tasks", "resume", ID]).context("resume again")?;
                let State { status, frozen, .. } = state(world)?;
                ensure!(
                    status == "RUNNING" && !frozen,
                    "{status} after a resume, frozen: {frozen}"
                );
                Ok(())
            }
        }
    }
}
