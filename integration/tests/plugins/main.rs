//! Parts of an engine that are programs of their own, by its proxy plugins: snapshotters and content
//! stores.
//!
//! Each of them goes away in the middle, and comes back.

#![expect(clippy::print_stdout, reason = "a report is what it is for")]

mod content;
mod snapshots;

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Result, ensure};
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
    println!("\n{sum}");
    ensure!(sum.failed == 0, "there were failures");
    Ok(())
}

/// Tells the engine of the plugin at `address`, which is of the `kind`.
fn configure(cell: &mut Cell, kind: &str, address: &Path) -> Result<()> {
    cell.daemon().stop(Signal::TERM)?;
    let file = cell.file("config.toml");
    let text = fs::read_to_string(&file)?;
    let address = address.display();
    let section =
        format!("\n[proxy_plugins.{PLUGIN}]\ntype = \"{kind}\"\naddress = \"{address}\"\n");
    fs::write(&file, text + &section)?;
    cell.daemon().launch_again()
}
