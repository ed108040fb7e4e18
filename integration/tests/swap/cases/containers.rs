//! Containers as records: create, list, info, label, remove.

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, Client, IMAGE},
    process, wait,
};
use rustix::process::{Pid, Signal, kill_process};

use super::{Case, Skipped, has, has_not, row, same};

pub(crate) const CASES: &[Case] = &[
    Case { name: "containers_create_ls_rm", run: create },
    Case { name: "containers_info", run: info },
    Case { name: "containers_label", run: label },
    Case { name: "containers_create_twice", run: twice },
    Case { name: "containers_rm_running", run: running },
    Case { name: "containers_checkpoint", run: checkpoint },
    Case { name: "containers_checkpoint_interrupted", run: interrupted },
    Case { name: "containers_exec_by_shim", run: exec_by_shim },
];

fn create(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.ok(&["containers", "create", "--label", "a=b", IMAGE, &id, "true"])?;
    let table = cell.ok(&["containers", "ls"])?;
    has(row(&table, &id)?, IMAGE)?;
    has(row(&table, &id)?, "io.containerd.runc.v2")?;
    has(&cell.ok(&["containers", "ls", "-q", "labels.a==b"])?, &id)?;
    has_not(&cell.ok(&["containers", "ls", "-q", "labels.a==c"])?, &id)?;
    cell.ok(&["containers", "rm", &id])?;
    has_not(&cell.ok(&["containers", "ls", "-q"])?, &id)?;
    has_not(&cell.ok(&["snapshots", "ls"])?, &format!("{id} "))
}

fn info(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.ok(&["containers", "create", "--env", "A=B", IMAGE, &id, "echo", "it"])?;
    let said = cell.ok(&["containers", "info", &id])?;
    let value: serde_json::Value = serde_json::from_str(&said)?;
    cell.ok(&["containers", "rm", &id])?;
    has(&value["Spec"]["process"]["args"].to_string(), r#"["echo","it"]"#)?;
    has(&value["Spec"]["process"]["env"].to_string(), "A=B")?;
    has(&value["Spec"]["process"]["env"].to_string(), "FROM_IMAGE=yes")?;
    has(&value["Image"].to_string(), IMAGE)?;
    has(&value["Runtime"]["Name"].to_string(), "io.containerd.runc.v2")
}

fn label(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.ok(&["containers", "create", IMAGE, &id, "true"])?;
    cell.ok(&["containers", "label", &id, "color=blue"])?;
    let listed = cell.ok(&["containers", "ls", "-q", "labels.color==blue"])?;
    cell.ok(&["containers", "rm", &id])?;
    has(&listed, &id)
}

fn twice(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.ok(&["containers", "create", IMAGE, &id, "true"])?;
    let said = cell.refused(&["containers", "create", IMAGE, &id, "true"])?;
    cell.ok(&["containers", "rm", &id])?;
    has(&said, &id)?;
    has(&said, "already exists")
}

fn running(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let said = cell.refused(&["containers", "rm", &id])?;
    cell.remove(&id)?;
    has(&said, "stopped")
}

/// Keeps a container without its processes, and makes another one of it.
fn checkpoint(cell: &mut Cell) -> Result<()> {
    if cell.choice().client != Client::Own {
        return Err(Skipped("containerd's ctr restores no container without its processes").into());
    }
    let id = cell.background(&[], &["sleep", "100"])?;
    let image = &format!("registry.test/kept:{id}");
    let script = "echo kept >/kept";
    cell.ok(&["tasks", "exec", "--exec-id", "e", &id, "sh", "-c", script])?;
    cell.ok(&["containers", "checkpoint", "--image", "--rw", &id, image])?;
    let twice = cell.refused(&["containers", "checkpoint", &id, image])?;
    let table = cell.ok(&["tasks", "ls"])?;
    let goes_on = has(row(&table, &id)?, "RUNNING");
    cell.remove(&id)?;
    goes_on?;
    has(&twice, "already exists")?;
    let again = cell.id();
    let live = cell.refused(&["containers", "restore", "--live", &again, image])?;
    has(&live, "which --live needs")?;
    cell.ok(&["containers", "restore", "--rw", &again, image])?;
    let said = cell.ctr(&["tasks", "exec", "--exec-id", "e", &again, "cat", "/kept"])?;
    cell.remove(&again)?;
    cell.ok(&["images", "rm", image])?;
    same(said.ok()?.as_str(), "kept\n")?;
    has(&cell.refused(&["containers", "restore", &again, image])?, "not found")?;
    has(&cell.refused(&["containers", "restore", &again, IMAGE])?, "checkpoint")
}

/// Somebody does not want to wait any more while a container is kept. It goes on.
fn interrupted(cell: &mut Cell) -> Result<()> {
    if cell.choice().client != Client::Own {
        return Err(Skipped("containerd's ctr leaves the task paused").into());
    }
    let id = cell.background(&[], &["sleep", "100"])?;
    // What takes a while to pack.
    let script = "dd if=/dev/urandom of=/much bs=1M count=64 2>/dev/null";
    cell.ok(&["tasks", "exec", "--exec-id", "e", &id, "sh", "-c", script])?;
    let image = &format!("registry.test/kept:{id}");
    let state = || -> Result<String> { Ok(row(&cell.ok(&["tasks", "ls"])?, &id)?.to_owned()) };
    let mut keeping = cell.spawn(&["containers", "checkpoint", "--rw", &id, image])?;
    let stopped = wait::until("the task to be paused", || {
        ensure!(keeping.ended()?.is_none(), "the image was made too fast");
        Ok(state()?.contains("PAUSED").then_some(()))
    });
    let pid = i32::try_from(keeping.id()).ok().and_then(Pid::from_raw).context("a process")?;
    let sent = kill_process(pid, Signal::INT);
    let ended = keeping.finish();
    let after = state();
    let images = cell.ok(&["images", "ls", "-q"]);
    cell.remove(&id)?;
    stopped?;
    sent?;
    same(ended?.code, 130)?;
    has(&after?, "RUNNING")?;
    has_not(&images?, image)
}

/// Runs a process by the shim, past the daemon.
fn exec_by_shim(cell: &mut Cell) -> Result<()> {
    if cell.choice().client != Client::Own {
        return Err(Skipped("containerd's ctr names container and process by one ID").into());
    }
    let id = cell.background(&[], &["sleep", "100"])?;
    let file = cell.file("process.json");
    let process = serde_json::json!({
        "args": ["sh", "-c", "read x; echo $x $E; pwd; echo err >&2; exit 7"],
        "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
    });
    std::fs::write(&file, process.to_string())?;
    let file = file.display().to_string();
    let exec = ["shim", "--id", &id, "exec", "--spec", &file];
    let flags = ["--attach", "--env", "E=e", "--cwd", "/tmp", "e1"];
    let words = [&exec[..], &flags].concat();
    let said = process::run_with_input(&mut cell.command(&words), b"words\n");
    let detached = cell.ok(&[&exec[..], &["e2"]].concat());
    // Its input is empty, so it ends at once.
    let removed = wait::until("the end of the exec", || {
        Ok(cell.ok(&["shim", "--id", &id, "delete", "e2"]).ok())
    });
    let bad = cell.refused(&["shim", "--id", &id, "exec", "--spec", "/dev/null", "e3"]);
    let stranger = ["shim", "--id", &id, "exec", "--spec", &file, "--stdout", "http://x", "e4"];
    let stranger = cell.refused(&stranger);
    cell.remove(&id)?;
    std::fs::remove_file(&file)?;
    let said = said?;
    same((said.code, said.stdout.as_str(), said.stderr.as_str()), (7, "words e\n/tmp\n", "err\n"))?;
    has(&detached?, "exec running with pid ")?;
    has(&removed?, "exit status 7")?;
    has(&bad?, "--spec /dev/null")?;
    // The daemon's shim may be containerd's, which says it otherwise.
    has(&stranger?, "scheme")
}
