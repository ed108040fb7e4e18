//! What the programs hold at one moment.
//!
//! Two kinds of figures: those that must be the same whenever nothing is going on, such as mounts;
//! and those that may move, such as memory, which only must not follow the number of rounds.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use integration::{
    cell::Cell,
    stage::{self, Stage},
    wait,
};

/// Figures by name.
pub(crate) type Sample = BTreeMap<&'static str, f64>;

/// How a figure may change while the same is done again and again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Growth {
    /// Not at all.
    None,
    /// By so much between the first third of the samples and the last.
    AtMost(f64),
    /// As others like: it is shown, and nothing is concluded from it.
    Shown,
}

/// Every figure, and how it may change.
///
/// What may move moves for other reasons than a leak: allocators keep pages that were freed, a
/// database grows in steps and keeps free pages, pages of code come and go, and threads that block
/// go when they have been idle for a while.
pub(crate) const FIGURES: &[(&str, Growth)] = &[
    // Pages of a program are shared by all who run it, whoever started them.
    (ENGINE.pss, Growth::Shown),
    // An allocator's arenas fill up over the first hundreds of containers, by some 400 KiB; the long
    // form goes far beyond, and finds with this limit what leaks a quarter of a KiB each.
    (ENGINE.anonymous, Growth::AtMost(1024.0)),
    (ENGINE.rss, Growth::AtMost(1024.0)),
    (ENGINE.threads, Growth::AtMost(8.0)),
    (ENGINE.files, Growth::None),
    (SHIM.pss, Growth::Shown),
    (SHIM.anonymous, Growth::AtMost(256.0)),
    (SHIM.rss, Growth::AtMost(1024.0)),
    (SHIM.threads, Growth::None),
    (SHIM.files, Growth::None),
    (PROCESSES, Growth::None),
    (MOUNTS, Growth::None),
    (CGROUPS, Growth::None),
    (STATE, Growth::None),
    (ROOT, Growth::None),
    (DATABASE, Growth::AtMost(2048.0)),
];

const PROCESSES: &str = "processes";
const MOUNTS: &str = "mounts";
const CGROUPS: &str = "cgroups";
const STATE: &str = "files below /run";
const ROOT: &str = "files of the root";
const DATABASE: &str = "database, KiB";

/// The names of a process's figures.
struct Names {
    pss: &'static str,
    anonymous: &'static str,
    rss: &'static str,
    threads: &'static str,
    files: &'static str,
}

const ENGINE: Names = Names {
    pss: "engine PSS, KiB",
    anonymous: "engine PSS without files, KiB",
    rss: "engine RSS, KiB",
    threads: "engine threads",
    files: "engine descriptors",
};

const SHIM: Names = Names {
    pss: "shim PSS, KiB",
    anonymous: "shim PSS without files, KiB",
    rss: "shim RSS, KiB",
    threads: "shim threads",
    files: "shim descriptors",
};

/// Takes a sample when nothing is going on any more: as soon as everything that must not grow is as
/// it was in `first`, or when the patience for that is over, so that the verdict can tell of it.
pub(crate) fn at_rest(cell: &Cell, shim: u32, first: Option<&Sample>) -> Result<Sample> {
    let is_steady = |sample: &Sample| {
        first.is_none_or(|first| {
            let fixed = FIGURES.iter().filter(|(_, growth)| *growth == Growth::None);
            fixed.into_iter().all(|(name, _)| sample.get(name) == first.get(name))
        })
    };
    let mut last = Sample::new();
    // Not in time is for the verdict to tell, with figures.
    let rested = wait::until("rest", || {
        last = take(cell, shim)?;
        Ok(is_steady(&last).then_some(()))
    });
    if last.is_empty() { rested.map(|()| last) } else { Ok(last) }
}

fn take(cell: &Cell, shim: u32) -> Result<Sample> {
    let mut sample = Sample::new();
    of_process(cell.running_daemon().id(), &ENGINE, &mut sample)?;
    of_process(shim, &SHIM, &mut sample)?;
    let processes = Stage::outside().map(stage::descendants).unwrap_or_default();
    sample.insert(PROCESSES, processes.len() as f64);
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    sample.insert(MOUNTS, mounts.lines().count() as f64);
    sample.insert(CGROUPS, stage::cgroups(cell.namespace()).len() as f64);
    sample.insert(STATE, entries(Path::new("/run")) as f64);
    let root = &cell.running_daemon().options().root;
    sample.insert(ROOT, entries(root) as f64);
    let database = root.join("metadata.redb");
    sample.insert(DATABASE, fs::metadata(database)?.len() as f64 / 1024.0);
    Ok(sample)
}

fn of_process(pid: u32, names: &Names, sample: &mut Sample) -> Result<()> {
    let directory = format!("/proc/{pid}");
    let rollup = fs::read_to_string(format!("{directory}/smaps_rollup"))?;
    for (name, field) in [(names.pss, "Pss:"), (names.anonymous, "Pss_Anon:"), (names.rss, "Rss:")]
    {
        sample.insert(name, field_of(&rollup, field)?);
    }
    let status = fs::read_to_string(format!("{directory}/status"))?;
    sample.insert(names.threads, field_of(&status, "Threads:")?);
    sample.insert(names.files, fs::read_dir(format!("{directory}/fd"))?.count() as f64);
    Ok(())
}

fn field_of(text: &str, field: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let value = line.and_then(|line| line.split_whitespace().next());
    Ok(value.with_context(|| format!("no {field} in {text:?}"))?.parse()?)
}

/// How many files and directories are below `directory`.
fn entries(directory: &Path) -> usize {
    let listed = fs::read_dir(directory).into_iter().flatten().flatten();
    listed
        .map(|entry| {
            let below = entry.file_type().is_ok_and(|kind| kind.is_dir());
            1 + if below { entries(&entry.path()) } else { 0 }
        })
        .sum()
}

/// The shim of the container `id`.
pub(crate) fn shim_of(cell: &Cell, id: &str) -> Result<u32> {
    let program = cell.choice().shim()?.canonicalize()?;
    let all = Stage::outside().map(stage::descendants).unwrap_or_default();
    let found = all.into_iter().map(|pid| pid.as_raw_nonzero().get().cast_unsigned()).find(|pid| {
        let is_shim = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_shim && line.split(|byte| *byte == 0).any(|word| word == id.as_bytes())
    });
    found.with_context(|| format!("{id} has no shim"))
}
