//! The crash matrix: engine, shim, runtime, and all of them at once, killed at each step of what is
//! done to a container.
//!
//! For each operation, and each program that takes part in it, the operation is done once to see
//! which steps the program takes ([`integration::failpoint`]), and then again for each of them,
//! with somebody killed there. After each kill the daemon is started again if it was a victim, and
//! then must hold:
//!
//! - what `ctr` tells of the task is what is the case: a task that is told of has processes, or has
//!   ended and can be deleted; of one that is not told of nothing is left;
//! - containers run on whose shim was not killed;
//! - no exit is told twice, and each is told of that happened while somebody listened;
//! - after the task and the container are deleted, nothing is left: processes, mounts, cgroups,
//!   sockets, bundles, fifos, snapshots;
//! - the same container can be made again under the same name.
//!
//! A step that was seen and then is never reached is a failure. Without `--full` each kind of step is
//! tried once, and of all kinds only some of a row, `--steps <n>`; with it, each step as often as it
//! is taken. `--rounds <n>` are followed by kills at random times, from the seed that is printed or
//! given by `--seed <n>`. At the end, shims are stopped instead of killed.
//!
//! `cargo test -p integration --test crash -- [--full] [--steps <n>] [--rounds <n>] [--seed <n>] [<word>]...`
//! runs the rows whose name has one of the words.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a report is what it is for")]

mod check;
mod matrix;
mod operation;
mod random;
mod stopped;
mod world;

use std::{ffi::OsString, process::ExitCode};

use anyhow::{Context, Result, ensure};
use integration::{
    cell::Choice,
    stage::{self, Stage},
    sum::Sum,
};

/// The choices, and whether all rows are run on them.
const CELLS: [(&str, bool); 2] = [
    ("gantryd/own-shim/runc-rs/own-ctr", true),
    // Shows how robust the engine is below programs that were not written for it.
    ("gantryd/go-shim/runc/own-ctr", false),
];

/// What the command line asks for.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub(crate) full: bool,
    pub(crate) steps: usize,
    pub(crate) rounds: usize,
    pub(crate) seed: u64,
    pub(crate) cells: Vec<String>,
    pub(crate) words: Vec<String>,
}

/// How many random kills there are unless the command line says so.
const ROUNDS: usize = 12;

/// How many steps of a row are tried unless the command line says so, or asks for all.
const STEPS: usize = 6;

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let time = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let seed = time.as_secs();
        let mut parsed = Self { steps: STEPS, rounds: ROUNDS, seed, ..Self::default() };
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|it| it.parse::<u64>().ok());
            match word.as_str() {
                "--full" => parsed.full = true,
                "--rounds" => {
                    parsed.rounds = number().context("--rounds needs a number")?.try_into()?;
                }
                "--steps" => {
                    parsed.steps = number().context("--steps needs a number")?.try_into()?;
                }
                "--seed" => parsed.seed = number().context("--seed needs a number")?,
                "--cells" => parsed.cells.push(words.next().context("--cells needs a name")?),
                // Flags of the usual test harness, which callers pass to all tests.
                flag if flag.starts_with("--") => {}
                _ => parsed.words.push(word),
            }
        }
        Ok(parsed)
    }
}

fn main() -> ExitCode {
    let result = match Stage::current() {
        Some(stage) => inside(&stage),
        None => outside(),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("crash: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs each choice on a stage of its own.
fn outside() -> Result<bool> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    ensure!(
        rustix::process::geteuid().is_root(),
        "needs root: it mounts, makes cgroups and starts containers"
    );
    let mut good = true;
    for (name, _) in CELLS {
        if !arguments.cells.is_empty() && !arguments.cells.iter().any(|it| name.contains(&**it)) {
            continue;
        }
        let choice = Choice::named(name).context("a choice")?;
        let missing = choice.missing();
        if !missing.is_empty() {
            println!("cell {choice} ... skipped: {}", missing.join(", "));
            println!("{}", Sum { skipped: 1, ..Sum::default() });
            continue;
        }
        let words = [OsString::from("--inside"), name.into()];
        let words: Vec<OsString> = words.into_iter().chain(std::env::args_os().skip(1)).collect();
        good &= stage::run(&words, &[])? == 0;
    }
    Ok(good)
}

/// Runs the matrix on the one choice that the command line names.
fn inside(stage: &Stage) -> Result<bool> {
    let mut words = std::env::args().skip(2);
    let name = words.next().context("a process on a stage needs a choice")?;
    let choice = Choice::named(&name).with_context(|| format!("no choice is named {name}"))?;
    let all = CELLS.iter().any(|(its, all)| *its == name && *all);
    let arguments = Arguments::parse(words)?;
    stage.enter(choice.view())?;
    let mut world = world::World::start(choice, stage)?;
    let mut report = matrix::Report::default();
    matrix::run(&mut world, &arguments, all, &mut report)?;
    random::run(&mut world, &arguments, all, &mut report)?;
    if all {
        stopped::run(&mut world, &arguments, &mut report);
    }
    report.take(&format!("{name} at the end"), &world.last_look());
    println!("{}", report.sum());
    Ok(report.sum().failed == 0)
}
