//! A content store that is another program: gantryd keeps all blobs with Debian's containerd, or with
//! another gantryd.
//!
//! Both go by namespaces themselves, which a plain content store would not, so they show what gantryd asks
//! for in whose name.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, Choice},
    daemon::{Daemon, Kind, Options},
    image::{self, Flavour},
    leaks::Inventory,
    process::{self, Running},
    stage::Stage,
    wait,
};
use rustix::process::Signal;

use crate::{CONTAINERD, IMAGE, PLUGIN, configure, remove_root};

pub(crate) fn with_plugin(stage: &Stage, kind: Kind) -> Result<()> {
    let mut plugin = start(stage, kind)?;
    let mut cell = Cell::bare(Choice::OWN, stage)?;
    configure(&mut cell, "content", &plugin.address())?;
    let before = Inventory::take(cell.namespace());
    let used = import_and_run(&cell, &plugin)
        .and_then(|digests| come_back(&mut cell, &mut plugin, &digests))
        .and_then(|()| remove(&cell, &plugin));
    used.with_context(|| {
        format!(
            "the engine's log:\n{}\nthe plugin's:\n{}",
            cell.running_daemon().log(),
            plugin.log()
        )
    })?;
    before.wait_restored(cell.namespace())?;
    drop(cell);
    remove_root(stage, Choice::OWN)
}

/// Starts the daemon whose store it is.
pub(crate) fn start(stage: &Stage, kind: Kind) -> Result<Daemon> {
    let directory = stage.directory().join(format!("content-of-{kind:?}"));
    let choice = if kind == Kind::Containerd { CONTAINERD } else { Choice::OWN };
    Daemon::start(Options {
        kind,
        root: directory.join("root"),
        state: "/run/content-plugin".into(),
        shim: choice.shim()?,
        runtime: choice.runtime()?,
        scratch: directory,
    })
}

/// Imports an image and runs a container of it; gives the blobs.
fn import_and_run(cell: &Cell, plugin: &Daemon) -> Result<BTreeSet<String>> {
    let archive = cell.file("image.tar");
    fs::write(&archive, image::oci_archive(&image::layered(Flavour::Oci, "plugin")?, IMAGE))?;
    cell.ok(&["images", "import", &archive.display().to_string()])?;
    let here = blobs(cell, cell.running_daemon())?;
    let there = blobs(cell, plugin)?;
    ensure!(
        here.len() >= 5 && here == there,
        "the engine knows {here:?}, the plugin has {there:?}"
    );
    let files = fs::read_dir(cell.file("root/content/blobs/sha256"))?.count();
    ensure!(files == 0, "the engine keeps {files} blobs itself");
    // A plugin that is a daemon collects what nothing of its own refers to.
    for digest in &there {
        let label = ["content", "label", digest, "containerd.io/gc.root=kept"];
        process::run(&mut cell.command_at(plugin, cell.namespace(), &label))?.ok()?;
    }
    run(cell)?;
    // Bytes that come from a client, and go to one.
    let mut ingest = cell.command(&["content", "ingest", "note"]);
    ingest.stdin(fs::File::open(cell.file("image.tar"))?);
    Running::start(&mut ingest)?.finish()?.ok()?;
    let exported = cell.file("exported.tar");
    cell.ok(&["images", "export", &exported.display().to_string(), IMAGE])?;
    ensure!(fs::metadata(exported)?.len() > 1 << 20, "the export is too small");
    Ok(here)
}

/// Has the plugin die, and asks for it; then it is there again.
fn come_back(cell: &mut Cell, plugin: &mut Daemon, digests: &BTreeSet<String>) -> Result<()> {
    let digest = digests.first().context("a blob")?;
    plugin.stop(Signal::KILL)?;
    let named = format!("proxy plugin {PLUGIN:?} at {}", plugin.address().display());
    let mut ingest = cell.command(&["content", "ingest", "more"]);
    ingest.stdin(fs::File::open(cell.file("image.tar"))?);
    let answers = [
        cell.refused(&["content", "get", digest])?,
        Running::start(&mut ingest)?.finish()?.refused()?,
    ];
    for said in answers {
        ensure!(said.contains(&named) && said.contains("unavailable"), "said {said:?}");
    }
    // A collection leaves the records alone, and so does one after a start.
    cell.ok(&["leases", "create", "--id", "l"])?;
    cell.ok(&["leases", "rm", "--sync", "l"])?;
    cell.daemon().restart(Signal::TERM)?;
    let known = blobs(cell, cell.running_daemon())?;
    ensure!(digests.is_subset(&known), "of {digests:?} are left {known:?}");
    plugin.launch_again()?;
    wait::until("the engine to find the plugin again", || {
        Ok((cell.ctr(&["content", "get", digest])?.code == 0).then_some(()))
    })?;
    run(cell)
}

/// Puts a blob there past the engine, which says of it that it leaves it alone.
fn look_at_anothers(cell: &Cell, plugin: &Daemon) -> Result<()> {
    let at_plugin = |words: &[&str]| cell.command_at(plugin, cell.namespace(), words);
    // Else the plugin's own collections may remove it at once.
    process::run(&mut at_plugin(&["leases", "create", "--id", "another"]))?.ok()?;
    let mut ingest = at_plugin(&["content", "ingest", "--lease", "another", "another's"]);
    ingest.stdin(fs::File::open(cell.file("config.toml"))?);
    Running::start(&mut ingest)?.finish()?.ok()?;
    let (here, there) = (blobs(cell, cell.running_daemon())?, blobs(cell, plugin)?);
    let digest = there.difference(&here).next().context("no blob is only at the plugin")?;
    let said = cell.ok(&["gc", "explain", digest])?;
    ensure!(said.contains("left alone"), "of one blob: {said}");
    let said = cell.ok(&["gc", "explain", &format!("plugin/{PLUGIN}")])?;
    ensure!(said.contains("has not had 1 made") && said.contains(digest), "of all: {said}");
    cell.ok(&["leases", "create", "--id", "l"])?;
    cell.ok(&["leases", "rm", "--sync", "l"])?;
    ensure!(blobs(cell, plugin)?.contains(digest), "a collection has removed it");
    process::run(&mut at_plugin(&["leases", "rm", "--sync", "another"]))?.ok().map(drop)
}

/// Removes the image, and waits until nothing of it is at the plugin.
fn remove(cell: &Cell, plugin: &Daemon) -> Result<()> {
    look_at_anothers(cell, plugin)?;
    cell.ok(&["images", "rm", "--sync", IMAGE])?;
    wait::until("the plugin to have nothing", || Ok(blobs(cell, plugin)?.is_empty().then_some(())))
}

fn run(cell: &Cell) -> Result<()> {
    let said = cell.ok(&["run", "--rm", IMAGE, "p1", "/bin/busybox", "echo", "hello"])?;
    ensure!(said == "hello\n", "the container said {said:?}");
    Ok(())
}

fn blobs(cell: &Cell, daemon: &Daemon) -> Result<BTreeSet<String>> {
    let mut list = cell.command_at(daemon, cell.namespace(), &["content", "ls", "-q"]);
    let listed = process::run(&mut list)?.ok()?;
    Ok(listed.lines().map(str::to_owned).collect())
}
