//! Copies between this program's streams and a process's fifos, on one thread.
//!
//! The fifos are opened for reading and writing. So an open never waits for the shim's, and
//! reading never ends by itself, whether the shim has opened its side yet or not: the end is
//! known by other means, the process's exit and the shim's answer that all is copied, after which
//! [`Pump::drain`] takes what is left.
//!
//! This program's own streams may be shared with others, so they are not made non-blocking. Input
//! is read when the kernel says that it is there. Output goes to a description of its own where
//! one can be had (pipes), and else in pieces that a ready stream takes without blocking.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use anyhow::Context as _;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{FileType, Mode, OFlags, fstat, open},
    io::{read, write},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::unix::pipe,
};

use super::Stdio;

const BUFFER_BYTES: usize = 64 << 10;

/// What a ready pipe or terminal takes without blocking (`PIPE_BUF`).
const PIECE_BYTES: usize = 4096;

/// The streams of one process, being copied.
pub(crate) struct Pump {
    input: Option<Input>,
    outputs: Vec<Output>,
}

impl Pump {
    /// Opens the fifos of `stdio` and this program's streams.
    pub(crate) fn open(stdio: &Stdio) -> anyhow::Result<Self> {
        let is_fifo = |path: &str| !path.is_empty() && !path.contains("://");
        let mut pump = Self { input: None, outputs: Vec::new() };
        if is_fifo(&stdio.stdin) {
            pump.input = Some(Input::open(&stdio.stdin)?);
        }
        if is_fifo(&stdio.stdout) {
            pump.outputs.push(Output::open(&stdio.stdout, io::stdout().as_fd())?);
        }
        if is_fifo(&stdio.stderr) && !stdio.terminal {
            pump.outputs.push(Output::open(&stdio.stderr, io::stderr().as_fd())?);
        }
        Ok(pump)
    }

    /// Copies outputs until the future is dropped, which loses nothing.
    ///
    /// For a process that is being started: a shim may open the input's fifo as late as that, and
    /// what was written to it and closed before would be lost.
    pub(crate) async fn run_outputs(&mut self) -> anyhow::Result<()> {
        futures::future::try_join_all(self.outputs.iter_mut().map(Output::run)).await?;
        // There may be none.
        std::future::pending().await
    }

    /// Copies until the future is dropped, which loses nothing. The process is started; `close`
    /// makes it read the end of its input.
    pub(crate) async fn run(&mut self, close: impl AsyncFn()) -> anyhow::Result<()> {
        let outputs = self.outputs.iter_mut().map(Output::run);
        let outputs = futures::future::try_join_all(outputs);
        let input = async {
            match &mut self.input {
                Some(input) => input.run(close).await,
                None => std::future::pending().await,
            }
        };
        tokio::try_join!(outputs, input)?;
        Ok(())
    }

    /// Copies what is in the output fifos.
    pub(crate) async fn drain(&mut self) -> anyhow::Result<()> {
        for output in &mut self.outputs {
            output.drain().await?;
        }
        Ok(())
    }
}

/// Data read and not yet written.
struct Pending {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Pending {
    fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES], start: 0, end: 0 }
    }

    fn data(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn fill(&mut self, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let count = read(&mut self.buffer)?;
        (self.start, self.end) = (0, count);
        Ok(count)
    }
}

/// This program's input and the process's fifo.
struct Input {
    source: Source,
    /// `None` once the input has ended.
    fifo: Option<pipe::Sender>,
    pending: Pending,
}

enum Source {
    /// Tells when it can be read: a terminal, a pipe, a socket.
    Polled(AsyncFd<OwnedFd>),
    /// Can be read always: a file, `/dev/null`.
    Ready(OwnedFd),
}

impl Input {
    #[expect(deprecated, reason = "what replaces it is unsafe; an owned descriptor is sound")]
    fn open(path: &str) -> anyhow::Result<Self> {
        let fifo = pipe::OpenOptions::new()
            .read_write(true)
            .open_sender(path)
            .with_context(|| format!("open {path}"))?;
        let stdin = io::stdin().as_fd().try_clone_to_owned().context("standard input")?;
        let source = match AsyncFd::try_with_interest(stdin, Interest::READABLE) {
            Ok(polled) => Source::Polled(polled),
            Err(refused) => Source::Ready(refused.into_parts().0),
        };
        Ok(Self { source, fifo: Some(fifo), pending: Pending::new() })
    }

    async fn run(&mut self, close: impl AsyncFn()) -> anyhow::Result<()> {
        while let Some(fifo) = &self.fifo {
            while !self.pending.data().is_empty() {
                fifo.writable().await?;
                match fifo.try_write(self.pending.data()) {
                    Ok(count) => self.pending.start += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).context("write to the process's input"),
                }
            }
            // A terminal that hangs up or a descriptor that is closed ends the input as well.
            if self.read().await.unwrap_or(0) == 0 {
                self.fifo = None;
                close().await;
            }
        }
        std::future::pending().await
    }

    async fn read(&mut self) -> io::Result<usize> {
        match &self.source {
            Source::Polled(source) => loop {
                let mut ready = source.readable().await?;
                let attempt = ready.try_io(|fd| {
                    check_ready(fd.get_ref(), PollFlags::IN)?;
                    self.pending.fill(|buffer| Ok(read(fd.get_ref(), buffer)?))
                });
                if let Ok(result) = attempt {
                    return result;
                }
            },
            Source::Ready(source) => {
                let count = self.pending.fill(|buffer| Ok(read(source, buffer)?))?;
                // A file never makes the copying wait, and others want their turn.
                tokio::task::yield_now().await;
                Ok(count)
            }
        }
    }
}

/// A process's fifo and where it goes.
struct Output {
    fifo: pipe::Receiver,
    sink: Sink,
    pending: Pending,
}

enum Sink {
    /// A description of this program's own that does not block.
    Own(AsyncFd<File>),
    /// A shared description that says when it can be written.
    Polled(AsyncFd<OwnedFd>),
    /// Can be written always.
    Ready(OwnedFd),
    /// Nobody reads any more.
    Closed,
}

impl Output {
    fn open(path: &str, stream: std::os::fd::BorrowedFd<'_>) -> anyhow::Result<Self> {
        let fifo = pipe::OpenOptions::new()
            .read_write(true)
            .open_receiver(path)
            .with_context(|| format!("open {path}"))?;
        let stream = stream.try_clone_to_owned().context("standard output")?;
        Ok(Self { fifo, sink: Sink::open(stream), pending: Pending::new() })
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        loop {
            self.flush().await?;
            self.fifo.readable().await?;
            self.fill()?;
        }
    }

    async fn drain(&mut self) -> anyhow::Result<()> {
        loop {
            self.flush().await?;
            if self.fill()? == 0 {
                return Ok(());
            }
        }
    }

    /// Takes what the fifo has.
    fn fill(&mut self) -> anyhow::Result<usize> {
        match self.pending.fill(|buffer| self.fifo.try_read(buffer)) {
            Ok(count) => Ok(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error).context("read the process's output"),
        }
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        while !self.pending.data().is_empty() {
            match self.sink.write(self.pending.data()).await {
                Ok(count) => self.pending.start += count,
                Err(error) if error.kind() == ErrorKind::BrokenPipe => self.sink = Sink::Closed,
                Err(error) => return Err(error).context("write output"),
            }
        }
        Ok(())
    }
}

impl Sink {
    #[expect(deprecated, reason = "what replaces it is unsafe; an owned descriptor is sound")]
    fn open(stream: OwnedFd) -> Self {
        let is_pipe = fstat(&stream)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if is_pipe {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
            let own = open(path, flags, Mode::empty()).map_err(io::Error::from);
            let polled =
                own.and_then(|own| AsyncFd::with_interest(File::from(own), Interest::WRITABLE));
            if let Ok(polled) = polled {
                return Self::Own(polled);
            }
        }
        match AsyncFd::try_with_interest(stream, Interest::WRITABLE) {
            Ok(polled) => Self::Polled(polled),
            Err(refused) => Self::Ready(refused.into_parts().0),
        }
    }

    async fn write(&self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Own(sink) => {
                sink.async_io(Interest::WRITABLE, |sink| Ok(write(sink, data)?)).await
            }
            Self::Polled(sink) => {
                let piece = &data[..data.len().min(PIECE_BYTES)];
                let mut ready = sink.writable().await?;
                let attempt = ready.try_io(|fd| {
                    check_ready(fd.get_ref(), PollFlags::OUT)?;
                    Ok(write(fd.get_ref(), piece)?)
                });
                attempt.unwrap_or(Ok(0))
            }
            Self::Ready(sink) => Ok(write(sink, data)?),
            Self::Closed => Ok(data.len()),
        }
    }
}

/// Asks the kernel whether a descriptor that blocks would block now: what the poller remembers
/// may have been used up, by this program or by another that shares the description.
fn check_ready(fd: &OwnedFd, event: PollFlags) -> io::Result<()> {
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut [PollFd::new(fd, event)], Some(&now))? {
        0 => Err(ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}
