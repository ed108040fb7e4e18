//! The daemon's own life: restarts, a full disk.

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, Client, IMAGE},
    daemon::{Daemon, Kind, Options},
    image::{self, Flavour, Layer},
    process, wait,
};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, kill_process},
};
use serde_json::json;

use super::{Case, Skipped, events::subscribe, exit_code_said, has, row, same};

pub(crate) const CASES: &[Case] = &[
    Case { name: "daemon_restart", run: |cell| restart(cell, Signal::TERM) },
    Case { name: "daemon_killed", run: |cell| restart(cell, Signal::KILL) },
    Case { name: "daemon_away_at_exit", run: away },
    Case { name: "daemon_killed_at_exec_exits", run: killed_at_exec_exits },
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

/// How many processes end while the daemon is killed.
const EXECS: usize = 12;

/// Whoever listens to the daemon that is killed and to the next one hears of every exit. The shim
/// offers them one by one, so no more than one can be told by both.
fn killed_at_exec_exits(cell: &mut Cell) -> Result<()> {
    if cell.choice().daemon != Kind::Gantryd {
        return Err(Skipped("containerd does not keep what it has told").into());
    }
    let id = cell.background(&[], &["sh", "-c", "mkfifo /go; exec sleep 100"])?;
    let table = cell.ok(&["tasks", "ls"])?;
    let init = row(&table, &id)?.split_whitespace().nth(1).context("a pid")?.to_owned();
    let shim = parent(init.parse()?)?;
    // A client that detaches would leave its fifos.
    let log = format!("file://{}", cell.file("exec.log").display());
    for i in 0..EXECS {
        let exec = format!("exec-{i}");
        let flags = ["tasks", "exec", "-d", "--log-uri", &log, "--exec-id", &exec];
        cell.ok(&[&flags[..], &[&id, "sh", "-c", "read x < /go"]].concat())?;
    }
    let filters = ["topic==\"/tasks/exit\"", "topic==\"/namespaces/update\""];
    let mut before = subscribe(cell, &filters)?;
    // All readers see the end of the one who writes nothing.
    cell.ok(&["tasks", "exec", "--exec-id", "go", &id, "sh", "-c", ": > /go"])?;
    before.wait_for("/tasks/exit")?;
    cell.daemon().stop(Signal::KILL)?;
    let first = before.finish()?.stdout;
    // Nobody must be told before there is somebody to tell.
    kill_process(shim, Signal::STOP)?;
    cell.daemon().launch_again()?;
    let after = subscribe(cell, &filters);
    kill_process(shim, Signal::CONT)?;
    let mut after = after?;
    let told = |seen: &str, exec: &str| seen.matches(&format!("\"id\":\"{exec}\"")).count();
    let execs: Vec<String> = (0..EXECS).map(|i| format!("exec-{i}")).collect();
    let counts = wait::until("all exits", || {
        let second = after.stdout()?;
        let counts: Vec<_> =
            execs.iter().map(|exec| (told(&first, exec), told(&second, exec))).collect();
        Ok(counts.iter().all(|(a, b)| a + b > 0).then_some(counts))
    })?;
    // One more, and it is certain that nothing is on its way still.
    cell.ok(&["tasks", "exec", "--exec-id", "last", &id, "true"])?;
    after.wait_for("\"id\":\"last\"")?;
    cell.remove(&id)?;
    ensure!(counts.iter().all(|(a, b)| *a <= 1 && *b <= 1), "told twice by one daemon: {counts:?}");
    let by_both = counts.iter().filter(|(a, b)| a + b > 1).count();
    ensure!(by_both <= 1, "{by_both} exits were told by both daemons: {counts:?}");
    Ok(())
}

/// Who started a process.
fn parent(pid: i32) -> Result<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("a parent")?;
    Pid::from_raw(line.trim().parse()?).context("a process")
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
