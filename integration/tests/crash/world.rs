//! The programs under test, with stand-ins between them, and what is armed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, Choice, IMAGE},
    failpoint::{Plan, Role, Step, Victim},
    image::{self, Flavour},
    leaks::Inventory,
    process::{Output, Running},
    stage::Stage,
    wait,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::check;

/// The one container's name: what a kill leaves must not stand in the way of the next.
pub(crate) const ID: &str = "crash";

/// The daemon with a container, and the directory in which stand-ins look for what to do.
pub(crate) struct World {
    pub(crate) cell: Cell,
    directory: PathBuf,
    attached: Option<Child>,
    before: Inventory,
    snapshots: String,
    snapshot_directories: usize,
}

impl World {
    /// Puts stand-ins before shim and runtime, and starts the daemon over them.
    pub(crate) fn start(choice: Choice, stage: &Stage) -> Result<Self> {
        let directory = stage.directory().join("failpoint");
        fs::create_dir(&directory)?;
        let stand_in = |program: &Path| -> Result<PathBuf> {
            let name = program.file_name().context("a name")?.to_string_lossy().into_owned();
            let place = directory.join(&name);
            fs::copy(env!("CARGO_BIN_EXE_failpoint"), &place)?;
            std::os::unix::fs::symlink(program, directory.join(format!("real-{name}")))?;
            Ok(place)
        };
        let (shim, runtime) = (stand_in(&choice.shim()?)?, stand_in(&choice.runtime()?)?);
        fs::copy(env!("CARGO_BIN_EXE_failpoint"), directory.join("failpoint"))?;
        let cell = Cell::with_programs(choice, stage, shim, runtime)?;
        cell.import(&image::busybox(Flavour::Oci)?, IMAGE)?;
        let before = Inventory::take(cell.namespace());
        let mut world = Self {
            cell,
            directory,
            attached: None,
            before,
            snapshots: String::new(),
            snapshot_directories: 0,
        };
        // The first container makes what all others find.
        world.run()?.ok()?;
        world.clean()?;
        world.before = Inventory::take(world.cell.namespace());
        world.snapshots = world.cell.ok(&["snapshots", "ls"])?;
        // Each has one, and the table a line above them.
        world.snapshot_directories = world.snapshots.lines().count().saturating_sub(1);
        world.wait_deleted()?;
        Ok(world)
    }

    /// `ctr run -d` of the container.
    pub(crate) fn run(&self) -> Result<Output> {
        self.spawn_run()?.finish()
    }

    /// The same, without waiting for its end.
    pub(crate) fn spawn_run(&self) -> Result<Running> {
        // Nobody comes back for the fifos of a client that has left, if the task ends by itself.
        let fifos = self.cell.file("fifos").display().to_string();
        let words = self.cell.run_words(&["-d", "--fifo-dir", &fifos], ID, &["sleep", "1000"]);
        self.cell.spawn(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Has `role` traced from now on, and `victim` killed at `step`.
    pub(crate) fn arm(&mut self, role: Role, step: Option<&Step>, victim: Victim) -> Result<()> {
        let engine = self.cell.running_daemon().id();
        let test = std::process::id();
        Plan { role, step: step.cloned(), victim, engine, test }.write(&self.directory)?;
        let pid = match role {
            Role::Engine => engine,
            // One that does not run yet is traced when it is started.
            Role::Shim => match self.shim() {
                Some(pid) => pid,
                None => return Ok(()),
            },
            Role::Runtime => return Ok(()),
        };
        let what = if role == Role::Engine { "engine" } else { "shim" };
        let mut tracer = Command::new(self.directory.join("failpoint"))
            .args(["attach", &pid.to_string(), what])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut answer = [0];
        let mut output = tracer.stdout.take().context("a pipe")?;
        let read = std::io::Read::read(&mut output, &mut answer)?;
        self.attached = Some(tracer);
        ensure!(read == 1, "the tracer has ended");
        Ok(())
    }

    /// Ends all tracing, and tells what was seen and whether somebody was killed.
    pub(crate) fn disarm(&mut self) -> Result<(Vec<Step>, bool)> {
        Plan::clear(&self.directory);
        for tracer in Plan::tracers(&self.directory) {
            let name = fs::read_link(format!("/proc/{tracer}/exe")).unwrap_or_default();
            if let (true, Some(pid)) = (name.starts_with(&self.directory), Pid::from_raw(tracer)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        if let Some(mut tracer) = self.attached.take() {
            let _ = tracer.kill();
            tracer.wait()?;
        }
        Plan::seen(&self.directory)
    }

    /// Whether somebody was killed.
    pub(crate) fn fired(&self) -> bool {
        Plan::seen(&self.directory).is_ok_and(|(_, fired)| fired)
    }

    /// The shim's process, if the container has one that runs.
    pub(crate) fn shim(&self) -> Option<u32> {
        let socket_or_pid = fs::read_to_string(self.bundle().join("shim.pid")).ok();
        let pid = socket_or_pid.and_then(|text| text.trim().parse::<u32>().ok());
        pid.or_else(|| self.shim_by_name()).filter(|pid| is_alive(*pid))
    }

    /// containerd's shim does not write its number down everywhere.
    fn shim_by_name(&self) -> Option<u32> {
        let outside = Stage::outside()?;
        let pids = integration::stage::descendants(outside);
        let mut pids = pids.into_iter().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
        pids.find(|pid| {
            let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = words.split('\0');
            let is_shim = words.next().is_some_and(|word| word.contains("containerd-shim"));
            let words: Vec<&str> = words.collect();
            is_shim && words.windows(2).any(|two| two == ["-id", ID]) && !words.contains(&"start")
        })
    }

    /// The bundle of the container, which need not exist.
    pub(crate) fn bundle(&self) -> PathBuf {
        let state = &self.cell.running_daemon().options().state;
        state.join("io.containerd.runtime.v2.task").join(self.cell.namespace()).join(ID)
    }

    /// Starts the daemon again if it was killed.
    pub(crate) fn revive(&mut self) -> Result<()> {
        if is_alive(self.cell.running_daemon().id()) {
            return Ok(());
        }
        // Its parent, this process, has to take note.
        self.cell.daemon().restart(Signal::KILL)
    }

    /// Removes the task and all that the client made for it. What is not there is removed already.
    pub(crate) fn clean(&self) -> Result<()> {
        for words in
            [&["tasks", "rm", "-f", ID][..], &["containers", "rm", ID], &["snapshots", "rm", ID]]
        {
            let output = self.cell.ctr(words)?;
            let text = output.stderr.to_lowercase();
            let is_gone = ["not found", "not exist", "no running task", "no such"];
            ensure!(
                output.code == 0 || is_gone.iter().any(|it| text.contains(it)),
                "ctr {} ended with {}: {}",
                words.join(" "),
                output.code,
                output.stderr
            );
        }
        Ok(())
    }

    /// Makes the best of what a failure left, so that the next case is not blamed for it.
    pub(crate) fn recover(&mut self) {
        let _ = self.disarm();
        let _ = self.revive();
        let _ = self.clean();
        let left = check::state(self).unwrap_or_default();
        for pid in left.processes.into_iter().chain(left.shim) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let root = Path::new("/run/containerd/runc").join(self.cell.namespace());
        let _ = Command::new(self.cell.runtime())
            .arg("--root")
            .arg(root)
            .args(["delete", "--force", ID])
            .output();
        let _ = self.clean();
        if self.wait_clean().is_err() {
            self.before = Inventory::take(self.cell.namespace());
        }
    }

    /// Waits until there is nothing that there was not before.
    pub(crate) fn wait_clean(&self) -> Result<()> {
        self.before.wait_restored(self.cell.namespace())?;
        let snapshots = self.cell.ok(&["snapshots", "ls"])?;
        ensure!(snapshots == self.snapshots, "snapshots are left behind: {snapshots}");
        let containers = self.cell.ok(&["containers", "ls", "-q"])?;
        ensure!(containers.trim().is_empty(), "containers are left behind: {containers}");
        self.wait_deleted()
    }

    /// Waits until the directories of removed snapshots are deleted, which the daemon does after its answer:
    /// what it does for one operation must not be taken for steps of the next.
    fn wait_deleted(&self) -> Result<()> {
        let (mut now, wanted) = (0, self.snapshot_directories);
        wait::until_true("the removal of snapshots' directories", || {
            now = self.count_snapshot_directories();
            now == wanted
        })
        .with_context(|| format!("{now} directories instead of {wanted}"))
    }

    /// Restarts the daemon, and looks for what is left of removed snapshots.
    pub(crate) fn last_look(&mut self) -> Result<()> {
        self.cell.daemon().restart(Signal::TERM)?;
        self.wait_deleted()
    }

    fn count_snapshot_directories(&self) -> usize {
        let root = self.cell.running_daemon().options().root.join("snapshots");
        let snapshotters = fs::read_dir(root).into_iter().flatten().flatten();
        let snapshots = snapshotters.map(|folder| folder.path().join("snapshots"));
        snapshots.map(|it| fs::read_dir(it).into_iter().flatten().count()).sum()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.disarm();
    }
}

/// Whether the process runs: it exists and has not ended.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}
