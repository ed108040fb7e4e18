//! The cases. Each is called with an engine that works, and leaves one that does.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, IMAGE},
    stage::{self, Stage},
    wait,
};
use rustix::{
    fs::statvfs,
    process::{Pid, Resource, Rlimit, getrlimit, prlimit},
};

/// A name, and what is done with an engine.
type Case = (&'static str, fn(&Cell) -> Result<()>);

/// All cases.
pub(crate) const CASES: &[Case] = &[
    ("state_disk_full", state_disk),
    ("root_disk_full", root_disk),
    ("engine_descriptors", engine_descriptors),
    ("shim_descriptors", shim_descriptors),
    ("processes", processes),
    ("memory_above_a_container", memory_above),
];

/// How the kernel, glibc and musl say that a disk is full; in small letters, as what is looked for.
const NO_SPACE: &[&str] = &["no space left on device"];

/// The same of descriptors.
const NO_DESCRIPTORS: &[&str] = &["too many open files", "no file descriptors available"];

/// What is said when no process can be started.
const NO_PROCESSES: &[&str] = &["the limit of processes is reached"];

/// What is said when a group of processes may have no more memory.
const NO_MEMORY: &[&str] = &["memory limit too low?", "cannot allocate memory", "out of memory"];

/// Makes a container, runs it to its end and removes it.
///
/// Gives whether it ran. If not, it must have been said why, in one of these `words`.
fn attempt(cell: &Cell, with: &str, words: &[&str]) -> Result<bool> {
    let id = cell.id();
    attempt_as(cell, &id, &["--rm"], with, words)
}

/// The same with a name and flags.
fn attempt_as(cell: &Cell, id: &str, flags: &[&str], with: &str, words: &[&str]) -> Result<bool> {
    let said = cell.run(flags, id, &["echo", "fine"])?;
    if said.code == 0 {
        ensure!(said.stdout == "fine\n", "with {with}: {said}");
        return Ok(true);
    }
    ensure!(names(&said.stderr, words), "with {with}: {said}");
    gone(cell, id).with_context(|| format!("with {with}"))?;
    Ok(false)
}

/// Whether a complaint has one of these words.
fn names(complaint: &str, words: &[&str]) -> bool {
    let complaint = complaint.to_lowercase();
    words.iter().any(|word| complaint.contains(word))
}

/// Sees that a container that failed is nowhere.
fn gone(cell: &Cell, id: &str) -> Result<()> {
    for words in [&["tasks", "ls", "-q"], &["containers", "ls", "-q"]] {
        let listed = cell.ok(words)?;
        ensure!(!listed.lines().any(|line| line == id), "{id} is still in {words:?}");
    }
    Ok(())
}

/// Makes attempts with more and more, up to `most`, of which the first must fail and the last succeed.
fn attempts(
    cell: &Cell,
    what: &str,
    words: &[&str],
    steps: impl IntoIterator<Item = u64>,
    mut give: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut ran = Vec::new();
    for step in steps {
        give(step)?;
        ran.push(attempt(cell, &format!("{step} {what}"), words)?);
    }
    ensure!(ran.first() == Some(&false), "with the least it should not run: {ran:?}");
    ensure!(ran.last() == Some(&true), "with the most it should run: {ran:?}");
    Ok(())
}

/// Fills the disk below `place` until only `free` bytes are left, and gives the file that does.
fn fill(place: &Path, free: u64) -> Result<Filling> {
    let filling = Filling(place.join("filling"));
    let mut file = fs::File::create(&filling.0)?;
    let state = statvfs(place)?;
    let room = (state.f_bavail * state.f_frsize).saturating_sub(free);
    let chunk = vec![0; 4096];
    for _ in 0..room / 4096 {
        file.write_all(&chunk)?;
    }
    Ok(filling)
}

/// A file that goes with this value.
struct Filling(PathBuf);

impl Drop for Filling {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn state_disk(cell: &Cell) -> Result<()> {
    let state = &cell.running_daemon().options().state;
    let mut filling = None;
    attempts(cell, "KiB of state", NO_SPACE, (0..48).step_by(4), |kib| {
        filling = None;
        filling = Some(fill(state, kib * 1024)?);
        Ok(())
    })?;
    drop(filling);
    works(cell)
}

fn root_disk(cell: &Cell) -> Result<()> {
    let filling = fill(&cell.running_daemon().options().root, 0)?;
    // The database has some room of its own.
    let label = format!("label={}", "x".repeat(3500));
    let labels: Vec<String> = (0..16).map(|number| format!("{number}{label}")).collect();
    let mut made = Vec::new();
    let refused = loop {
        let id = cell.id();
        let mut words = vec!["containers", "create"];
        words.extend(labels.iter().flat_map(|label| ["--label", label.as_str()]));
        words.extend([IMAGE, &id, "true"]);
        let said = cell.ctr(&words)?;
        if said.code != 0 {
            gone(cell, &id)?;
            break said;
        }
        made.push(id);
        ensure!(made.len() < 500, "the disk does not become full");
    };
    drop(filling);
    for id in &made {
        cell.ok(&["containers", "rm", id])?;
    }
    ensure!(names(&refused.stderr, NO_SPACE), "{refused}");
    works(cell)
}

/// Limits the descriptors of a process to so many more than it has.
fn limit_descriptors(pid: u32, more: u64) -> Result<()> {
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    set_descriptors(pid, Some(open + more))
}

/// Sets the soft limit of descriptors of a process; `None` is as many as it may have.
fn set_descriptors(pid: u32, soft: Option<u64>) -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let pid = Pid::from_raw(pid.cast_signed()).context("no process")?;
    let limit = Rlimit { current: soft.or(maximum), maximum };
    prlimit(Some(pid), Resource::Nofile, limit).context("limit descriptors")?;
    Ok(())
}

fn engine_descriptors(cell: &Cell) -> Result<()> {
    let engine = cell.running_daemon().id();
    let tried = attempts(cell, "descriptors", NO_DESCRIPTORS, [2, 4, 6, 8, 10, 12, 60], |more| {
        limit_descriptors(engine, more)
    });
    set_descriptors(engine, None)?;
    tried?;
    works(cell)
}

fn shim_descriptors(cell: &Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "1000"])?;
    let program = cell.choice().shim()?.canonicalize()?;
    let all = Stage::outside().map(stage::descendants).unwrap_or_default();
    let mut pids = all.into_iter().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    let shim =
        pids.find(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|it| it == program));
    let shim = shim.context("no shim")?;
    let mut ran = Vec::new();
    for more in [0, 2, 4, 6, 8, 10, 12, 40] {
        limit_descriptors(shim, more)?;
        let exec = format!("e{more}");
        let said = cell.ctr(&["tasks", "exec", "--exec-id", &exec, &id, "echo", "fine"])?;
        ensure!(
            said.code == 0 || names(&said.stderr, NO_DESCRIPTORS),
            "with {more} descriptors: {said}"
        );
        ran.push(said.code == 0);
    }
    set_descriptors(shim, Some(1024))?;
    cell.remove(&id)?;
    ensure!(ran.first() == Some(&false) && ran.last() == Some(&true), "{ran:?}");
    works(cell)
}

/// A cgroup that limits processes, with the engine in it until this value goes.
struct Limited {
    directory: PathBuf,
    former: PathBuf,
    engine: u32,
}

impl Limited {
    fn new(engine: u32, name: &str) -> Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup/pids");
        let (top, controller) =
            if v1.is_dir() { (v1, "pids") } else { (Path::new("/sys/fs/cgroup"), "") };
        let member = fs::read_to_string(format!("/proc/{engine}/cgroup"))?;
        let line = member.lines().find(|line| line.split(':').nth(1) == Some(controller));
        let path = line.and_then(|line| line.splitn(3, ':').nth(2)).unwrap_or("/");
        let former = top.join(path.trim_start_matches('/'));
        // One of the namespace's, so that it goes with the stage whatever happens.
        let directory = top.join(name).join("engine");
        fs::create_dir_all(&directory)?;
        let limited = Self { directory, former, engine };
        limited.move_to(&limited.directory)?;
        Ok(limited)
    }

    fn move_to(&self, cgroup: &Path) -> Result<()> {
        let file = cgroup.join("cgroup.procs");
        fs::write(&file, self.engine.to_string()).with_context(|| file.display().to_string())
    }

    fn current(&self) -> Result<u64> {
        Ok(fs::read_to_string(self.directory.join("pids.current"))?.trim().parse()?)
    }

    fn limit(&self, most: &str) -> Result<()> {
        Ok(fs::write(self.directory.join("pids.max"), most)?)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = self.limit("max");
        let _ = self.move_to(&self.former);
        // The last shim may be about to end.
        let gone = || fs::remove_dir(&self.directory).is_ok();
        let _ = wait::until_true("the end of who is in the cgroup", gone);
    }
}

fn processes(cell: &Cell) -> Result<()> {
    let limited = Limited::new(cell.running_daemon().id(), cell.namespace())?;
    attempts(cell, "processes", NO_PROCESSES, [0, 1, 2, 3, 4, 6, 64], |more| {
        limited.limit(&(limited.current()? + more).to_string())
    })?;
    limited.limit("max")?;
    works(cell)
}

/// A group above those of containers, as a pod has one, until this value goes.
struct Above {
    path: PathBuf,
    tops: Vec<PathBuf>,
}

impl Above {
    fn new(name: &str) -> Result<Self> {
        let top = Path::new("/sys/fs/cgroup");
        let tops = if top.join("cgroup.controllers").exists() {
            fs::write(top.join("cgroup.subtree_control"), "+memory")?;
            vec![top.to_owned()]
        } else {
            fs::read_dir(top)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?
        };
        // One of the namespace's, as for `Limited`.
        let above = Self { path: Path::new(name).join("above"), tops };
        fs::create_dir_all(above.memory().join(&above.path))?;
        Ok(above)
    }

    fn memory(&self) -> &Path {
        let named = self.tops.iter().find(|top| top.ends_with("memory"));
        named.unwrap_or(&self.tops[0])
    }

    fn limit(&self, bytes: u64) -> Result<()> {
        let v1 = self.tops.len() > 1;
        if !v1 {
            let parent = self.memory().join(self.path.parent().unwrap_or(Path::new("")));
            fs::write(parent.join("cgroup.subtree_control"), "+memory")?;
        }
        let name = if v1 { "memory.limit_in_bytes" } else { "memory.max" };
        Ok(fs::write(self.memory().join(&self.path).join(name), bytes.to_string())?)
    }
}

impl Drop for Above {
    fn drop(&mut self) {
        for top in &self.tops {
            let _ = fs::remove_dir(top.join(&self.path));
        }
    }
}

fn memory_above(cell: &Cell) -> Result<()> {
    let above = Above::new(cell.namespace())?;
    let mut ran = Vec::new();
    for bytes in [4 << 10, 64 << 10, 64 << 20] {
        above.limit(bytes)?;
        let id = cell.id();
        let cgroup = format!("/{}/{id}", above.path.display());
        let flags = ["--rm", "--cgroup", &cgroup];
        ran.push(attempt_as(cell, &id, &flags, &format!("{bytes} bytes"), NO_MEMORY)?);
    }
    ensure!(ran.first() == Some(&false) && ran.last() == Some(&true), "{ran:?}");
    drop(above);
    works(cell)
}

/// Sees that nothing of all this has stayed.
fn works(cell: &Cell) -> Result<()> {
    ensure!(attempt(cell, "enough", &[])?, "it does not run");
    Ok(())
}
