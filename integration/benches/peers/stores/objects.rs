//! Thousands of images and containers, to see what each costs among few and among many.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration::cell::Cell;
use tokio::task::JoinSet;

use super::{
    client::{Client, Kind},
    milliseconds,
};
use crate::{memory, meter::Meter, side, table::Table};

/// What the rows begin with.
pub(crate) const ROW: &str = "objects";

/// How many there are when it is measured; names for rows.
const COUNTS: [(usize, &str); 2] = [(1_000, "1,000"), (10_000, "10,000")];

/// How many calls are under way at once while they are made.
const AT_ONCE: usize = 64;

/// How often one is looked for, and how often all are.
const GETS: usize = 50;
const LISTS: usize = 5;

/// Adds the rows of one side. What was made stays.
pub(crate) async fn measure(cell: &Cell, table: &mut Table) -> Result<()> {
    let client = Client::connect(&cell.running_daemon().address()).await?;
    let meter = Meter::of(&[cell.running_daemon().id()])?;
    for kind in [Kind::Images, Kind::Containers] {
        let mut made = 0;
        for (count, name) in COUNTS {
            let row = format!("{ROW}: {name} {}", kind.name());
            let before = meter.milliseconds()?;
            let took = make(&client, kind, made, count).await?;
            let mut add = |what: &str, value: f64| {
                table.add(&format!("{row}: {what}"), "ms", side(cell), value);
            };
            let each = |all: f64| all / (count - made) as f64;
            add("create, each", each(milliseconds(took)));
            add("create, each: CPU of the daemon", each(meter.milliseconds()? - before));
            look(&client, kind, count, &meter, &mut add).await?;
            let rss = memory::daemon_kib(cell)? / 1024.0;
            table.add(&format!("{row}: daemon RSS"), "MiB", side(cell), rss);
            made = count;
        }
    }
    Ok(())
}

/// Makes those from `first` to `end`.
async fn make(client: &Client, kind: Kind, first: usize, end: usize) -> Result<Duration> {
    let begun = Instant::now();
    let mut calls: JoinSet<Result<()>> = JoinSet::new();
    for number in first..end {
        if calls.len() == AT_ONCE
            && let Some(call) = calls.join_next().await
        {
            call??;
        }
        let client = client.clone();
        calls.spawn(async move { client.create(kind, number).await });
    }
    while let Some(call) = calls.join_next().await {
        call??;
    }
    Ok(begun.elapsed())
}

async fn look(
    client: &Client,
    kind: Kind,
    count: usize,
    meter: &Meter,
    add: &mut dyn FnMut(&str, f64),
) -> Result<()> {
    for get in 0..GETS {
        let begun = Instant::now();
        client.get(kind, get * count / GETS).await?;
        add("get", milliseconds(begun.elapsed()));
    }
    let one = vec![format!("labels.number=={}", count / 2)];
    for (what, filters, found) in [("list", vec![], count), ("filter by a label", one, 1)] {
        for _ in 0..LISTS {
            let (begun, before) = (Instant::now(), meter.milliseconds()?);
            let listed = client.list(kind, filters.clone()).await?;
            add(what, milliseconds(begun.elapsed()));
            add(&format!("{what}: CPU of the daemon"), meter.milliseconds()? - before);
            ensure!(listed == found, "{what}: {listed} of {found}");
        }
    }
    for _ in 0..LISTS {
        let before = meter.milliseconds()?;
        add("collection of garbage", milliseconds(client.collect().await?));
        let cpu = meter.milliseconds()? - before;
        add("collection of garbage: CPU of the daemon", cpu);
    }
    Ok(())
}
