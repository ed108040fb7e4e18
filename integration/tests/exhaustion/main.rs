//! Something runs out in the middle of making a container: disk, descriptors, processes.
//!
//! How far a create gets depends on how much there is, so each case tries it with a little more from
//! time to time. Every attempt either succeeds or says what has run out; nothing of it is left; and
//! when there is enough again, the same engine makes containers as before.

#![expect(clippy::print_stdout, reason = "a report is what it is for")]

mod cases;

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, Choice},
    leaks::Inventory,
    stage::{self, Stage},
    sum::Sum,
};
use rustix::mount::{MountFlags, mount};

use cases::CASES;

fn main() -> ExitCode {
    stage::program("exhaustion", inside)
}

fn inside(stage: &Stage) -> Result<()> {
    let choice = Choice::OWN;
    let missing = choice.missing();
    ensure!(missing.is_empty(), "{}", missing.join(", "));
    stage.enter(choice.view())?;
    let root = stage.directory().join(choice.to_string().replace('/', "-")).join("root");
    small_disk(&root, c"mode=700,size=24m")?;
    small_disk(Path::new("/run/gantry"), c"mode=711,size=2m")?;
    let cell = Cell::start(choice, stage)?;
    let words: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with("--")).collect();
    let mut sum = Sum::default();
    for (name, case) in CASES {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            sum.skipped += 1;
            continue;
        }
        let before = Inventory::take(cell.namespace());
        let result = case(&cell).and_then(|()| before.wait_restored(cell.namespace()));
        sum.take(name, &result);
    }
    println!("\n{sum}");
    ensure!(sum.failed == 0, "there were failures; the engine's log:\n{}", log(&cell));
    Ok(())
}

/// Mounts a filesystem that is soon full, and is its own.
fn small_disk(place: &Path, options: &std::ffi::CStr) -> Result<()> {
    fs::create_dir_all(place)?;
    mount(c"tmpfs", place, c"tmpfs", MountFlags::empty(), options)
        .with_context(|| format!("mount a small disk on {}", place.display()))
}

fn log(cell: &Cell) -> String {
    cell.running_daemon().log()
}
