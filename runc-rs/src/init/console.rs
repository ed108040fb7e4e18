//! The terminal of a process.
//!
//! It is made from the container's own devpts, so that it has a name there. Both ends are taken
//! from the multiplexer by ioctl and never opened by path, and the multiplexer itself is checked:
//! a container image may have put anything at /dev/pts (CVE-2025-52565).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{FileType, OFlags, fstat, fstatfs, major, minor},
    io::Errno,
    process::{ioctl_tiocsctty, setsid},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};

use super::{channel, process::ProcessPlan};
use crate::{
    error::Error,
    mount::{attach, target},
    spec,
};

const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// The ends of a terminal.
pub(super) struct Console {
    master: OwnedFd,
    peer: OwnedFd,
}

impl Console {
    /// Makes a terminal from the devpts below `root`.
    pub(super) fn new(root: BorrowedFd<'_>, plan: &ProcessPlan) -> Result<Self, Error> {
        let fail = |error| Error::system("make", "console from /dev/pts/ptmx", error);
        let master = open_multiplexer(root).map_err(fail)?;
        unlockpt(&master).map_err(fail)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let peer = ioctl_tiocgptpeer(&master, flags).map_err(fail)?;
        if let Some(spec::ConsoleSize { height, width }) = plan.process.console_size
            && (height, width) != (0, 0)
        {
            let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
            tcsetwinsize(&master, size).map_err(fail)?;
        }
        if plan.relayed {
            bare_line_ends(&master).map_err(fail)?;
        }
        Ok(Self { master, peer })
    }

    /// Shows the terminal as /dev/console below `root`.
    pub(super) fn mount(&self, root: BorrowedFd<'_>) -> Result<(), Error> {
        let fail = |error| Error::file("open", "/dev/console", error);
        let target = match target::open_plain(root, "dev/console", OFlags::PATH) {
            // A link that comes in now leads nowhere but below /dev.
            Err(Errno::NOENT) => {
                let dev = target::open_plain(root, "dev", OFlags::PATH).map_err(fail)?;
                target::make_file(dev.as_fd(), "console")?
            }
            result => result.map_err(fail)?,
        };
        attach::clone_at(self.peer.as_fd(), false)
            .and_then(|tree| attach::put(tree.as_fd(), target.as_fd()))
            .map_err(|error| Error::file("mount", "/dev/console", error))
    }

    /// Sends the master to whoever listens on `socket`, and makes the other end this process's
    /// standard streams.
    pub(super) fn hand_over(self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let fail = |error| Error::system("set up", "console", error);
        channel::send_with(socket, b"/dev/ptmx", Some(self.master.as_fd())).map_err(fail)?;
        dup2_stdin(&self.peer).map_err(fail)?;
        dup2_stdout(&self.peer).map_err(fail)?;
        dup2_stderr(&self.peer).map_err(fail)
    }
}

/// Has a terminal pass line ends on as they are, so that what the runtime writes to a file or a
/// pipe is what the program wrote.
fn bare_line_ends(master: &OwnedFd) -> Result<(), Errno> {
    let mut modes = tcgetattr(master)?;
    modes.output_modes &= !OutputModes::ONLCR;
    tcsetattr(master, OptionalActions::Now, &modes)
}

fn open_multiplexer(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW;
    let master = target::open(root, "dev/pts/ptmx", flags)?;
    let found = fstat(&master)?;
    let is_multiplexer = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
        && (major(found.st_rdev), minor(found.st_rdev)) == (5, 2)
        && fstatfs(&master)?.f_type == DEVPTS_SUPER_MAGIC;
    if is_multiplexer { Ok(master) } else { Err(Errno::NOTTY) }
}

/// Makes standard input, a terminal, the controlling terminal of this session.
pub(super) fn take_control() -> Result<(), Error> {
    let fail = |error| Error::system("ioctl", "setctty", error);
    match sys::descriptors::standard(0) {
        Some(stdin) => ioctl_tiocsctty(stdin).map_err(fail),
        None => Err(fail(Errno::BADF)),
    }
}

/// Starts a session of its own.
pub(super) fn new_session() -> Result<(), Error> {
    match setsid() {
        // Already the leader of one.
        Ok(_) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(Error::system("setsid", "", error)),
    }
}
