//! Moves bytes between a container's pipes and where clients want them.
//!
//! # Why there is a copy at all
//!
//! The container could get the client's fifo itself, and the shim would never see a byte. It gets
//! a pipe of the shim's instead, as under containerd's shim, because the fifo is a file of the
//! host: SELinux labels it so that a confined container may not use it, `/proc/self/fd` would show
//! the host's path, and the container could change its mode and owner.
//!
//! # How
//!
//! Between pipes, `splice(2)` moves pages without touching them. Terminals and files, which it
//! cannot or should not serve (files are opened for appending), go through a buffer that holds at
//! most one chunk. A copy waits either for its source or for its target, never for both, so a
//! target that is full stops the source, which is all the backpressure that is needed: the
//! container blocks in its write.
//!
//! ```text
//!            chunk moved          source is empty
//!           ┌──────────┐        ┌─────────────────> waits for source ─┐
//!   start ──┴─> move ──┴────────┤                                     ├─ ready ─> move
//!                               ├─────────────────> waits for target ─┘
//!                               │  target is full
//!                               └─> end: source closed, or target broken
//! ```
//!
//! At the end both descriptors are closed, and the reader of a fifo sees its end.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, read, write},
    pipe::{SpliceFlags, splice},
};

use super::relay::Relays;
use crate::poller::{Interest, Poller, Token};

/// The most that is moved at a time, in bytes: what a pipe holds by default.
const CHUNK_LEN: usize = 64 << 10;

/// The most that is buffered per copy, in bytes.
const BUFFER_LEN: usize = 4096;

/// How many chunks one copy moves before others get their turn.
const TURN_CHUNKS: usize = 16;

/// How bytes get from source to target.
#[derive(Debug)]
pub(crate) enum Method {
    /// Inside the kernel; both ends are pipes.
    Splice,
    /// Through a buffer, which holds what the target has not taken yet.
    Buffer(Vec<u8>),
}

/// The copies of a shim, and its streams. A number is of one or the other.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// The streams.
    pub relays: Relays,
    running: BTreeMap<u64, Copy>,
}

#[derive(Debug)]
struct Copy {
    source: OwnedFd,
    target: OwnedFd,
    method: Method,
    waits_for: End,
    /// Whether nothing more will come, so that an empty source is the end.
    last: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Source,
    Target,
}

/// What one move came to.
enum Moved {
    Some,
    Blocked(End),
    Ended,
}

impl Copies {
    /// Copies from `source` to `target` until the source ends, and returns the copy's number.
    ///
    /// Both must be non-blocking, or `method` must be [`Method::Splice`].
    ///
    /// # Errors
    ///
    /// The source is nothing to wait for, such as a regular file.
    pub(crate) fn start(
        &mut self,
        source: OwnedFd,
        target: OwnedFd,
        method: Method,
        poller: &mut Poller,
    ) -> Result<u64, Errno> {
        let number = poller.number();
        poller.add(&source, Token::CopySource(number), Interest::Read)?;
        let copy = Copy { source, target, method, waits_for: End::Source, last: false };
        self.running.insert(number, copy);
        Ok(number)
    }

    /// Goes on with a copy that is ready; `true` when that was its end.
    pub(crate) fn ready(&mut self, number: u64, poller: &Poller) -> bool {
        let Some(copy) = self.running.get_mut(&number) else { return false };
        for _ in 0..TURN_CHUNKS {
            match copy.move_some() {
                Moved::Some => {}
                Moved::Blocked(End::Source) if copy.last => return self.stop(number, poller),
                Moved::Blocked(end) => {
                    return match copy.wait_for(end, number, poller) {
                        Ok(()) => false,
                        Err(_) => self.stop(number, poller),
                    };
                }
                Moved::Ended => return self.stop(number, poller),
            }
        }
        false
    }

    /// Lets a copy or stream end when its source is empty for the first time; `true` when that is
    /// now, and it is a copy.
    pub(crate) fn finish(&mut self, number: u64, poller: &Poller) -> bool {
        let Some(copy) = self.running.get_mut(&number) else {
            self.relays.finish(number, poller);
            return false;
        };
        copy.last = true;
        self.ready(number, poller)
    }

    /// Ends a copy or stream, whatever is left to copy; `true` when it was there.
    pub(crate) fn stop(&mut self, number: u64, poller: &Poller) -> bool {
        let Some(copy) = self.running.remove(&number) else {
            return self.relays.stop(number, poller);
        };
        // A duplicate elsewhere would keep the registration alive.
        poller.remove(copy.end(copy.waits_for));
        true
    }

    /// Whether the copy has not ended yet, or the stream has a client that output can reach.
    pub(crate) fn is_running(&self, number: u64) -> bool {
        self.running.contains_key(&number) || self.relays.is_running(number)
    }
}

impl Copy {
    fn end(&self, end: End) -> &OwnedFd {
        match end {
            End::Source => &self.source,
            End::Target => &self.target,
        }
    }

    fn wait_for(&mut self, end: End, number: u64, poller: &Poller) -> Result<(), Errno> {
        if end == self.waits_for {
            return Ok(());
        }
        poller.remove(self.end(self.waits_for));
        self.waits_for = end;
        let (token, interest) = match end {
            End::Source => (Token::CopySource(number), Interest::Read),
            End::Target => (Token::CopyTarget(number), Interest::Write),
        };
        poller.add(self.end(end), token, interest)
    }

    fn move_some(&mut self) -> Moved {
        match &mut self.method {
            Method::Splice => {
                let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
                match splice(&self.source, None, &self.target, None, CHUNK_LEN, flags) {
                    Ok(0) => Moved::Ended,
                    Ok(_) | Err(Errno::INTR) => Moved::Some,
                    Err(Errno::AGAIN) if is_readable(&self.source) => Moved::Blocked(End::Target),
                    Err(Errno::AGAIN) => Moved::Blocked(End::Source),
                    Err(_) => Moved::Ended,
                }
            }
            Method::Buffer(buffer) => move_buffered(&self.source, &self.target, buffer),
        }
    }
}

fn move_buffered(source: &OwnedFd, target: &OwnedFd, buffer: &mut Vec<u8>) -> Moved {
    if buffer.is_empty() {
        let mut chunk = [0; BUFFER_LEN];
        match read(source, &mut chunk) {
            // A terminal whose last user is gone says EIO.
            Ok(0) => return Moved::Ended,
            Ok(len) => buffer.extend_from_slice(&chunk[..len]),
            Err(Errno::AGAIN) => return Moved::Blocked(End::Source),
            Err(Errno::INTR) => return Moved::Some,
            Err(_) => return Moved::Ended,
        }
    }
    match write(target, buffer) {
        Ok(len) => {
            buffer.drain(..len);
            Moved::Some
        }
        Err(Errno::INTR) => Moved::Some,
        Err(Errno::AGAIN) => Moved::Blocked(End::Target),
        // A full disk costs output, not the container.
        Err(Errno::NOSPC | Errno::DQUOT) => {
            buffer.clear();
            Moved::Some
        }
        Err(_) => Moved::Ended,
    }
}

/// Tells an empty source from a full target, which `splice` reports alike.
pub(super) fn is_readable(fd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write, pipe};

    use super::*;

    /// Runs `copies` until nothing has happened for a moment.
    fn run(copies: &mut Copies, poller: &Poller) {
        loop {
            let ready = poller.wait(Some(std::time::Duration::from_millis(50))).expect("epoll");
            if ready.is_empty() {
                return;
            }
            for token in ready {
                if let Token::CopySource(number) | Token::CopyTarget(number) = token {
                    copies.ready(number, poller);
                }
            }
        }
    }

    fn nonblocking(fd: &impl std::os::fd::AsFd) {
        rustix::io::ioctl_fionbio(fd, true).expect("FIONBIO");
    }

    #[test]
    fn copies_to_the_end_and_closes() {
        for method in [Method::Splice, Method::Buffer(Vec::new())] {
            let case = format!("{method:?}");
            let mut poller = Poller::new().expect("epoll");
            let mut copies = Copies::default();
            let (source, mut write) = pipe().expect("pipe");
            let (mut read, target) = pipe().expect("pipe");
            nonblocking(&source);
            nonblocking(&target);
            let number = copies
                .start(source.into(), target.into(), method, &mut poller)
                .expect("a pipe can be waited for");
            write.write_all(b"some words").expect("write");
            run(&mut copies, &poller);
            assert!(copies.is_running(number), "{case}");
            drop(write);
            run(&mut copies, &poller);
            assert!(!copies.is_running(number), "{case}");
            let mut text = String::new();
            read.read_to_string(&mut text).expect("read");
            assert_eq!(text, "some words", "{case}");
        }
    }

    #[test]
    fn a_full_target_stops_the_source() {
        for method in [Method::Splice, Method::Buffer(Vec::new())] {
            let case = format!("{method:?}");
            let mut poller = Poller::new().expect("epoll");
            let mut copies = Copies::default();
            let (source, mut write) = pipe().expect("pipe");
            let (mut read, target) = pipe().expect("pipe");
            nonblocking(&source);
            nonblocking(&target);
            nonblocking(&write);
            copies
                .start(source.into(), target.into(), method, &mut poller)
                .expect("a pipe can be waited for");
            let mut sent = 0;
            // Until neither pipe has room.
            while let Ok(len) = write.write(&[7; 4096]) {
                sent += len;
                run(&mut copies, &poller);
            }
            assert!(sent >= 2 * CHUNK_LEN - 4096, "{case}: {sent}");
            drop(write);
            let reader = std::thread::spawn(move || {
                let mut all = Vec::new();
                read.read_to_end(&mut all).expect("read");
                all.len()
            });
            while !copies.running.is_empty() {
                run(&mut copies, &poller);
            }
            assert_eq!(reader.join().expect("join"), sent, "{case}");
        }
    }

    #[test]
    fn finish_takes_what_is_there() {
        let mut poller = Poller::new().expect("epoll");
        let mut copies = Copies::default();
        let (source, mut write) = pipe().expect("pipe");
        let (mut read, target) = pipe().expect("pipe");
        let number = copies
            .start(source.into(), target.into(), Method::Splice, &mut poller)
            .expect("a pipe can be waited for");
        write.write_all(b"last words").expect("write");
        assert!(copies.finish(number, &poller), "although the writer is still there");
        let mut text = String::new();
        read.read_to_string(&mut text).expect("read");
        assert_eq!(text, "last words");
    }
}
