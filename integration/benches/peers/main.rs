//! The programs against their Debian peers, in the same run on the same machine.
//!
//! Absolute times differ from machine to machine and from minute to minute; ratios taken side by
//! side do not. So the sides take turns, round by round, and what counts is the best and the
//! median of each. Only what a user waits for is timed.
//!
//! `cargo xtask bench [-- [--rounds <n>] [--json <file>] [<part of a row's name>]...]`
//!
//! A containerd newer than Debian's is beside them where `GANTRY_CONTAINERD` names a directory with its
//! programs.
//!
//! Rows whose names begin with `OCI` need no daemon; alone (`cargo xtask bench -- OCI`) they take
//! no minute. They also measure the runtimes that `GANTRY_BENCH_RUNTIMES` names, such as a newer
//! crun: `crun-1.27=/opt/crun,youki=/opt/youki`.

#![expect(clippy::print_stdout, reason = "a table is what it is for")]

mod crowd;
mod large;
mod memory;
mod meter;
mod oci;
mod runtime;
mod stacks;
mod stores;
mod table;

use std::{
    io::{Read, Seek},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use integration::{
    cell::{Cell, Choice},
    daemon::Kind,
    stage::{self, Stage, View},
};

use table::Table;

/// How many rounds are measured unless the command line says otherwise.
const ROUNDS: usize = 15;

/// What the command line asks for.
struct Options {
    rounds: usize,
    json: Option<PathBuf>,
    rows: Vec<String>,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Self { rounds: ROUNDS, json: None, rows: Vec::new() };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--rounds" => {
                    options.rounds = words.next().context("--rounds needs a number")?.parse()?
                }
                "--json" => {
                    options.json = Some(words.next().context("--json needs a file")?.into())
                }
                // Flags of the usual bench harness, which cargo passes to all benches.
                flag if flag.starts_with("--") => {}
                _ => options.rows.push(word),
            }
        }
        Ok(options)
    }

    /// Whether a row of this name is to be measured.
    fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|part| row.contains(part.as_str()))
    }

    /// Whether only runtimes are measured, without daemons.
    fn is_about_runtimes(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|part| part.starts_with("OCI"))
    }
}

fn main() -> ExitCode {
    stage::program("bench", inside)
}

fn inside(stage: &Stage) -> Result<()> {
    let options = Options::parse()?;
    // Debian's crun refuses hybrid hierarchies, and the view must be the same for all.
    stage.enter(View { cgroup_v1_only: true, ..View::default() })?;
    let mut table = Table::default();
    oci::measure(&options, stage, &mut table)?;
    if !options.is_about_runtimes() {
        with_daemons(&options, stage, &mut table)?;
    }
    println!("\n{}", table.text());
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{:#}\n", table.json()))?;
    }
    Ok(())
}

fn with_daemons(options: &Options, stage: &Stage, table: &mut Table) -> Result<()> {
    let mut cells = Vec::new();
    for choice in [Choice::STOCK, Choice::NEWER, Choice::OWN] {
        let missing = choice.missing();
        if missing.is_empty() {
            cells.push(Cell::start(choice, stage).with_context(|| format!("start {choice}"))?);
        } else {
            println!("{choice} is left out: {}", missing.join(", "));
        }
    }
    stacks::measure(options, &mut cells, table)?;
    stores::measure(options, &cells, table)?;
    memory::installed(options, table)
}

/// What a side of the comparison is called.
fn side(cell: &Cell) -> &'static str {
    match cell.choice().daemon {
        Kind::Containerd => "containerd",
        Kind::Newer => "newer containerd",
        Kind::Gantryd => "gantry",
    }
}

/// Runs `command`, which must succeed, and gives how many milliseconds it took.
fn milliseconds(command: &mut Command) -> Result<f64> {
    let mut complaints = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(complaints.try_clone()?);
    let start = Instant::now();
    let status = command.status()?;
    let took = start.elapsed().as_secs_f64() * 1000.0;
    if !status.success() {
        let mut text = String::new();
        complaints.rewind()?;
        complaints.read_to_string(&mut text)?;
        bail!("{command:?}: {status}: {text}");
    }
    Ok(took)
}
