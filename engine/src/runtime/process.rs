//! Another process, held by a descriptor: its number cannot come to mean somebody else.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::io::{Interest, unix::AsyncFd};

/// A process that is not a child of this one.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Takes hold of the process that has the number now.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        #[expect(deprecated, reason = "unsound for descriptors that are not owned; this one is")]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Self { pid, pidfd })
    }

    /// Takes hold of the other process that listens at the socket `address`, if there is one, and it
    /// runs a program of the same name as `program`: an address may be anyone's.
    ///
    /// The kernel tells who made a socket, but a shim gets its from whoever starts it. So the socket's
    /// number is looked up, and then who has it open. Blocks, and looks at all processes.
    ///
    /// # Errors
    ///
    /// There are several, or it runs another program, or `/proc` cannot be read.
    pub(super) fn listening_at(address: &str, program: &Path) -> io::Result<Option<Self>> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let links = sockets_at(path, &fs::read("/proc/self/net/unix")?);
        if links.is_empty() {
            return Ok(None);
        }
        let mut holders = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let pid = name.to_str().and_then(|name| name.parse::<u32>().ok());
            holders.extend(pid.filter(|pid| has_open(*pid, &links)));
        }
        holders.retain(|pid| *pid != std::process::id());
        let pid = match holders[..] {
            [] => return Ok(None),
            [pid] => pid,
            _ => return Err(io::Error::other(format!("processes {holders:?} have it open"))),
        };
        let process = Self::open(pid)?;
        let runs = fs::read_link(format!("/proc/{pid}/exe"))?;
        if program_name(&runs) != program_name(program) {
            let text = format!("process {pid} listens there, and runs {}", runs.display());
            return Err(io::Error::other(text));
        }
        // The number may have become another's in between.
        Ok(has_open(pid, &links).then_some(process))
    }

    /// Its number, which may be another's after its end.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the process has exited.
    pub(super) async fn exited(&self) {
        // An error can only mean that the runtime is shutting down.
        let _ = self.pidfd.readable().await;
    }

    /// Kills the process, if it still runs.
    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
    }
}

/// A process as it was seen once, without being held: by its number and by when it started, which
/// together are never another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sighting {
    pid: u32,
    /// In ticks since the machine was started.
    started: u64,
}

impl Sighting {
    /// The process that has the number now, if there is one and it can be looked at.
    pub(super) fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, started: started(&stat(pid).ok()?)? })
    }

    /// The number.
    pub(super) fn pid(self) -> u32 {
        self.pid
    }

    /// Takes hold of the process.
    ///
    /// # Errors
    ///
    /// `NotFound`: it has ended. The others are the kernel's, and say nothing of the process.
    pub(super) fn open(self) -> io::Result<Process> {
        let name = |error: io::Error| match Errno::from_io_error(&error) {
            Some(Errno::SRCH) => io::ErrorKind::NotFound.into(),
            _ => error,
        };
        // Whoever is held had the number later than who was seen, so it is the same one if that is
        // there still.
        let process = Process::open(self.pid).map_err(name)?;
        let text = stat(self.pid).map_err(name)?;
        if started(&text) == Some(self.started) {
            Ok(process)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

/// What there is of `/proc/<pid>/stat`, which the kernel gives whole in one read: a new daemon looks at
/// all inits, and the standard library would read it in six pieces.
fn stat(pid: u32) -> io::Result<String> {
    let file = open(format!("/proc/{pid}/stat"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = [0; STAT_LEN_MAX];
    let count = rustix::io::read(&file, &mut text)?;
    Ok(String::from_utf8_lossy(&text[..count]).into_owned())
}

/// The longest `/proc/<pid>/stat`, in bytes: a name and 51 numbers of up to 20 digits, and a sign.
const STAT_LEN_MAX: usize = 2048;

/// When a process started, out of `/proc/<pid>/stat`. Its name, in parentheses, may be anything.
fn started(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The flag of sockets that listen, in `/proc/net/unix`.
const LISTENS: u32 = 1 << 16;

/// What the descriptors of those who listen at `path` are links to, out of `/proc/net/unix`:
///
/// ```text
/// Num       RefCount Protocol Flags    Type St Inode Path
/// ffff9d04: 00000002 00000000 00010000 0001 01 18043 /run/s
/// ```
fn sockets_at(path: &str, table: &[u8]) -> Vec<PathBuf> {
    let table = String::from_utf8_lossy(table);
    let listens = |flags: &str| u32::from_str_radix(flags, 16).is_ok_and(|it| it & LISTENS != 0);
    let socket = |line: &str| {
        let mut words = line.split_whitespace();
        let (flags, inode) = (words.nth(3)?, words.nth(2)?);
        let here = line.ends_with(&format!(" {inode} {path}"));
        (here && listens(flags)).then(|| PathBuf::from(format!("socket:[{inode}]")))
    };
    table.lines().filter_map(socket).collect()
}

/// The name of a program, which may have been replaced.
fn program_name(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    Some(name.strip_suffix(" (deleted)").unwrap_or(name))
}

/// Whether a process has one of `links` open. Of one that has ended nothing is.
fn has_open(pid: u32, links: &[PathBuf]) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.any(|target| links.contains(&target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn exit_is_noticed() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("spawned");
        let process = Process::open(child.id()).expect("runs");
        process.kill();
        process.exited().await;
        assert!(!child.wait().expect("reaped").success());
        assert!(Process::open(0).is_err());
    }

    #[tokio::test]
    async fn a_process_is_known_again() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("spawned");
        let seen = Sighting::of(child.id()).expect("runs");
        assert_eq!(seen.open().expect("runs").pid(), child.id());
        let another = Sighting { started: seen.started + 1, ..seen };
        let error = another.open().expect_err("another process has the number");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        seen.open().expect("runs").kill();
        child.wait().expect("reaped");
        let error = seen.open().expect_err("has ended");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(Sighting::of(child.id()), None);
    }

    #[test]
    fn when_a_process_started() {
        let of = |name: &str| {
            format!("7 ({name}) S 1 7 7 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 12345 99 1")
        };
        let cases = [
            ("plain", of("sh"), Some(12345)),
            ("name with parenthesis", of("a) R 1 (b"), Some(12345)),
            ("short", "7 (sh) S 1".to_owned(), None),
            ("empty", String::new(), None),
        ];
        for (case, text, want) in cases {
            assert_eq!(started(&text), want, "{case}");
        }
    }

    #[tokio::test]
    async fn who_listens() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("a socket");
        let address = format!("unix://{}", path.display());
        let program = Path::new("/other/sleep");
        let who = || Process::listening_at(&address, program).expect("read").map(|it| it.pid());
        assert_eq!(who(), None, "there is none");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        assert_eq!(who(), None, "only this process");
        let client = std::os::unix::net::UnixStream::connect(&path).expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        let sleep = |stdin: OwnedFd| {
            let mut sleep = std::process::Command::new("sleep");
            sleep.arg("1000").stdin(stdin).spawn().expect("spawned")
        };
        let mut serves = sleep(server.into());
        let mut listens = sleep(listener.try_clone().expect("copied").into());
        // Between fork and exec it is another program, and has more open.
        let look = || Process::listening_at(&address, program);
        while !look().is_ok_and(|it| it.is_some_and(|it| it.pid() == listens.id())) {
            tokio::task::yield_now().await;
        }
        Process::listening_at(&address, Path::new("/bin/other")).expect_err("another program");
        let mut too = sleep(listener.into());
        while look().is_ok() {
            tokio::task::yield_now().await;
        }
        for child in [&mut listens, &mut too, &mut serves] {
            child.kill().expect("killed");
            child.wait().expect("reaped");
        }
        assert_eq!(who(), None, "nobody does");
        drop(client);
    }

    #[test]
    fn sockets() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01    43 /run/s
0000000000000000: 00000003 00000000 00000000 0001 03    44 /run/s
0000000000000000: 00000002 00000000 00010000 0001 01 18045 /run/s a
0000000000000000: 00000002 00000000 00010000 0001 01 18046 @/run/s
0000000000000000: 00000002 00000000 00000000 0002 01 18047
broken
";
        let cases: &[(&str, &[&str])] = &[
            ("/run/s", &["socket:[43]"]),
            ("/run/s a", &["socket:[18045]"]),
            ("a", &[]),
            ("", &[]),
            ("@/run/s", &["socket:[18046]"]),
        ];
        for (path, want) in cases {
            let want: Vec<PathBuf> = want.iter().map(PathBuf::from).collect();
            assert_eq!(sockets_at(path, table), want, "{path:?}");
        }
    }
}
