//! Passes input and output on between this process's standard streams and a container's terminal.

use std::{
    cell::Cell,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, read, write},
    termios::{
        OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr,
        tcsetwinsize,
    },
};

use crate::error::Error;

/// How many bytes are passed on at once.
const CHUNK: usize = 4096;

/// A terminal that stands for this process's own.
pub(super) struct Relay {
    master: OwnedFd,
    /// How this process's terminal was, if it has one; it is raw meanwhile.
    saved: Option<Termios>,
    /// Whether there is more to read from standard input.
    input: Cell<bool>,
    /// Whether there is more to read from the container.
    output: Cell<bool>,
}

impl Relay {
    /// Makes this process's terminal raw and the other one as large.
    pub(super) fn new(master: OwnedFd) -> Result<Self, Error> {
        let stdin = sys::descriptors::standard(0);
        let mut saved = None;
        if let Some(stdin) = stdin.filter(|stdin| isatty(stdin)) {
            let fail = |error| Error::system("set up", "terminal", error);
            let now = tcgetattr(stdin).map_err(fail)?;
            let mut raw = now.clone();
            raw.make_raw();
            // Lines still end as this terminal wants it: the other one, below, sends them bare.
            raw.output_modes |= OutputModes::OPOST;
            tcsetattr(stdin, OptionalActions::Now, &raw).map_err(fail)?;
            saved = Some(now);
        }
        let input = Cell::new(stdin.is_some());
        let relay = Self { master, saved, input, output: Cell::new(true) };
        relay.resize();
        Ok(relay)
    }

    /// Gives the container's terminal the size of this one.
    pub(super) fn resize(&self) {
        let size = sys::descriptors::standard(0).and_then(|stdin| tcgetwinsize(stdin).ok());
        if let Some(size) = size {
            // Best effort: a program that draws wrongly is all that can come of it.
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    /// Adds what to wait for; [`Self::pass_on`] takes the results in the same order.
    pub(super) fn add_to<'a>(&'a self, waiting: &mut Vec<PollFd<'a>>) {
        let master = if self.output.get() { PollFlags::IN } else { PollFlags::empty() };
        waiting.push(PollFd::new(&self.master, master));
        if let (true, Some(stdin)) = (self.input.get(), sys::descriptors::standard(0)) {
            waiting.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
    }

    /// Moves what is there.
    pub(super) fn pass_on(&self, ready: &[PollFlags]) {
        if ready.first().is_some_and(|events| !events.is_empty()) && self.output.get() {
            self.output.set(self.copy_output());
        }
        if ready.get(1).is_some_and(|events| !events.is_empty()) {
            self.input.set(self.copy_input());
        }
    }

    fn copy_output(&self) -> bool {
        match sys::descriptors::standard(1) {
            Some(stdout) => copy(self.master.as_fd(), stdout),
            None => false,
        }
    }

    fn copy_input(&self) -> bool {
        match sys::descriptors::standard(0) {
            Some(stdin) => copy(stdin, self.master.as_fd()),
            None => false,
        }
    }

    /// Moves what output is left when the process has ended.
    pub(super) fn drain(self) {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        while self.output.get() {
            let mut waiting = [PollFd::new(&self.master, PollFlags::IN)];
            match poll(&mut waiting, Some(&now)) {
                Ok(ready) if ready > 0 => self.output.set(self.copy_output()),
                _ => break,
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let (Some(saved), Some(stdin)) = (&self.saved, sys::descriptors::standard(0)) {
            let _ = tcsetattr(stdin, OptionalActions::Now, saved);
        }
    }
}

/// Moves some bytes; `false` at the end.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut bytes = [0; CHUNK];
    let length = match read(from, &mut bytes) {
        Ok(0) => return false,
        Ok(length) => length,
        Err(Errno::INTR | Errno::AGAIN) => return true,
        // EIO: the last user of the terminal is gone.
        Err(_) => return false,
    };
    let mut rest = &bytes[..length];
    while !rest.is_empty() {
        match write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut waiting = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                let _ = poll(&mut waiting, None);
            }
            Err(_) => return false,
        }
    }
    true
}
