//! How often a daemon waits for the disk: what strace counts while an operation is repeated.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use integration::{cell::Cell, programs, wait};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

use super::client::{Client, Kind};
use crate::{runtime, side, table::Table};

/// What the rows begin with.
pub(crate) const ROW: &str = "waits for the disk";

/// The system calls that wait until something is on disk.
const CALLS: &str = "trace=fsync,fdatasync,syncfs,sync,msync,sync_file_range";

/// How often each operation is done.
const TIMES: usize = 20;

/// What a daemon does after the answer counts as well, so it gets time to do it.
const REST: Duration = Duration::from_secs(2);

/// Adds the rows of one side.
pub(crate) fn count(cell: &Cell, runtime: &Runtime, table: &mut Table) -> Result<()> {
    let client = runtime.block_on(Client::connect(&cell.running_daemon().address()))?;
    for operation in Operation::ALL {
        let tracer = Tracer::attach(cell)?;
        for time in 0..TIMES {
            runtime.block_on(operation.run(&client, time))?;
        }
        thread::sleep(REST);
        let each = tracer.calls()? / TIMES as f64;
        table.add(&format!("{ROW}: {}", operation.name()), "each", side(cell), each);
    }
    runtime.block_on(async {
        for time in 0..TIMES {
            client.delete_container(&container(time)).await?;
            client.delete_image(NUMBER + time).await?;
            client.remove(&layer(time)).await?;
        }
        Ok(())
    })
}

#[derive(Clone, Copy)]
enum Operation {
    CreateContainer,
    CreateImage,
    WriteBlob,
    Prepare,
    Commit,
}

impl Operation {
    const ALL: [Self; 5] =
        [Self::CreateContainer, Self::CreateImage, Self::WriteBlob, Self::Prepare, Self::Commit];

    fn name(self) -> &'static str {
        match self {
            Self::CreateContainer => "create a container",
            Self::CreateImage => "create an image",
            Self::WriteBlob => "write a blob of 1 MiB",
            Self::Prepare => "prepare a snapshot",
            Self::Commit => "commit a snapshot",
        }
    }

    async fn run(self, client: &Client, time: usize) -> Result<()> {
        match self {
            Self::CreateContainer => client.create_container(&container(time)).await,
            Self::CreateImage => client.create(Kind::Images, NUMBER + time).await,
            Self::WriteBlob => client.ingest(&format!("counted {time}"), 1).await.map(drop),
            Self::Prepare => client.prepare(&active(time), "").await,
            Self::Commit => client.commit(&active(time), &layer(time)).await,
        }
    }
}

/// The first number of an image; those of other rows are smaller.
const NUMBER: usize = 1_000_000;

fn container(time: usize) -> String {
    format!("counted{time}")
}

fn active(time: usize) -> String {
    format!("counted-active{time}")
}

fn layer(time: usize) -> String {
    format!("counted{time}")
}

/// A strace that counts the calls of a daemon.
struct Tracer {
    child: Child,
    counts: PathBuf,
}

impl Tracer {
    fn attach(cell: &Cell) -> Result<Self> {
        let pid = cell.running_daemon().id();
        let counts = cell.file("syncs");
        let child = Command::new(programs::debian("strace")?)
            .args(["-f", "-c", "-e", CALLS, "-p", &pid.to_string(), "-o"])
            .arg(&counts)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start strace")?;
        let tracer = Self { child, counts };
        wait::until_true("strace at every thread", || is_traced(pid))?;
        Ok(tracer)
    }

    /// Detaches, and gives what was counted.
    fn calls(mut self) -> Result<f64> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        self.child.wait()?;
        runtime::counted(&self.counts).map(|(calls, _)| calls)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Ended already, unless something failed before; a tracee goes on without its tracer.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether every thread of a process has a tracer.
fn is_traced(pid: u32) -> bool {
    let traced = |task: &Path| {
        let status = fs::read_to_string(task.join("status")).unwrap_or_default();
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_none_or(|tracer| tracer.trim() != "0")
    };
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().all(|task| traced(&task.path()))
}
