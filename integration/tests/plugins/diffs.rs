//! A differ that is another program: Debian's containerd applies the layers for clients of gantryd that unpack
//! by themselves, and for gantryd's own transfers.
//!
//! A differ reads blobs where it has them, so containerd is gantryd's content store, too.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, Choice, Client},
    daemon::{Daemon, Kind},
    image::{self, Flavour},
    leaks::Inventory,
    stage::Stage,
    wait,
};
use rustix::process::Signal;

use crate::{IMAGE, content, reconfigure, remove_root, section};

/// The differ's name in the configuration.
const DIFFER: &str = "differ";

pub(crate) fn with_plugin(stage: &Stage) -> Result<()> {
    for client in [Client::Debian, Client::Own] {
        with_client(stage, client).with_context(|| format!("{client:?}"))?;
    }
    Ok(())
}

fn with_client(stage: &Stage, client: Client) -> Result<()> {
    let choice = Choice { client, ..Choice::OWN };
    let mut plugin = content::start(stage, Kind::Containerd)?;
    let mut cell = Cell::bare(choice, stage)?;
    configure(&mut cell, &plugin)?;
    let before = Inventory::take(cell.namespace());
    let used = use_it(&cell).and_then(|()| match client {
        Client::Own => lose_it(&cell, &mut plugin),
        // It asks a store that is away again and again, for ever.
        Client::Debian => Ok(()),
    });
    used.with_context(|| {
        let (engine, plugin) = (cell.running_daemon().log(), plugin.log());
        format!("the engine's log:\n{engine}\nthe plugin's:\n{plugin}")
    })?;
    before.wait_restored(cell.namespace())?;
    drop(cell);
    remove_root(stage, choice)
}

/// Tells the engine of the plugin, and that nobody else applies layers.
fn configure(cell: &mut Cell, plugin: &Daemon) -> Result<()> {
    let address = plugin.address();
    let parts = [("blobs", "content"), (DIFFER, "diff")];
    let sections = parts.map(|(name, kind)| section(name, kind, &address)).concat();
    reconfigure(cell, &format!("{sections}\n[diff]\norder = [\"{DIFFER}\"]\n"))
}

fn use_it(cell: &Cell) -> Result<()> {
    import(cell)?;
    let listed = cell.ok(&["snapshots", "ls"])?;
    ensure!(listed.matches("Committed").count() >= 3, "snapshots are missing: {listed}");
    let said = cell.ok(&["run", "--rm", IMAGE, "p1", "/bin/busybox", "echo", "hello"])?;
    ensure!(said == "hello\n", "the container said {said:?}");
    cell.ok(&["images", "rm", "--sync", IMAGE])?;
    let listed = cell.ok(&["snapshots", "ls"])?;
    ensure!(!listed.contains("Committed"), "snapshots are left: {listed}");
    Ok(())
}

fn import(cell: &Cell) -> Result<()> {
    let archive = cell.file("image.tar");
    fs::write(&archive, image::oci_archive(&image::layered(Flavour::Oci, "plugin")?, IMAGE))?;
    cell.ok(&["images", "import", &archive.display().to_string()]).map(drop)
}

/// Has the plugin die, and wants the image unpacked again; then it is back.
fn lose_it(cell: &Cell, plugin: &mut Daemon) -> Result<()> {
    plugin.stop(Signal::KILL)?;
    let archive = cell.file("image.tar").display().to_string();
    let said = cell.refused(&["images", "import", &archive])?;
    let named = format!("at {}", plugin.address().display());
    ensure!(said.contains(&named), "the plugin is not named in {said:?}");
    cell.ok(&["images", "ls"])?;
    plugin.launch_again()?;
    wait::until("the engine to find the plugin again", || {
        Ok((cell.ctr(&["images", "import", &archive])?.code == 0).then_some(()))
    })?;
    cell.ok(&["images", "rm", "--sync", IMAGE]).map(drop)
}
