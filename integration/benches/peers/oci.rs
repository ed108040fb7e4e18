//! The runtimes alone, driven as a shim drives them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use integration::{process, programs, stage::Stage, wait};
use serde_json::{Value, json};

use crate::{
    Options,
    runtime::{self, Runtime, Took},
    table::Table,
};

/// How many containers the row about many starts, and how many at a time.
const MANY: usize = 200;
const AT_A_TIME: usize = 8;

/// How often the row about many is measured: it takes seconds.
const ROUNDS_OF_MANY: usize = 2;

/// How many runs make one round: they are short, and what counts is the best.
const RUNS: usize = 10;

/// The profile that containerd and docker give to a container by default.
const PROFILE: &str = "../runc-rs/tests/data/seccomp/containerd.json";

/// Measures `run` of an empty program, and each step of a container's life.
pub(crate) fn measure(options: &Options, stage: &Stage, table: &mut Table) -> Result<()> {
    let runtimes = Runtime::all(stage)?;
    for (row, seccomp) in [("OCI run", false), ("OCI run with seccomp", true)] {
        if options.wants(row) {
            let bundle = Bundle::new(stage, row, seccomp, &["/bin/true"])?;
            runs(row, options.rounds, (&runtimes, &bundle), table)?;
            if !seccomp {
                floor(row, options.rounds, &bundle, table)?;
            }
        }
    }
    if options.wants("OCI steps") {
        let bundle = Bundle::new(stage, "OCI steps", false, &["/bin/sleep", "1000"])?;
        for round in 0..options.rounds {
            for runtime in &runtimes {
                steps(runtime, &bundle, round, table)?;
            }
        }
        for runtime in &runtimes {
            peaks(runtime, &bundle, table)?;
        }
    }
    let row = "OCI 200 runs, 8 at a time";
    if options.wants(row) {
        let bundle = Bundle::new(stage, row, false, &["/bin/true"])?;
        for round in 0..options.rounds.min(ROUNDS_OF_MANY) {
            for runtime in &runtimes {
                table.add(row, "ms", &runtime.name, many(runtime, &bundle, round)?);
            }
        }
    }
    Ok(())
}

/// `run`, from its start until the container is gone.
fn runs(
    row: &str,
    rounds: usize,
    (runtimes, bundle): (&[Runtime], &Bundle),
    table: &mut Table,
) -> Result<()> {
    for round in 0..rounds {
        for runtime in runtimes {
            for run in 0..RUNS {
                let id = format!("bench-{}-{round}-{run}", runtime.name);
                let words = ["run", "--bundle", bundle.text(), &id];
                add(row, &runtime.name, &runtime::run(&mut runtime.command(&words))?, table);
            }
        }
    }
    for runtime in runtimes {
        let file = bundle.0.join("strace");
        let id = format!("bench-{}-traced", runtime.name);
        let words = ["run", "--bundle", bundle.text(), &id];
        runtime::run(&mut runtime.traced(&words, &file))?;
        let (calls, forks) = runtime::counted(&file)?;
        let id = format!("bench-{}-weighed", runtime.name);
        let words = ["run", "--bundle", bundle.text(), &id];
        table.add(
            &format!("{row}, peak RSS"),
            "KiB",
            &runtime.name,
            peak(runtime, &words, bundle)?,
        );
        table.add(&format!("{row}, system calls"), "each", &runtime.name, calls);
        table.add(&format!("{row}, forks"), "each", &runtime.name, forks);
    }
    Ok(())
}

/// The kernel's part of a run.
fn floor(row: &str, rounds: usize, bundle: &Bundle, table: &mut Table) -> Result<()> {
    let Ok(program) = programs::own("floor") else { return Ok(()) };
    for _ in 0..rounds * RUNS {
        let mut command = Command::new(&program);
        command.arg(bundle.0.join("rootfs")).arg("/bin/true");
        add(row, "floor", &runtime::run(&mut command)?, table);
    }
    Ok(())
}

/// A container's life in single commands.
fn steps(runtime: &Runtime, bundle: &Bundle, round: usize, table: &mut Table) -> Result<()> {
    let id = format!("bench-{}-steps-{round}", runtime.name);
    let pid_file = bundle.0.join("pid");
    let pid_path = pid_file.to_str().context("temporary directories have plain names")?;
    let words = ["create", "--bundle", bundle.text(), "--pid-file", pid_path, &id];
    let mut created = runtime::run(&mut runtime.command(&words))?;
    let pid: u32 = fs::read_to_string(&pid_file)?.trim().parse()?;
    // The init is not waited for by the one who made it, so its time is read from itself.
    created.usage.cpu_us += nanoseconds_run(pid)? / 1000;
    add("OCI steps: create", &runtime.name, &created, table);
    let pss = crate::memory::kib(pid, "smaps_rollup", "Pss:")?;
    table.add("OCI steps: created container, PSS", "KiB", &runtime.name, pss);
    let mut step = |name: &str, words: &[&str]| -> Result<()> {
        let took = runtime::run(&mut runtime.command(words))?;
        add(&format!("OCI steps: {name}"), &runtime.name, &took, table);
        Ok(())
    };
    step("state", &["state", &id])?;
    step("start", &["start", &id])?;
    step("exec", &["exec", &id, "/bin/true"])?;
    step("kill", &["kill", &id, "KILL"])?;
    wait::until("the container's end", || {
        Ok((!Path::new(&format!("/proc/{pid}")).exists()).then_some(()))
    })?;
    step("delete", &["delete", &id])
}

/// How much memory each step takes.
fn peaks(runtime: &Runtime, bundle: &Bundle, table: &mut Table) -> Result<()> {
    let id = format!("bench-{}-weighed", runtime.name);
    let steps: [(&str, &[&str]); 6] = [
        ("create", &["create", "--bundle", bundle.text(), &id]),
        ("state", &["state", &id]),
        ("start", &["start", &id]),
        ("exec", &["exec", &id, "/bin/true"]),
        ("kill", &["kill", &id, "KILL"]),
        ("delete", &["delete", "--force", &id]),
    ];
    for (step, words) in steps {
        let peak = peak(runtime, words, bundle)?;
        table.add(&format!("OCI steps: {step}, peak RSS"), "KiB", &runtime.name, peak);
    }
    Ok(())
}

/// The most memory that a command or one of its children has resident, in KiB.
fn peak(runtime: &Runtime, words: &[&str], bundle: &Bundle) -> Result<f64> {
    let file = bundle.0.join("peak");
    runtime::run(&mut runtime.weighed(words, &file)?)?;
    Ok(fs::read_to_string(file)?.trim().parse()?)
}

/// How long a process was on a processor.
fn nanoseconds_run(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// Many containers by several callers; gives the milliseconds for all.
fn many(runtime: &Runtime, bundle: &Bundle, round: usize) -> Result<f64> {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let caller = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= MANY {
                return Ok(());
            }
            let id = format!("bench-{}-many-{round}-{number}", runtime.name);
            runtime::run(&mut runtime.command(&["run", "--bundle", bundle.text(), &id]))?;
        }
    };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(caller)).collect();
        callers.into_iter().try_for_each(|caller| match caller.join() {
            Ok(result) => result,
            Err(_) => anyhow::bail!("a caller panicked"),
        })
    })?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

fn add(row: &str, side: &str, took: &Took, table: &mut Table) {
    table.add(row, "ms", side, took.wall_ms);
    table.add(&format!("{row}, CPU"), "ms", side, took.cpu_ms());
    table.add(&format!("{row}, page faults"), "each", side, took.usage.faults as f64);
}

/// A bundle of `runc spec`'s document over busybox.
struct Bundle(PathBuf);

impl Bundle {
    fn new(stage: &Stage, name: &str, seccomp: bool, arguments: &[&str]) -> Result<Self> {
        let bundle = stage.directory().join(name.replace([' ', ','], "-"));
        let bin = bundle.join("rootfs/bin");
        fs::create_dir_all(&bin)?;
        fs::copy(programs::debian("busybox")?, bin.join("busybox"))?;
        for applet in ["true", "sleep"] {
            fs::hard_link(bin.join("busybox"), bin.join(applet))?;
        }
        let runc = programs::debian("runc")?;
        process::run(Command::new(runc).arg("spec").arg("--bundle").arg(&bundle))?.ok()?;
        let path = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&path)?)?;
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(arguments);
        if seccomp {
            let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join(PROFILE);
            spec["linux"]["seccomp"] = serde_json::from_slice(&fs::read(profile)?)?;
        }
        fs::write(path, spec.to_string())?;
        Ok(Self(bundle))
    }

    fn text(&self) -> &str {
        self.0.to_str().expect("temporary directories have plain names")
    }
}
