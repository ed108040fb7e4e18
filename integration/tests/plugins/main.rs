//! Parts of an engine that are programs of their own, by its proxy plugins: snapshotters, content
//! stores and differs.
//!
//! Each of them goes away in the middle, and comes back; and each is stuck while the engine is to stop.

#![expect(clippy::print_stdout, reason = "a report is what it is for")]

mod content;
mod diffs;
mod snapshots;
mod stuck;

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use integration::{
    cell::{Cell, Choice, Client, Runtime, Shim},
    daemon::Kind,
    stage::{self, Stage},
    sum::Sum,
};
use rustix::process::Signal;

/// The plugin's name in the engines' configurations.
const PLUGIN: &str = "gantry";

/// The image, of several layers.
const IMAGE: &str = "registry.test/layered:1";

/// Debian's containerd with what belongs to it.
const CONTAINERD: Choice = Choice {
    daemon: Kind::Containerd,
    shim: Shim::Go,
    runtime: Runtime::Runc,
    client: Client::Debian,
};

fn main() -> ExitCode {
    stage::program("plugins", inside)
}

fn inside(stage: &Stage) -> Result<()> {
    stage.enter(Choice::OWN.view())?;
    let mut sum = Sum::default();
    for choice in [CONTAINERD, Choice::OWN] {
        let missing = choice.missing();
        ensure!(missing.is_empty(), "{}", missing.join(", "));
    }
    let mut layouts = vec!["overlayfs", "native", "erofs"];
    if !stage::has_filesystem("erofs")? {
        println!("test of plugins on erofs ... SKIPPED: this kernel has no EROFS");
        layouts.retain(|layout| *layout != "erofs");
        sum.skipped += 2;
    }
    let mut report = |name: String, result: Result<()>| sum.take(&name, &result);
    for choice in [CONTAINERD, Choice::OWN] {
        for layout in &layouts {
            let result = snapshots::with_plugin(stage, choice, layout);
            report(format!("{choice} on {layout}"), result);
        }
    }
    for kind in [Kind::Containerd, Kind::Gantryd] {
        report(
            format!("{} with content of {kind:?}", Choice::OWN),
            content::with_plugin(stage, kind),
        );
    }
    report(format!("{} with Containerd's differ", Choice::OWN), diffs::with_plugin(stage));
    for part in stuck::PARTS {
        report(format!("{} stops beside a stuck {}", Choice::OWN, part.kind), part.stop(stage));
    }
    println!("\n{sum}");
    ensure!(sum.failed == 0, "there were failures");
    Ok(())
}

/// Tells the engine of the plugin at `address`, which is of the `kind`.
fn configure(cell: &mut Cell, kind: &str, address: &Path) -> Result<()> {
    reconfigure(cell, &section(PLUGIN, kind, address))
}

/// What the configuration says of a plugin.
fn section(name: &str, kind: &str, address: &Path) -> String {
    let address = address.display();
    format!("\n[proxy_plugins.{name}]\ntype = \"{kind}\"\naddress = \"{address}\"\n")
}

/// Adds `text` to the engine's configuration.
fn reconfigure(cell: &mut Cell, text: &str) -> Result<()> {
    cell.daemon().stop(Signal::TERM)?;
    let file = cell.file("config.toml");
    fs::write(&file, fs::read_to_string(&file)? + text)?;
    cell.daemon().launch_again()
}

/// Deletes what the engine of a cell kept, for the next one in its place.
fn remove_root(stage: &Stage, choice: Choice) -> Result<()> {
    let root = stage.directory().join(choice.to_string().replace('/', "-"));
    fs::remove_dir_all(root).context("remove what the engine kept")
}
