//! The stores, on a machine whose power is cut in the middle of imports, creations and commits.
//!
//! `cargo test -p integration --test powercut -- [--kills <n>] [--seed <n>]`; the long form has a
//! hundred kills.
//!
//! A virtual machine ([`integration::vm`]) with a disk that outlives it runs `gantryd` and changes
//! its store in three ways at once ([`work`]). Each change is noted in a ledger outside of the
//! machine before and after it ([`ledger`]). At a random instant, also while it is starting again,
//! the machine is killed. After the next boot ([`verify`]):
//!
//! - `gantryd db check` finds nothing before the daemon runs but directories that are yet to come;
//! - everything that was acknowledged is there;
//! - no file of any snapshot that can be looked at differs from what was put there;
//! - a collection runs, and `gantryd db check --deep` finds nothing after the daemon has stopped.
//!
//! # What a kill loses
//!
//! The disk is a file of this machine, whose page cache a kill does not touch. So a write that the
//! guest's kernel has sent to its disk is there afterwards, whether the guest asked for a flush or
//! not; what is lost is what only the guest's own page cache had, which is most of it: a file that
//! was written and not synced. That a disk may also lose, or reorder, what it was sent without a
//! flush is not shown here.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a report is what it is for")]

mod images;
mod ledger;
mod verify;
mod work;

use std::{
    cell::{Cell, RefCell},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use integration::{
    programs,
    sum::Sum,
    vm::{Cgroups, Machine},
};

/// How large the disk is, in bytes; the file has holes.
const DISK_LEN: u64 = 1 << 30;

/// The longest time from the beginning of the work, or of a boot, to a kill.
const WORK_MAX_MS: u64 = 5000;
const BOOT_MAX_MS: u64 = 2500;

/// What the guest says when it begins to work.
const READY: &str = "ready";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.iter().position(|word| word == "--inside") {
        Some(at) => inside(&words[at + 1..]).map(|()| 0),
        None => outside(&words).map(|sum| {
            println!("{sum}");
            sum.failed
        }),
    };
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("powercut: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The number after the flag `name`.
fn number(words: &[String], name: &str, default: u64) -> Result<u64> {
    let Some(at) = words.iter().position(|word| word == name) else { return Ok(default) };
    let value = words.get(at + 1).with_context(|| format!("{name} needs a number"))?;
    value.parse().with_context(|| format!("{name} {value}"))
}

/// Numbers that look random, and are the same for the same seed (xorshift).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn outside(words: &[String]) -> Result<Sum> {
    let kills = number(words, "--kills", 6)?;
    let seed = number(words, "--seed", 1)?;
    let directory = tempfile::Builder::new().prefix("powercut-").tempdir_in(programs::target())?;
    let share = directory.path().join("share");
    fs::create_dir(&share)?;
    let mut sum = Sum::default();
    // All of it, and not only what is written to: the programs lie there, and a machine sees nothing else of
    // what is below `/tmp`.
    let mut machine = match Machine::new(Cgroups::Unified, &programs::target()) {
        Ok(machine) => machine,
        Err(why) => {
            println!("powercut: SKIPPED: {why:#}");
            sum.skipped = 1;
            return Ok(sum);
        }
    };
    let disk = directory.path().join("disk");
    File::create(&disk)?.set_len(DISK_LEN)?;
    let made =
        Command::new(programs::debian("mkfs.ext4")?).args(["-q", "-F"]).arg(&disk).status()?;
    ensure!(made.success(), "mkfs.ext4: {made}");
    machine.disk = Some(disk);
    images::write(&share)?;
    println!("powercut: --kills {kills} --seed {seed}");
    let mut numbers = Numbers::new(seed);
    for round in 0..=kills {
        let begun = Instant::now();
        let plan = match numbers.below(4) {
            _ if round == kills => Cut::Never,
            0 => Cut::Boot(Duration::from_millis(numbers.below(BOOT_MAX_MS))),
            _ => Cut::Work(Duration::from_millis(numbers.below(WORK_MAX_MS))),
        };
        match boot(&machine, &share, seed.wrapping_add(round), &plan) {
            Ok(said) => {
                sum.passed += 1;
                let seconds = begun.elapsed().as_secs_f64();
                println!("powercut {round}: {plan:?} in {seconds:.1} s: {said}");
            }
            Err(error) => {
                sum.failed += 1;
                println!("powercut {round}: {plan:?}: FAILED: {error:#}");
                println!("kept for a look: {}", directory.keep().display());
                return Ok(sum);
            }
        }
    }
    Ok(sum)
}

/// When the power is cut.
#[derive(Debug)]
enum Cut {
    Never,
    /// So long after the start of the machine.
    Boot(Duration),
    /// So long after the work has begun.
    Work(Duration),
}

/// Starts the machine and cuts its power; gives what was said of what was found.
fn boot(machine: &Machine, share: &Path, seed: u64, plan: &Cut) -> Result<String> {
    let this = std::env::current_exe()?;
    let work = matches!(plan, Cut::Never).then_some("--only-look").unwrap_or_default();
    let script = format!(
        "mkdir -p /mnt/disk && mount -t ext4 /dev/ubda /mnt/disk || exit 90\n\
         export GANTRY_BIN='{}'\n'{}' --inside '{}' {seed} {work}\n",
        programs::ours().display(),
        this.display(),
        share.display(),
    );
    let begun = Instant::now();
    let ready = Cell::new(None);
    let lines = RefCell::new(Vec::new());
    let look = |line: &str| {
        if line == READY {
            ready.set(Some(Instant::now()));
        } else {
            lines.borrow_mut().push(line.to_owned());
        }
    };
    let cut = || match plan {
        Cut::Never => false,
        Cut::Boot(after) => begun.elapsed() > *after,
        Cut::Work(after) => ready.get().is_some_and(|ready| ready.elapsed() > *after),
    };
    let status = machine.run_until(&script, look, cut)?;
    let lines = lines.into_inner();
    match status {
        None => {}
        Some(0) if matches!(plan, Cut::Never) => {}
        // It may have come to its end before its time.
        Some(status) => bail!("status {status}: {}", lines.join("\n")),
    }
    let wrong = lines.iter().find(|line| line.starts_with("wrong: "));
    ensure!(wrong.is_none(), "{}", lines.join("\n"));
    Ok(lines.last().cloned().unwrap_or_default())
}

/// What runs in the machine.
fn inside(words: &[String]) -> Result<()> {
    let share = PathBuf::from(words.first().context("which directory is shared?")?);
    let seed = words.get(1).context("which seed?")?.parse()?;
    let mut ledger = ledger::Ledger::open(&share.join("ledger"))?;
    let images = images::read(&share)?;
    let log = || fs::read_to_string(work::LOG).unwrap_or_default();
    let found = verify::all(&images, &mut ledger).with_context(log)?;
    println!("{found}");
    if words.iter().any(|word| word == "--only-look") {
        return Ok(());
    }
    work::until_the_end(&share, &images, ledger, seed)
}
