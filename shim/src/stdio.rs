//! The standard streams of a task or exec: what clients ask for, what the process gets, and what
//! runs in between.
//!
//! ```text
//!  client ──fifo──> shim ──pipe──> stdin  of the process
//!  client <──fifo── shim <──pipe── stdout, stderr
//!  client <─fifos─> shim <─master─> terminal of the process
//! ```
//!
//! The shim keeps each fifo of the client open for reading and writing, so that a client can go
//! and come back (`attach`): without a reader the process blocks when the fifo is full, and
//! without a writer it does not see the end of its input. The end comes with `CloseIO`, which
//! closes the shim's writing end of stdin.
//!
//! An exit does not end the output: a child of the process may have it open. Whoever deletes the
//! process waits for the end, but not longer than [`DRAIN_MAX`].

mod console;
mod copy;
mod logger;
mod uri;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::poller::{Interest, Poller, Token};

pub(crate) use console::{ConsoleSocket, resize};
pub(crate) use copy::{Copies, Method};
pub(crate) use logger::Logger;
pub(crate) use uri::Uri;

/// How long output may go on after the exit when someone waits for its end.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(10);

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Streams {
    /// Where standard input comes from.
    pub stdin: String,
    /// Where standard output goes.
    pub stdout: String,
    /// Where standard error goes.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
}

/// Who the process is, for the names of things, and who owns its pipes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    /// The ID of the container or exec.
    pub id: &'a str,
    /// The containerd namespace.
    pub namespace: &'a str,
    /// The user and group that the pipes belong to.
    pub ids: (u32, u32),
    /// Where sockets go.
    pub socket_directory: &'a Path,
}

/// What a runtime gets as its standard streams, for the process that it starts.
#[derive(Debug, Default)]
pub(crate) struct ChildStreams {
    /// Standard input; nothing means `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// What the shim holds of a process's streams.
#[derive(Debug, Default)]
pub(crate) struct Io {
    /// Where input goes, until it is opened.
    unopened: Option<Unopened>,
    /// Keeps the client's stdin fifo from ending.
    stdin_keeper: Option<OwnedFd>,
    input: Option<u64>,
    outputs: Vec<u64>,
    console: Option<OwnedFd>,
    /// The terminal's output, which ends with the process.
    console_output: Option<u64>,
    logger: Option<Pid>,
}

/// Input that waits for its process to run.
#[derive(Debug)]
struct Unopened {
    fifo: PathBuf,
    target: OwnedFd,
    method: Method,
    /// Whether the client has said already that there will be no more.
    closed: bool,
}

/// Streams that are ready for a runtime to start.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// What the runtime gets.
    pub child: ChildStreams,
    /// What the shim keeps.
    pub io: Io,
    /// Where the runtime sends the terminal's master.
    pub console: Option<ConsoleSocket>,
    /// A logging program that is to say that it is ready first.
    pub logger: Option<(u64, Logger)>,
    /// Where the terminal's output goes, for when the terminal is there.
    console_target: Option<OwnedFd>,
    /// Copies of output, for when the process is there: from where, to where, and how.
    held: Vec<(OwnedFd, OwnedFd, Method)>,
}

/// Opens what `streams` asks for, and starts logging programs.
///
/// # Errors
///
/// Something cannot be opened. Nothing runs then.
pub(crate) fn prepare(
    streams: &Streams,
    owner: Owner<'_>,
    copies: &mut Copies,
    poller: &mut Poller,
) -> io::Result<Prepared> {
    let mut prepared = Prepared::default();
    match prepare_into(&mut prepared, streams, owner, poller) {
        Ok(()) => Ok(prepared),
        Err(error) => {
            prepared.io.close(copies, poller);
            Err(error)
        }
    }
}

fn prepare_into(
    prepared: &mut Prepared,
    streams: &Streams,
    owner: Owner<'_>,
    poller: &mut Poller,
) -> io::Result<()> {
    let stdout = Uri::parse(&streams.stdout).map_err(io::Error::other)?;
    if streams.terminal {
        prepared.console = Some(ConsoleSocket::new(owner.socket_directory, poller.number())?);
    }
    if let Uri::Binary { program, arguments, must_report } = &stdout {
        let program = (program.as_path(), arguments.as_slice(), *must_report);
        let started = logger::start(program, owner.id, owner.namespace);
        let (logger, stdout, stderr) = started.map_err(at("start", program.0))?;
        prepared.io.logger = Some(logger.pid);
        let number = poller.number();
        poller.add(&logger.ready, Token::LoggerReady(number), Interest::Read)?;
        prepared.logger = Some((number, logger));
        if streams.terminal {
            prepared.console_target = Some(stdout);
        } else {
            prepared.child.stdout = Some(stdout);
            prepared.child.stderr = Some(stderr);
        }
        return Ok(());
    }
    if streams.terminal {
        prepared.console_target = open_output(&stdout)?;
        return Ok(());
    }
    prepare_outputs(prepared, &stdout, &streams.stderr, owner)?;
    prepared.child.stdin = prepared.io.prepare_input(&streams.stdin, owner.ids)?;
    Ok(())
}

fn prepare_outputs(
    prepared: &mut Prepared,
    stdout: &Uri,
    stderr: &str,
    owner: Owner<'_>,
) -> io::Result<()> {
    let out = open_output(stdout)?;
    let err = match (Uri::parse(stderr).map_err(io::Error::other)?, &out) {
        // One description for both, so that they share an offset.
        (stderr, Some(out)) if stderr == *stdout => Some(out.try_clone()?),
        // As under containerd's shim, a file takes both.
        (Uri::Path(_), Some(out)) if matches!(stdout, Uri::File(_)) => Some(out.try_clone()?),
        (stderr, _) => open_output(&stderr)?,
    };
    let child = &mut prepared.child;
    for (target, child) in [(out, &mut child.stdout), (err, &mut child.stderr)] {
        let Some(target) = target else { continue };
        let (source, end) = io::pipe()?;
        give(&end, owner.ids)?;
        rustix::io::ioctl_fionbio(&source, true)?;
        let method = method_for(&target)?;
        prepared.held.push((source.into(), target, method));
        *child = Some(end.into());
    }
    Ok(())
}

impl Prepared {
    /// Starts the copies of a process that is there now: of its output, or of its terminal, which
    /// the runtime has sent.
    ///
    /// Not earlier: a runtime that fails writes why to the container's standard error. Its log says
    /// it too, and that is what the caller gets.
    ///
    /// # Errors
    ///
    /// No terminal has come, or a fifo cannot be opened.
    pub(crate) fn attach(
        &mut self,
        stdin: &str,
        copies: &mut Copies,
        poller: &mut Poller,
    ) -> io::Result<()> {
        for (source, target, method) in self.held.drain(..) {
            self.io.outputs.push(copies.start(source, target, method, poller)?);
        }
        let Some(socket) = self.console.take() else { return Ok(()) };
        let master = socket.receive()?;
        if let Uri::Path(fifo) = Uri::parse(stdin).map_err(io::Error::other)? {
            let target = master.try_clone()?;
            let method = Method::Buffer(Vec::new());
            self.io.unopened = Some(Unopened { fifo, target, method, closed: false });
        }
        if let Some(target) = self.console_target.take() {
            let source = master.try_clone()?;
            let output = copies.start(source, target, Method::Buffer(Vec::new()), poller)?;
            self.io.outputs.push(output);
            self.io.console_output = Some(output);
        }
        self.io.console = Some(master);
        Ok(())
    }
}

impl Io {
    /// Makes what a process without a terminal gets as its input.
    fn prepare_input(&mut self, stdin: &str, ids: (u32, u32)) -> io::Result<Option<OwnedFd>> {
        let Uri::Path(fifo) = Uri::parse(stdin).map_err(io::Error::other)? else {
            return Ok(None);
        };
        if !is_fifo(&fifo)? {
            return Ok(Some(File::open(&fifo).map_err(at("open", &fifo))?.into()));
        }
        let (end, target) = io::pipe()?;
        give(&end, ids)?;
        let target = target.into();
        self.unopened = Some(Unopened { fifo, target, method: Method::Splice, closed: false });
        Ok(Some(end.into()))
    }

    /// Opens the input, now that the process runs.
    ///
    /// Not earlier: a client whose input is short closes it as soon as the fifo has a reader, and
    /// says so by `CloseIO`, which it can only do when it has been told that the task exists.
    ///
    /// # Errors
    ///
    /// The fifo is gone.
    pub(crate) fn open_input(
        &mut self,
        copies: &mut Copies,
        poller: &mut Poller,
    ) -> io::Result<()> {
        let Some(Unopened { fifo, target, method, closed }) = self.unopened.take() else {
            return Ok(());
        };
        let open = |options: &mut OpenOptions| -> io::Result<OwnedFd> {
            let opened = options.custom_flags(libc::O_NONBLOCK).open(&fifo);
            Ok(opened.map_err(at("open", &fifo))?.into())
        };
        let source = open(OpenOptions::new().read(true))?;
        // Before the copy starts: without a writer it would end at once.
        let keeper = open(OpenOptions::new().write(true))?;
        self.input = Some(copies.start(source, target, method, poller)?);
        self.stdin_keeper = (!closed).then_some(keeper);
        Ok(())
    }

    /// Ends the input once the client has closed it too.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin_keeper = None;
        if let Some(unopened) = &mut self.unopened {
            unopened.closed = true;
        }
    }

    /// Sets the size of the terminal, where there is one.
    ///
    /// # Errors
    ///
    /// The terminal is gone.
    pub(crate) fn resize(&self, width: u32, height: u32) -> io::Result<()> {
        self.console.as_ref().map_or(Ok(()), |master| resize(master, width, height))
    }

    /// Takes note that the process has exited: nobody needs input, and a terminal's output ends
    /// with what is there.
    pub(crate) fn exited(&mut self, copies: &mut Copies, poller: &Poller) {
        self.unopened = None;
        self.stdin_keeper = None;
        if let Some(input) = self.input.take() {
            copies.stop(input, poller);
        }
        if let Some(output) = self.console_output {
            copies.finish(output, poller);
        }
    }

    /// Whether all output has arrived, and the logging program is done.
    pub(crate) fn is_drained(&self, copies: &Copies) -> bool {
        self.logger.is_none() && !self.outputs.iter().any(|&output| copies.is_running(output))
    }

    /// The logging program, as long as it runs.
    pub(crate) fn logger(&self) -> Option<Pid> {
        self.logger
    }

    /// Takes note that a logging program has ended; `true` if it was this process's.
    pub(crate) fn logger_exited(&mut self, pid: Pid) -> bool {
        let own = self.logger == Some(pid);
        if own {
            self.logger = None;
        }
        own
    }

    /// Ends everything, and asks a logging program that still runs to end.
    pub(crate) fn close(&mut self, copies: &mut Copies, poller: &Poller) {
        for number in self.outputs.drain(..).chain(self.input.take()) {
            copies.stop(number, poller);
        }
        if let Some(logger) = self.logger.take() {
            // It may have ended just now.
            let _ = kill_process(logger, Signal::TERM);
        }
        self.unopened = None;
        self.stdin_keeper = None;
        self.console = None;
    }
}

/// A stream cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path:?}")]
struct OpenError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Says which file an error is about.
fn at(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> io::Error {
    let path = path.to_owned();
    move |source| io::Error::other(OpenError { operation, path: path.clone(), source })
}

/// Opens where output goes. A fifo is opened for reading too, so that it needs no reader.
fn open_output(uri: &Uri) -> io::Result<Option<OwnedFd>> {
    let mut options = OpenOptions::new();
    let path = match uri {
        Uri::Null => return Ok(None),
        Uri::Path(path) if is_fifo(path)? => {
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
            path
        }
        Uri::Path(path) => {
            options.append(true);
            path
        }
        Uri::File(path) => {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory).map_err(at("make", directory))?;
            }
            options.append(true).create(true).mode(0o644);
            path
        }
        Uri::Binary { .. } => {
            return Err(io::Error::other("a logging program takes stdout and stderr"));
        }
    };
    Ok(Some(options.open(path).map_err(at("open", path))?.into()))
}

fn is_fifo(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path).map_err(at("open", path))?.file_type().is_fifo())
}

/// Splices where it can.
fn method_for(target: &impl AsFd) -> io::Result<Method> {
    let mode = rustix::fs::fstat(target)?.st_mode;
    let is_pipe = rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Fifo;
    Ok(if is_pipe { Method::Splice } else { Method::Buffer(Vec::new()) })
}

/// Makes a pipe belong to the user that the container's process runs as.
fn give(end: impl AsFd, (uid, gid): (u32, u32)) -> io::Result<()> {
    if (uid, gid) == (0, 0) {
        return Ok(());
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    Ok(rustix::fs::fchown(end, Some(uid), Some(gid))?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn owner(directory: &Path) -> Owner<'_> {
        Owner { id: "c", namespace: "ns", ids: (0, 0), socket_directory: directory }
    }

    #[test]
    fn a_file_takes_both_streams() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("logs").join("out");
        let mut poller = Poller::new().expect("epoll");
        let mut copies = Copies::default();
        let streams = Streams {
            stdout: format!("file://{}", path.display()),
            stderr: format!("file://{}", path.display()),
            ..Streams::default()
        };
        let mut prepared =
            prepare(&streams, owner(directory.path()), &mut copies, &mut poller).expect("prepare");
        for (stream, text) in [(&prepared.child.stdout, "one\n"), (&prepared.child.stderr, "two\n")]
        {
            let stream = stream.as_ref().expect("a pipe").try_clone().expect("dup");
            File::from(stream).write_all(text.as_bytes()).expect("write");
        }
        prepared.attach("", &mut copies, &mut poller).expect("attach");
        prepared.child = ChildStreams::default();
        while !prepared.io.is_drained(&copies) {
            for token in poller.wait(Some(Duration::from_secs(5))).expect("epoll") {
                if let Token::CopySource(number) | Token::CopyTarget(number) = token {
                    copies.ready(number, &poller);
                }
            }
        }
        let text = fs::read_to_string(path).expect("read");
        assert!(text == "one\ntwo\n" || text == "two\none\n", "{text:?}");
    }

    #[test]
    fn nothing_is_left_of_a_failure() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut poller = Poller::new().expect("epoll");
        let mut copies = Copies::default();
        let streams = Streams { stdout: "/nonexistent/out".to_owned(), ..Streams::default() };
        let result = prepare(&streams, owner(directory.path()), &mut copies, &mut poller);
        assert!(result.is_err());
    }
}
