//! Changes the store in several ways at once, until the power is cut.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use integration::{process, programs, wait};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Numbers, READY,
    images::{Known, noise},
    ledger::{Ledger, State},
};

/// Where the store is: on the disk.
pub(crate) const ROOT: &str = "/mnt/disk/gantry";
const STATE: &str = "/run/gantry";

/// What the daemon says.
pub(crate) const LOG: &str = "/run/gantryd.log";

/// How many containers, and snapshots, there are at most before old ones go.
const KEPT: usize = 6;

/// How many files a snapshot gets.
pub(crate) const FILES: u64 = 12;

/// The files of the snapshot `name`.
pub(crate) fn files(name: &str) -> impl Iterator<Item = (String, Vec<u8>)> {
    let seed = name.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
    (0..FILES).map(move |file| {
        let seed = seed.wrapping_mul(100) + file;
        (format!("file-{file}"), noise(seed, 1 + Numbers::new(seed).below(16 << 10)))
    })
}

/// The daemon.
pub(crate) struct Daemon(Child);

impl Daemon {
    pub(crate) fn start() -> Result<Self> {
        let log = fs::File::create(LOG)?;
        let child = gantryd()?
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start gantryd")?;
        let mut daemon = Self(child);
        let log = || fs::read_to_string(LOG).unwrap_or_default();
        wait::until("gantryd's answer", || {
            if let Some(status) = daemon.0.try_wait()? {
                bail!("gantryd has ended with {status}");
            }
            Ok(ctr(&["version"]).is_ok().then_some(()))
        })
        .with_context(log)?;
        Ok(daemon)
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        wait::until("gantryd's end", || Ok(self.0.try_wait()?))?;
        Ok(())
    }
}

pub(crate) fn gantryd() -> Result<Command> {
    let mut command = Command::new(programs::own("gantryd")?);
    command.args(["--root", ROOT, "--state", STATE]);
    command.arg("--address").arg(format!("{STATE}/gantry.sock"));
    Ok(command)
}

/// Runs the client.
pub(crate) fn ctr(words: &[&str]) -> Result<String> {
    let mut command = Command::new(programs::own("ctr")?);
    command.arg("--address").arg(format!("{STATE}/gantry.sock")).args(words);
    process::run(&mut command)?.ok().with_context(|| format!("ctr {}", words.join(" ")))
}

/// Imports and removes images, makes and removes containers, and commits and removes snapshots.
pub(crate) fn until_the_end(
    share: &Path,
    images: &[Known],
    ledger: Ledger,
    seed: u64,
) -> Result<()> {
    let _daemon = Daemon::start()?;
    let base = &images[0];
    if !is_present(&ledger, "image", &base.name) {
        import(share, base, &ledger)?;
    }
    println!("{READY}");
    thread::scope(|scope| {
        let imports = scope.spawn(|| churn_images(share, &images[1..], &ledger, seed));
        let containers = scope.spawn(|| churn_containers(&base.name, &ledger, seed));
        let snapshots = scope.spawn(|| churn_snapshots(&ledger, seed));
        for worker in [imports, containers, snapshots] {
            if let Err(error) = worker.join().expect("a worker does not panic") {
                println!("wrong: {error:#}");
                std::process::exit(1);
            }
        }
        Ok(())
    })
}

fn is_present(ledger: &Ledger, kind: &str, name: &str) -> bool {
    ledger.of(kind).iter().any(|(its, state)| its == name && *state == State::Present)
}

fn import(share: &Path, image: &Known, ledger: &Ledger) -> Result<()> {
    ledger.note("make", "image", &image.name)?;
    let file = share.join(&image.file);
    ctr(&["images", "import", "--platform", "linux/amd64", &file.display().to_string()])?;
    ledger.note("made", "image", &image.name)
}

fn churn_images(share: &Path, images: &[Known], ledger: &Ledger, seed: u64) -> Result<()> {
    let mut numbers = Numbers::new(seed);
    loop {
        let image = &images[usize::try_from(numbers.below(images.len() as u64))?];
        if is_present(ledger, "image", &image.name) {
            ledger.note("drop", "image", &image.name)?;
            ctr(&["images", "rm", &image.name])?;
            ledger.note("dropped", "image", &image.name)?;
        } else {
            import(share, image, ledger)?;
        }
    }
}

fn churn_containers(image: &str, ledger: &Ledger, seed: u64) -> Result<()> {
    for number in 0.. {
        let name = format!("c-{seed}-{number}");
        ledger.note("make", "container", &name)?;
        ctr(&["containers", "create", image, &name])?;
        ledger.note("made", "container", &name)?;
        if let Some(old) = oldest(ledger, "container") {
            ledger.note("drop", "container", &old)?;
            ctr(&["containers", "rm", &old])?;
            ledger.note("dropped", "container", &old)?;
        }
    }
    Ok(())
}

fn churn_snapshots(ledger: &Ledger, seed: u64) -> Result<()> {
    for number in 0.. {
        let name = format!("s-{seed}-{number}");
        ledger.note("make", "snapshot", &name)?;
        let key = format!("{name}-key");
        ctr(&["snapshots", "prepare", &key])?;
        let directory = source(&ctr(&["snapshots", "mounts", "/mnt", &key])?)?;
        for (path, bytes) in files(&name) {
            fs::write(directory.join(path), bytes)?;
        }
        ctr(&["snapshots", "commit", &name, &key])?;
        ledger.note("made", "snapshot", &name)?;
        if let Some(old) = oldest(ledger, "snapshot") {
            ledger.note("drop", "snapshot", &old)?;
            ctr(&["snapshots", "rm", &old])?;
            ledger.note("dropped", "snapshot", &old)?;
        }
    }
    Ok(())
}

/// One to remove, if there are enough.
fn oldest(ledger: &Ledger, kind: &str) -> Option<String> {
    let all = ledger.of(kind);
    let mut present = all.into_iter().filter(|(_, state)| *state == State::Present);
    let first = present.next()?.0;
    (present.count() >= KEPT).then_some(first)
}

/// What a line `mount -t bind <source> <target> ...` mounts.
pub(crate) fn source(mounts: &str) -> Result<PathBuf> {
    let words: Vec<&str> = mounts.split_whitespace().collect();
    ensure!(words.get(2) == Some(&"bind"), "not a bind mount: {mounts}");
    Ok(PathBuf::from(words.get(3).context("a source")?))
}
