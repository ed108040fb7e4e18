//! Many containers at once: what a start, a list and a restart of the daemon cost among them.
//!
//! What a container costs must not depend on how many run, so the last fifty starts are measured
//! beside the first. Times of a start are also those of the processors: what daemon, shims, runtimes
//! and clients take together, counted by a control group of their own (cgroup v1).

use anyhow::{Context, Result};
use integration::cell::Cell;

use crate::{
    memory,
    meter::Meter,
    milliseconds, side,
    stacks::{delete, restart, start_many},
    table::Table,
};

/// How many containers there are in the end, and how many are started between two measurements.
const CROWD: usize = 500;
const PART: usize = 50;

/// How often is listed. The first list may ask more than the next.
const LISTS: usize = 5;

/// Adds the rows of one side.
pub(crate) fn measure(cell: &mut Cell, table: &mut Table) -> Result<()> {
    let name = side(cell);
    let idle = memory::daemon_kib(cell)?;
    let mut ids = Vec::new();
    {
        let processes = [cell.daemon().id(), std::process::id()];
        let meter = Meter::of(&processes).context("count the time of the processors")?;
        for part in 0..CROWD / PART {
            let before = meter.milliseconds()?;
            let (took, started) = start_many(cell, PART, 1)?;
            let spent = meter.milliseconds()? - before;
            ids.extend(started);
            let rows = match part {
                0 => {
                    ["a start among the first 50 of 500", "a start among the first 50 of 500: CPU"]
                }
                _ if part + 1 == CROWD / PART => {
                    ["a start among the last 50 of 500", "a start among the last 50 of 500: CPU"]
                }
                _ => continue,
            };
            table.add(rows[0], "ms", name, took / PART as f64);
            table.add(rows[1], "ms", name, spent / PART as f64);
        }
        for list in 0..LISTS {
            let before = meter.milliseconds()?;
            let took = milliseconds(&mut cell.command(&["tasks", "ls"]))?;
            let rows = match list {
                0 => ["the first list of 500 tasks", "the first list of 500 tasks: CPU"],
                _ => ["a list of 500 tasks soon after another", "the same: CPU"],
            };
            table.add(rows[0], "ms", name, took);
            table.add(rows[1], "ms", name, meter.milliseconds()? - before);
        }
    }
    let daemon = memory::daemon_kib(cell)? - idle;
    let shims = memory::all_shims_kib(cell)?;
    table.add("each of 500 containers: PSS of shims", "KiB", name, shims / CROWD as f64);
    table.add("each of 500 containers: RSS of the daemon", "KiB", name, daemon / CROWD as f64);
    let took = restart(cell, CROWD)?;
    let row = "500 containers: daemon started after a kill, until all are known";
    table.add(row, "ms", name, took);
    delete(cell, &ids).map(drop)
}
