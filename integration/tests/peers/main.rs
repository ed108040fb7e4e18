//! Other projects' engines on our runtime: podman, and dockerd with a containerd of its own.
//!
//! Both are told only where `runc-rs` is, by the flags that they have for that, and are then
//! driven by their own command lines, which are nearly the same; so are the cases. What they ask
//! of a runtime is what they ask of runc: its command line, its formats and its error texts.
//!
//! `cargo test -p integration --test peers -- [--list] [<part of a name>]...` runs the cases whose
//! name, as in `podman/exec`, has one of the parts. Each engine is on a stage of its own; each case
//! ends with a look for leaks. With `GANTRY_RUNTIME` another runtime is driven, for comparison.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a report is what it is for")]

mod cases;
mod peer;

use std::{ffi::OsString, process::ExitCode};

use anyhow::{Context, Result, ensure};
use integration::{
    leaks::Inventory,
    stage::{self, Stage, View},
    sum::Sum,
};

use cases::{CASES, Case};
use peer::{Kind, Peer};

fn main() -> ExitCode {
    let result = match Stage::current() {
        Some(stage) => inside(&stage),
        None => outside(),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The cases that are asked for, of those that an engine has.
fn chosen(kind: Kind, words: &[String]) -> Vec<&'static Case> {
    let wanted = |case: &&Case| {
        let name = format!("{}/{}", kind.name(), case.name);
        case.on.is_none_or(|only| only == kind)
            && (words.is_empty() || words.iter().any(|word| name.contains(word.as_str())))
    };
    CASES.iter().filter(wanted).collect()
}

/// Runs each engine on a stage of its own.
fn outside() -> Result<bool> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let list = words.iter().any(|word| word == "--list");
    // Other flags are those of the usual test harness, which callers pass to all tests.
    let words: Vec<String> = words.into_iter().filter(|word| !word.starts_with("--")).collect();
    let mut good = true;
    for kind in [Kind::Podman, Kind::Docker] {
        let cases = chosen(kind, &words);
        if list {
            cases.iter().for_each(|case| println!("{}/{}", kind.name(), case.name));
            continue;
        }
        if cases.is_empty() {
            continue;
        }
        ensure!(
            rustix::process::geteuid().is_root(),
            "needs root: it mounts, makes cgroups and starts containers"
        );
        let missing = kind.missing();
        if !missing.is_empty() {
            println!("peer {} ... skipped: {}", kind.name(), missing.join(", "));
            println!("{}", Sum { skipped: cases.len(), ..Sum::default() });
            continue;
        }
        let mut arguments: Vec<OsString> = vec!["--inside".into(), kind.name().into()];
        arguments.extend(words.iter().map(OsString::from));
        good &= stage::run(&arguments, &[])? == 0;
    }
    Ok(good)
}

/// Runs the cases of the one engine that the command line names.
fn inside(stage: &Stage) -> Result<bool> {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let (name, words) = words.split_first().context("a process on a stage needs an engine")?;
    let kind = Kind::named(name).with_context(|| format!("no engine is named {name}"))?;
    stage.enter(View { own_cgroup_root: true, ..View::default() })?;
    let peer = Peer::start(kind, stage).with_context(|| format!("start {name}"))?;
    let mut sum = Sum::default();
    for case in chosen(kind, words) {
        let outcome = run(case, &peer).or_else(|why| {
            // On a busy machine a case may run into a deadline of its own.
            println!("test {name}/{} ... once more: {why:#}", case.name);
            run(case, &peer)
        });
        sum.take(&format!("{name}/{}", case.name), &outcome);
    }
    println!("{sum}");
    Ok(sum.failed == 0)
}

fn run(case: &Case, peer: &Peer) -> Result<()> {
    let before = Inventory::take(peer.namespace());
    let result = (case.run)(peer);
    // A case that failed must not leave its containers to the next one.
    peer.remove_all()?;
    result.and_then(|()| before.wait_restored(peer.namespace()))
}
