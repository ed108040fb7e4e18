//! Daemon, shim, runtime and client together: what a user waits for.

use std::{
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Result, bail, ensure};
use integration::{cell::Cell, programs, wait};
use rustix::process::Signal;

use crate::{Options, crowd, memory, milliseconds, side, table::Table};

/// How many containers the rows about many have.
const MANY: usize = 50;

/// How many clients are at work at a time, in the rows that have several.
const AT_A_TIME: usize = 8;

/// How often the rows about many are measured: each takes seconds.
const ROUNDS_OF_MANY: usize = 3;

/// Measures all rows, the sides by turns.
pub(crate) fn measure(options: &Options, cells: &mut [Cell], table: &mut Table) -> Result<()> {
    if options.wants("daemon RSS") {
        for cell in cells.iter_mut() {
            memory::daemon("daemon RSS, idle", cell, table)?;
        }
    }
    run_and_exec(options, cells, table)?;
    let rounds = options.rounds.min(ROUNDS_OF_MANY);
    if options.wants("many containers") {
        for _ in 0..rounds {
            for cell in cells.iter_mut() {
                many(cell, table)?;
            }
        }
    }
    if options.wants("500") {
        for cell in cells.iter_mut() {
            crowd::measure(cell, table)?;
        }
    }
    Ok(())
}

fn run_and_exec(options: &Options, cells: &[Cell], table: &mut Table) -> Result<()> {
    let workers: Vec<String> = cells
        .iter()
        .map(|cell| cell.background(&[], &["sleep", "10000"]))
        .collect::<Result<_>>()?;
    for round in 0..options.rounds {
        for (cell, worker) in cells.iter().zip(&workers) {
            if options.wants("run --rm") {
                let words = cell.run_words(&["--rm"], &cell.id(), &["true"]);
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let took = milliseconds(&mut cell.command(&words))?;
                table.add("ctr run --rm busybox true", "ms", side(cell), took);
            }
            if options.wants("task exec") {
                let exec = format!("e{round}");
                let words = ["tasks", "exec", "--exec-id", &exec, worker, "true"];
                let took = milliseconds(&mut cell.command(&words))?;
                table.add("ctr task exec", "ms", side(cell), took);
            }
        }
    }
    cells.iter().zip(&workers).try_for_each(|(cell, worker)| cell.remove(worker))
}

/// Starts many containers, looks at what they take, restarts the daemon, and removes them.
fn many(cell: &mut Cell, table: &mut Table) -> Result<()> {
    let name = side(cell);
    let (took, ids) = start_many(cell, MANY, 1)?;
    table.add("many containers: start 50, one by one", "ms", name, took);
    memory::shims(cell, table)?;
    memory::daemon("daemon RSS, with 50 containers", cell, table)?;
    let took = restart(cell, ids.len())?;
    let row = "many containers: daemon started after a kill, until all 50 are known";
    table.add(row, "ms", name, took);
    table.add("many containers: delete 50", "ms", name, delete(cell, &ids)?);
    let (took, ids) = start_many(cell, MANY, AT_A_TIME)?;
    table.add("many containers: start 50, 8 at a time", "ms", name, took);
    delete(cell, &ids).map(drop)
}

/// Kills the daemon, starts it and asks for its tasks until it knows `count`: the milliseconds since
/// the start. All sides are asked by the same client, the quicker one, again and again without a rest.
pub(crate) fn restart(cell: &mut Cell, count: usize) -> Result<f64> {
    cell.daemon().stop(Signal::KILL)?;
    let client = programs::own("ctr")?;
    let start = Instant::now();
    cell.daemon().launch_without_waiting()?;
    let address = cell.daemon().address();
    while start.elapsed() < wait::DEADLINE {
        let output = Command::new(&client)
            .arg("--address")
            .arg(&address)
            .args(["--namespace", cell.namespace(), "tasks", "ls"])
            .stdin(Stdio::null())
            .output()?;
        let listed = String::from_utf8_lossy(&output.stdout);
        if listed.matches("RUNNING").count() == count {
            return Ok(start.elapsed().as_secs_f64() * 1000.0);
        }
    }
    bail!("the daemon does not know its tasks within {:?}", wait::DEADLINE)
}

/// Starts `count` containers: the milliseconds for all, and their names.
pub(crate) fn start_many(
    cell: &Cell,
    count: usize,
    at_a_time: usize,
) -> Result<(f64, Vec<String>)> {
    let ids: Vec<String> = std::iter::repeat_with(|| cell.id()).take(count).collect();
    let start = Instant::now();
    let mut running: Vec<Child> = Vec::new();
    for id in &ids {
        if running.len() == at_a_time {
            ensure!(running.remove(0).wait()?.success(), "a container did not start");
        }
        let words = cell.run_words(&["-d"], id, &["sleep", "10000"]);
        running.push(cell.command(&words.iter().map(String::as_str).collect::<Vec<_>>()).spawn()?);
    }
    for mut last in running {
        ensure!(last.wait()?.success(), "a container did not start");
    }
    Ok((start.elapsed().as_secs_f64() * 1000.0, ids))
}

/// Deletes containers with their tasks: the milliseconds for all.
pub(crate) fn delete(cell: &Cell, ids: &[String]) -> Result<f64> {
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut took = 0.0;
    for id in &ids {
        took += milliseconds(&mut cell.command(&["tasks", "rm", "-f", id]))?;
    }
    let words = [&["containers", "rm"], ids.as_slice()].concat();
    Ok(took + milliseconds(&mut cell.command(&words))?)
}
