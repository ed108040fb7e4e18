//! The runtime's tests, and one of the shim's, on machines with other cgroups than this one: v2, v1
//! with every capability, and systemd on v2, on v1 and on both. Each machine says first whether it is such.
//! And the snapshotter's, on one with fs-verity and an older kernel, which mounts images by loop devices.
//!
//! `cargo test -p integration --test vm -- [<machine>] [<test>]...`
//!
//! The programs are built here and run there (see [`integration::vm`]). A test whose name has
//! `needs_<feature>` is left out where the machine lacks that, and is counted as skipped; so are
//! whole machines when there is no kernel for them.
//!
//! On an emulated machine a test takes seconds, so only those run that a suite names, unless others
//! are asked for: `-- criu needs` runs all of them that need criu.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a report is what it is for")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use integration::{
    programs,
    sum::{self, Sum},
    vm::{Cgroups, Machine},
};
use serde_json::Value;

/// A machine, and the test programs that run on it.
struct Suite {
    name: &'static str,
    cgroups: Cgroups,
    /// Whether it has an emulated processor.
    emulated: bool,
    /// The package that the test programs are of.
    package: &'static str,
    /// The program for which it is there; without that it says nothing.
    needs: Option<&'static str>,
    programs: &'static [&'static str],
    /// Those for which Debian's kernel is too slow.
    long: &'static [&'static str],
    /// The tests that run when none are asked for; all if there are none.
    tests: &'static [&'static str],
}

/// What most suites have.
const SMALL: Suite = Suite {
    name: "",
    cgroups: Cgroups::Unified,
    emulated: false,
    package: "runc-rs",
    needs: None,
    programs: &[],
    long: &[],
    tests: &[],
};

const SUITES: &[Suite] = &[
    Suite {
        name: "v2",
        programs: &["unified", "cgroup"],
        long: &["lifecycle", "isolation", "seccomp"],
        ..SMALL
    },
    // Of these programs only what differs there.
    Suite { name: "v2-limits", programs: &["cleanup"], tests: &["group_above"], ..SMALL },
    Suite {
        name: "v2-shim",
        package: "shim",
        programs: &["task"],
        tests: &["what_the_task_has_used"],
        ..SMALL
    },
    Suite {
        name: "v1",
        cgroups: Cgroups::Legacy,
        programs: &["cgroup"],
        long: &["lifecycle", "update"],
        ..SMALL
    },
    Suite { name: "systemd", cgroups: Cgroups::Systemd, long: &["systemd"], ..SMALL },
    Suite { name: "systemd-v1", cgroups: Cgroups::SystemdLegacy, long: &["systemd"], ..SMALL },
    Suite { name: "systemd-hybrid", cgroups: Cgroups::SystemdHybrid, long: &["systemd"], ..SMALL },
    Suite {
        name: "criu",
        emulated: true,
        needs: Some("criu"),
        programs: &["checkpoint", "restore"],
        tests: &[
            "needs_criu_another_cgroup",
            "needs_criu_foreground",
            "needs_criu_hooks",
            "needs_criu_limits",
            "needs_criu_tcp_connection",
        ],
        ..SMALL
    },
    Suite {
        name: "images",
        emulated: true,
        package: "snapshotter",
        programs: &["kernel"],
        tests: &["needs_erofs_layers_are_files", "needs_fsverity_of_images"],
        ..SMALL
    },
];

/// What a test may need, and the shell's condition for it.
const FEATURES: &[(&str, &str)] = &[
    ("cpuset", "grep -q '^cpuset' /proc/cgroups"),
    ("rdma", "grep -q '^rdma' /proc/cgroups"),
    ("misc", "grep -q '^misc' /proc/cgroups"),
    ("hugetlb", "grep -q '^hugetlb' /proc/cgroups"),
    ("psi", "cat /proc/pressure/cpu"),
    ("swap", "test -e /sys/fs/cgroup/init.scope/memory.swap.max"),
    ("io_weight", "test -e /sys/fs/cgroup/init.scope/io.weight"),
    ("time", "test -e /proc/self/ns/time"),
    (
        "user_systemd",
        "test -e /sys/fs/cgroup/cgroup.controllers && test -e /usr/lib/systemd/user/dbus.socket && \
         ls /lib/*/security/pam_systemd.so",
    ),
    ("cgroup_kill", "test -e /sys/fs/cgroup/init.scope/cgroup.kill"),
    ("systemd", "test -d /run/systemd/system"),
    ("idmap", "test \"$(uname -r | cut -d. -f1)\" -ge 7"),
];

fn main() -> ExitCode {
    match run() {
        Ok(sum) if sum.failed == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Sum> {
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let is_machine = |word: &&String| SUITES.iter().any(|suite| suite.name == **word);
    let (machines, tests): (Vec<&String>, Vec<&String>) = words.iter().partition(is_machine);
    let wanted = |suite: &&'static Suite| {
        machines.is_empty() || machines.iter().any(|name| **name == suite.name)
    };
    let mut sum = Sum::default();
    let mut built = None;
    for suite in SUITES.iter().filter(wanted) {
        let name = suite.name;
        let machine = match machine(suite) {
            Ok(machine) => machine,
            Err(why) => {
                let programs = suite.programs.len() + suite.long.len();
                println!("vm {name}: SKIPPED, {programs} test programs: {why:#}");
                sum.skipped += programs;
                continue;
            }
        };
        if built.is_none() {
            built = Some(build(SUITES.iter().filter(wanted))?);
        }
        let start = Instant::now();
        run_suite(suite, &machine, built.as_ref().expect("was just built"), &tests, &mut sum)?;
        println!("vm {name}: {:.0} s", start.elapsed().as_secs_f64());
    }
    println!("{sum}");
    Ok(sum)
}

fn machine(suite: &Suite) -> Result<Machine> {
    let share = programs::target();
    if suite.emulated {
        if let Some(program) = suite.needs {
            programs::debian(program)?;
        }
        return Machine::emulated(suite.cgroups, &share);
    }
    Machine::new(suite.cgroups, &share)
}

fn run_suite(
    suite: &Suite,
    machine: &Machine,
    built: &BTreeMap<String, PathBuf>,
    tests: &[&String],
    sum: &mut Sum,
) -> Result<()> {
    let name = suite.name;
    let mut programs = suite.programs.to_owned();
    if machine.is_debian() {
        if !suite.long.is_empty() {
            println!("vm {name}: SKIPPED, too long for Debian's kernel: {}", suite.long.join(" "));
        }
        sum.skipped += suite.long.len();
    } else {
        programs.extend(suite.long);
    }
    if programs.is_empty() {
        return Ok(());
    }
    let chosen: Vec<&str> = match tests.is_empty() {
        true => suite.tests.to_vec(),
        false => tests.iter().map(|test| test.as_str()).collect(),
    };
    let mut ended = 0;
    let result = machine.run(&script(suite, &programs, built, &chosen)?, |line| {
        // Not the words by which whoever runs this program finds its own sum.
        if sum.read(line) {
            ended += 1;
            println!("vm {name}: {}", line.replace(sum::MARK, ""));
        } else if !line.is_empty() {
            println!("vm {name}: {line}");
        }
    });
    if let Err(error) = result {
        println!("vm {name}: {error:#}");
        sum.failed += 1;
    } else if ended != programs.len() {
        println!("vm {name}: {ended} of {} test programs ended", programs.len());
        sum.failed += 1;
    }
    Ok(())
}

/// The shell script that runs the programs.
fn script(
    suite: &Suite,
    programs: &[&str],
    built: &BTreeMap<String, PathBuf>,
    tests: &[&str],
) -> Result<String> {
    let mut text = "lacks=\nleave_out=\n".to_owned();
    // A machine of another kind would pass tests that say nothing.
    text += &format!(
        "({}) || {{ echo 'these are not the cgroups of {}:'; grep cgroup /proc/mounts; exit 1; }}\n",
        suite.cgroups.condition(),
        suite.cgroups.name(),
    );
    if suite.emulated {
        // They are there for that; if it does not work that is a failure.
        text += "export GANTRY_REQUIRE_CRIU=1 GANTRY_REQUIRE_FSVERITY=1\n";
    }
    for (feature, condition) in FEATURES {
        text += &format!(
            "({condition}) > /dev/null 2>&1 || \
             {{ lacks=\"$lacks {feature}\"; leave_out=\"$leave_out --skip needs_{feature}\"; }}\n"
        );
    }
    text += "echo \"Linux $(uname -r), without:$lacks\"\n";
    for program in programs {
        let file = built.get(*program).with_context(|| format!("no test program {program}"))?;
        let words: Vec<String> = tests.iter().map(|word| format!("'{word}'")).collect();
        text += &format!(
            "echo {program}\n'{}' --test-threads 2 $leave_out {}\n",
            file.display(),
            words.join(" ")
        );
    }
    Ok(text)
}

/// Builds the test programs of suites, and says where they are.
fn build(suites: impl Iterator<Item = &'static Suite>) -> Result<BTreeMap<String, PathBuf>> {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["test", "--no-run", "--quiet", "--message-format", "json"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    let (mut packages, mut names) = (BTreeSet::new(), BTreeSet::new());
    for suite in suites {
        packages.insert(suite.package);
        names.extend([suite.programs, suite.long].concat());
    }
    for package in packages {
        command.args(["--package", package]);
    }
    for name in names {
        command.args(["--test", name]);
    }
    let output = command.output().context("start cargo")?;
    ensure!(
        output.status.success(),
        "build the tests: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut built = BTreeMap::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        let name = message["target"]["name"].as_str();
        if let (Some(name), Some(file)) = (name, message["executable"].as_str())
            && message["target"]["kind"][0] == "test"
        {
            built.insert(name.to_owned(), PathBuf::from(file));
        }
    }
    Ok(built)
}
