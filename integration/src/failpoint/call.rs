//! Which system calls are steps, and what they are called.
//!
//! A name must be the same each time the program does the same thing, so numbers in paths are left
//! out. Paths are read from the process's memory as they are given, for that they are named well
//! enough: by their last two parts.

use std::{fs, os::unix::fs::FileExt as _, path::Path};

/// What the name of a call is taken from.
#[derive(Clone, Copy)]
enum Object {
    /// The path that this argument points to.
    Path(usize),
    /// The path that the first argument points to, if the second has flags that make a file.
    Made(usize),
    /// The descriptor in the first argument.
    Descriptor,
    /// Nothing.
    None,
}

use Object::{Descriptor, Made, None as Nothing, Path as At};

/// The calls that change what others can see.
const CALLS: &[(libc::c_long, &str, Object)] = &[
    (libc::SYS_openat, "create", Made(1)),
    (libc::SYS_mkdirat, "mkdir", At(1)),
    (libc::SYS_unlinkat, "unlink", At(1)),
    (libc::SYS_renameat2, "rename", At(3)),
    (libc::SYS_symlinkat, "symlink", At(2)),
    (libc::SYS_linkat, "link", At(3)),
    (libc::SYS_mknodat, "mknod", At(1)),
    (libc::SYS_fchmodat, "chmod", At(1)),
    (libc::SYS_fchownat, "chown", At(1)),
    (libc::SYS_execve, "exec", At(0)),
    (libc::SYS_umount2, "umount", At(0)),
    (libc::SYS_mount, "mount", At(1)),
    (libc::SYS_pivot_root, "pivot_root", At(1)),
    (libc::SYS_move_mount, "move_mount", At(3)),
    (libc::SYS_mount_setattr, "mount_setattr", At(1)),
    (libc::SYS_write, "write", Descriptor),
    (libc::SYS_writev, "write", Descriptor),
    (libc::SYS_pwrite64, "write", Descriptor),
    (libc::SYS_pwritev, "write", Descriptor),
    (libc::SYS_ftruncate, "truncate", Descriptor),
    (libc::SYS_fsync, "sync", Descriptor),
    (libc::SYS_fdatasync, "sync", Descriptor),
    (libc::SYS_fchmod, "chmod", Descriptor),
    (libc::SYS_fchown, "chown", Descriptor),
    (libc::SYS_sendto, "send", Descriptor),
    (libc::SYS_sendmsg, "send", Descriptor),
    (libc::SYS_bind, "bind", Descriptor),
    (libc::SYS_listen, "listen", Descriptor),
    (libc::SYS_connect, "connect", Descriptor),
    (libc::SYS_setns, "setns", Nothing),
    (libc::SYS_unshare, "unshare", Nothing),
    (libc::SYS_clone, "clone", Nothing),
    (libc::SYS_clone3, "clone", Nothing),
    (libc::SYS_kill, "kill", Nothing),
    (libc::SYS_pidfd_send_signal, "kill", Nothing),
    (libc::SYS_sethostname, "sethostname", Nothing),
    (libc::SYS_exit_group, "exit", Nothing),
];

/// Those that only older architectures have.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[(libc::c_long, &str, Object)] = &[
    (libc::SYS_open, "create", Made(0)),
    (libc::SYS_mkdir, "mkdir", At(0)),
    (libc::SYS_rmdir, "rmdir", At(0)),
    (libc::SYS_unlink, "unlink", At(0)),
    (libc::SYS_rename, "rename", At(1)),
    (libc::SYS_renameat, "rename", At(3)),
    (libc::SYS_symlink, "symlink", At(1)),
    (libc::SYS_link, "link", At(1)),
    (libc::SYS_mknod, "mknod", At(0)),
    (libc::SYS_chmod, "chmod", At(0)),
    (libc::SYS_chown, "chown", At(0)),
    (libc::SYS_fork, "clone", Nothing),
    (libc::SYS_vfork, "clone", Nothing),
];

#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[(libc::c_long, &str, Object)] = &[];

/// The longest path that is read, in bytes.
const PATH_LEN_MAX: usize = 4096;

/// Whether this call makes the process another program.
pub(super) fn is_exec(number: u64) -> bool {
    number == u64::try_from(libc::SYS_execve).unwrap_or(u64::MAX)
}

/// The name of the step that the process `pid` is about to take; `None` when its call is none.
pub(super) fn step(pid: i32, number: u64, arguments: [u64; 6]) -> Option<String> {
    let number = libc::c_long::try_from(number).ok()?;
    let (_, verb, object) =
        CALLS.iter().chain(OLD_CALLS).find(|(its, _, _)| *its == number).copied()?;
    let object = match object {
        Object::Path(at) => path(pid, arguments[at]),
        Object::Made(at) => {
            let flags = i32::try_from(arguments[at + 1] & 0xffff_ffff).ok()?;
            if flags & (libc::O_CREAT | libc::O_TRUNC) == 0 {
                return None;
            }
            path(pid, arguments[at])
        }
        Object::Descriptor => descriptor(pid, arguments[0])?,
        Object::None => String::new(),
    };
    Some(format!("{verb} {object}").trim_end().to_owned())
}

fn path(pid: i32, address: u64) -> String {
    let mut bytes = vec![0; PATH_LEN_MAX];
    let read = fs::File::open(format!("/proc/{pid}/mem"))
        .and_then(|memory| memory.read_at(&mut bytes, address));
    bytes.truncate(read.unwrap_or(0));
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    if text.is_empty() {
        return "(itself)".to_owned();
    }
    short(&String::from_utf8_lossy(text))
}

/// What a descriptor is of; `None` for what wakes a thread of the same process, and for its log.
fn descriptor(pid: i32, number: u64) -> Option<String> {
    if number == 1 || number == 2 {
        return None;
    }
    let target = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap_or_default();
    let target = target.to_string_lossy();
    (!target.starts_with("anon_inode:")).then(|| short(&target))
}

/// The last two parts of a path, without numbers.
fn short(path: &str) -> String {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let parts: Vec<&str> = Path::new(path).iter().filter_map(|part| part.to_str()).collect();
    let mut name = String::new();
    for part in &parts[parts.len().saturating_sub(2)..] {
        if !name.is_empty() && name != "/" {
            name.push('/');
        }
        let mut in_number = false;
        // What is long is a hash, which has letters too.
        let is_hash = part.len() > 40;
        for character in part.chars() {
            if character.is_ascii_digit() || is_hash {
                if !in_number {
                    name.push('N');
                }
                in_number = true;
            } else {
                name.push(character);
                in_number = false;
            }
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (path, want) in [
            ("/run/gantry/io.task/gantry-12/crash", "gantry-N/crash"),
            ("state.json", "state.json"),
            ("/proc/123/attr4", "N/attrN"),
            ("socket:[1234]", "socket:[N]"),
            ("/run/s/0123456789abcdef0123456789abcdef0123456789abcdef", "s/N"),
            ("/memfd:x (deleted)", "/memfd:x"),
            ("/", "/"),
        ] {
            assert_eq!(short(path), want, "{path}");
        }
    }
}
