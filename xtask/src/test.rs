//! Every test, and the one line that sums them up.

use std::process::Command;

use anyhow::{Result, ensure};
use integration::sum::Sum;

use crate::{
    dist, needs,
    run::{cargo, must, needs_root, watch},
};

/// Runs all tests; with `cells`, only those end-to-end tests.
pub(crate) fn run(install: bool, cells: &[String], profile: dist::Profile) -> Result<()> {
    needs_root("tests mount, make cgroups and namespaces, and start containers")?;
    let mut missing = needs::satisfy(install);
    if cells.is_empty() {
        missing.extend(needs::kernel(install));
    }
    dist::run(profile)?;
    let mut sum = Sum::default();
    if cells.is_empty() {
        step(&mut sum, "units and crates against the kernel", &mut crates())?;
        step(&mut sum, "examples in the documentation", &mut test(&["--workspace", "--doc"]))?;
        let mut machines = test(&["--package", "integration", "--test", "vm"]);
        step(&mut sum, "cgroup v2, v1 and systemd, in virtual machines", &mut machines)?;
        let mut cuts = test(&["--package", "integration", "--test", "powercut"]);
        step(&mut sum, "the store after power cuts", &mut cuts)?;
        let mut meaning = test(&["--package", "integration", "--test", "meaning"]);
        step(&mut sum, "the same calls to containerd and to gantryd", &mut meaning)?;
        let mut peers = test(&["--package", "integration", "--test", "peers"]);
        step(&mut sum, "podman and dockerd on the runtime", &mut peers)?;
        let mut plugins = test(&["--package", "integration", "--test", "plugins"]);
        step(&mut sum, "parts of engines that are programs of their own", &mut plugins)?;
        let mut soak = test(&["--package", "integration", "--test", "soak"]);
        step(&mut sum, "the same again and again", &mut soak)?;
        let mut exhaustion = test(&["--package", "integration", "--test", "exhaustion"]);
        step(&mut sum, "something runs out", &mut exhaustion)?;
        let mut crash = test(&["--package", "integration", "--test", "crash", "--"]);
        crash.args(["--steps", "2", "--rounds", "6"]);
        step(&mut sum, "programs killed at steps of theirs", &mut crash)?;
    }
    let mut swap = test(&["--package", "integration", "--test", "swap", "--"]);
    for cell in cells {
        swap.args(["--cells", cell]);
    }
    step(&mut sum, "end to end", &mut swap)?;
    if !missing.is_empty() {
        println!("not installed, so some tests were skipped: {}", missing.join(" "));
    }
    println!("{} passed, {} failed, {} skipped", sum.passed, sum.failed, sum.skipped);
    ensure!(sum.failed == 0, "there were failures");
    Ok(())
}

/// What the bench's rows about runtimes start: the runtime, its floor, and what runs in containers.
const OF_RUNTIMES: [&str; 3] = ["runc-rs", "floor", "probe"];

/// Runs the bench over programs as they are released.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    needs_root("the bench starts containers")?;
    let missing = needs::satisfy(true);
    ensure!(missing.is_empty(), "not installed: {}", missing.join(" "));
    // The rows about runtimes alone need no other programs.
    let rows = rows(arguments);
    let runtimes = !rows.is_empty() && rows.iter().all(|row| row.starts_with("OCI"));
    dist::some(dist::RELEASE, |name| !runtimes || OF_RUNTIMES.contains(&name))?;
    // Its client works beside the daemons, so a slow one would be measured in their stead.
    let words = ["bench", "--quiet", "--profile", dist::QUICK, "--package", "integration"];
    let mut command = cargo(&words);
    must(
        command
            .args(["--bench", "peers", "--"])
            .args(arguments)
            .env("GANTRY_BIN", dist::directory()),
    )
}

/// Runs the soak for as long as it takes, over programs as they are released.
pub(crate) fn soak(cycles: usize, execs: usize) -> Result<()> {
    needs_root("the soak starts containers")?;
    needs::satisfy(true);
    dist::run(dist::RELEASE)?;
    let mut soak = test(&["--package", "integration", "--test", "soak", "--"]);
    soak.args(["--cycles", &cycles.to_string(), "--execs", &execs.to_string()]);
    must(&mut soak)
}

/// Which of the bench's arguments are parts of rows' names.
fn rows(arguments: &[String]) -> Vec<&str> {
    let mut words = arguments.iter();
    let mut rows = Vec::new();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rounds" | "--json" => drop(words.next()),
            flag if flag.starts_with("--") => {}
            row => rows.push(row),
        }
    }
    rows
}

fn crates() -> Command {
    test(&["--workspace", "--lib", "--bins", "--tests", "--exclude", "integration"])
}

fn test(words: &[&str]) -> Command {
    let mut command = cargo(&["test", "--quiet", "--no-fail-fast"]);
    command.args(words).env("GANTRY_BIN", dist::directory());
    command
}

/// Runs one kind of tests; a program that breaks off counts as a failure.
fn step(sum: &mut Sum, name: &str, command: &mut Command) -> Result<()> {
    println!("\ntest: {name}");
    let failed = sum.failed;
    let good = watch(command, |line| {
        sum.read(line);
    })?;
    if !good && sum.failed == failed {
        sum.failed += 1;
    }
    Ok(())
}
