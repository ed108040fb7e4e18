//! The cases, by topic.

mod bad_calls;
mod bad_input;
mod containers;
mod content;
mod daemon;
mod events;
mod gc;
mod images;
mod pull;
mod run;
mod sandboxes;
mod snapshots;
mod surface;
mod tasks;
mod terminal;

use anyhow::{Result, ensure};
use integration::{
    cell::{Cell, Client},
    daemon::Kind,
    process::Output,
};

/// One thing that a user expects.
pub(crate) struct Case {
    /// What it is called in tables; it does not change.
    pub(crate) name: &'static str,
    /// Does it.
    pub(crate) run: fn(&mut Cell) -> Result<()>,
}

/// All cases, in the order in which they are run.
pub(crate) const CASES: &[&[Case]] = &[
    surface::CASES,
    images::CASES,
    pull::CASES,
    content::CASES,
    gc::CASES,
    snapshots::CASES,
    containers::CASES,
    run::CASES,
    terminal::CASES,
    tasks::CASES,
    sandboxes::CASES,
    events::CASES,
    bad_calls::CASES,
    bad_input::CASES,
    daemon::CASES,
];

/// Why a case has no meaning for a choice.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) &'static str);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Skipped {}

/// Skips a case that Debian's ctr has no words for.
fn needs_own_client(cell: &Cell, why: &'static str) -> Result<()> {
    if cell.choice().client == Client::Debian { Err(Skipped(why).into()) } else { Ok(()) }
}

/// Skips a case that our ctr leaves to a service of the daemon's that containerd 1.6 has not.
fn needs_transfer(cell: &Cell) -> Result<()> {
    let choice = cell.choice();
    if choice.client == Client::Own && choice.daemon == Kind::Containerd {
        return Err(Skipped("our ctr pulls and exports by the transfer service, new in 1.7").into());
    }
    Ok(())
}

/// Checks that `text` has `wanted`, and shows the text if not.
pub(crate) fn has(text: &str, wanted: &str) -> Result<()> {
    ensure!(text.contains(wanted), "no {wanted:?} in {text:?}");
    Ok(())
}

/// Checks that `text` does not have `unwanted`, and shows the text if it does.
fn has_not(text: &str, unwanted: &str) -> Result<()> {
    ensure!(!text.contains(unwanted), "{unwanted:?} in {text:?}");
    Ok(())
}

/// Checks that two values are the same.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(got: T, wanted: T) -> Result<()> {
    ensure!(got == wanted, "got {got:?} instead of {wanted:?}");
    Ok(())
}

/// The exit code of a task as `ctr tasks rm` reports it, in a warning.
pub(crate) fn exit_code_said(output: &Output) -> String {
    let words = ["non-zero exit code ", "exited with status "];
    let warned = words.iter().find_map(|it| output.stderr.rsplit_once(it));
    warned.map_or_else(|| output.code.to_string(), |(_, code)| code.to_owned())
}

/// The line of a table whose first column is `first`.
pub(crate) fn row<'a>(table: &'a str, first: &str) -> Result<&'a str> {
    let found = table.lines().find(|line| line.split_whitespace().next() == Some(first));
    found.ok_or_else(|| anyhow::anyhow!("no line for {first:?} in {table:?}"))
}

/// Removes all containers, so that a case that failed does not spoil the next.
pub(crate) fn clean(cell: &Cell) {
    let listed = |words: &[&str]| cell.ok(words).unwrap_or_default();
    for id in listed(&["tasks", "ls", "-q"]).lines() {
        let _ = cell.ctr(&["tasks", "rm", "-f", id]);
    }
    for id in listed(&["containers", "ls", "-q"]).lines() {
        let _ = cell.ctr(&["containers", "rm", id]);
    }
    // Debian's client has none, and says so.
    for line in listed(&["sandboxes", "ls"]).lines().skip(1) {
        if let Some(id) = line.split_whitespace().next() {
            let _ = cell.ctr(&["sandboxes", "rm", "-f", id]);
        }
    }
}
