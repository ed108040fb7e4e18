//! The private mount namespace in which daemons, clients and containers of a test live.
//!
//! Programs find each other by fixed paths below `/run`, and a machine may have daemons of its
//! own there. So the stage has a `/run` of its own; what is left in it afterwards is exact
//! evidence of a leak, and all mounts end with the last process of the stage.
//!
//! The process that makes the stage stays outside and becomes the subreaper of everything
//! inside, so that orphans are reaped at once and none is out of sight: [`crate::leaks`] looks
//! at its descendants. When the process inside has ended, whatever is left is killed.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, mount_move, unmount},
    process::{Pid, Signal, WaitOptions, getppid, kill_process, set_child_subreaper, wait},
};

use crate::wait as level;

/// The environment variable that tells a process that it is on the stage; its value is
/// [`Stage::directory`].
const MARK: &str = "GANTRY_STAGE";

/// Where cgroup hierarchies are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// How the names of private directories begin, below the directory for temporary files.
const PREFIX: &str = "gantry-stage-";

/// Whether the kernel has the filesystem `name`.
///
/// # Errors
///
/// There is no proc(5).
pub fn has_filesystem(name: &str) -> Result<bool> {
    let known = fs::read_to_string("/proc/filesystems").context("list filesystems")?;
    Ok(known.lines().any(|line| line.split_whitespace().last() == Some(name)))
}

/// What differs from the machine's own view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Whether the v2 hierarchy of a hybrid machine is hidden, which crun 1.8 needs.
    pub cgroup_v1_only: bool,
    /// Whether the directory above the v1 hierarchies is the stage's own: podman makes directories
    /// there for hierarchies that are not mounted, and leaves them.
    pub own_cgroup_root: bool,
}

/// The stage, seen from inside.
#[derive(Clone, Debug)]
pub struct Stage {
    directory: PathBuf,
}

impl Stage {
    /// The stage on which this process is, if it is on one.
    pub fn current() -> Option<Self> {
        std::env::var_os(MARK).map(|directory| Self { directory: directory.into() })
    }

    /// The directory for everything private; it is removed at the end.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The process outside, whose descendants are all that run here.
    pub fn outside() -> Option<Pid> {
        getppid()
    }

    /// Makes the view of this process what `view` says; to be called once, first.
    ///
    /// # Errors
    ///
    /// A mount fails.
    pub fn enter(&self, view: View) -> Result<()> {
        // Name resolution may need what the machine keeps below /run.
        let resolver = fs::read("/etc/resolv.conf").ok();
        mount(c"tmpfs", c"/run", c"tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755")
            .context("mount a private /run")?;
        if let (Some(text), Ok(target)) = (resolver, fs::read_link("/etc/resolv.conf")) {
            let target = Path::new("/etc").join(target);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(target, text)?;
        }
        if view.cgroup_v1_only && Path::new("/sys/fs/cgroup/unified").is_dir() {
            let hierarchy = c"/sys/fs/cgroup/unified";
            unmount(hierarchy, UnmountFlags::DETACH).context("hide the v2 hierarchy")?;
            // crun makes directories there all the same, and leaves them.
            mount(c"tmpfs", hierarchy, c"tmpfs", MountFlags::empty(), c"mode=755")
                .context("mount nothing over the v2 hierarchy")?;
        }
        if view.own_cgroup_root {
            self.own_cgroup_root().context("make a private directory above the hierarchies")?;
        }
        Ok(())
    }

    /// Moves the v1 hierarchies of this mount namespace into a directory of the stage's own. Where
    /// there are none, nothing can be made beside them.
    fn own_cgroup_root(&self) -> Result<()> {
        let old = Path::new(CGROUPS);
        let device = fs::metadata(old)?.dev();
        let own = self.directory.join("cgroup");
        fs::create_dir(&own)?;
        let mut hierarchies = Vec::new();
        for entry in fs::read_dir(old)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_symlink() || metadata.is_dir() && metadata.dev() != device {
                hierarchies.push((entry, metadata.is_symlink()));
            }
        }
        if hierarchies.is_empty() {
            return Ok(fs::remove_dir(own)?);
        }
        mount(c"tmpfs", &own, c"tmpfs", MountFlags::empty(), c"mode=755")?;
        for (entry, is_link) in hierarchies {
            let place = own.join(entry.file_name());
            if is_link {
                std::os::unix::fs::symlink(fs::read_link(entry.path())?, place)?;
            } else {
                fs::create_dir(&place)?;
                mount_move(entry.path(), &place)?;
            }
        }
        unmount(old, UnmountFlags::DETACH)?;
        mount_move(&own, old)?;
        Ok(fs::remove_dir(own)?)
    }
}

/// What a program does that runs whole on one stage: starts itself again there with the same
/// arguments, and does `inside`. An error is written with the name of the `program`.
#[expect(clippy::print_stderr, reason = "it is the program's main function")]
pub fn program(program: &str, inside: impl FnOnce(&Stage) -> Result<()>) -> ExitCode {
    let done = match Stage::current() {
        Some(stage) => inside(&stage),
        None => again(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn again() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "needs root: it starts containers");
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let code = run(&words, &[])?;
    ensure!(code == 0, "ended with {code}");
    Ok(())
}

/// Runs this program again, on a stage of its own, with `arguments` and with `variables` added
/// to its environment; gives its exit code.
///
/// # Errors
///
/// It cannot be started, for example because this process is not root's.
pub fn run(arguments: &[OsString], variables: &[(&str, PathBuf)]) -> Result<i32> {
    sweep_dead_stages();
    set_child_subreaper(Some(rustix::process::getpid()))?;
    let id = std::process::id();
    let directory = tempfile::Builder::new().prefix(&format!("{PREFIX}{id}-")).tempdir()?;
    let child = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe()?)
        .args(arguments)
        .env(MARK, directory.path())
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .spawn()
        .context("start unshare")?;
    let child = Pid::from_child(&child);
    let mut code = None;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => {
                code = Some(
                    status
                        .exit_status()
                        .unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or_default()),
                );
                end_all()?;
            }
            Ok(_) => {}
            Err(rustix::io::Errno::CHILD) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => bail!("wait for the stage: {error}"),
        }
    }
    remove_cgroups(&namespace(child.as_raw_nonzero().get().cast_unsigned()));
    directory.close().context("remove the private directory")?;
    code.context("the stage ended without a status")
}

/// The containerd namespace that the process `inside` uses; cgroups are named after it.
pub fn namespace(inside: u32) -> String {
    format!("gantry-{inside}")
}

/// Removes what containers of `namespace` left in the cgroup hierarchies.
pub fn remove_cgroups(namespace: &str) {
    for directory in cgroups(namespace) {
        let _ = fs::remove_dir(directory);
    }
}

/// The cgroups of `namespace`, deepest first, the namespace's own included.
pub fn cgroups(namespace: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        collect(&hierarchy.join(namespace), &mut found);
    }
    found
}

fn hierarchies() -> Vec<PathBuf> {
    let top = Path::new(CGROUPS);
    let mut hierarchies = vec![top.to_owned()];
    hierarchies.extend(directories(top));
    hierarchies.retain(|hierarchy| hierarchy.join("cgroup.procs").exists());
    hierarchies
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    if directory.is_dir() {
        for child in directories(directory) {
            collect(&child, found);
        }
        found.push(directory.to_owned());
    }
}

fn directories(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The processes below `ancestor`, whatever they did to escape.
pub fn descendants(ancestor: Pid) -> Vec<Pid> {
    let parents: Vec<(i32, i32)> = processes()
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (_, rest) = stat.rsplit_once(')')?;
            Some((pid, rest.split_whitespace().nth(1)?.parse().ok()?))
        })
        .collect();
    let mut found = vec![ancestor.as_raw_nonzero().get()];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, its)| *its == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.into_iter().skip(1).filter_map(Pid::from_raw).collect()
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Kills what is left below this process.
fn end_all() -> Result<()> {
    let own = rustix::process::getpid();
    level::until("the end of what the stage left", || {
        let left = descendants(own);
        for pid in &left {
            let _ = kill_process(*pid, Signal::KILL);
        }
        // Reaped here as well as in the caller's loop: a zombie is still a descendant.
        while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {}
        Ok(left.is_empty().then_some(()))
    })
}

/// Ends what stages whose outer process has died have left.
fn sweep_dead_stages() {
    end_processes_of_dead_stages();
    for hierarchy in hierarchies() {
        for directory in directories(&hierarchy) {
            let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let inside = name.strip_prefix("gantry-").and_then(|rest| rest.parse::<u32>().ok());
            if inside.is_some_and(|inside| !Path::new(&format!("/proc/{inside}")).exists()) {
                remove_cgroups(&name);
            }
        }
    }
}

fn end_processes_of_dead_stages() {
    for directory in directories(&std::env::temp_dir()) {
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let Some(owner) = owner.and_then(|owner| owner.parse::<i32>().ok()) else { continue };
        if Path::new(&format!("/proc/{owner}")).exists() {
            continue;
        }
        let mark = format!("{MARK}={}", directory.display());
        for pid in processes() {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let on_it = environment.split(|byte| *byte == 0).any(|it| it == mark.as_bytes());
            if let (true, Some(it)) = (on_it, Pid::from_raw(pid)) {
                let _ = kill_process(it, Signal::KILL);
            }
        }
        let _ = fs::remove_dir_all(directory);
    }
}
