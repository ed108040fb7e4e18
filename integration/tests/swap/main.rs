//! The swap table: the same cases on every choice of daemon, shim, runtime and client.
//!
//! A program that replaces another must not be told from it, so each case asks for what a user
//! sees and runs unchanged on {containerd, gantryd} × {Go shim, ours} × {runc, crun, runc-rs} ×
//! {Debian's ctr, ours}. The stock choice passes all of them; a difference is a bug of ours.
//!
//! `cargo test -p integration --test swap -- [--list] [--cells <part of a name>]... [<case>]...`
//! runs the choices whose name has one of the parts, and of the cases those whose name has one of
//! the words. Each choice runs on a stage of its own and ends with a look for leaks; so does each
//! case. Much of a case is waiting, so as many choices run side by side as there are processors,
//! or as `--jobs` says. A second table, the [turns], has two daemons on one node. Results go to
//! `target/swap.json`, the table to `target/swap.md`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a report is what it is for")]

mod cases;
mod report;
mod turns;

use std::{
    ffi::OsString,
    fs,
    io::Write,
    path::Path,
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, Choice},
    leaks::Inventory,
    stage::{self, Stage},
};

use cases::{CASES, Case, Skipped};
use report::{Outcome, Report};
use turns::Turns;

/// What the command line asks for.
#[derive(Default)]
struct Arguments {
    list: bool,
    cells: Vec<String>,
    words: Vec<String>,
    /// How many choices run side by side.
    jobs: Option<usize>,
}

/// The first argument of the process that makes the stage for one choice.
const STAGE: &str = "--stage";

impl Arguments {
    fn parse() -> Result<Self> {
        let mut parsed = Self::default();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--list" => parsed.list = true,
                "--cells" => parsed.cells.push(words.next().context("--cells needs a name")?),
                "--jobs" => {
                    let number = words.next().context("--jobs needs a number")?;
                    parsed.jobs = Some(number.parse().context("--jobs")?);
                }
                // Flags of the usual test harness, which callers pass to all tests.
                flag if flag.starts_with("--") => {}
                _ => parsed.words.push(word),
            }
        }
        Ok(parsed)
    }

    fn wants(&self, case: &Case) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| case.name.contains(word.as_str()))
    }

    fn wants_cell(&self, name: &str) -> bool {
        self.cells.is_empty() || self.cells.iter().any(|part| name.contains(part.as_str()))
    }
}

fn main() -> ExitCode {
    let result = match Stage::current() {
        Some(stage) => inside(&stage),
        None if std::env::args().nth(1).is_some_and(|word| word == STAGE) => stage_for_one(),
        None => outside(),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("swap: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs each choice on a stage of its own, and shows the table.
fn outside() -> Result<bool> {
    let arguments = Arguments::parse()?;
    if arguments.list {
        for case in CASES.iter().flat_map(|group| *group) {
            println!("{}", case.name);
        }
        return Ok(true);
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "needs root: it mounts, makes cgroups and starts containers"
    );
    let mut report = Report::default();
    let mut cells = Vec::new();
    let choices = Choice::all().into_iter().map(|choice| (choice.to_string(), choice.missing()));
    let turns = Turns::ALL.iter().map(|turns| (turns.to_string(), turns.missing()));
    for (cell, missing) in choices.chain(turns).filter(|(cell, _)| arguments.wants_cell(cell)) {
        if missing.is_empty() {
            cells.push(cell);
        } else {
            println!("cell {cell} ... skipped: {}", missing.join(", "));
            report.skip_cell(&cell, &missing.join(", "));
        }
    }
    let jobs = arguments.jobs.or_else(|| thread::available_parallelism().ok().map(Into::into));
    for (cell, file, end) in side_by_side(&cells, &arguments.words, jobs.unwrap_or(1)) {
        report.read(&cell, file?.path())?;
        if let Err(error) = end {
            report.add(&cell, "cell", Outcome::Failed(format!("{error:#}")));
        }
    }
    report.show()?;
    Ok(report.is_good())
}

/// A cell, the file with the outcomes of its cases, and how its process ended.
type Ran = (String, Result<tempfile::NamedTempFile>, Result<()>);

/// Runs `cells`, up to `jobs` at a time, and gives them in their order.
fn side_by_side(cells: &[String], words: &[String], jobs: usize) -> Vec<Ran> {
    let next = Mutex::new(cells.iter().enumerate());
    let ran = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, cells.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let taken = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((at, cell)) = taken else { break };
                    let file = tempfile::NamedTempFile::new().context("a file for outcomes");
                    let end = match &file {
                        Ok(file) => one(cell, file.path(), words),
                        Err(_) => Ok(()),
                    };
                    let mut ran = ran.lock().unwrap_or_else(PoisonError::into_inner);
                    ran.push((at, (cell.clone(), file, end)));
                }
            });
        }
    });
    let mut ran = ran.into_inner().unwrap_or_else(PoisonError::into_inner);
    ran.sort_by_key(|(at, _)| *at);
    ran.into_iter().map(|(_, ran)| ran).collect()
}

/// Runs one cell in a process of its own: whoever makes a stage reaps all of its own descendants.
fn one(cell: &str, file: &Path, words: &[String]) -> Result<()> {
    let status = Command::new(std::env::current_exe()?)
        .args([STAGE, "--inside", cell])
        .arg(file)
        .args(words)
        .status()
        .context("start the process for a stage")?;
    ensure!(status.success(), "ended with {status}");
    Ok(())
}

/// Makes a stage and runs there what the arguments after [`STAGE`] say.
fn stage_for_one() -> Result<bool> {
    let words: Vec<OsString> = std::env::args_os().skip(2).collect();
    Ok(stage::run(&words, &[])? == 0)
}

/// Runs the cases on the one choice, or the one pair of daemons, that the command line names.
fn inside(stage: &Stage) -> Result<bool> {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let [name, file, rest @ ..] = words.as_slice() else {
        anyhow::bail!("a process on a stage needs a choice and a file");
    };
    let arguments = Arguments { words: rest.to_vec(), ..Default::default() };
    if let Some(turns) = Turns::named(name) {
        return turns.take(stage, |step, outcome| note(Path::new(file), step, outcome));
    }
    let choice = Choice::named(name).with_context(|| format!("no choice is named {name}"))?;
    stage.enter(choice.view())?;
    let before = Inventory::take("none");
    let mut cell = Cell::start(choice, stage).with_context(|| format!("start {choice}"))?;
    let namespace = cell.namespace().to_owned();
    for case in CASES.iter().flat_map(|group| *group).filter(|case| arguments.wants(case)) {
        let outcome = match run(case, &mut cell) {
            // On a busy machine a case may run into a deadline of its own. The table names it.
            Outcome::Failed(why) => match run(case, &mut cell) {
                Outcome::Passed => Outcome::Unsteady(why),
                again => again,
            },
            outcome => outcome,
        };
        println!("test {choice} {} ... {outcome}", case.name);
        note(Path::new(file), case.name, &outcome)?;
    }
    drop(cell);
    let left = before.wait_restored(&namespace);
    let outcome = match left {
        Ok(()) => Outcome::Passed,
        // The engine's own directories and sockets below /run stay after a stop.
        Err(error) if !format!("{error}").contains("process ") => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    println!("test {choice} stop ... {outcome}");
    note(Path::new(file), "stop", &outcome)?;
    Ok(true)
}

fn run(case: &Case, cell: &mut Cell) -> Outcome {
    let namespace = cell.namespace().to_owned();
    let before = Inventory::take(&namespace);
    let result = (case.run)(cell);
    let result = match result {
        Err(error) if error.is::<Skipped>() => return Outcome::Skipped(error.to_string()),
        result => result.and_then(|()| before.wait_restored(&namespace)),
    };
    match result {
        Ok(()) => Outcome::Passed,
        Err(error) => {
            cases::clean(cell);
            Outcome::Failed(format!("{error:#}"))
        }
    }
}

fn note(file: &Path, case: &str, outcome: &Outcome) -> Result<()> {
    let mut file = fs::File::options().append(true).open(file)?;
    Ok(writeln!(file, "{}", outcome.to_json(case))?)
}
