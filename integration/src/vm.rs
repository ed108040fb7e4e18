//! A throw-away machine with the cgroups that this one may not have: v2 or v1, with every
//! controller and every capability, or with systemd.
//!
//! It is User Mode Linux, a kernel that runs as a process: no rights, no devices and no image are
//! needed, and it boots in a second. It sees the host's files, changes only those of one
//! directory, and forgets everything else (`vm/init` in this crate is its first program).
//!
//! The kernel is the file in `GANTRY_VM_KERNEL`, or that of Debian's package `user-mode-linux`,
//! which has less: what a job finds missing it has to leave out, and say so.
//!
//! criu cannot take processes of User Mode Linux apart. For it there is a second kind of machine
//! ([`emulated`]), with the kernel and the processor of an ordinary one, and much slower.

pub mod emulated;
mod initramfs;

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

/// The environment variable with the kernel's file.
pub const KERNEL: &str = "GANTRY_VM_KERNEL";

/// Where Debian's package has its kernel and that kernel's modules.
const DEBIAN_KERNEL: &str = "/usr/bin/linux.uml";
const DEBIAN_MODULES: &str = "/usr/lib/uml/modules";

/// The modules that the machine needs where they are not built in.
const MODULES: &[&str] = &["overlay", "loop"];

/// What has systemd use cgroup v1, and for itself v2 beside it.
const SYSTEMD_HYBRID: &str = "systemd.unified_cgroup_hierarchy=0";

/// What has systemd use cgroup v1 for itself, too.
const SYSTEMD_LEGACY: &str = "systemd.legacy_systemd_cgroup_controller=1";

/// How long a machine may run: some seconds are usual, but this one may be busy with other things.
const LIMIT: Duration = Duration::from_secs(400);

/// How often what the job has written is looked at.
const STEP: Duration = Duration::from_millis(50);

/// How the machine's cgroups are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// One v2 hierarchy, its controllers switched on in the root.
    Unified,
    /// One v1 hierarchy for each controller.
    Legacy,
    /// One v2 hierarchy that systemd owns, which is the machine's first process.
    Systemd,
    /// One v1 hierarchy for each controller, and systemd with one of its own.
    SystemdLegacy,
    /// One v1 hierarchy for each controller, and systemd with v2, at `unified`.
    SystemdHybrid,
}

impl Cgroups {
    fn has_systemd(self) -> bool {
        matches!(self, Self::Systemd | Self::SystemdLegacy | Self::SystemdHybrid)
    }

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unified => "v2",
            Self::Legacy => "v1",
            Self::Systemd => "systemd",
            Self::SystemdLegacy => "systemd-v1",
            Self::SystemdHybrid => "systemd-hybrid",
        }
    }

    /// What systemd is told on the kernel's command line.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::SystemdLegacy => &[SYSTEMD_HYBRID, SYSTEMD_LEGACY],
            Self::SystemdHybrid => &[SYSTEMD_HYBRID],
            _ => &[],
        }
    }

    /// The shell's condition for a machine that is laid out so.
    pub fn condition(self) -> String {
        let unified = "grep -q ' /sys/fs/cgroup/unified cgroup2 ' /proc/mounts";
        let hierarchies = match self {
            Self::Unified | Self::Systemd => "test -e /sys/fs/cgroup/cgroup.controllers".to_owned(),
            Self::Legacy | Self::SystemdLegacy => {
                "test -e /sys/fs/cgroup/memory/tasks && ! grep -q ' cgroup2 ' /proc/mounts"
                    .to_owned()
            }
            Self::SystemdHybrid => format!("test -e /sys/fs/cgroup/memory/tasks && {unified}"),
        };
        let not = if self.has_systemd() { "" } else { "! " };
        format!("{hierarchies} && {not}test -d /run/systemd/system")
    }
}

/// What kind of machine it is.
#[derive(Clone, Debug)]
enum Kind {
    /// A User Mode Linux.
    Process(PathBuf),
    Emulated(emulated::Kernel),
}

/// A machine to be started.
#[derive(Clone, Debug)]
pub struct Machine {
    kind: Kind,
    /// The layout of its cgroups.
    pub cgroups: Cgroups,
    /// The directory of the host's that the job may change, at the same path.
    pub share: PathBuf,
    /// The size of its empty block device, `/dev/ubda`, which an emulated one has not.
    pub disk_bytes: u64,
    /// A file that is that block device instead, and so outlives the machine.
    pub disk: Option<PathBuf>,
    /// How long it may run.
    pub limit: Duration,
}

impl Machine {
    /// A machine, if this one has a kernel for it.
    ///
    /// # Errors
    ///
    /// There is none, or what else is needed is missing; the error says what to do.
    pub fn new(cgroups: Cgroups, share: &Path) -> Result<Self> {
        let kernel = match std::env::var_os(KERNEL).filter(|path| !path.is_empty()) {
            Some(chosen) => PathBuf::from(chosen),
            None => PathBuf::from(DEBIAN_KERNEL),
        };
        ensure!(
            kernel.is_file(),
            "no kernel: {} does not exist; install user-mode-linux, or set {KERNEL}",
            kernel.display()
        );
        Self::of(Kind::Process(kernel), cgroups, share, LIMIT)
    }

    /// A machine with an emulated processor, if this one has qemu and the kernel for it.
    ///
    /// # Errors
    ///
    /// Something is missing; the error says what to do.
    pub fn emulated(cgroups: Cgroups, share: &Path) -> Result<Self> {
        Self::of(Kind::Emulated(emulated::Kernel::find()?), cgroups, share, emulated::LIMIT)
    }

    fn of(kind: Kind, cgroups: Cgroups, share: &Path, limit: Duration) -> Result<Self> {
        initramfs::check()?;
        let systemd = Path::new("/lib/systemd/systemd").is_file();
        ensure!(
            !cgroups.has_systemd() || systemd && crate::programs::find("dbus-daemon").is_some(),
            "systemd or dbus is not installed"
        );
        let share = share.canonicalize().with_context(|| share.display().to_string())?;
        Ok(Self { kind, cgroups, share, disk_bytes: 64 << 20, disk: None, limit })
    }

    /// Whether it is a User Mode Linux of Debian's: a tenth as fast as one that traces no
    /// processes, and with fewer controllers.
    pub fn is_debian(&self) -> bool {
        matches!(&self.kind, Kind::Process(kernel) if kernel == Path::new(DEBIAN_KERNEL))
    }

    /// Runs a shell script in the machine as root, gives each line that it writes to `look`, and
    /// returns its exit status.
    ///
    /// # Errors
    ///
    /// The machine did not come up, or not to an end; the error has what its kernel said.
    pub fn run(&self, script: &str, look: impl FnMut(&str)) -> Result<i32> {
        let status = self.run_until(script, look, || false)?;
        status.context("a machine that nobody cuts off ends")
    }

    /// [`run`](Self::run), but kills the machine as soon as `cut` says so, which is asked again and
    /// again: as if its power was cut. What it has not written to its block device by then is lost,
    /// what it has is not. Nothing is returned then.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn run_until(
        &self,
        script: &str,
        mut look: impl FnMut(&str),
        mut cut: impl FnMut() -> bool,
    ) -> Result<Option<i32>> {
        let directory = tempfile::Builder::new().prefix("gantry-vm-").tempdir()?;
        let job = directory.path().canonicalize()?.join("job");
        fs::create_dir(&job)?;
        fs::write(job.join("run"), script)?;
        fs::write(job.join("output"), "")?;
        let console = directory.path().join("console");
        let mut programs = self.start(directory.path(), &job, &console)?;
        let mut output = File::open(job.join("output"))?;
        let mut rest = String::new();
        let start = Instant::now();
        let ended = loop {
            let kernel = programs.last_mut().context("no kernel was started")?;
            let ended = kernel.0.try_wait()?.is_some();
            output.read_to_string(&mut rest)?;
            while let Some(end) = rest.find('\n') {
                look(&rest[..end]);
                rest.drain(..=end);
            }
            if ended || start.elapsed() > self.limit {
                break ended;
            }
            if cut() {
                return Ok(None);
            }
            std::thread::sleep(STEP);
        };
        drop(programs);
        match fs::read_to_string(job.join("status")) {
            Ok(status) => status.trim().parse().map(Some).context("the job's exit status"),
            Err(_) if !ended => bail!("the machine did not end within {:?}", self.limit),
            Err(_) => {
                bail!("the machine ended before its job: {}", last(&console)?)
            }
        }
    }

    /// Starts the kernel, and what it needs beside it.
    fn start(&self, directory: &Path, job: &Path, console: &Path) -> Result<Vec<Running>> {
        let mut words = vec![
            format!("vm.cgroups={}", self.cgroups.name()),
            format!("vm.job={}", job.display()),
            format!("vm.share={}", self.share.display()),
            "panic=-1".to_owned(),
        ];
        words.extend(self.cgroups.words().iter().map(|&word| word.to_owned()));
        let console = File::create(console)?;
        match &self.kind {
            Kind::Process(kernel) => self.start_process(kernel, directory, &words, console),
            Kind::Emulated(kernel) => {
                let shares = [("root", Path::new("/")), ("job", job), ("share", &self.share)];
                emulated::start(kernel, directory, &shares, &words, console)
            }
        }
    }

    fn start_process(
        &self,
        kernel: &Path,
        directory: &Path,
        words: &[String],
        console: File,
    ) -> Result<Vec<Running>> {
        let initramfs = directory.join("initramfs");
        let modules: Vec<PathBuf> = MODULES
            .iter()
            .filter(|_| self.is_debian())
            .filter_map(|module| find(Path::new(DEBIAN_MODULES), &format!("{module}.ko")))
            .collect();
        initramfs::make(&directory.join("initramfs.d"), &initramfs, &modules)?;
        let disk = match &self.disk {
            Some(kept) => kept.clone(),
            None => {
                let empty = directory.join("disk");
                File::create(&empty)?.set_len(self.disk_bytes)?;
                empty
            }
        };
        let mut command = Command::new(kernel);
        command
            .args(["mem=2G", "ncpus=1", "seccomp=on", "quiet"])
            .args(["con=null", "con0=null,fd:1", "umid=vm", "vm.root=hostfs"])
            .arg(format!("uml_dir={}/", directory.display()))
            .arg(format!("initrd={}", initramfs.display()))
            .arg(format!("ubd0={}", disk.display()))
            .args(words)
            // Its memory is a file there, unless it is told otherwise.
            .env_remove("TMPDIR");
        Ok(vec![Running::start(&mut command, console)?])
    }
}

/// A kernel, which is killed with all its processes when dropped.
struct Running(Child);

impl Running {
    fn start(command: &mut Command, console: File) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console).process_group(0);
        let name = command.get_program().to_owned();
        let child = command.spawn().with_context(|| format!("start {}", name.display()))?;
        Ok(Self(child))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if path.file_name().is_some_and(|its| its == name) {
            return Some(path);
        }
    }
    None
}

/// The last that the kernel has said.
fn last(console: &Path) -> Result<String> {
    const LENGTH: u64 = 2000;
    let mut file = File::open(console)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(LENGTH)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}
