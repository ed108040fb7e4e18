//! The least that a container costs: what the kernel has to do for one, and nothing else.
//!
//! `floor <rootfs> <program>` makes the Linux namespaces, v1 cgroups and mounts of `runc spec`'s
//! document, runs the program in them, and takes everything away. It reads no configuration, checks
//! nothing, keeps no record, drops no right and hides no path; so what a runtime takes above it
//! is the runtime's. It is not safe to run anything else with it.

use std::{fs, os::fd::OwnedFd, os::unix::fs::symlink, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, open, openat, unlinkat},
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
        unmount,
    },
    process::{chdir, pivot_root},
    thread::UnshareFlags,
};

/// The filesystems: of what kind, where, and what mount(2) is told of them.
const MOUNTS: [(&str, &str, &str); 6] = [
    ("proc", "proc", ""),
    ("tmpfs", "dev", "mode=755,size=65536k"),
    ("devpts", "dev/pts", "newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("tmpfs", "dev/shm", "mode=1777,size=65536k"),
    ("mqueue", "dev/mqueue", ""),
    ("sysfs", "sys", ""),
];

/// The device nodes, with their numbers.
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// The name of the cgroups, in the groups that this process is in.
const GROUP: &str = "floor";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [rootfs, program] = words.as_slice() else { bail!("floor <rootfs> <program>") };
    // Open, because the paths are gone with the old root.
    let above = hierarchies()?;
    let group = format!("{GROUP}-{}", std::process::id());
    for directory in &above {
        enter_new_group(directory, &group)?;
    }
    let ran = contain(Path::new(rootfs), program);
    for directory in &above {
        write(directory, "tasks", b"0")?;
        unlinkat(directory, &group, AtFlags::REMOVEDIR)?;
    }
    ran
}

/// The directories of this process's v1 cgroups.
fn hierarchies() -> Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for line in fs::read_to_string("/proc/self/cgroup")?.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let name = controllers.trim_start_matches("name=");
        let directory = format!("/sys/fs/cgroup/{name}{path}");
        if !name.is_empty() && Path::new(&directory).is_dir() {
            found.push(open(directory, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
        }
    }
    Ok(found)
}

fn enter_new_group(above: &OwnedFd, name: &str) -> Result<()> {
    mkdirat(above, name, Mode::from_raw_mode(0o755))?;
    let group = openat(above, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(from) = openat(above, file, OFlags::CLOEXEC, Mode::empty()) else { break };
        let mut text = [0; 256];
        let length = rustix::io::read(from, &mut text)?;
        write(&group, file, &text[..length])?;
    }
    write(&group, "tasks", b"0")
}

fn write(directory: &OwnedFd, file: &str, text: &[u8]) -> Result<()> {
    let opened = openat(directory, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    let file = opened.with_context(|| format!("open {file}"))?;
    rustix::io::write(file, text)?;
    Ok(())
}

fn contain(rootfs: &Path, program: &str) -> Result<()> {
    use UnshareFlags as U;
    sys::namespace::unshare(U::NEWNS | U::NEWUTS | U::NEWIPC | U::NEWPID | U::NEWNET)?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    mount_bind_recursive(rootfs, rootfs)?;
    for (kind, place, data) in MOUNTS {
        let place = rootfs.join(place);
        fs::create_dir_all(&place)?;
        let data = std::ffi::CString::new(data)?;
        mount(kind, &place, kind, MountFlags::NOSUID, data.as_c_str())
            .with_context(|| format!("mount {}", place.display()))?;
    }
    let dev = rootfs.join("dev");
    for (name, major, minor) in NODES {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(CWD, dev.join(name), FileType::CharacterDevice, mode, makedev(major, minor))?;
    }
    for (target, link) in [("/proc/self/fd", "fd"), ("pts/ptmx", "ptmx")] {
        symlink(target, dev.join(link))?;
    }
    sys::loopback::set_up()?;
    rustix::system::sethostname(b"floor")?;
    chdir(rootfs)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    let status = Command::new(program).status().with_context(|| format!("run {program}"))?;
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}
