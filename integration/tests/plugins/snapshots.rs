//! Snapshotters that are programs of their own, both ways: `gantry-snapshotter` under Debian's
//! containerd and under gantryd.
//!
//! Each engine imports an image into snapshots of the plugin's, runs a container on them, and removes
//! it all; and what is removed is gone from the plugin's disk. Then the plugin goes away and comes
//! back.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, Choice},
    daemon::Kind,
    image::{self, Flavour},
    leaks::Inventory,
    programs,
    stage::Stage,
    wait,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{IMAGE, PLUGIN, configure, remove_root};

pub(crate) fn with_plugin(stage: &Stage, choice: Choice, layout: &str) -> Result<()> {
    let directory = stage.directory().join(format!("plugin-{:?}-{layout}", choice.daemon));
    fs::create_dir_all(&directory)?;
    let mut plugin = Plugin::start(&directory, layout)?;
    let mut cell = Cell::bare(choice, stage)?;
    configure(&mut cell, "snapshot", &plugin.address)?;
    let before = Inventory::take(cell.namespace());
    let imported = use_it(&cell, &plugin).and_then(|()| come_back(&cell, &mut plugin));
    imported.with_context(|| format!("the engine's log:\n{}", cell.running_daemon().log()))?;
    before.wait_restored(cell.namespace())?;
    drop(cell);
    remove_root(stage, choice)
}

/// Imports an image, runs a container, and removes both.
fn use_it(cell: &Cell, plugin: &Plugin) -> Result<()> {
    let archive = cell.file("image.tar");
    fs::write(&archive, image::oci_archive(&image::layered(Flavour::Oci, "plugin")?, IMAGE))?;
    let archive = archive.display().to_string();
    cell.ok(&["images", "import", "--snapshotter", PLUGIN, &archive])?;
    ensure!(plugin.directories()? >= 3, "the layers are not the plugin's");
    let run =
        ["run", "--rm", "--snapshotter", PLUGIN, IMAGE, "p1", "/bin/busybox", "echo", "hello"];
    let said = cell.ok(&run)?;
    ensure!(said == "hello\n", "the container said {said:?}");
    let listed = cell.ok(&["snapshots", "--snapshotter", PLUGIN, "ls"])?;
    ensure!(listed.matches("Committed").count() >= 3, "snapshots are missing: {listed}");
    let list = ["snapshots", "--snapshotter", PLUGIN, "ls"];
    let mut other = cell.command_at(cell.running_daemon(), "other", &list);
    let elsewhere = integration::process::run(&mut other)?.ok()?;
    ensure!(!elsewhere.contains("Committed"), "another namespace sees {elsewhere}");
    cell.ok(&["images", "rm", "--sync", IMAGE])?;
    wait::until("the plugin's disk to be free", || Ok((plugin.directories()? == 0).then_some(())))
}

/// Has the plugin die, and asks for it; then it is there again.
fn come_back(cell: &Cell, plugin: &mut Plugin) -> Result<()> {
    let flags = ["snapshots", "--snapshotter", PLUGIN];
    cell.ok(&[&flags[..], &["prepare", "key"]].concat())?;
    plugin.stop(Signal::KILL)?;
    let said = cell.refused(&[&flags[..], &["mounts", "/mnt", "key"]].concat())?;
    if cell.choice().daemon == Kind::Gantryd {
        let named = format!("proxy plugin {PLUGIN:?} at {}", plugin.address.display());
        ensure!(said.contains(&named), "the plugin is not named in {said:?}");
    }
    // The engine goes on, and starts, without it.
    cell.ok(&["images", "ls"])?;
    plugin.launch_again()?;
    wait::until("the engine to find the plugin again", || {
        let output = cell.ctr(&[&flags[..], &["mounts", "/mnt", "key"]].concat())?;
        Ok((output.code == 0).then_some(()))
    })?;
    cell.ok(&[&flags[..], &["rm", "key"]].concat()).map(drop)
}

/// A plugin that runs, and ends with this value.
struct Plugin {
    child: Child,
    address: PathBuf,
    root: PathBuf,
    layout: String,
}

impl Plugin {
    fn start(directory: &Path, layout: &str) -> Result<Self> {
        let address = PathBuf::from(format!("/run/plugin-{layout}.sock"));
        let root = directory.join("root");
        let child = launch(&root, &address, layout)?;
        let plugin = Self { child, address, root, layout: layout.to_owned() };
        plugin.wait()?;
        Ok(plugin)
    }

    fn launch_again(&mut self) -> Result<()> {
        self.child = launch(&self.root, &self.address, &self.layout)?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        wait::until("the plugin's socket", || {
            Ok(std::os::unix::net::UnixStream::connect(&self.address).ok().map(drop))
        })
    }

    fn stop(&mut self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).context("signal the plugin")?;
        wait::until("the plugin's end", || Ok(self.child.try_wait()?)).map(drop)
    }

    /// How many snapshots are on its disk.
    fn directories(&self) -> Result<usize> {
        let place = self.root.join(&self.layout).join("snapshots");
        Ok(fs::read_dir(&place).with_context(|| format!("list {}", place.display()))?.count())
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.stop(Signal::TERM).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn launch(root: &Path, address: &Path, layout: &str) -> Result<Child> {
    let program = programs::own("gantry-snapshotter")?;
    Command::new(&program)
        .args(["--snapshotter", layout, "--root"])
        .arg(root)
        .arg("--address")
        .arg(address)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}
