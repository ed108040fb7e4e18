//! The runtimes that are compared, and how one command of theirs is measured.

use std::{
    fs::{self, File},
    io::{Read, Seek},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use integration::{programs, stage::Stage};
use sys::usage::{self, Usage};

/// Names more runtimes: `<name>=<path>`, with commas between them.
const MORE: &str = "GANTRY_BENCH_RUNTIMES";

const RUNTIMES: &[&str] = &["runc", "crun", "runc-rs"];

/// A program with runc's command line.
pub(crate) struct Runtime {
    pub(crate) name: String,
    program: PathBuf,
    state: PathBuf,
}

/// What one command took.
pub(crate) struct Took {
    /// From its start to its end, in milliseconds.
    pub(crate) wall_ms: f64,
    /// What it used, with those of its children that it waited for.
    pub(crate) usage: Usage,
}

impl Took {
    /// Time on a processor, in milliseconds.
    pub(crate) fn cpu_ms(&self) -> f64 {
        self.usage.cpu_us as f64 / 1000.0
    }
}

impl Runtime {
    /// Those that are there.
    pub(crate) fn all(stage: &Stage) -> Result<Vec<Self>> {
        let known = RUNTIMES.iter().filter_map(|name| {
            let program = programs::own(name).ok().or_else(|| programs::find(name))?;
            Some(((*name).to_owned(), program))
        });
        let mut found: Vec<(String, PathBuf)> = known.collect();
        for one in std::env::var(MORE).unwrap_or_default().split(',').filter(|one| !one.is_empty())
        {
            let (name, path) = one.split_once('=').with_context(|| format!("{MORE}: {one:?}"))?;
            found.push((name.to_owned(), path.into()));
        }
        // Where a runtime keeps its records is memory on a real machine, too.
        let root = Path::new("/run/bench").join(stage.directory().file_name().unwrap_or_default());
        let runtimes = found.into_iter().map(|(name, program)| {
            let state = root.join(&name);
            Self { name, program, state }
        });
        Ok(runtimes.collect())
    }

    /// A command of this runtime's.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state).args(words);
        command
    }

    /// The same, with the most memory that it takes written into `file`.
    pub(crate) fn weighed(&self, words: &[&str], file: &Path) -> Result<Command> {
        let mut command = Command::new(programs::own("probe")?);
        command.arg("peak").arg(file).arg(&self.program).arg("--root").arg(&self.state).args(words);
        Ok(command)
    }

    /// The same, under strace, which counts into `file`.
    pub(crate) fn traced(&self, words: &[&str], file: &Path) -> Command {
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-o"]).arg(file).arg(&self.program);
        command.arg("--root").arg(&self.state).args(words);
        command
    }
}

/// Runs `command`, which must succeed.
pub(crate) fn run(command: &mut Command) -> Result<Took> {
    let mut complaints: File = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(complaints.try_clone()?);
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("start {command:?}"))?;
    let (status, usage) = usage::wait(child)?;
    let wall_ms = start.elapsed().as_secs_f64() * 1000.0;
    if !status.success() {
        let mut text = String::new();
        complaints.rewind()?;
        complaints.read_to_string(&mut text)?;
        bail!("{command:?}: {status}: {text}");
    }
    Ok(Took { wall_ms, usage })
}

/// The system calls and the forks that strace has counted.
pub(crate) fn counted(file: &Path) -> Result<(f64, f64)> {
    const FORKS: [&str; 4] = ["clone", "clone3", "fork", "vfork"];
    let (mut calls, mut forks) = (0.0, 0.0);
    for line in fs::read_to_string(file)?.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(count), Some(name)) = (fields.get(3), fields.last()) else { continue };
        let Ok(count) = count.parse::<f64>() else { continue };
        if *name == "total" {
            calls = count;
        } else if FORKS.contains(name) {
            forks += count;
        }
    }
    Ok((calls, forks))
}
