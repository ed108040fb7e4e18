//! What tests and benches need from Debian.

mod kernel;

use std::{path::Path, process::Command};

/// A package, and a file by which it is known to be there.
const PACKAGES: &[(&str, &str)] = &[
    ("btrfs-progs", "/sbin/mkfs.btrfs"),
    ("busybox-static", "/bin/busybox"),
    ("containerd", "/usr/bin/containerd"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("conmon", "/usr/bin/conmon"),
    ("criu", "/usr/sbin/criu"),
    ("crun", "/usr/bin/crun"),
    ("dbus", "/usr/bin/dbus-daemon"),
    ("docker-registry", "/usr/bin/docker-registry"),
    ("docker.io", "/usr/sbin/dockerd"),
    ("erofs-utils", "/usr/bin/fsck.erofs"),
    ("iproute2", "/sbin/ip"),
    ("jq", "/usr/bin/jq"),
    ("netavark", "/usr/lib/podman/netavark"),
    ("podman", "/usr/bin/podman"),
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    ("runc", "/usr/sbin/runc"),
    ("strace", "/usr/bin/strace"),
    ("systemd", "/lib/systemd/systemd"),
    (KERNEL, "/usr/bin/linux.uml"),
    ("util-linux", "/usr/bin/unshare"),
];

/// The kernel for virtual machines, unless another one was chosen.
const KERNEL: &str = "user-mode-linux";

/// Fetches the kernel of emulated machines, if that is wished and can be done; gives its package's
/// name if it is missing still.
pub(crate) fn kernel(install: bool) -> Option<&'static str> {
    if install && let Err(error) = kernel::fetch() {
        println!("needs: {error:#}");
    }
    (!kernel::is_there()).then_some(kernel::PACKAGE)
}

/// Installs what is missing, if that is wished and can be done; gives what is missing still.
pub(crate) fn satisfy(install: bool) -> Vec<&'static str> {
    let wanted = missing();
    if wanted.is_empty() || !install {
        return wanted;
    }
    println!("needs: installing {}", wanted.join(" "));
    let apt = |words: &[&str]| {
        Command::new("apt-get")
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Without this Debian starts the services that it installs.
            .env("RUNLEVEL", "1")
            .stdout(std::process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let install = [&["install", "--yes", "--no-install-recommends"], wanted.as_slice()].concat();
    if !apt(&install) && apt(&["update"]) {
        // One package that is not to be had must not keep the others away.
        for package in missing() {
            apt(&["install", "--yes", "--no-install-recommends", package]);
        }
    }
    missing()
}

fn missing() -> Vec<&'static str> {
    let absent = |(_, file): &&(&str, &str)| !Path::new(file).exists();
    let chosen = std::env::var_os(integration::vm::KERNEL).is_some();
    let packages = PACKAGES.iter().filter(absent).map(|(package, _)| *package);
    packages.filter(|package| !(chosen && *package == KERNEL)).collect()
}
