//! Each operation, with somebody killed at each step of each program that takes part in it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::{
    failpoint::{Role, Step, Victim},
    sum::Sum,
    wait,
};

use crate::{
    Arguments,
    check::{self, Events, Killed},
    operation::{OPERATIONS, Operation},
    world::World,
};

/// How often a step is tried for that was seen before, since threads take turns as they like.
const TRIES: usize = 4;

/// How long after the operation's end a step may be taken, such as to tell of it.
const LATE: Duration = Duration::from_millis(500);

/// After how many failures nothing more is tried: they may be each other's.
const FAILURES_MAX: usize = 30;

/// Who is killed at the steps of whom.
const ROWS: &[(Role, Victim)] = &[
    (Role::Runtime, Victim::Traced),
    (Role::Runtime, Victim::Stepping),
    (Role::Runtime, Victim::Shim),
    (Role::Runtime, Victim::Engine),
    (Role::Runtime, Victim::All),
    (Role::Shim, Victim::Traced),
    (Role::Shim, Victim::Engine),
    (Role::Shim, Victim::All),
    (Role::Engine, Victim::Traced),
    (Role::Engine, Victim::All),
];

/// What became of all cases.
#[derive(Debug, Default)]
pub(crate) struct Report(Sum);

impl Report {
    pub(crate) fn take(&mut self, name: &str, result: &Result<()>) {
        self.0.take(&format!("crash {name}"), result);
    }

    pub(crate) fn sum(&self) -> Sum {
        self.0
    }

    pub(crate) fn is_hopeless(&self) -> bool {
        self.0.failed >= FAILURES_MAX
    }
}

/// Runs the rows that the command line asks for; not all of them unless `all`.
pub(crate) fn run(
    world: &mut World,
    arguments: &Arguments,
    all: bool,
    report: &mut Report,
) -> Result<()> {
    let choice = world.cell.choice();
    for operation in OPERATIONS {
        let mut known: Vec<(Role, Vec<Step>)> = Vec::new();
        for (number, (role, victim)) in ROWS.iter().copied().enumerate() {
            let row = format!("{operation}/{role}/{victim}");
            let wanted = |word: &String| row.contains(word.as_str());
            if !arguments.words.is_empty() && !arguments.words.iter().any(wanted) {
                continue;
            }
            // Whether a foreign shim and runtime survive each other is not asked: a Go shim kills its
            // runtime with the daemon. But only the daemon can clean up after a create.
            let ours = match role {
                Role::Engine => true,
                Role::Shim => victim == Victim::Traced,
                Role::Runtime => victim == Victim::Engine && operation == Operation::Run,
            };
            if !all && !ours {
                continue;
            }
            let who = [Victim::Traced, Victim::Stepping];
            if operation == Operation::LongExec && (role != Role::Runtime || !who.contains(&victim))
            {
                continue;
            }
            if !known.iter().any(|(its, _)| *its == role) {
                let steps = steps(world, operation, role).with_context(|| row.clone())?;
                show(operation, role, &steps);
                known.push((role, steps));
            }
            let steps = known.iter().filter(|(its, _)| *its == role).flat_map(|(_, steps)| steps);
            let chosen = choose(&steps.collect::<Vec<_>>(), victim, arguments, number);
            let begun = Instant::now();
            for step in &chosen {
                let name = format!("{choice} {row} at {step}");
                let result = at(world, operation, (role, victim), step);
                report.take(&name, &result);
                if result.is_err() {
                    world.recover();
                }
                if report.is_hopeless() {
                    return Ok(());
                }
            }
            println!("row {row}: {} kills in {:.1} s", chosen.len(), begun.elapsed().as_secs_f32());
        }
    }
    Ok(())
}

/// The steps that a program takes in an operation each time.
fn steps(world: &mut World, operation: Operation, role: Role) -> Result<Vec<Step>> {
    let mut look = || -> Result<Vec<Step>> {
        operation.prepare(world)?;
        world.arm(role, None, Victim::Traced)?;
        let said = operation.act(world);
        let (steps, _) = world.disarm()?;
        said?.ok()?;
        world.clean()?;
        world.wait_clean()?;
        Ok(steps)
    };
    let (one, other) = (look()?, look()?);
    Ok(one.into_iter().filter(|step| other.contains(step)).collect())
}

/// Prints the kinds of steps, and how often each is taken.
fn show(operation: Operation, role: Role, steps: &[Step]) {
    for step in steps.iter().filter(|step| step.occurrence == 1) {
        let times = steps.iter().filter(|it| it.name == step.name).count();
        println!("step {operation}/{role}: {} x{times}", step.name);
    }
}

/// The steps of a row that are tried: all, or of each kind the first and the last, and of these so
/// many that all rows take turns.
fn choose(steps: &[&Step], victim: Victim, arguments: &Arguments, row: usize) -> Vec<Step> {
    let full = arguments.full;
    let is_last = |step: &Step| {
        !steps.iter().any(|it| it.name == step.name && it.occurrence > step.occurrence)
    };
    let kinds: Vec<&&Step> = steps
        .iter()
        .filter(|step| victim != Victim::Stepping || step.name.contains(", init"))
        .filter(|step| full || step.occurrence == 1 || is_last(step))
        .collect();
    let stride = if full { 1 } else { kinds.len().div_ceil(arguments.steps.max(1)).max(1) };
    kinds.into_iter().skip(row % stride).step_by(stride).map(|step| (*step).clone()).collect()
}

/// Does the operation with a kill at `step`, and checks what must hold then.
fn at(
    world: &mut World,
    operation: Operation,
    (role, victim): (Role, Victim),
    step: &Step,
) -> Result<()> {
    for _ in 0..TRIES {
        operation.prepare(world)?;
        let events = Events::subscribe(world)?;
        world.arm(role, Some(step), victim)?;
        let said = operation.act(world);
        let _ = wait::until_true_within(LATE, "the step", || world.fired());
        let (_, fired) = world.disarm()?;
        let said = said?;
        if !fired {
            drop(events);
            world.clean()?;
            world.wait_clean()?;
            continue;
        }
        let killed = Killed {
            engine: matches!((role, victim), (_, Victim::Engine | Victim::All))
                || (role, victim) == (Role::Engine, Victim::Traced),
            shim: matches!(victim, Victim::Shim | Victim::All)
                || (role, victim) == (Role::Shim, Victim::Traced),
        };
        if operation == Operation::LongExec {
            check::only_known_processes(world, usize::from(said.code == 0))?;
        }
        check::check(world, operation, killed, events)?;
        ensure!(world.run()?.code == 0, "the container cannot be made again");
        world.clean()?;
        return world.wait_clean();
    }
    bail!("the step was never reached again")
}
