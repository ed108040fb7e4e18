//! A machine with an emulated processor: qemu, without the help of the real one, and Debian's
//! kernel for clouds. It is ten times as slow as a User Mode Linux, and boots in some ten seconds.
//!
//! The kernel's package is unpacked, not installed, so nothing of the machine's own changes;
//! `cargo xtask test` does it. The host's files come over virtiofs, from a virtiofsd for each
//! directory. Modules that the kernel asks for later are read from where it was unpacked.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Running, initramfs};
use crate::programs;

/// How long such a machine may run.
pub(super) const LIMIT: Duration = Duration::from_secs(1800);

/// The emulator, and what serves directories to it; both come with Debian's `qemu-system-x86`.
const QEMU: &str = "qemu-system-x86_64";
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

/// How long a virtiofsd may take for its socket.
const SERVED_WITHIN: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(20);

/// The modules without which the machine has no root, and those that it needs from the first.
const MODULES: [&str; 4] = ["virtio_pci", "virtiofs", "overlay", "loop"];

/// What the emulated kernel is spared, so that it boots sooner.
const QUICK: &str = "console=ttyS0 quiet mitigations=off nokaslr norandmaps no_timer_check \
                     tsc=reliable random.trust_cpu=on";

/// A kernel that was unpacked.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    image: PathBuf,
    /// Where its modules are, with their `modules.dep`.
    modules: PathBuf,
}

/// Where the kernel's package is unpacked.
///
/// # Panics
///
/// The crate lies outside a workspace.
pub fn directory() -> PathBuf {
    programs::target().join("vm-kernel")
}

impl Kernel {
    pub(super) fn find() -> Result<Self> {
        for program in [programs::debian(QEMU)?, PathBuf::from(VIRTIOFSD)] {
            ensure!(program.is_file(), "{} is missing: install qemu-system-x86", program.display());
        }
        let place = directory();
        let entries = fs::read_dir(place.join("boot")).into_iter().flatten().flatten();
        let mut versions = entries.filter_map(|entry| {
            Some(entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned())
        });
        let version = versions.next().with_context(|| {
            format!("no kernel in {}: `cargo xtask test` fetches it", place.display())
        })?;
        let modules = place.join("lib/modules").join(&version);
        ensure!(modules.join("modules.dep").is_file(), "{} has no index", modules.display());
        Ok(Self { image: place.join(format!("boot/vmlinuz-{version}")), modules })
    }

    /// The files of modules and of all that they need, in the order in which they are loaded.
    fn module_files(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let index = fs::read_to_string(self.modules.join("modules.dep"))?;
        Ok(load_order(&index, names).iter().map(|name| self.modules.join(name)).collect())
    }
}

/// Files in the order in which they are loaded, of the lines of a `modules.dep`, each of which has
/// a module's file and those of all that it needs, the last of them first. What is not there is
/// built in.
fn load_order<'a>(index: &'a str, names: &[&str]) -> Vec<&'a str> {
    let mut order = Vec::new();
    for name in names {
        let file = format!("/{name}.ko");
        let mut lines = index.lines().filter_map(|line| line.split_once(':'));
        let Some((module, needs)) = lines.find(|(module, _)| module.ends_with(&file)) else {
            continue;
        };
        for one in needs.split_whitespace().rev().chain([module]) {
            if !order.contains(&one) {
                order.push(one);
            }
        }
    }
    order
}

/// Starts what serves the directories, each under a name, and then the machine.
pub(super) fn start(
    kernel: &Kernel,
    directory: &Path,
    shares: &[(&str, &Path)],
    words: &[String],
    console: File,
) -> Result<Vec<Running>> {
    let mut programs = Vec::new();
    let mut qemu = Command::new(programs::debian(QEMU)?);
    qemu.args(["-accel", "tcg,thread=multi,tb-size=512", "-machine", "q35,hpet=off"])
        .args(["-cpu", "max", "-smp", "1", "-m", "2048M", "-display", "none", "-no-reboot"])
        .args(["-nodefaults", "-serial", "stdio", "-numa", "node,memdev=memory"])
        .args(["-object", "memory-backend-memfd,id=memory,size=2048M,share=on"]);
    for (name, source) in shares {
        let socket = directory.join(format!("{name}.sock"));
        programs.push(serve(source, &socket, name, &console)?);
        qemu.arg("-chardev").arg(format!("socket,id={name},path={}", socket.display()));
        qemu.arg("-device").arg(format!("vhost-user-fs-pci,chardev={name},tag={name}"));
    }
    let initramfs = directory.join("initramfs");
    let modules = kernel.module_files(&MODULES)?;
    initramfs::make(&directory.join("initramfs.d"), &initramfs, &modules)?;
    let all_modules = kernel.modules.parent().context("modules lie in a directory")?;
    let command_line = format!(
        "{QUICK} vm.root=virtiofs vm.modules={} {}",
        all_modules.canonicalize()?.display(),
        words.join(" ")
    );
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initramfs);
    qemu.args(["-append", &command_line]);
    programs.push(Running::start(&mut qemu, console)?);
    Ok(programs)
}

/// Starts a virtiofsd, and waits for its socket.
fn serve(source: &Path, socket: &Path, name: &str, console: &File) -> Result<Running> {
    // Nobody changes the host's own files meanwhile; the others are changed on both sides.
    let cache = if name == "root" { "always" } else { "auto" };
    let mut command = Command::new(VIRTIOFSD);
    command
        .arg(format!("--socket-path={}", socket.display()))
        .args(["-o", &format!("source={}", source.display()), "-o", &format!("cache={cache}")])
        .args(["-o", "sandbox=chroot"]);
    let mut server = Running::start(&mut command, console.try_clone()?)?;
    let start = Instant::now();
    while !socket.exists() {
        let ended = server.0.try_wait()?;
        ensure!(ended.is_none(), "{VIRTIOFSD} ended: {ended:?}");
        ensure!(start.elapsed() < SERVED_WITHIN, "{VIRTIOFSD} has made no socket");
        std::thread::sleep(STEP);
    }
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_modules() {
        let index = "kernel/fs/fuse/fuse.ko:\n\
                     kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko kernel/virtio.ko\n\
                     kernel/virtio.ko:\n\
                     kernel/virtio_pci.ko: kernel/ring.ko kernel/virtio.ko\n";
        let cases: [(&str, &[&str], &[&str]); 3] = [
            ("alone", &["fuse"], &["kernel/fs/fuse/fuse.ko"]),
            ("built in", &["overlay"], &[]),
            (
                "shared needs, once",
                &["virtio_pci", "virtiofs"],
                &[
                    "kernel/virtio.ko",
                    "kernel/ring.ko",
                    "kernel/virtio_pci.ko",
                    "kernel/fs/fuse/fuse.ko",
                    "kernel/fs/fuse/virtiofs.ko",
                ],
            ),
        ];
        for (case, names, want) in cases {
            assert_eq!(load_order(index, names), want, "{case}");
        }
    }
}
