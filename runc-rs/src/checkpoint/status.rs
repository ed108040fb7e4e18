//! The descriptor by which somebody is told that a lazy dump serves pages.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl};

use super::Options;
use crate::{error::Cause, error::Error, log};

/// The descriptor, as long as it is of use.
#[derive(Debug)]
pub(super) struct StatusPipe(Option<OwnedFd>);

impl StatusPipe {
    /// Takes the descriptor that the options name; a dump that is not lazy leaves it alone.
    pub(super) fn open(options: &Options) -> Result<Self, Error> {
        let Some(number) = options.status_fd.filter(|_| options.shared.lazy_pages) else {
            return Ok(Self(None));
        };
        let refuse =
            |why: String| Error::Usage(format!("invalid --status-fd argument {number}: {why}"));
        let fd = match number {
            0..=2 => sys::descriptors::standard(number)
                .ok_or_else(|| std::io::Error::from_raw_os_error(libc::EBADF))
                .and_then(|fd| fd.try_clone_to_owned()),
            number => sys::spawn::take_passed_fd(number),
        };
        let fd = fd.map_err(|error| refuse(Cause(error).to_string()))?;
        let flags = fcntl_getfl(&fd).map_err(|error| refuse(Cause(error.into()).to_string()))?;
        if (flags & OFlags::RWMODE) == OFlags::RDONLY {
            return Err(refuse("not writable".to_owned()));
        }
        Ok(Self(Some(fd)))
    }

    /// Its number in this process.
    pub(super) fn number(&self) -> Option<i32> {
        self.0.as_ref().map(|fd| fd.as_raw_fd())
    }

    /// Says that pages can be had.
    pub(super) fn report(&mut self) {
        let Some(fd) = self.0.take() else { return };
        if let Err(error) = rustix::io::write(&fd, &[0]) {
            log::warn(&format!("can't write \\0 to status fd: {}", Cause(error.into())));
        }
    }

    /// Lets go of it: whoever reads from it must not wait for this process.
    pub(super) fn close(&mut self) {
        self.0 = None;
    }
}
