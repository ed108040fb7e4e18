//! Tasks: list, start, exec, kill, pause, resume, ps, metrics, remove.

use std::process::{Command, Stdio};

use anyhow::Result;
use integration::{
    cell::{Cell, Client, IMAGE, Runtime},
    process, wait,
};

use super::{Case, Skipped, exit_code_said, has, has_not, row, same};

pub(crate) const CASES: &[Case] = &[
    Case { name: "tasks_start", run: start },
    Case { name: "tasks_exec", run: exec },
    Case { name: "tasks_exec_stdin", run: exec_stdin },
    Case { name: "tasks_exec_user_cwd", run: exec_user },
    Case { name: "tasks_exec_twice_same_id", run: exec_twice },
    Case { name: "tasks_kill_signal", run: kill },
    Case { name: "tasks_kill_exec", run: kill_exec },
    Case { name: "tasks_pause_resume", run: pause },
    Case { name: "tasks_ps", run: ps },
    Case { name: "tasks_metrics", run: metrics },
    Case { name: "tasks_rm_running", run: remove_running },
    Case { name: "tasks_rm_exit_code", run: remove_exit_code },
    Case { name: "tasks_restart", run: restart },
    Case { name: "tasks_many", run: many },
    Case { name: "tasks_checkpoint", run: checkpoint },
];

fn status(cell: &Cell, id: &str) -> Result<String> {
    let table = cell.ok(&["tasks", "ls"])?;
    Ok(row(&table, id)?.split_whitespace().nth(2).unwrap_or_default().to_owned())
}

fn wait_for_status(cell: &Cell, id: &str, wanted: &str) -> Result<()> {
    wait::until(wanted, || Ok((status(cell, id)? == wanted).then_some(())))
}

/// Starts an exec in the background, with fifos where the case can remove them: no client comes
/// back for those of a detached exec.
fn detached_exec(cell: &Cell, exec_id: &str, id: &str) -> Result<()> {
    let fifos = cell.file("fifos").display().to_string();
    let words = ["tasks", "exec", "-d", "--fifo-dir", &fifos, "--exec-id", exec_id, id];
    cell.ok(&[&words[..], &["sleep", "100"]].concat()).map(drop)
}

/// Keeps a task as an image, and makes another one of it.
fn checkpoint(cell: &mut Cell) -> Result<()> {
    if cell.choice().runtime == Runtime::Crun {
        return Err(Skipped("Debian's crun has criu as a library only").into());
    }
    let check = Command::new("criu").arg("check").stdout(Stdio::null()).output();
    if !check.is_ok_and(|said| said.status.success()) {
        return Err(Skipped(NO_CRIU).into());
    }
    let made = checkpoint_and_restore(cell);
    // What criu keeps of the kernel's features.
    let _ = std::fs::remove_file("/run/criu.kdat");
    made
}

/// Why checkpoints are skipped. Debian's criu 3.17 gives up on kernels since 6.12 ("Unexpected rt
/// vDSO area bounds"): there one in `PATH` that is new enough makes the case run.
const NO_CRIU: &str = "no criu in PATH works on this kernel, as `criu check` says";

fn checkpoint_and_restore(cell: &Cell) -> Result<()> {
    if cell.choice().client == Client::Own {
        // Of another container: containerd 1.6 refuses a specification that it has kept already.
        let id = cell.background(&[], &["sleep", "100"])?;
        let said = cell.ok(&["tasks", "checkpoint", "--exit", &id])?;
        let images = cell.ok(&["images", "ls", "-q"])?;
        cell.remove(&id)?;
        cell.ok(&["images", "rm", said.trim()])?;
        has(&images, said.trim())?;
    }
    let id = cell.background(&[], &["sleep", "100"])?;
    let image = &format!("registry.test/checkpoint:{id}");
    cell.ok(&["containers", "checkpoint", "--task", &id, image])?;
    let table = cell.ok(&["tasks", "ls"])?;
    let goes_on = has(row(&table, &id)?, "RUNNING");
    cell.remove(&id)?;
    goes_on?;
    let again = cell.id();
    let _attached = cell.spawn(&["containers", "restore", "--live", &again, image])?;
    wait::until("the task", || {
        let table = cell.ok(&["tasks", "ls"])?;
        Ok(row(&table, &again).is_ok_and(|row| row.contains("RUNNING")).then_some(()))
    })?;
    let said = cell.ctr(&["tasks", "exec", "--exec-id", "e", &again, "echo", "alive"])?;
    cell.remove(&again)?;
    cell.ok(&["images", "rm", image])?;
    same(said.ok()?.as_str(), "alive\n")
}

fn start(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.ok(&["containers", "create", IMAGE, &id, "expr", "0"])?;
    let said = cell.ctr(&["tasks", "start", &id])?;
    cell.ok(&["containers", "rm", &id])?;
    same((said.code, said.stdout.as_str()), (1, "0\n"))
}

fn exec(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let script = "echo out; echo err >&2; exit 3";
    let said = cell.ctr(&["tasks", "exec", "--exec-id", "e", &id, "sh", "-c", script])?;
    let again = cell.ctr(&["tasks", "exec", "--exec-id", "e", &id, "echo", "again"])?;
    cell.remove(&id)?;
    same((said.code, said.stdout.as_str(), said.stderr.as_str()), (3, "out\n", "err\n"))?;
    same(again.ok()?.as_str(), "again\n")
}

fn exec_stdin(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let words = ["tasks", "exec", "--exec-id", "e", &id, "wc", "-c"];
    let said = process::run_with_input(&mut cell.command(&words), &[b'x'; 100_000]);
    cell.remove(&id)?;
    same(said?.ok()?.trim(), "100000")
}

fn exec_user(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let words = ["tasks", "exec", "--exec-id", "e", "--user", "1000", "--cwd", "/tmp", &id];
    let said = cell.ctr(&[&words[..], &["sh", "-c", "id -u; pwd"]].concat());
    cell.remove(&id)?;
    same(said?.ok()?.as_str(), "1000\n/tmp\n")
}

fn exec_twice(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    detached_exec(cell, "e", &id)?;
    let said = cell.ctr(&["tasks", "exec", "--exec-id", "e", &id, "true"])?;
    cell.remove(&id)?;
    has(&said.refused()?, "already exists")
}

fn kill(cell: &mut Cell) -> Result<()> {
    let script = "trap 'exit 12' USR1; echo ready; while :; do sleep 0.1; done";
    let id = cell.id();
    let words = cell.run_words(&["--rm"], &id, &["sh", "-c", script]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut running = cell.spawn(&words)?;
    running.wait_for("ready")?;
    cell.ok(&["tasks", "kill", "-s", "SIGUSR1", &id])?;
    same(running.finish()?.code, 12)
}

fn kill_exec(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let script = "echo ready; exec sleep 100";
    let words = ["tasks", "exec", "--exec-id", "e", &id, "sh", "-c", script];
    let mut running = cell.spawn(&words)?;
    running.wait_for("ready")?;
    cell.ok(&["tasks", "kill", "-s", "SIGKILL", "--exec-id", "e", &id])?;
    let ended = running.finish();
    let still = status(cell, &id)?;
    cell.remove(&id)?;
    same((ended?.code, still.as_str()), (137, "RUNNING"))
}

fn pause(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    cell.ok(&["tasks", "pause", &id])?;
    let paused = status(cell, &id)?;
    cell.ok(&["tasks", "resume", &id])?;
    let resumed = status(cell, &id)?;
    cell.remove(&id)?;
    same((paused.as_str(), resumed.as_str()), ("PAUSED", "RUNNING"))
}

fn ps(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    detached_exec(cell, "second", &id)?;
    let table = cell.ok(&["tasks", "ps", &id])?;
    cell.remove(&id)?;
    same(table.lines().count(), 3)?;
    has(&table, "PID")?;
    has(&table, "second")
}

fn metrics(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let said = cell.ok(&["tasks", "metrics", &id]);
    cell.remove(&id)?;
    let said = said?;
    has(&said, &id)?;
    has(&said, "memory.usage_in_bytes")?;
    has(&said, "cpuacct.usage")
}

fn remove_running(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let refused = cell.refused(&["tasks", "rm", &id])?;
    cell.ok(&["tasks", "rm", "-f", &id])?;
    has_not(&cell.ok(&["tasks", "ls", "-q"])?, &id)?;
    cell.ok(&["containers", "rm", &id])?;
    has(&refused, "delet")
}

fn remove_exit_code(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sh", "-c", "exit 6"])?;
    wait_for_status(cell, &id, "STOPPED")?;
    let said = cell.ctr(&["tasks", "rm", &id])?;
    cell.ok(&["containers", "rm", &id])?;
    has(&exit_code_said(&said), "6")
}

fn restart(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sh", "-c", "echo x >> /count"])?;
    for _ in 0..2 {
        wait_for_status(cell, &id, "STOPPED")?;
        cell.ok(&["tasks", "rm", &id])?;
        cell.ok(&["tasks", "start", "-d", &id])?;
    }
    wait_for_status(cell, &id, "STOPPED")?;
    cell.remove(&id)
}

fn many(cell: &mut Cell) -> Result<()> {
    let ids: Vec<String> = std::iter::repeat_with(|| cell.id()).take(8).collect();
    let mut running = Vec::new();
    for id in &ids {
        let words = cell.run_words(&["--rm"], id, &["sh", "-c", "echo $$ $HOSTNAME; exit 2"]);
        running.push(cell.spawn(&words.iter().map(String::as_str).collect::<Vec<_>>())?);
    }
    for one in running {
        same(one.finish()?.code, 2)?;
    }
    Ok(())
}
