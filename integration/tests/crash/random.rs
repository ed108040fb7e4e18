//! Kills at random times: what no step was thought of for.

use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Arguments,
    check::{self, Events, Killed},
    matrix::Report,
    operation::{OPERATIONS, Operation},
    world::World,
};

/// The longest time from the beginning of an operation to the kill.
const DELAY_MAX_US: u64 = 150_000;

/// Numbers that look random, and are the same for the same seed (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Kills engine, shim or both at random times of random operations.
///
/// Whether a foreign shim and runtime survive each other is not asked: unless `all`, only the engine is killed.
pub(crate) fn run(
    world: &mut World,
    arguments: &Arguments,
    all: bool,
    report: &mut Report,
) -> Result<()> {
    if !arguments.words.is_empty() && !arguments.words.iter().any(|word| word == "random") {
        return Ok(());
    }
    println!("random: --seed {}", arguments.seed);
    let mut numbers = Numbers(arguments.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for round in 0..arguments.rounds {
        if report.is_hopeless() {
            break;
        }
        let operation = OPERATIONS[usize::try_from(numbers.below(OPERATIONS.len() as u64))?];
        let who = numbers.below(3);
        let killed = Killed { engine: !all || who != 1, shim: all && who != 0 };
        let delay = Duration::from_micros(numbers.below(DELAY_MAX_US));
        let name = format!(
            "{} random {round}: {operation}, engine {}, shim {}, after {delay:?}",
            world.cell.choice(),
            killed.engine,
            killed.shim
        );
        let result = at(world, operation, killed, delay);
        report.take(&name, &result);
        if result.is_err() {
            world.recover();
        }
    }
    Ok(())
}

fn at(world: &mut World, operation: Operation, mut killed: Killed, delay: Duration) -> Result<()> {
    operation.prepare(world)?;
    let events = Events::subscribe(world)?;
    let begun = Instant::now();
    let doing = operation.spawn(world)?;
    std::thread::sleep(delay.saturating_sub(begun.elapsed()));
    if killed.engine {
        kill(world.cell.running_daemon().id());
    }
    if killed.shim {
        // It may not run yet, or no longer.
        match world.shim() {
            Some(shim) => kill(shim),
            None => killed.shim = false,
        }
    }
    doing.finish()?;
    check::check(world, operation, killed, events)
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}
