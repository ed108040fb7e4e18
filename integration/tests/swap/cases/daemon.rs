//! The daemon's own life: restarts, a full disk.

use anyhow::{Context, Result};
use integration::{
    cell::{Cell, Client, IMAGE},
    daemon::{Daemon, Kind, Options},
    image::{self, Flavour, Layer},
    process, wait,
};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::Signal,
};
use serde_json::json;

use super::{Case, Skipped, exit_code_said, has, row, same};

pub(crate) const CASES: &[Case] = &[
    Case { name: "daemon_restart", run: |cell| restart(cell, Signal::TERM) },
    Case { name: "daemon_killed", run: |cell| restart(cell, Signal::KILL) },
    Case { name: "daemon_away_at_exit", run: away },
    Case { name: "daemon_full_disk", run: full_disk },
];

fn restart(cell: &mut Cell, signal: Signal) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    cell.daemon().restart(signal)?;
    wait::until("the task", || Ok(cell.ok(&["tasks", "ls"])?.contains("RUNNING").then_some(())))?;
    let said = cell.ctr(&["tasks", "exec", "--exec-id", "e", &id, "echo", "alive"])?;
    let images = cell.ok(&["images", "ls", "-q"])?;
    cell.remove(&id)?;
    same(said.ok()?.as_str(), "alive\n")?;
    has(&images, IMAGE)
}

fn away(cell: &mut Cell) -> Result<()> {
    if cell.choice().daemon == Kind::Newer {
        return Err(Skipped("containerd 2 removes tasks that ended while it was away").into());
    }
    let id = cell.background(&[], &["sh", "-c", "sleep 0.5; exit 8"])?;
    let table = cell.ok(&["tasks", "ls"])?;
    let pid = row(&table, &id)?.split_whitespace().nth(1).context("a pid")?.to_owned();
    cell.daemon().stop(Signal::KILL)?;
    wait::until_true("the exit", || !std::path::Path::new(&format!("/proc/{pid}")).exists())?;
    cell.daemon().launch_again()?;
    wait::until("the status", || {
        Ok(row(&cell.ok(&["tasks", "ls"])?, &id)?.contains("STOPPED").then_some(()))
    })?;
    let said = cell.ctr(&["tasks", "rm", &id])?;
    cell.ok(&["containers", "rm", &id])?;
    has(&exit_code_said(&said), "8")
}

/// Imports more than the root directory has room for, and goes on with less.
fn full_disk(cell: &mut Cell) -> Result<()> {
    let directory = cell.file("small");
    std::fs::create_dir_all(&directory)?;
    mount("tmpfs", &directory, "tmpfs", MountFlags::empty(), c"size=24m")?;
    let result = full_disk_on(cell, &directory);
    unmount(&directory, UnmountFlags::DETACH)?;
    let _ = std::fs::remove_dir_all("/run/gantry-small");
    result
}

fn full_disk_on(cell: &mut Cell, directory: &std::path::Path) -> Result<()> {
    let options = cell.daemon().options().clone();
    let small = Daemon::start(Options {
        root: directory.join("root"),
        state: "/run/gantry-small".into(),
        scratch: cell.file("small-scratch"),
        ..options
    })?;
    let import = |image: &image::Image, name: &str| {
        let archive = cell.file("small.tar");
        std::fs::write(&archive, image::oci_archive(image, name))?;
        let archive = archive.display().to_string();
        let words = ["images", "import", &archive];
        process::run(&mut cell.command_at(&small, cell.namespace(), &words))
    };
    // Random enough not to be compressed away.
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(40 << 20)
    .collect();
    let layer = Layer::default().file("noise", 0o644, noise);
    let large = image::Image::new(Flavour::Oci, "amd64", &[layer], &json!({}));
    let said = import(&large, "full.test/large:1")?.refused()?;
    has(&said.to_lowercase(), "no space left on device")?;
    // An ingest that a client drives is kept for it to go on with; then there is no room.
    if cell.choice().daemon != Kind::Gantryd || cell.choice().client == Client::Debian {
        return Ok(());
    }
    let layer = Layer::default().file("little", 0o644, "little\n");
    let little = image::Image::new(Flavour::Oci, "amd64", &[layer], &json!({}));
    import(&little, "full.test/little:1")?.ok().map(drop)
}
