//! The stores of a daemon, over its socket, with one client for all daemons.
//!
//! What an object costs must not depend on how many there are, nor on what else is written at the
//! time. How long a write takes is mostly the disk's affair, so what a daemon asks of the disk is
//! counted, too.

mod burst;
mod client;
mod objects;
mod syncs;

use std::time::{Duration, Instant};

use anyhow::Result;
use integration::cell::Cell;
use tokio::runtime::{Builder, Runtime};

use self::client::Client;
use crate::{
    Options,
    large::{self, Large},
    meter::Meter,
    side,
    table::Table,
};

/// The size of a blob that is written.
const BLOB_MEBIBYTES: usize = 1024;

/// How many snapshots are on top of each other.
const LAYERS: usize = 100;

/// How often a snapshot is made on top of them.
const PREPARED: usize = 20;

/// How often what takes seconds is measured at most.
const ROUNDS_OF_MANY: usize = 3;

const INGEST: &str = "content: ingest of 1 GiB";
const CHAIN: &str = "snapshots: on 100 layers";

/// Measures all rows, the sides by turns.
pub(crate) fn measure(options: &Options, cells: &[Cell], table: &mut Table) -> Result<()> {
    // As many threads as the daemons get by themselves would take the processors away from them.
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let rounds = options.rounds.min(ROUNDS_OF_MANY);
    if options.wants(INGEST) {
        for round in 0..rounds {
            for cell in cells {
                runtime.block_on(ingest(cell, round, table))?;
            }
        }
    }
    with_a_large_image(options, cells, &runtime, table)?;
    if options.wants(CHAIN) {
        for cell in cells {
            runtime.block_on(chain(cell, table))?;
        }
    }
    if options.wants(syncs::ROW) {
        for cell in cells {
            syncs::count(cell, &runtime, table)?;
        }
    }
    // Last, because the objects stay.
    if options.wants(objects::ROW) {
        for cell in cells {
            runtime.block_on(objects::measure(cell, table))?;
        }
    }
    Ok(())
}

fn with_a_large_image(
    options: &Options,
    cells: &[Cell],
    runtime: &Runtime,
    table: &mut Table,
) -> Result<()> {
    let (alone, beside) = (options.wants(large::ROW), options.wants(burst::ROW));
    if !alone && !beside {
        return Ok(());
    }
    let archive = large::archive();
    let images: Vec<Large> =
        cells.iter().map(|cell| Large::new(cell, &archive)).collect::<Result<_>>()?;
    drop(archive);
    for _ in 0..options.rounds.min(ROUNDS_OF_MANY) {
        for (cell, image) in cells.iter().zip(&images) {
            if alone {
                image.import(cell, table)?;
            }
            if beside {
                burst::measure(cell, image, runtime, table)?;
            }
        }
    }
    Ok(())
}

async fn ingest(cell: &Cell, round: usize, table: &mut Table) -> Result<()> {
    let daemon = cell.running_daemon();
    let client = Client::connect(&daemon.address()).await?;
    let meter = Meter::of(&[daemon.id()])?;
    let begun = Instant::now();
    let digest = client.ingest(&format!("blob {round}"), BLOB_MEBIBYTES).await?;
    table.add(INGEST, "ms", side(cell), milliseconds(begun.elapsed()));
    let row = format!("{INGEST}: CPU of the daemon");
    table.add(&row, "ms", side(cell), meter.milliseconds()?);
    client.delete_blob(digest).await
}

/// Puts layers on top of each other, and snapshots on top of them all.
async fn chain(cell: &Cell, table: &mut Table) -> Result<()> {
    let client = Client::connect(&cell.running_daemon().address()).await?;
    let name = |layer: usize| if layer == 0 { String::new() } else { format!("layer{layer}") };
    let mut add = |what: &str, begun: Instant| {
        table.add(&format!("{CHAIN}: {what}"), "ms", side(cell), milliseconds(begun.elapsed()));
    };
    for layer in 1..=LAYERS {
        client.prepare("next", &name(layer - 1)).await?;
        let begun = Instant::now();
        client.commit("next", &name(layer)).await?;
        if layer > LAYERS - PREPARED {
            add("commit", begun);
        }
    }
    for _ in 0..PREPARED {
        let begun = Instant::now();
        client.prepare("top", &name(LAYERS)).await?;
        add("prepare", begun);
        let begun = Instant::now();
        client.remove("top").await?;
        add("remove", begun);
    }
    for layer in (1..=LAYERS).rev() {
        client.remove(&name(layer)).await?;
    }
    Ok(())
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}
