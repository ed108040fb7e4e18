//! Sandboxes: shims that are there for containers, whether or not there are any.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, Client, Shim},
    daemon::Kind,
};

use rustix::process::Signal;

use super::{Case, Skipped, has, has_not, row, same};

pub(crate) const CASES: &[Case] = &[
    Case { name: "sandboxes_run_ls_rm", run: whole },
    Case { name: "sandboxes_container", run: container },
    Case { name: "sandboxes_daemon_killed", run: daemon_killed },
];

fn needs_sandboxes(cell: &Cell) -> Result<()> {
    let choice = cell.choice();
    if choice.client == Client::Debian {
        return Err(Skipped("Debian's ctr has no `sandboxes`").into());
    }
    if choice.daemon == Kind::Containerd {
        return Err(Skipped("sandboxes are new in containerd 1.7").into());
    }
    Ok(())
}

/// Writes a sandbox's specification, and gives the file and a name for the sandbox.
fn config(cell: &Cell) -> Result<(String, String)> {
    let id = format!("box-{}", cell.id());
    let path = cell.file(&format!("{id}.json"));
    fs::write(&path, r#"{"ociVersion": "1.0.2"}"#)?;
    Ok((path.display().to_string(), id))
}

/// The command line of the shim that has a task's init for a child.
fn shim_of(cell: &Cell, id: &str) -> Result<String> {
    let table = cell.ok(&["tasks", "ls"])?;
    let pid = row(&table, id)?.split_whitespace().nth(1).context("a process ID")?.to_owned();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("PPid")?;
    Ok(fs::read_to_string(format!("/proc/{}/cmdline", parent.trim()))?.replace('\0', " "))
}

fn whole(cell: &mut Cell) -> Result<()> {
    needs_sandboxes(cell)?;
    let (path, id) = config(cell)?;
    if cell.choice().shim != Shim::Own {
        // containerd's shim has no sandbox API; nothing is left of the attempt.
        cell.refused(&["sandboxes", "run", &path, &id])?;
        return has_not(&cell.ok(&["sandboxes", "ls"])?, &id);
    }
    same(cell.ok(&["sandboxes", "run", &path, &id])?, format!("{id}\n"))?;
    let again = cell.refused(&["sandboxes", "create", &path, &id])?;
    let table = cell.ok(&["sandboxes", "ls"])?;
    let info = cell.ok(&["sandboxes", "info", &id])?;
    let none = cell.ok(&["sandboxes", "ls", "--filters", "id==nosuch"])?;
    same(cell.ok(&["sandboxes", "rm", &id])?, format!("{id}\n"))?;
    has(&again, "already exists")?;
    has(row(&table, &id)?, "io.containerd.runc.v2")?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    same(info["Sandboxer"].as_str(), Some("shim"))?;
    same(info["Spec"]["ociVersion"].as_str(), Some("1.0.2"))?;
    has_not(&none, &id)?;
    has_not(&cell.ok(&["sandboxes", "ls"])?, &id)?;
    has(&cell.refused(&["sandboxes", "rm", &id])?, "not found")
}

fn container(cell: &mut Cell) -> Result<()> {
    needs_sandboxes(cell)?;
    if cell.choice().shim != Shim::Own {
        return Err(Skipped("containerd's shim has no sandbox API").into());
    }
    let (path, sandbox) = config(cell)?;
    cell.ok(&["sandboxes", "run", &path, &sandbox])?;
    let first = cell.background(&["--sandbox", &sandbox], &["sleep", "100"])?;
    let second = cell.background(&["--sandbox", &sandbox], &["sleep", "100"])?;
    let alone = cell.background(&[], &["sleep", "100"])?;
    let shims = [&first, &second, &alone].map(|id| shim_of(cell, id));
    cell.remove(&alone)?;
    cell.remove(&first)?;
    // The shim stays: for the other, and for the sandbox.
    let said = cell.ok(&["tasks", "exec", "--exec-id", "e", &second, "echo", "it"])?;
    // What is in the sandbox is stopped with it; only the task that is left keeps it.
    let refused = cell.refused(&["sandboxes", "rm", &sandbox])?;
    cell.remove(&second)?;
    cell.ok(&["sandboxes", "rm", &sandbox])?;
    let [in_first, in_second, by_itself] = shims;
    has(&in_first?, &format!("-id {sandbox} "))?;
    has(&in_second?, &format!("-id {sandbox} "))?;
    has(&by_itself?, &format!("-id {alone} "))?;
    same(said.as_str(), "it\n")?;
    has(&refused, "still has container")
}

fn daemon_killed(cell: &mut Cell) -> Result<()> {
    needs_sandboxes(cell)?;
    if cell.choice().shim != Shim::Own {
        return Err(Skipped("containerd's shim has no sandbox API").into());
    }
    let (path, sandbox) = config(cell)?;
    cell.ok(&["sandboxes", "run", &path, &sandbox])?;
    let id = cell.background(&["--sandbox", &sandbox], &["sleep", "100"])?;
    cell.daemon().restart(Signal::KILL)?;
    let table = cell.ok(&["tasks", "ls"])?;
    let later = cell.background(&["--sandbox", &sandbox], &["sleep", "100"])?;
    let shim = shim_of(cell, &later)?;
    for id in [&id, &later] {
        cell.remove(id)?;
    }
    let boxes = cell.ok(&["sandboxes", "ls"])?;
    cell.ok(&["sandboxes", "rm", &sandbox])?;
    ensure!(row(&table, &id)?.contains("RUNNING"), "{table}");
    has(&shim, &format!("-id {sandbox} "))?;
    row(&boxes, &sandbox).map(drop)
}
