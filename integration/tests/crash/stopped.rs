//! A shim that is stopped and not dead: it delays nobody else, and can be ended.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::{stage, wait};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Arguments, check::PATIENCE, matrix::Report, world::World};

/// How many containers there are, of which one has the shim that is stopped.
const CONTAINERS: usize = 100;

/// A name, and what is done.
type Case = (&'static str, fn(&mut World) -> Result<()>);

const CASES: [Case; 2] = [("among_a_hundred", among_others), ("before_the_daemon", before_daemon)];

/// Runs the cases that the command line asks for.
pub(crate) fn run(world: &mut World, arguments: &Arguments, report: &mut Report) {
    for (case, act) in CASES {
        let name = format!("stopped/{case}");
        let wanted = |word: &String| name.contains(word.as_str());
        if !arguments.words.is_empty() && !arguments.words.iter().any(wanted) {
            continue;
        }
        report.take(&name, &act(world).and_then(|()| world.wait_clean()));
    }
}

/// A process that is stopped until this value goes.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(pid.cast_signed()).context("a process")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// The number of a container's shim.
fn shim_of(world: &World, id: &str) -> Result<u32> {
    let file = world.bundle().with_file_name(id).join("shim.pid");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(text.trim().parse()?)
}

/// What `ctr tasks ls` says of a container.
fn status(world: &World, id: &str) -> Result<String> {
    let table = world.cell.ok(&["tasks", "ls"])?;
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|words| words.first() == Some(&id)).with_context(|| table.clone())?;
    Ok((*line.get(2).context("a status")?).to_owned())
}

fn among_others(world: &mut World) -> Result<()> {
    let cell = &world.cell;
    let ids: Vec<String> = (0..CONTAINERS)
        .map(|_| cell.background(&["--null-io"], &["sleep", "1000"]))
        .collect::<Result<_>>()?;
    let (stuck, others) = ids.split_first().context("a container")?;
    let stopped = Stopped::new(shim_of(world, stuck)?)?;
    let mut pending = cell.spawn(&["tasks", "exec", "--exec-id", "e", stuck, "true"])?;
    for id in others {
        let said = cell.ok(&["tasks", "exec", "--exec-id", "e", id, "echo", "fine"])?;
        ensure!(said == "fine\n", "{id} says {said:?}");
        cell.ok(&["tasks", "kill", "-s", "SIGCONT", id]).context("kill another")?;
    }
    ensure!(pending.ended()? != Some(0), "a stopped shim has started a process");
    let table = cell.ok(&["tasks", "ls"])?;
    let of = |status: &str| table.lines().filter(|line| line.contains(status)).count();
    ensure!((of("RUNNING"), of("UNKNOWN")) == (CONTAINERS - 1, 1), "{table}");
    ensure!(status(world, stuck)? == "UNKNOWN", "{table}");
    let said = pending.finish()?.refused()?;
    ensure!(said.contains("has not answered"), "whoever waits for it hears {said:?}");
    drop(stopped);
    wait::until_true_within(PATIENCE, "an answer of the one that was stopped", || {
        status(world, stuck).is_ok_and(|status| status == "RUNNING")
    })?;
    let said = cell.ok(&["tasks", "exec", "--exec-id", "again", stuck, "echo", "fine"])?;
    ensure!(said == "fine\n", "after it was stopped it says {said:?}");
    ids.iter().try_for_each(|id| cell.remove(id))
}

/// The daemon never hears from the shim which process it is, and yet a kill ends it.
fn before_daemon(world: &mut World) -> Result<()> {
    let id = world.cell.background(&["--null-io"], &["sleep", "1000"])?;
    let shim = shim_of(world, &id)?;
    let stopped = Stopped::new(shim)?;
    world.cell.daemon().restart(Signal::KILL)?;
    ensure!(status(world, &id)? == "UNKNOWN", "a stopped shim has told its state");
    world.cell.remove(&id)?;
    let runs = stage::descendants(Pid::from_raw(1).context("the first process")?);
    ensure!(!runs.contains(&stopped.0), "shim {shim} runs on");
    std::mem::forget(stopped);
    Ok(())
}
