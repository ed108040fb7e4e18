//! Every test, and the one line that sums them up.

use std::process::Command;

use crate::{
    dist, needs,
    run::{cargo, must, needs_root},
    steps::{Steps, Tries},
};
use anyhow::{Result, ensure};

/// Runs all tests; with `cells`, only those end-to-end tests.
pub(crate) fn run(install: bool, cells: &[String], profile: dist::Profile) -> Result<()> {
    needs_root("tests mount, make cgroups and namespaces, and start containers")?;
    let mut missing = needs::satisfy(install);
    if cells.is_empty() {
        missing.extend(needs::kernel(install));
    }
    dist::run(profile)?;
    let mut steps = Steps::default();
    if cells.is_empty() {
        steps.run("units and crates against the kernel", Tries::TwiceByName, crates)?;
        let documentation = || test(&["--workspace", "--doc"]);
        steps.run("examples in the documentation", Tries::Twice, documentation)?;
        for (name, program, arguments) in PROGRAMS {
            steps.run(name, Tries::Twice, || end_to_end(program, arguments))?;
        }
    }
    let cells: Vec<&str> = cells.iter().flat_map(|cell| ["--cells", cell]).collect();
    steps.run("end to end", Tries::Once, || end_to_end("swap", &cells))?;
    if !missing.is_empty() {
        println!("not installed, so some tests were skipped: {}", missing.join(" "));
    }
    ensure!(steps.end(), "there were failures");
    Ok(())
}

/// The test programs that are whole systems, but for the one with its own choice of cells: what is said
/// of each, its name, and its arguments.
const PROGRAMS: [(&str, &str, &[&str]); 8] = [
    ("cgroup v2, v1 and systemd, in virtual machines", "vm", &[]),
    ("the store after power cuts", "powercut", &[]),
    ("the same calls to containerd and to gantryd", "meaning", &[]),
    ("podman and dockerd on the runtime", "peers", &[]),
    ("parts of engines that are programs of their own", "plugins", &[]),
    ("the same again and again", "soak", &[]),
    ("something runs out", "exhaustion", &[]),
    ("programs killed at steps of theirs", "crash", &["--steps", "2", "--rounds", "6"]),
];

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

fn end_to_end(program: &str, arguments: &[&str]) -> Command {
    let mut command = test(&["--package", "integration", "--test", program, "--"]);
    command.args(arguments);
    command
}
