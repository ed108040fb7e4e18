//! The one place where the shim waits: an epoll instance, and what its events mean.
//!
//! Everything that can become ready has a [`Token`]. Numbers inside tokens are never used twice
//! ([`Poller::number`]), so an event that was fetched together with the one that closed its
//! source finds nothing and is dropped.
//!
//! Registrations are level-triggered. The kernel reports a hang-up even to those who wait for
//! nothing, so whoever does not want events takes the descriptor out ([`Poller::remove`]) instead
//! of waiting for nothing, which would spin.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{Timespec, epoll},
    io::Errno,
};

/// How many events one turn of the loop takes.
const EVENTS_MAX: usize = 32;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A signal is pending.
    Signals,
    /// Someone connects.
    Listener,
    /// A connection of the server.
    Connection(u64),
    /// The connection to containerd for events.
    Publisher,
    /// The source of a copy is readable.
    CopySource(u64),
    /// The destination of a copy is writable.
    CopyTarget(u64),
    /// A logging program says that it is ready.
    LoggerReady(u64),
    /// The kernel killed something in a container for want of memory.
    Oom(u64),
    /// The process's end of a stream is ready.
    Relay(u64),
}

/// The number of bits of a token's number; the rest is its kind.
const NUMBER_BITS: u32 = 56;

impl Token {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Self::Signals => (0, 0),
            Self::Listener => (1, 0),
            Self::Connection(number) => (2, number),
            Self::Publisher => (3, 0),
            Self::CopySource(number) => (4, number),
            Self::CopyTarget(number) => (5, number),
            Self::LoggerReady(number) => (6, number),
            Self::Oom(number) => (7, number),
            Self::Relay(number) => (8, number),
        };
        kind << NUMBER_BITS | number
    }

    fn decode(value: u64) -> Option<Self> {
        let number = value & ((1 << NUMBER_BITS) - 1);
        Some(match value >> NUMBER_BITS {
            0 => Self::Signals,
            1 => Self::Listener,
            2 => Self::Connection(number),
            3 => Self::Publisher,
            4 => Self::CopySource(number),
            5 => Self::CopyTarget(number),
            6 => Self::LoggerReady(number),
            7 => Self::Oom(number),
            8 => Self::Relay(number),
            _ => return None,
        })
    }
}

/// What to wait for. Errors and hang-ups are always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Something to read.
    Read,
    /// Room to write.
    Write,
    /// Both.
    ReadWrite,
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Self::Read => epoll::EventFlags::IN,
            Self::Write => epoll::EventFlags::OUT,
            Self::ReadWrite => epoll::EventFlags::IN | epoll::EventFlags::OUT,
        }
    }
}

/// Waits for many descriptors at once.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    last_number: u64,
}

impl Poller {
    /// Makes one that waits for nothing.
    ///
    /// # Errors
    ///
    /// The kernel has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, last_number: 0 })
    }

    /// A number for a token that no token had before.
    pub(crate) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Waits for `fd` from now on.
    ///
    /// # Errors
    ///
    /// The descriptor is of a kind that is always ready, such as a regular file (`EPERM`), or is
    /// registered already.
    pub(crate) fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.encode()), interest.flags())
    }

    /// Waits for something else on a registered descriptor.
    ///
    /// # Errors
    ///
    /// The descriptor is not registered.
    pub(crate) fn modify(
        &self,
        fd: impl AsFd,
        token: Token,
        interest: Interest,
    ) -> Result<(), Errno> {
        epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token.encode()), interest.flags())
    }

    /// Waits for `fd` no longer. One that is not registered stays so.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // The only possible failure is that there is nothing to do.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits until something happens or `timeout` is over, and returns what is ready.
    ///
    /// # Errors
    ///
    /// The kernel refuses to wait, which only a broken descriptor explains.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Token>> {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; EVENTS_MAX];
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((ready, _)) => {
                Ok(ready.iter().filter_map(|event| Token::decode(event.data.u64())).collect())
            }
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive() {
        let number = (1 << NUMBER_BITS) - 1;
        let tokens = [
            Token::Signals,
            Token::Listener,
            Token::Connection(number),
            Token::Publisher,
            Token::CopySource(1),
            Token::CopyTarget(2),
            Token::LoggerReady(3),
            Token::Oom(4),
            Token::Relay(5),
        ];
        for token in tokens {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
