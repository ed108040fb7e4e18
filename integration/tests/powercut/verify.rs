//! Looks at what there is after the power came back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use integration::{image::digest, process};

use crate::{
    images::Known,
    ledger::{Ledger, State},
    work::{Daemon, ROOT, ctr, files, gantryd, source},
};

/// Where a snapshot is looked at.
const TARGET: &str = "/mnt/view";

/// Compares all that there is with what there must be, and says how much it was.
pub(crate) fn all(images: &[Known], ledger: &mut Ledger) -> Result<String> {
    fs::create_dir_all(TARGET)?;
    if Path::new(ROOT).exists() {
        check_before()?;
    }
    let daemon = Daemon::start()?;
    if ctr(&["snapshots", "info", "look"]).is_ok() {
        ctr(&["snapshots", "rm", "look"])?;
    }
    let snapshots = committed()?;
    let names = lines(&ctr(&["images", "ls", "-q"])?);
    let acknowledged: BTreeSet<String> = ledger
        .of("image")
        .into_iter()
        .filter_map(|(name, state)| (state == State::Present).then_some(name))
        .collect();
    settle(ledger, "image", &names)?;
    settle(ledger, "container", &lines(&ctr(&["containers", "ls", "-q"])?))?;
    let mut seen = 0;
    for image in images {
        let top = image.layers.last().context("an image has layers")?;
        let is_unpacked = snapshots.contains(&top.0);
        ensure!(
            is_unpacked || !acknowledged.contains(&image.name),
            "wrong: image {} is not unpacked",
            image.name
        );
        // What is seen of an upper one is the lower one too.
        let highest = image.layers.iter().rev().find(|(name, _)| snapshots.contains(name));
        if let Some((name, wanted)) = highest {
            compare(name, wanted)?;
            seen += 1;
        }
        if names.contains(&image.name) && !is_unpacked {
            // It has its name before it is unpacked, and the power was cut between the two.
            ctr(&["images", "rm", &image.name])?;
            ledger.note("dropped", "image", &image.name)?;
        }
    }
    let mut lost = 0;
    for (name, state) in ledger.of("snapshot") {
        let is_there = snapshots.contains(&name);
        ensure!(!is_there || state != State::Absent, "wrong: snapshot {name} was removed");
        if is_there {
            let wanted = files(&name).map(|(path, bytes)| (path, digest(&bytes))).collect();
            compare(&name, &wanted)?;
            seen += 1;
        } else if state == State::Present {
            // It had no layer to be unpacked from again: what is not there is not wrong.
            lost += 1;
        }
        if state != State::Absent {
            ledger.note(if is_there { "made" } else { "dropped" }, "snapshot", &name)?;
        }
    }
    ctr(&["leases", "create", "--id", "collect"])?;
    ctr(&["leases", "rm", "--sync", "collect"])?;
    daemon.stop()?;
    let after = process::run(gantryd()?.args(["db", "check", "--deep"]))?;
    ensure!(after.code == 0, "wrong: after a stop: {}{}", after.stdout, after.stderr);
    Ok(format!(
        "{} images, {seen} snapshots as they were, {lost} gone that were not on disk yet",
        names.len()
    ))
}

/// What the database says before a daemon has looked at it.
fn check_before() -> Result<()> {
    let found = process::run(gantryd()?.args(["db", "check"]))?;
    let is_expected = |line: &&str| line.starts_with("snapshots ") && line.ends_with(" is missing");
    let wrong: Vec<&str> = found.stdout.lines().filter(|line| !is_expected(line)).collect();
    // A commit that the power cut has met is as if it had not been begun.
    let told = found.stderr.lines().filter(|line| !line.contains("the one before it is used"));
    let told: Vec<&str> = told.collect();
    ensure!(wrong.is_empty() && told.is_empty(), "wrong: {wrong:?} {told:?}");
    Ok(())
}

/// Compares a kind's list with the ledger, and notes how unknown attempts have ended.
fn settle(ledger: &Ledger, kind: &str, found: &BTreeSet<String>) -> Result<()> {
    for (name, state) in ledger.of(kind) {
        match (state, found.contains(&name)) {
            (State::Present, true) | (State::Absent, false) => {}
            (State::Unknown, true) => ledger.note("made", kind, &name)?,
            (State::Unknown, false) => ledger.note("dropped", kind, &name)?,
            (_, is_there) => {
                ensure!(false, "wrong: {kind} {name} was {state:?}, is there: {is_there}");
            }
        }
    }
    Ok(())
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

/// The names of committed snapshots.
fn committed() -> Result<BTreeSet<String>> {
    let list = ctr(&["snapshots", "ls"])?;
    let rows = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    Ok(rows
        .filter(|words| words.last() == Some(&"Committed"))
        .filter_map(|words| words.first().map(|name| (*name).to_owned()))
        .collect())
}

/// Compares the files of a committed snapshot with their sums.
fn compare(name: &str, wanted: &BTreeMap<String, String>) -> Result<()> {
    ctr(&["snapshots", "view", "look", name])?;
    let mounts = ctr(&["snapshots", "mounts", TARGET, "look"])?;
    let is_mounted = !mounts.contains("-t bind");
    let directory = if is_mounted {
        process::run(Command::new("sh").args(["-c", mounts.trim()]))?.ok()?;
        Path::new(TARGET).to_owned()
    } else {
        source(&mounts)?
    };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        found.insert(name, digest(&fs::read(entry.path())?));
    }
    if is_mounted {
        process::run(Command::new("umount").arg(TARGET))?.ok()?;
    }
    ctr(&["snapshots", "rm", "look"])?;
    if found != *wanted {
        let differ: Vec<_> = wanted
            .iter()
            .filter(|(path, sum)| found.get(*path) != Some(sum))
            .map(|(path, _)| path)
            .collect();
        anyhow::bail!("wrong: snapshot {name}: {} files, these differ: {differ:?}", found.len());
    }
    Ok(())
}
