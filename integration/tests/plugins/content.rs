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
    process,
    stage::Stage,
    wait,
};
use rustix::process::Signal;

use crate::{CONTAINERD, IMAGE, PLUGIN, configure};

pub(crate) fn with_plugin(stage: &Stage, kind: Kind) -> Result<()> {
    let directory = stage.directory().join(format!("content-of-{kind:?}"));
    let choice = if kind == Kind::Containerd { CONTAINERD } else { Choice::OWN };
    let mut plugin = Daemon::start(Options {
        kind,
        root: directory.join("root"),
        state: "/run/content-plugin".into(),
        shim: choice.shim()?,
        runtime: choice.runtime()?,
        scratch: directory.clone(),
    })?;
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
    let root = stage.directory().join(Choice::OWN.to_string().replace('/', "-"));
    fs::remove_dir_all(root).context("remove what the engine kept")
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
    process::run(&mut ingest)?.ok()?;
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
    let answers =
        [cell.refused(&["content", "get", digest])?, process::run(&mut ingest)?.refused()?];
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

/// Removes the image, and waits until nothing of it is at the plugin.
fn remove(cell: &Cell, plugin: &Daemon) -> Result<()> {
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
