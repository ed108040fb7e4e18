//! Thousands of images and containers, to see what each costs among few and among many.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration::cell::Cell;
use tokio::task::JoinSet;

use super::{
    client::{Client, Kind},
    milliseconds,
};
use crate::{memory, side, table::Table};

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
    for kind in [Kind::Images, Kind::Containers] {
        let mut made = 0;
        for (count, name) in COUNTS {
            let row = format!("{ROW}: {name} {}", kind.name());
            let took = make(&client, kind, made, count).await?;
            made = count;
            let each = milliseconds(took) / count as f64;
            table.add(&format!("{row}: create, each"), "ms", side(cell), each);
            look(&client, kind, count, &mut |what, took| {
                table.add(&format!("{row}: {what}"), "ms", side(cell), milliseconds(took));
            })
            .await?;
            let rss = memory::daemon_kib(cell)? / 1024.0;
            table.add(&format!("{row}: daemon RSS"), "MiB", side(cell), rss);
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
    add: &mut (dyn FnMut(&str, Duration) + Send),
) -> Result<()> {
    for get in 0..GETS {
        let begun = Instant::now();
        client.get(kind, get * count / GETS).await?;
        add("get", begun.elapsed());
    }
    let one = vec![format!("labels.number=={}", count / 2)];
    for (what, filters, found) in [("list", vec![], count), ("filter by a label", one, 1)] {
        for _ in 0..LISTS {
            let begun = Instant::now();
            let listed = client.list(kind, filters.clone()).await?;
            add(what, begun.elapsed());
            ensure!(listed == found, "{what}: {listed} of {found}");
        }
    }
    for _ in 0..LISTS {
        add("collection of garbage", client.collect().await?);
    }
    Ok(())
}
