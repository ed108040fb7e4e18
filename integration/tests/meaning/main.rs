//! What the stores' calls mean: the same calls, in the same order, to Debian's containerd and to
//! gantryd, and the same answers: gRPC codes and texts, to the letter.
//!
//! `cargo test -p integration --test meaning -- [<part of a row's name>]`
//!
//! A row of a table is a call. The [notes] say which rows differ and why; these must differ, for a
//! note whose difference is gone is to be removed. Where Debian's containerd is older than what
//! gantryd follows, `GANTRY_CONTAINERD` has the answers: with it, the newer one is asked.

#![expect(clippy::print_stdout, reason = "a report is what it is for")]

mod isolated;
mod notes;
mod objects;
mod sizes;
mod snapshots;
mod stores;
mod wire;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use integration::{
    cell::{Choice, Runtime, Shim},
    daemon::{Daemon, Kind, Options},
    programs,
    stage::{self, Stage},
    sum::Sum,
};
use prost::Message;

use wire::Wire;

/// A call.
pub(crate) struct Row {
    name: &'static str,
    /// The containerd namespace, if one is named.
    namespace: Option<&'static str>,
    /// The service and the method.
    path: &'static str,
    messages: Vec<Vec<u8>>,
    /// What is compared of the answers beside their number.
    show: fn(&[u8]) -> String,
    /// What is compared of all that is told.
    tell: fn(String) -> String,
}

impl Row {
    pub(crate) fn new(name: &'static str, path: &'static str, message: &impl Message) -> Self {
        Self {
            name,
            namespace: Some("one"),
            path,
            messages: vec![message.encode_to_vec()],
            show: |_| String::new(),
            tell: |told| told,
        }
    }

    /// In another namespace, or in none.
    pub(crate) fn of(mut self, namespace: Option<&'static str>) -> Self {
        self.namespace = namespace;
        self
    }

    /// With one more message in the call.
    pub(crate) fn then(mut self, message: &impl Message) -> Self {
        self.messages.push(message.encode_to_vec());
        self
    }

    /// Compares also what `show` makes of each answer.
    pub(crate) fn showing(mut self, show: fn(&[u8]) -> String) -> Self {
        self.show = show;
        self
    }

    /// Compares only what `tell` leaves of all that is told.
    pub(crate) fn telling(mut self, tell: fn(String) -> String) -> Self {
        self.tell = tell;
        self
    }
}

fn main() -> ExitCode {
    stage::program("meaning", inside)
}

fn inside(stage: &Stage) -> Result<()> {
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    stage.enter(Choice::OWN.view())?;
    let tables = [objects::rows(), stores::rows(), snapshots::rows(), sizes::rows()];
    let rows: Vec<Row> = tables.into_iter().flatten().collect();
    let newer = std::env::var_os("GANTRY_CONTAINERD").is_some();
    let stock = if newer { Kind::Newer } else { Kind::Containerd };
    let mut wanted = answers(stage, stock, &rows, false)?;
    let mut got = answers(stage, Kind::Gantryd, &rows, false)?;
    let isolated = isolated::rows();
    wanted.extend(answers(stage, stock, &isolated, true)?);
    got.extend(answers(stage, Kind::Gantryd, &isolated, true)?);
    let rows: Vec<Row> = rows.into_iter().chain(isolated).collect();
    let mut sum = Sum::default();
    for ((row, wanted), got) in rows.iter().zip(wanted).zip(got) {
        if !words.is_empty() && !words.iter().any(|word| row.name.contains(word.as_str())) {
            continue;
        }
        let wrong = match (notes::find(row.name, newer), wanted == got) {
            (None, true) | (Some(_), false) => None,
            (None, false) => Some("differ".to_owned()),
            (Some(why), true) => Some(format!("no longer differ ({why})")),
        };
        if let Some(wrong) = wrong {
            println!(
                "test {} ... FAILED: {wrong}\n  containerd: {wanted}\n  gantryd:    {got}",
                row.name
            );
            sum.failed += 1;
        } else {
            sum.passed += 1;
        }
    }
    for name in notes::names() {
        ensure!(rows.iter().any(|row| row.name == name), "a note about no row: {name}");
    }
    println!("\n{sum}");
    ensure!(sum.failed == 0, "there were differences");
    Ok(())
}

/// What an engine answers to all calls; one that isolates what namespaces have, if that is wanted.
fn answers(stage: &Stage, kind: Kind, rows: &[Row], isolated: bool) -> Result<Vec<String>> {
    let name = format!("{kind:?}{}", if isolated { "-isolated" } else { "" });
    let directory = stage.directory().join(name);
    let choice = Choice { daemon: kind, shim: Shim::Go, runtime: Runtime::Runc, ..Choice::OWN };
    let mut daemon = Daemon::start(Options {
        kind,
        root: directory.join("root"),
        state: directory.join("state"),
        shim: choice.shim()?,
        runtime: choice.runtime()?,
        scratch: directory.join("scratch"),
    })?;
    if isolated {
        isolated::configure(&mut daemon)?;
    }
    ensure!(programs::own("ctr").is_ok(), "our ctr is missing: run `cargo xtask dist`");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let mut wire = Wire::connect(&daemon.address()).await?;
        let mut answers = Vec::new();
        for row in rows {
            let told = wire.call(row.namespace, row.path, &row.messages, row.show).await;
            answers.push((row.tell)(told));
        }
        Ok(answers)
    })
}
