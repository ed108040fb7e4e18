//! What must hold after a kill.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use integration::{process::Running, stage, wait};

use crate::{
    operation::{EXEC, Operation},
    world::{ID, World, is_alive},
};

/// How long it may take until what is told is what is the case: shims try to tell of exits for
/// seconds, and the daemon gives them that time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What is told of the task, and what is the case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// As `ctr tasks ls` has it; empty when it has no such task.
    pub(crate) status: String,
    /// Init's number as told.
    pub(crate) pid: u32,
    /// The processes in the container's cgroup.
    pub(crate) processes: Vec<u32>,
    /// Whether the cgroup is frozen.
    pub(crate) frozen: bool,
    /// The shim, if it runs.
    pub(crate) shim: Option<u32>,
    has_bundle: bool,
}

impl State {
    /// Whether the container is told to be there and to have processes.
    pub(crate) fn lives(&self) -> bool {
        ["CREATED", "RUNNING", "PAUSED"].contains(&&*self.status)
    }

    fn is_consistent(&self) -> bool {
        match &*self.status {
            "" => self.processes.is_empty() && self.shim.is_none() && !self.has_bundle,
            "RUNNING" => self.processes.contains(&self.pid) && !self.frozen,
            "PAUSED" => self.processes.contains(&self.pid) && self.frozen,
            "CREATED" => self.processes.contains(&self.pid),
            "STOPPED" | "UNKNOWN" => self.processes.is_empty(),
            _ => false,
        }
    }
}

/// Looks at the task and at the container.
pub(crate) fn state(world: &World) -> Result<State> {
    let table = world.cell.ok(&["tasks", "ls"])?;
    let mut state = State { shim: world.shim(), ..State::default() };
    state.has_bundle = world.bundle().exists();
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [ID, pid, status, ..] = words.as_slice() {
            (state.pid, state.status) = (pid.parse().unwrap_or(0), (*status).to_owned());
        }
    }
    for cgroup in stage::cgroups(world.cell.namespace()) {
        if !cgroup.iter().any(|part| part == ID) {
            continue;
        }
        let read = |name: &str| fs::read_to_string(cgroup.join(name)).unwrap_or_default();
        state
            .processes
            .extend(read("cgroup.procs").lines().filter_map(|it| it.parse::<u32>().ok()));
        state.frozen |= read("freezer.state").trim() == "FROZEN";
        state.frozen |= read("cgroup.events").contains("frozen 1");
    }
    state.processes.retain(|pid| is_alive(*pid));
    state.processes.sort_unstable();
    state.processes.dedup();
    Ok(state)
}

/// Waits until what is told of the task is what is the case.
pub(crate) fn settled(world: &World) -> Result<State> {
    let mut last = State::default();
    let result = wait::until_true_within(PATIENCE, "the right state", || {
        state(world).is_ok_and(|now| {
            last = now;
            last.is_consistent()
        })
    });
    // A look takes some calls, between which things go on.
    result.with_context(|| format!("{last:?}"))?;
    Ok(last)
}

/// Waits until the container has no more than init and `execs` other processes.
pub(crate) fn only_known_processes(world: &World, execs: usize) -> Result<()> {
    let mut last = State::default();
    let result = wait::until_true_within(PATIENCE, "the end of what nobody knows of", || {
        state(world).is_ok_and(|now| {
            last = now;
            last.processes.len() <= 1 + execs
        })
    });
    result.with_context(|| format!("{execs} execs, and {last:?}"))
}

/// One subscriber's view.
pub(crate) struct Events(Running);

/// How often each exit was told, by process and its number; and what was told to have started.
#[derive(Debug, Default)]
pub(crate) struct Told {
    exits: BTreeMap<(String, u64), usize>,
    starts: Vec<(String, u64)>,
    late_starts: Vec<String>,
}

impl Events {
    /// Subscribes; an event that cannot be mistaken shows that the subscription stands.
    pub(crate) fn subscribe(world: &World) -> Result<Self> {
        let mut events = world.cell.spawn(&["events"])?;
        wait::until("the subscription", || {
            world.cell.ok(&["namespaces", "label", world.cell.namespace(), "subscribed=yes"])?;
            Ok(events.stdout()?.contains("/namespaces/update").then_some(()))
        })?;
        Ok(Self(events))
    }

    /// What was told so far.
    pub(crate) fn told(&mut self) -> Result<Told> {
        let mut told = Told::default();
        for line in self.0.stdout()?.lines() {
            let Some((head, json)) = line.split_once(" {") else { continue };
            let value: serde_json::Value =
                serde_json::from_str(&format!("{{{json}")).with_context(|| line.to_owned())?;
            let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            let pid = value["pid"].as_u64().unwrap_or(0);
            if text("container_id") != ID {
                continue;
            }
            let topic = head.rsplit(' ').next().unwrap_or_default();
            match topic {
                "/tasks/exit" => *told.exits.entry((text("id"), pid)).or_default() += 1,
                "/tasks/start" => told.starts.push((ID.to_owned(), pid)),
                "/tasks/exec-started" => told.starts.push((text("exec_id"), pid)),
                _ => continue,
            }
            if topic != "/tasks/exit"
                && told.starts.last().is_some_and(|it| told.exits.contains_key(it))
            {
                told.late_starts.push(line.to_owned());
            }
        }
        Ok(told)
    }
}

impl Told {
    /// Checks that nothing was told twice, or in the wrong order.
    fn is_orderly(&self) -> Result<()> {
        ensure!(self.exits.values().all(|times| *times == 1), "an exit was told twice: {self:?}");
        ensure!(self.late_starts.is_empty(), "a start was told after the exit: {self:?}");
        Ok(())
    }
}

/// Who was killed, so far as it matters for what must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Killed {
    pub(crate) engine: bool,
    pub(crate) shim: bool,
}

/// Checks all that must hold after `operation` was done and somebody was killed meanwhile.
/// `events` were subscribed to before.
pub(crate) fn check(
    world: &mut World,
    operation: Operation,
    killed: Killed,
    mut events: Events,
) -> Result<()> {
    if killed.engine {
        let engine = world.cell.running_daemon().id();
        wait::until_true("the engine's death", || !is_alive(engine))?;
    }
    world.revive().context("the engine does not come up")?;
    let mut later = if killed.engine { Some(Events::subscribe(world)?) } else { None };
    let state = settled(world)?;
    if killed.shim {
        ensure!(!state.lives(), "{state:?} without its shim");
    } else if operation.keeps_running() {
        ensure!(state.lives(), "the container was lost: {state:?}");
    }
    if state.lives() && operation.keeps_running() {
        operation.repeat(world)?;
    }
    world.clean()?;
    all_exits_told(&mut events, later.as_mut(), killed, &state)?;
    drop((events, later));
    world.wait_clean()
}

/// Checks what subscribers were told of ends, now that everything has ended.
fn all_exits_told(
    events: &mut Events,
    later: Option<&mut Events>,
    killed: Killed,
    state: &State,
) -> Result<()> {
    let Some(later) = later else {
        let mut told = Told::default();
        let complete = wait::until_true_within(PATIENCE, "each exit", || {
            told = events.told().unwrap_or_default();
            let is_exit_due = |(id, _): &&(String, u64)| id == ID || (id == EXEC && !killed.shim);
            told.starts.iter().filter(is_exit_due).all(|start| told.exits.contains_key(start))
        });
        told.is_orderly()?;
        return complete.with_context(|| format!("{told:?}"));
    };
    events.told()?.is_orderly()?;
    let mut told = later.told()?;
    if state.lives() && state.status != "CREATED" {
        let exit = (ID.to_owned(), u64::from(state.pid));
        let result = wait::until_true_within(PATIENCE, "the exit", || {
            told = later.told().unwrap_or_default();
            told.exits.contains_key(&exit)
        });
        if result.is_err() {
            bail!("the end of {} was not told: {told:?}", state.pid);
        }
    }
    told.is_orderly()
}
