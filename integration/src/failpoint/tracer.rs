//! The tracer: a process of its own for each program that is traced.
//!
//! It lets its program run, notes each step before it is taken, and at the one that the plan names
//! kills whom the plan names. Then it ends, and what it traced and did not kill runs on.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    io::{self, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, getppid, kill_process};
use sys::{
    spawn::CommandChild as _,
    trace::{self, Change, Follow},
};

use super::{
    call,
    plan::{Plan, Role, Victim, note},
};
use crate::stage;

/// The commands of a runtime, which name its steps.
const COMMANDS: &[&str] =
    &["create", "start", "exec", "kill", "delete", "pause", "resume", "state", "ps", "update"];

/// What a command that starts a shim is called. Its child, the shim, is followed; those of a shim
/// that serves are runtimes, and are not.
const SHIM_START: &str = "shim start";

/// Becomes the program that this one has the name of, after a tracer has hold of it if the plan
/// says so. Comes back only with an error.
///
/// # Errors
///
/// There is no such program, or no tracer to be had.
pub fn stand_in(name: &str, words: &[OsString]) -> Result<()> {
    let own = std::env::current_exe()?;
    let directory = own.parent().context("a directory")?;
    let role = if name.contains("shim") { Role::Shim } else { Role::Runtime };
    let is_command = |word: &&OsString| COMMANDS.iter().any(|it| **word == **it);
    let command = words.iter().find(is_command).cloned().unwrap_or_default();
    // Nobody is killed twice: what cleans up after the kill may take the same steps.
    let wanted = Plan::read(directory)?.is_some_and(|plan| plan.role == role)
        && !Plan::seen(directory).is_ok_and(|(_, fired)| fired);
    // Only `start` of a shim leaves somebody behind.
    if wanted && !(role == Role::Shim && command != "start") {
        let what = if role == Role::Shim { SHIM_START.into() } else { runtime_name(&command) };
        begin(&own, &what)?;
    }
    let program = directory.join(format!("real-{name}"));
    let error = Command::new(program).args(words).exec();
    Err(error).context("become the program")
}

fn runtime_name(command: &OsString) -> String {
    format!("runtime {}", command.to_string_lossy())
}

/// Starts a tracer of this process, which is no child of it, and waits until it has hold.
fn begin(own: &Path, what: &str) -> Result<()> {
    let mut child = Command::new(own)
        .arg0("failpoint")
        .args(["trace", &std::process::id().to_string(), what])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .current_dir("/")
        .new_session()
        .spawn()?;
    let mut answer = [0];
    let read = child.stdout.take().context("a pipe")?.read(&mut answer)?;
    child.wait()?;
    anyhow::ensure!(read == 1, "the tracer has ended");
    Ok(())
}

/// What [`begin`] starts: starts the tracer and ends, so that the tracer is an orphan.
///
/// # Errors
///
/// It cannot be started.
pub fn trace_parent(pid: &str, what: &str) -> Result<()> {
    let own = std::env::current_exe()?;
    Command::new(own).arg0("failpoint").args(["attach", pid, what]).spawn()?;
    Ok(())
}

/// Traces the process `pid` to the step of the plan or to its end; writes a byte to the standard
/// output when it has hold of it.
///
/// # Errors
///
/// There is no plan, or the process cannot be traced.
pub fn attach(pid: &str, what: &str) -> Result<()> {
    let pid: i32 = pid.parse()?;
    let own = std::env::current_exe()?;
    let directory = own.parent().context("a directory")?;
    let plan = Plan::read(directory)?.context("a plan")?;
    note(directory, "tracers", &std::process::id().to_string())?;
    let parent = parent_of(pid);
    let follow = match plan.role {
        Role::Engine => Follow::Threads,
        Role::Shim if what != SHIM_START => Follow::Nothing,
        Role::Shim | Role::Runtime => Follow::Children,
    };
    let mut held = HashSet::new();
    // Threads may start others while they are being seized.
    loop {
        let new: Vec<i32> = threads(pid).into_iter().filter(|it| !held.contains(it)).collect();
        if new.is_empty() {
            break;
        }
        for thread in new {
            held.insert(thread);
            match trace::seize(thread, follow) {
                // It had nothing to do any more.
                Err(error) if thread != pid && error.raw_os_error() == Some(libc::ESRCH) => {}
                result => result?,
            }
        }
    }
    io::stdout().write_all(b"+")?;
    io::stdout().flush()?;
    // Whoever waits for the end of this output need not wait for the tracer's.
    rustix::stdio::dup2_stdout(fs::File::open("/dev/null")?)?;
    let what = what.to_owned();
    let mut tracer = Tracer { plan, directory, main: pid, parent, what, known: held, count: 0 };
    tracer.run()
}

struct Tracer<'a> {
    plan: Plan,
    directory: &'a Path,
    main: i32,
    parent: Option<i32>,
    what: String,
    /// Those that were seen.
    known: HashSet<i32>,
    /// How often the step of the plan was seen.
    count: usize,
}

impl Tracer<'_> {
    fn run(&mut self) -> Result<()> {
        loop {
            let (pid, change) = match trace::wait() {
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
                result => result?,
            };
            if self.known.insert(pid) && self.plan.role == Role::Shim {
                // The shim itself, a child of the command that starts it. Its own children are
                // runtimes.
                let _ = trace::follow(pid, Follow::Nothing);
            }
            let mut signal = 0;
            match change {
                // What a runtime leaves behind is not followed to its end.
                Change::Gone if pid == self.main && self.plan.role == Role::Runtime => {
                    return Ok(());
                }
                Change::Gone | Change::Other => {}
                Change::Entry { number, arguments } => {
                    if self.enter(pid, number, arguments)? {
                        return Ok(());
                    }
                    let is_init = pid != self.main && self.plan.role == Role::Runtime;
                    if is_init && call::is_exec(number) {
                        // It becomes the container's program.
                        let _ = trace::detach(pid);
                        continue;
                    }
                }
                Change::Signal(its) => signal = its,
                Change::Stopped => {
                    let _ = trace::listen(pid);
                    continue;
                }
            }
            // It may have been killed meanwhile.
            let _ = trace::proceed(pid, signal);
        }
    }

    /// Notes a step; `true` when it was the one of the plan, and somebody was killed.
    fn enter(&mut self, pid: i32, number: u64, arguments: [u64; 6]) -> Result<bool> {
        let Some(step) = call::step(pid, number, arguments) else { return Ok(false) };
        let who = match self.plan.role {
            Role::Runtime if pid != self.main => ", init",
            Role::Shim if pid != self.main => ", serving",
            _ => "",
        };
        let step = format!("{}{who}: {step}", self.what);
        note(self.directory, "steps", &format!("step {step}"))?;
        let Some(wanted) = &self.plan.step else { return Ok(false) };
        if step != wanted.name {
            return Ok(false);
        }
        self.count += 1;
        if self.count != wanted.occurrence {
            return Ok(false);
        }
        for victim in self.victims(pid) {
            if let Some(victim) = Pid::from_raw(victim) {
                let _ = kill_process(victim, Signal::KILL);
            }
        }
        note(self.directory, "steps", "fired")?;
        Ok(true)
    }

    fn victims(&self, pid: i32) -> Vec<i32> {
        let engine = i32::try_from(self.plan.engine).unwrap_or(0);
        match self.plan.victim {
            Victim::Traced if self.plan.role == Role::Shim => vec![pid],
            Victim::Traced => vec![self.main],
            Victim::Stepping => vec![pid],
            Victim::Shim => self.parent.into_iter().collect(),
            Victim::Engine => vec![engine],
            Victim::All => {
                let own = i32::try_from(std::process::id()).unwrap_or(0);
                let test = i32::try_from(self.plan.test).unwrap_or(0);
                let outside = parent_of(test).and_then(Pid::from_raw);
                let all = outside.map(stage::descendants).unwrap_or_default();
                let all = all.into_iter().map(|pid| pid.as_raw_nonzero().get());
                // The test's commands are clients, which a power cut elsewhere does not end.
                let lives_on = |pid: i32| {
                    pid == own || pid == test || (pid != engine && parent_of(pid) == Some(test))
                };
                all.filter(|pid| !lives_on(*pid)).collect()
            }
        }
    }
}

fn threads(pid: i32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    if i32::try_from(std::process::id()) == Ok(pid) {
        return getppid().map(|parent| parent.as_raw_nonzero().get());
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}
