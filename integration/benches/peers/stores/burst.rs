//! Many containers' records at once, with nothing else to do and beside the import of a large image.

use std::{
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{cell::Cell, wait};
use tokio::{runtime::Runtime, task::JoinSet};

use super::{client::Client, milliseconds};
use crate::{large::Large, side, table::Table};

/// What the rows begin with.
pub(crate) const ROW: &str = "500 container creates at once";

const CREATES: usize = 500;

/// Over how many connections.
const CONNECTIONS: usize = 50;

/// How much of the image the daemon has written when the creates begin: they are to meet the import,
/// and not its start.
const WRITTEN_LEN: u64 = 64 << 20;

/// Adds the rows of one round.
pub(crate) fn measure(
    cell: &Cell,
    image: &Large,
    runtime: &Runtime,
    table: &mut Table,
) -> Result<()> {
    runtime.block_on(burst(cell, "alone", table))?;
    let before = written(cell)?;
    let begun = Instant::now();
    let mut import = image.command(cell).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    wait::until_true("the import to write", || {
        written(cell).is_ok_and(|now| now > before + WRITTEN_LEN)
    })?;
    runtime.block_on(burst(cell, "beside an import", table))?;
    let status = import.wait()?;
    ensure!(status.success(), "the import ended with {status}");
    let row = format!("{ROW}: the import beside them");
    table.add(&row, "ms", side(cell), milliseconds(begun.elapsed()));
    image.forget(cell)
}

/// What the daemon has given to the kernel to write.
fn written(cell: &Cell) -> Result<u64> {
    let path = format!("/proc/{}/io", cell.running_daemon().id());
    let text = fs::read_to_string(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.with_context(|| path.clone())?.parse()?)
}

/// Makes the records, and removes them again.
async fn burst(cell: &Cell, when: &str, table: &mut Table) -> Result<()> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::connect(&cell.running_daemon().address()).await?);
    }
    let clients = clients.iter().cycle().take(CREATES).enumerate();
    let mut calls: JoinSet<Result<Duration>> = JoinSet::new();
    for (number, client) in clients.clone() {
        let (client, id) = (client.clone(), format!("burst{number}"));
        calls.spawn(async move {
            let begun = Instant::now();
            client.create_container(&id).await?;
            Ok(begun.elapsed())
        });
    }
    let mut took = Vec::new();
    while let Some(call) = calls.join_next().await {
        took.push(call??);
    }
    took.sort();
    for (name, place) in [("p50", CREATES / 2), ("p99", CREATES * 99 / 100)] {
        table.add(&format!("{ROW}, {when}: {name}"), "ms", side(cell), milliseconds(took[place]));
    }
    let mut removals: JoinSet<Result<()>> = JoinSet::new();
    for (number, client) in clients {
        let (client, id) = (client.clone(), format!("burst{number}"));
        removals.spawn(async move { client.delete_container(&id).await });
    }
    while let Some(removal) = removals.join_next().await {
        removal??;
    }
    Ok(())
}
