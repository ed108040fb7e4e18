//! User namespaces that nobody lives in, for mounts that show other owners.
//!
//! An id-mapped mount (mount_setattr(2)) takes its mapping from a user namespace, and only a process
//! can make one: a thread of a program with several cannot enter it. So a child is made in it, which
//! does nothing but wait for the end of a pipe, and is gone when this returns; the descriptor keeps
//! the namespace.
//!
//! It keeps nothing open but its end of the pipe: a lock on a file that the program lets go of, or the
//! other end of a pipe, would otherwise be held for as long as the child lives.
//!
//! The child has no exit signal, so that the program's own collector of children does not hear of
//! it, nor takes it for one of its own.

#![expect(unsafe_code, reason = "a process is made, and waited for by its number")]

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    str::FromStr,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    pipe::{PipeFlags, pipe_with},
};

/// The most ranges that a mapping may have; the kernel's own limit.
const RANGES_MAX: usize = 340;

/// A mapping of ids: in the text of containerd, `container:host:size`, more of them with commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap(Vec<Range>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    container: u32,
    host: u32,
    size: u32,
}

impl IdMap {
    /// The id on the host that is `id` in the container.
    pub fn to_host(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|range| {
            let offset = id.checked_sub(range.container).filter(|offset| *offset < range.size)?;
            range.host.checked_add(offset)
        })
    }

    /// The text that the kernel takes.
    fn lines(&self) -> String {
        let line = |it: &Range| format!("{} {} {}\n", it.container, it.host, it.size);
        self.0.iter().map(line).collect()
    }
}

impl FromStr for IdMap {
    type Err = IdMapError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || IdMapError(text.to_owned());
        let range = |part: &str| {
            let mut numbers = part.split(':').map(str::parse::<u32>);
            let mut next = || numbers.next().and_then(Result::ok).ok_or_else(bad);
            let range = Range { container: next()?, host: next()?, size: next()? };
            let ends = [range.container, range.host].map(|start| start.checked_add(range.size));
            if numbers.next().is_some() || range.size == 0 || ends.contains(&None) {
                return Err(bad());
            }
            Ok(range)
        };
        let ranges =
            text.split(',').take(RANGES_MAX + 1).map(range).collect::<Result<Vec<_>, _>>()?;
        if ranges.len() > RANGES_MAX {
            return Err(bad());
        }
        Ok(Self(ranges))
    }
}

/// A text that is no mapping of ids.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("mapping of ids {0:?} is not container:host:size, with commas between")]
pub struct IdMapError(String);

/// Makes a user namespace with these mappings.
///
/// # Errors
///
/// The kernel refuses: no user namespaces, no right to map these ids, ranges that overlap.
pub fn create(users: &IdMap, groups: &IdMap) -> io::Result<OwnedFd> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = Child::start(&read, &write)?;
    drop(read);
    let id = child.0;
    fs::write(format!("/proc/{id}/uid_map"), users.lines())?;
    fs::write(format!("/proc/{id}/gid_map"), groups.lines())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = openat(CWD, format!("/proc/{id}/ns/user"), flags, Mode::empty())?;
    // The pipe ends before the child is waited for.
    drop(write);
    drop(child);
    Ok(namespace)
}

/// A process that ends with the pipe, or when this is dropped.
struct Child(libc::pid_t);

impl Child {
    fn start(read: &OwnedFd, write: &OwnedFd) -> io::Result<Self> {
        let (read, write) = (read.as_raw_fd(), write.as_raw_fd());
        // SAFETY: without CLONE_VM this is fork(2) but for the namespace and the missing signal: the
        // child has memory of its own, and makes system calls only.
        let id = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER, 0, 0, 0, 0) };
        if id == 0 {
            // SAFETY: the descriptors are the child's own, and nothing in it uses any.
            unsafe { libc::dup2(read, 0) };
            // SAFETY: as above. A kernel before 5.9 knows no such call, and closes one below.
            unsafe { libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) };
            // SAFETY: as above; mostly it is closed already.
            unsafe { libc::close(write) };
            let mut byte = 0_u8;
            // SAFETY: reads one byte at most, to where one is.
            while unsafe { libc::read(0, (&raw mut byte).cast(), 1) } < 0 {}
            // SAFETY: ends the child without running what the program has registered.
            unsafe { libc::_exit(0) };
        }
        if id < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(libc::pid_t::try_from(id).map_err(io::Error::other)?))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // After an error the other end of the pipe may be open still.
        // SAFETY: the child was not waited for, so the number is its own.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        loop {
            // SAFETY: waits for the child that was made here; no status is asked for.
            let waited = unsafe { libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL) };
            if waited >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        let long = vec!["0:1:1"; RANGES_MAX + 1].join(",");
        let map = |ranges: &[(u32, u32, u32)]| {
            let range = |&(container, host, size)| Range { container, host, size };
            Some(IdMap(ranges.iter().map(range).collect()))
        };
        let cases = [
            ("one", "0:100000:65536", map(&[(0, 100_000, 65536)])),
            ("two", "0:1000:1,1:100000:9", map(&[(0, 1000, 1), (1, 100_000, 9)])),
            ("nothing", "", None),
            ("two numbers", "0:1", None),
            ("four numbers", "0:1:2:3", None),
            ("no number", "0:a:1", None),
            ("negative", "0:-1:1", None),
            ("empty range", "0:1:0", None),
            ("beyond the last id", "0:4294967295:2", None),
            ("too many", &long, None),
            ("lines", "0:1:1\n1:2:3", None),
        ];
        for (case, text, want) in cases {
            assert_eq!(text.parse::<IdMap>().ok(), want, "{case}");
        }
    }

    #[test]
    fn ids_on_the_host() {
        let map: IdMap = "0:1000:1,1:100000:9".parse().expect("a mapping");
        for (id, want) in [(0, Some(1000)), (1, Some(100_000)), (9, Some(100_008)), (10, None)] {
            assert_eq!(map.to_host(id), want, "{id}");
        }
    }

    #[test]
    fn namespaces() {
        let map: IdMap = "0:100000:65536".parse().expect("a mapping");
        let children = || {
            let all = fs::read_to_string("/proc/thread-self/children").expect("proc");
            all.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let before = children();
        let namespace = create(&map, &map).expect("a user namespace");
        assert_eq!(children(), before, "the child is gone");
        let name = rustix::fs::readlinkat(
            CWD,
            format!("/proc/self/fd/{}", namespace.as_raw_fd()),
            Vec::new(),
        );
        assert!(name.expect("a link").to_bytes().starts_with(b"user:["));
        let overlapping = "0:100000:9,5:200000:9".parse().expect("of the right form");
        assert!(create(&overlapping, &map).is_err(), "the kernel refuses");
        assert_eq!(children(), before, "the child is gone");
    }
}
