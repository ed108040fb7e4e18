//! This program's own terminal.

use std::io::{self, IsTerminal as _};

use anyhow::{Context as _, ensure};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal on standard input in raw mode, so that keys reach the container as they are.
///
/// Dropping it restores the mode in which it was found.
#[derive(Debug)]
pub(crate) struct Console {
    before: Termios,
}

impl Console {
    /// Puts the terminal into raw mode.
    ///
    /// # Errors
    ///
    /// Standard input is not a terminal.
    pub(crate) fn raw() -> anyhow::Result<Self> {
        ensure!(io::stdin().is_terminal(), "--tty: standard input is not a terminal");
        let before = tcgetattr(io::stdin()).context("read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("set the terminal's mode")?;
        Ok(Self { before })
    }

    /// Columns and rows.
    pub(crate) fn size(&self) -> anyhow::Result<(u16, u16)> {
        let size = tcgetwinsize(io::stdin()).context("read the terminal's size")?;
        Ok((size.ws_col, size.ws_row))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
