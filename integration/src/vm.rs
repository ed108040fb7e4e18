//! A throw-away machine with the cgroups that this one may not have: v2 or v1, with every
//! controller and every capability, or with systemd.
//!
//! It is User Mode Linux, a kernel that runs as a process: no rights, no devices and no image are
//! needed, and it boots in a second. It sees the host's files, changes only those of one
//! directory, and forgets everything else (`vm/init` in this crate is its first program).
//!
//! The kernel is the file in `GANTRY_VM_KERNEL`, or that of Debian's package `user-mode-linux`,
//! which has less: what a job finds missing it has to leave out, and say so.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::{fs::PermissionsExt, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

/// The environment variable with the kernel's file.
pub const KERNEL: &str = "GANTRY_VM_KERNEL";

/// Where Debian's package has its kernel and that kernel's modules.
const DEBIAN_KERNEL: &str = "/usr/bin/linux.uml";
const DEBIAN_MODULES: &str = "/usr/lib/uml/modules";

/// The modules that the machine needs where they are not built in.
const MODULES: &[&str] = &["overlay", "loop"];

/// The machine's first program.
const INIT: &str = include_str!("../vm/init");

/// What has systemd use cgroup v1.
const SYSTEMD_LEGACY: &str = "systemd.unified_cgroup_hierarchy=0";

/// The shell and everything else that the first program uses.
const BUSYBOX: &str = "/bin/busybox";

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
    /// One v1 hierarchy for each controller, and systemd.
    SystemdLegacy,
}

impl Cgroups {
    fn has_systemd(self) -> bool {
        matches!(self, Self::Systemd | Self::SystemdLegacy)
    }

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unified => "v2",
            Self::Legacy => "v1",
            Self::Systemd => "systemd",
            Self::SystemdLegacy => "systemd-v1",
        }
    }
}

/// A machine to be started.
#[derive(Clone, Debug)]
pub struct Machine {
    kernel: PathBuf,
    /// The layout of its cgroups.
    pub cgroups: Cgroups,
    /// The directory of the host's that the job may change, at the same path.
    pub share: PathBuf,
    /// The size of its empty block device, `/dev/ubda`.
    pub disk_bytes: u64,
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
        ensure!(Path::new(BUSYBOX).is_file(), "{BUSYBOX} is missing: install busybox-static");
        let systemd = Path::new("/lib/systemd/systemd").is_file();
        ensure!(
            !cgroups.has_systemd() || systemd && crate::programs::find("dbus-daemon").is_some(),
            "systemd or dbus is not installed"
        );
        let share = share.canonicalize().with_context(|| share.display().to_string())?;
        // Some seconds are usual, but this machine may be busy with other things.
        let limit = Duration::from_secs(400);
        Ok(Self { kernel, cgroups, share, disk_bytes: 64 << 20, limit })
    }

    /// Whether the kernel is Debian's: a tenth as fast as one that traces no processes, and with
    /// fewer controllers.
    pub fn is_debian(&self) -> bool {
        self.kernel == Path::new(DEBIAN_KERNEL)
    }

    /// Runs a shell script in the machine as root, gives each line that it writes to `look`, and
    /// returns its exit status.
    ///
    /// # Errors
    ///
    /// The machine did not come up, or not to an end; the error has what its kernel said.
    pub fn run(&self, script: &str, mut look: impl FnMut(&str)) -> Result<i32> {
        let directory = tempfile::Builder::new().prefix("gantry-vm-").tempdir()?;
        let job = directory.path().canonicalize()?.join("job");
        fs::create_dir(&job)?;
        fs::write(job.join("run"), script)?;
        fs::write(job.join("output"), "")?;
        let console = directory.path().join("console");
        let mut kernel = Running(self.start(directory.path(), &job, &console)?);
        let mut output = File::open(job.join("output"))?;
        let mut rest = String::new();
        let start = Instant::now();
        let ended = loop {
            let ended = kernel.0.try_wait()?.is_some();
            output.read_to_string(&mut rest)?;
            while let Some(end) = rest.find('\n') {
                look(&rest[..end]);
                rest.drain(..=end);
            }
            if ended || start.elapsed() > self.limit {
                break ended;
            }
            std::thread::sleep(STEP);
        };
        drop(kernel);
        match fs::read_to_string(job.join("status")) {
            Ok(status) => status.trim().parse().context("the job's exit status"),
            Err(_) if !ended => bail!("the machine did not end within {:?}", self.limit),
            Err(_) => {
                bail!("the machine ended before its job: {}", last(&console)?)
            }
        }
    }

    fn start(&self, directory: &Path, job: &Path, console: &Path) -> Result<Child> {
        let initramfs = directory.join("initramfs");
        self.make_initramfs(&directory.join("initramfs.d"), &initramfs)?;
        let disk = directory.join("disk");
        File::create(&disk)?.set_len(self.disk_bytes)?;
        let console = File::create(console)?;
        let mut command = Command::new(&self.kernel);
        command
            .args(["mem=2G", "ncpus=1", "seccomp=on", "quiet", "panic=-1"])
            .args(["con=null", "con0=null,fd:1", "umid=vm"])
            .arg(format!("uml_dir={}/", directory.display()))
            .arg(format!("initrd={}", initramfs.display()))
            .arg(format!("ubd0={}", disk.display()))
            .arg(format!("vm.cgroups={}", self.cgroups.name()))
            .args((self.cgroups == Cgroups::SystemdLegacy).then_some(SYSTEMD_LEGACY))
            .arg(format!("vm.job={}", job.display()))
            .arg(format!("vm.share={}", self.share.display()))
            // Its memory is a file there, unless it is told otherwise.
            .env_remove("TMPDIR")
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .process_group(0);
        command.spawn().with_context(|| format!("start {}", self.kernel.display()))
    }

    /// Packs busybox, the first program, and modules.
    fn make_initramfs(&self, tree: &Path, file: &Path) -> Result<()> {
        for name in ["bin", "dev", "proc", "sys", "modules"] {
            fs::create_dir_all(tree.join(name))?;
        }
        fs::copy(BUSYBOX, tree.join("bin/busybox"))?;
        let applets =
            "sh mount umount mkdir rmdir insmod cat echo switch_root poweroff ln hostname chmod";
        for applet in applets.split(' ') {
            std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet))?;
        }
        fs::write(tree.join("init"), INIT)?;
        fs::set_permissions(tree.join("init"), PermissionsExt::from_mode(0o755))?;
        if self.is_debian() {
            for module in MODULES {
                let name = format!("{module}.ko");
                if let Some(found) = find(Path::new(DEBIAN_MODULES), &name) {
                    fs::copy(found, tree.join("modules").join(name))?;
                }
            }
        }
        let mut packer = Command::new(BUSYBOX)
            .args(["cpio", "-o", "-H", "newc"])
            .current_dir(tree)
            .stdin(Stdio::piped())
            .stdout(File::create(file)?)
            .stderr(Stdio::null())
            .spawn()?;
        let mut names = String::new();
        list(tree, Path::new(""), &mut names)?;
        packer.stdin.take().expect("is piped").write_all(names.as_bytes())?;
        ensure!(packer.wait()?.success(), "pack the initramfs: busybox cpio failed");
        Ok(())
    }
}

/// A kernel, which is killed with all its processes when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// The names of what is in a directory, those of directories first, as cpio wants them.
fn list(tree: &Path, below: &Path, names: &mut String) -> Result<()> {
    for entry in fs::read_dir(tree.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        *names += &format!("{}\n", name.display());
        if entry.file_type()?.is_dir() {
            list(tree, &name, names)?;
        }
    }
    Ok(())
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
