//! The same again and again: what must not grow, does not.
//!
//! `cargo test -p integration --test soak` takes under a minute and finds what leaks with each
//! round: a process, a mount, a cgroup, a file, a descriptor. `cargo xtask soak` takes as long as it
//! takes, and finds what leaks a few bytes of memory: 5,000 containers, eight at a time, and 200,000
//! processes in one container.
//!
//! Figures are taken between rounds, when nothing is going on, and [judged](verdict) at the end. Each
//! phase starts with a round that is not counted: allocators, thread pools and the database take
//! then what they keep.

#![expect(clippy::print_stdout, reason = "a report is what it is for")]

mod client;
mod sample;
mod verdict;

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, Choice, IMAGE},
    leaks::Inventory,
    stage::{self, Stage},
    sum::Sum,
};
use tokio::{runtime::Runtime, task::JoinSet};

use client::Client;
use sample::{Sample, at_rest};

/// How many clients are at work at a time.
const AT_A_TIME: usize = 8;

/// How much is done unless the command line says otherwise: what fits into a minute.
const CYCLES: usize = 240;
const EXECS: usize = 1200;

/// Into how many rounds a phase is divided, the one that is not counted included.
const ROUNDS: usize = 13;

/// The container after whose model others are made.
const MODEL: &str = "model";

/// The container in which processes are started.
const WORKER: &str = "worker";

/// What the command line asks for.
struct Arguments {
    cycles: usize,
    execs: usize,
}

impl Arguments {
    fn parse() -> Result<Self> {
        let mut parsed = Self { cycles: CYCLES, execs: EXECS };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let number = match word.as_str() {
                "--cycles" => &mut parsed.cycles,
                "--execs" => &mut parsed.execs,
                // Flags of the usual test harness, which callers pass to all tests.
                flag if flag.starts_with("--") => continue,
                _ => continue,
            };
            let value = words.next().with_context(|| format!("{word} needs a number"))?;
            *number = value.parse().with_context(|| format!("{word} {value}"))?;
        }
        Ok(parsed)
    }
}

fn main() -> ExitCode {
    stage::program("soak", inside)
}

fn inside(stage: &Stage) -> Result<()> {
    let arguments = Arguments::parse()?;
    let choice = Choice::OWN;
    let missing = choice.missing();
    ensure!(missing.is_empty(), "{}", missing.join(", "));
    stage.enter(choice.view())?;
    let mut sum = Sum::default();
    sum.take("verdict", &verdict::judges_right());
    let soak = Soak::start(stage)?;
    sum.take("cycles", &soak.cycles(arguments.cycles));
    sum.take("execs", &soak.execs(arguments.execs));
    sum.take("end", &soak.end());
    println!("\n{sum}");
    ensure!(sum.failed == 0, "there were failures");
    Ok(())
}

/// An engine with a container that lives as long as it does.
struct Soak {
    cell: Cell,
    shim: u32,
    client: Client,
    runtime: Runtime,
    before: Inventory,
}

impl Soak {
    fn start(stage: &Stage) -> Result<Self> {
        let cell = Cell::start(Choice::OWN, stage)?;
        let before = Inventory::take(cell.namespace());
        cell.ok(&["containers", "create", IMAGE, MODEL, "sleep", "1000000"])?;
        let runtime = Runtime::new()?;
        let address = cell.running_daemon().address();
        let output = cell.file("output");
        let connecting = Client::connect(&address, cell.namespace(), MODEL, output);
        let client = runtime.block_on(connecting)?;
        runtime.block_on(client.start(WORKER))?;
        let shim = sample::shim_of(&cell, WORKER)?;
        Ok(Self { cell, shim, client, runtime, before })
    }

    fn cycles(&self, count: usize) -> Result<()> {
        self.phase("cycles", count, |client, number| async move {
            client.cycle(&format!("c{number}")).await
        })
    }

    fn execs(&self, count: usize) -> Result<()> {
        self.phase("execs", count, |client, number| async move {
            client.exec(WORKER, &format!("e{number}")).await
        })
    }

    /// Does `act` so often, in rounds, and compares what the rounds have left.
    fn phase<F>(&self, name: &str, count: usize, act: impl Fn(Client, usize) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let each = (count / ROUNDS).max(AT_A_TIME);
        let mut samples: Vec<Sample> = Vec::new();
        let start = Instant::now();
        for round in 0..ROUNDS {
            self.runtime.block_on(self.round(round * each, each, &act))?;
            let sample = at_rest(&self.cell, self.shim, samples.first())?;
            if round > 0 {
                samples.push(sample);
            }
        }
        let each_ms = start.elapsed().as_secs_f64() * 1000.0 / (each * ROUNDS) as f64;
        println!("\n{} {name}, {AT_A_TIME} at a time, {each_ms:.2} ms each", each * ROUNDS);
        report(&samples)
    }

    async fn round<F>(
        &self,
        first: usize,
        count: usize,
        act: &impl Fn(Client, usize) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let mut running = JoinSet::new();
        for number in first..first + count {
            if running.len() == AT_A_TIME
                && let Some(ended) = running.join_next().await
            {
                ended??;
            }
            running.spawn(act(self.client.clone(), number));
        }
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Removes the last containers, after which nothing may be left.
    fn end(self) -> Result<()> {
        self.runtime.block_on(self.client.remove(WORKER))?;
        self.cell.ok(&["containers", "rm", MODEL])?;
        self.before.wait_restored(self.cell.namespace())
    }
}

/// Shows what became of each figure; what has grown is an error.
fn report(samples: &[Sample]) -> Result<()> {
    ensure!(samples.len() >= verdict::SAMPLES_MIN, "{} samples are too few", samples.len());
    println!("| figure | first third | last third | from round to round |\n|---|---|---|---|");
    let mut grown = Vec::new();
    for finding in verdict::judge(samples) {
        let verdict::Finding { name, early, late, has_grown } = finding;
        let course: Vec<String> = course(samples, name).map(|value| value.to_string()).collect();
        let course = course.join(" ");
        println!("| {name} | {early:.1} | {late:.1} | {course} |");
        if has_grown {
            grown.push(format!("{name}: {course}"));
        }
    }
    println!();
    ensure!(grown.is_empty(), "{}", grown.join("; "));
    Ok(())
}

fn course(samples: &[Sample], name: &str) -> impl Iterator<Item = f64> {
    samples.iter().filter_map(move |sample| sample.get(name).copied())
}
