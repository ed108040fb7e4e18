//! The standard streams of a task or exec: what clients ask for, what the process gets, and what
//! runs in between.
//!
//! ```text
//!  client ──fifo──> shim ──pipe──> stdin  of the process
//!  client <──fifo── shim <──pipe── stdout, stderr
//!  client <─fifos─> shim <─master─> terminal of the process
//! ```
//!
//! In place of a fifo there may be a stream, which the client opens at the shim's own socket.
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
mod relay;
mod sink;
mod uri;

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::poller::{Interest, Poller, Token};

pub(crate) use console::{ConsoleSocket, resize};
pub(crate) use copy::{Copies, Method};
pub(crate) use logger::Logger;
pub(crate) use relay::Outgoing;
pub(crate) use uri::Uri;

use sink::{Sink, at, is_fifo};

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
    /// Where the shim listens; other sockets go beside it.
    pub socket: &'a Path,
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
    source: Source,
    target: OwnedFd,
    method: Method,
    /// Whether the client has said already that there will be no more.
    closed: bool,
}

/// Where input comes from.
#[derive(Debug)]
enum Source {
    Fifo(PathBuf),
    /// A stream that is kept for the process, by its number.
    Stream(u64),
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
    console_target: Option<Sink>,
    /// Where a terminal's input comes from.
    console_source: Option<Source>,
    /// Copies of output, for when the process is there: from where and to where.
    held: Vec<(OwnedFd, Sink)>,
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
    match prepare_into(&mut prepared, streams, owner, (&mut *copies, &mut *poller)) {
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
    (copies, poller): (&mut Copies, &mut Poller),
) -> io::Result<()> {
    let stdout = Uri::parse(&streams.stdout).map_err(io::Error::other)?;
    if streams.terminal {
        let directory = owner.socket.parent().unwrap_or(owner.socket);
        prepared.console = Some(ConsoleSocket::new(directory, poller.number())?);
    }
    let stdin = Uri::parse(&streams.stdin).map_err(io::Error::other)?;
    if let Uri::Binary { program, arguments, must_report } = &stdout {
        let program = (program.as_path(), arguments.as_slice(), *must_report);
        let started = logger::start(program, owner.id, owner.namespace);
        let (logger, stdout, stderr) = started.map_err(at("start", program.0))?;
        prepared.io.logger = Some(logger.pid);
        let number = poller.number();
        poller.add(&logger.ready, Token::LoggerReady(number), Interest::Read)?;
        prepared.logger = Some((number, logger));
        if streams.terminal {
            prepared.console_target = Some(Sink::Fd(stdout, Method::Buffer(Vec::new())));
            prepared.console_source = prepared.io.source(&stdin, owner, copies, poller)?;
        } else {
            prepared.child.stdout = Some(stdout);
            prepared.child.stderr = Some(stderr);
        }
        return Ok(());
    }
    if streams.terminal {
        prepared.console_target = prepared.io.sink(&stdout, true, owner, copies, poller)?;
        prepared.console_source = prepared.io.source(&stdin, owner, copies, poller)?;
        return Ok(());
    }
    prepare_outputs(prepared, (&stdout, &streams.stderr), owner, copies, poller)?;
    let source = prepared.io.source(&stdin, owner, copies, poller)?;
    prepared.child.stdin = prepared.io.prepare_input(source, owner.ids)?;
    Ok(())
}

fn prepare_outputs(
    prepared: &mut Prepared,
    (stdout, stderr): (&Uri, &str),
    owner: Owner<'_>,
    copies: &mut Copies,
    poller: &mut Poller,
) -> io::Result<()> {
    let stderr = Uri::parse(stderr).map_err(io::Error::other)?;
    // As under containerd's shim, a file takes both.
    let is_shared = stderr == *stdout || matches!((&stderr, stdout), (Uri::Path(_), Uri::File(_)));
    let io = &mut prepared.io;
    let out = io.sink(stdout, false, owner, copies, poller)?;
    let err = match &out {
        Some(out) if is_shared => out.share()?,
        _ => io.sink(&stderr, false, owner, copies, poller)?,
    };
    let child = &mut prepared.child;
    for (target, child) in [(out, &mut child.stdout), (err, &mut child.stderr)] {
        let Some(target) = target else { continue };
        let (source, end) = io::pipe()?;
        give(&end, owner.ids)?;
        rustix::io::ioctl_fionbio(&source, true)?;
        prepared.held.push((source.into(), target));
        *child = Some(end.into());
    }
    if let (true, None, Some(out)) = (is_shared, &child.stderr, &child.stdout) {
        child.stderr = Some(out.try_clone()?);
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
    pub(crate) fn attach(&mut self, copies: &mut Copies, poller: &mut Poller) -> io::Result<()> {
        for (source, sink) in self.held.drain(..) {
            let output = sink.start(source, copies, poller)?;
            self.io.note_output(output);
        }
        let Some(socket) = self.console.take() else { return Ok(()) };
        let master = socket.receive()?;
        if let Some(source) = self.console_source.take() {
            let target = master.try_clone()?;
            let method = Method::Buffer(Vec::new());
            self.io.unopened = Some(Unopened { source, target, method, closed: false });
        }
        if let Some(sink) = self.console_target.take() {
            let output = sink.start(master.try_clone()?, copies, poller)?;
            self.io.note_output(output);
            self.io.console_output = Some(output);
        }
        self.io.console = Some(master);
        Ok(())
    }
}

impl Io {
    /// Opens where output goes. What is kept for the process is the [`Io`]'s to give up.
    fn sink(
        &mut self,
        uri: &Uri,
        terminal: bool,
        owner: Owner<'_>,
        copies: &mut Copies,
        poller: &mut Poller,
    ) -> io::Result<Option<Sink>> {
        let sink = sink::open(uri, terminal, owner, copies, poller)?;
        if let Some(Sink::Stream(number)) = &sink {
            self.note_output(*number);
        }
        Ok(sink)
    }

    fn note_output(&mut self, number: u64) {
        if !self.outputs.contains(&number) {
            self.outputs.push(number);
        }
    }

    /// Finds where input comes from. What is kept for the process is the [`Io`]'s to give up.
    fn source(
        &mut self,
        uri: &Uri,
        owner: Owner<'_>,
        copies: &mut Copies,
        poller: &mut Poller,
    ) -> io::Result<Option<Source>> {
        match uri {
            Uri::Path(fifo) => Ok(Some(Source::Fifo(fifo.clone()))),
            Uri::Stream { socket, id } => {
                let number = sink::reserve((socket, id), owner, copies, poller)?;
                self.input = Some(number);
                Ok(Some(Source::Stream(number)))
            }
            Uri::Null | Uri::File(_) | Uri::Binary { .. } => Ok(None),
        }
    }

    /// Makes what a process without a terminal gets as its input.
    fn prepare_input(
        &mut self,
        source: Option<Source>,
        ids: (u32, u32),
    ) -> io::Result<Option<OwnedFd>> {
        let Some(source) = source else { return Ok(None) };
        if let Source::Fifo(path) = &source
            && !is_fifo(path)?
        {
            return Ok(Some(File::open(path).map_err(at("open", path))?.into()));
        }
        let (end, target) = io::pipe()?;
        give(&end, ids)?;
        rustix::io::ioctl_fionbio(&target, true)?;
        let target = target.into();
        self.unopened = Some(Unopened { source, target, method: Method::Splice, closed: false });
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
        let Some(Unopened { source, target, method, closed }) = self.unopened.take() else {
            return Ok(());
        };
        let fifo = match source {
            Source::Fifo(fifo) => fifo,
            Source::Stream(number) => {
                copies.relays.start_input(number, target, poller);
                return Ok(());
            }
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

    /// Ends the input once the client has closed it too. What input is left is perhaps a stream,
    /// which is to be closed as well.
    pub(crate) fn close_stdin(&mut self) -> Option<u64> {
        self.stdin_keeper = None;
        if let Some(unopened) = &mut self.unopened {
            unopened.closed = true;
        }
        self.input
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
    use std::{fs, io::Write};

    use super::*;

    fn owner(directory: &Path) -> Owner<'_> {
        Owner { id: "c", namespace: "ns", ids: (0, 0), socket: directory }
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
        prepared.attach(&mut copies, &mut poller).expect("attach");
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
