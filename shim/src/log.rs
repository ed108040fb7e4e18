//! The shim's log: lines in the form of containerd's, into the fifo `log` of the bundle.
//!
//! containerd copies the fifo to its own log. The fifo is opened for reading too, so that writing
//! neither waits for containerd nor fails when it is away; what does not fit is lost.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Writes log lines.
#[derive(Debug)]
pub(crate) struct Log {
    fifo: Option<File>,
    namespace: String,
    debug: bool,
}

impl Log {
    /// Logs to the fifo at `path`, or nowhere when there is none.
    pub(crate) fn open(path: &Path, namespace: &str, debug: bool) -> Self {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        Self { fifo: options.open(path).ok(), namespace: namespace.to_owned(), debug }
    }

    /// Sends what the program itself says, such as why it panics, to the log.
    pub(crate) fn take_stderr(&self) {
        if let Some(fifo) = &self.fifo {
            // Without it, it goes nowhere, as before.
            let _ = rustix::stdio::dup2_stderr(fifo);
        }
    }

    /// Logs what an operator should see.
    pub(crate) fn error(&self, message: &str) {
        self.line("error", message);
    }

    /// Logs what may explain something later.
    pub(crate) fn warn(&self, message: &str) {
        self.line("warning", message);
    }

    /// Logs what happens.
    pub(crate) fn info(&self, message: &str) {
        self.line("info", message);
    }

    /// Logs what helps whoever looks for a mistake in the shim.
    pub(crate) fn debug(&self, message: &str) {
        if self.debug {
            self.line("debug", message);
        }
    }

    fn line(&self, level: &str, message: &str) {
        let Some(mut fifo) = self.fifo.as_ref() else { return };
        let Self { namespace, .. } = self;
        let pid = std::process::id();
        let line = format!(
            "level={level} msg={message:?} runtime=io.containerd.runc-rs.v2 namespace={namespace} \
             pid={pid}\n"
        );
        // There is nowhere to report that to.
        let _ = fifo.write_all(line.as_bytes());
    }
}
