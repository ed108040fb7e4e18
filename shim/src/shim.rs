//! The shim at work: one thread, one loop, and the table of what it serves.
//!
//! Nothing in here waits except [`Poller::wait`]. What takes time is a process of its own whose end
//! the reaper sees ([`Job`]), a descriptor that becomes ready, or a deadline.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    os::unix::net::UnixListener,
    path::PathBuf,
    time::{Duration, Instant},
};

use prost::Message;
use proto::{SHIM_FAREWELL_MAX, containerd::task::v3 as api, ttrpc::Request};
use rustix::process::Pid;
use sys::signal::SignalFd;

use crate::{
    error::Error,
    log::Log,
    poller::{Interest, Poller, Token},
    publisher::Publisher,
    reaper::Reaper,
    sandbox,
    server::{Call, Incoming, Server},
    stdio::Copies,
    streaming,
    task::{Container, Job, LoggerWait, Watched},
};

/// How long nothing must happen before the shim counts as idle.
const IDLE_MIN: Duration = Duration::from_secs(2);

/// Who the shim works for.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The containerd namespace.
    pub namespace: String,
    /// Where containerd takes events; empty for nowhere.
    pub events_address: PathBuf,
    /// Where the shim's socket is, and where others may be put.
    pub socket: PathBuf,
}

/// A shim that serves.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) config: Config,
    pub(crate) poller: Poller,
    pub(crate) server: Server,
    pub(crate) publisher: Publisher,
    pub(crate) reaper: Reaper,
    pub(crate) copies: Copies,
    pub(crate) log: Log,
    /// Containers that exist.
    pub(crate) containers: BTreeMap<String, Container>,
    /// IDs of containers that are being created.
    pub(crate) creating: BTreeSet<String>,
    /// Runtime processes at work.
    pub(crate) jobs: HashMap<Pid, Job>,
    /// Logging programs that are not ready yet.
    pub(crate) loggers_starting: BTreeMap<u64, LoggerWait>,
    /// Logging programs that have not ended; those with a time are killed then.
    pub(crate) loggers: HashMap<Pid, Option<Instant>>,
    /// Watches for want of memory.
    pub(crate) ooms: BTreeMap<u64, Watched>,
    pub(crate) sandbox: sandbox::Sandbox,
    signals: SignalFd,
    ends_by: Option<Instant>,
}

/// How a call is answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// With these bytes.
    Now(Vec<u8>),
    /// Later, by [`Shim::reply`].
    Later,
}

impl Shim {
    /// Makes a shim that serves on `listener`.
    ///
    /// # Errors
    ///
    /// The kernel has no descriptor left.
    pub(crate) fn new(config: Config, listener: UnixListener, log: Log) -> io::Result<Self> {
        let poller = Poller::new()?;
        let signals = SignalFd::new(&[
            libc::SIGCHLD,
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGHUP,
            libc::SIGUSR1,
        ])?;
        poller.add(&signals, Token::Signals, Interest::Read)?;
        Ok(Self {
            server: Server::new(listener, &poller)?,
            publisher: Publisher::new(config.events_address.clone(), config.namespace.clone()),
            config,
            poller,
            reaper: Reaper::default(),
            copies: Copies::default(),
            log,
            containers: BTreeMap::new(),
            creating: BTreeSet::new(),
            jobs: HashMap::new(),
            loggers_starting: BTreeMap::new(),
            loggers: HashMap::new(),
            ooms: BTreeMap::new(),
            sandbox: sandbox::Sandbox::default(),
            signals,
            ends_by: None,
        })
    }

    /// Serves until someone shuts the shim down.
    ///
    /// # Errors
    ///
    /// The loop itself is broken; nothing that a caller or a container does leads here.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut is_idle = false;
        while !self.is_done() {
            let timeout = self.timeout();
            let may_idle = !is_idle && timeout.is_none();
            let tokens = self.poller.wait(if may_idle { Some(IDLE_MIN) } else { timeout })?;
            is_idle = tokens.is_empty() && timeout.is_none();
            if is_idle && may_idle {
                self.become_idle();
            }
            for token in tokens {
                self.ready(token);
                self.tend_streams();
            }
            self.expire(Instant::now());
            self.tend_streams();
        }
        Ok(())
    }

    /// Ends the loop as soon as everybody has been told what is to be told.
    pub(crate) fn end(&mut self) {
        self.ends_by.get_or_insert_with(|| Instant::now() + SHIM_FAREWELL_MAX);
    }

    /// Answers a call.
    pub(crate) fn reply<M: Message>(&mut self, call: Call, result: Result<M, Error>) {
        let result = result.map(|message| message.encode_to_vec());
        self.server.reply(call, result, &self.poller);
    }

    /// Gives back what starting has brought into memory, most of which is never used again.
    fn become_idle(&self) {
        if let Err(error) = sys::residency::forget_program() {
            self.log.debug(&format!("forget the program's pages: {error}"));
        }
    }

    fn is_done(&self) -> bool {
        self.ends_by.is_some_and(|until| {
            let told = self.publisher.is_empty() && self.server.is_flushed();
            told || until <= Instant::now()
        })
    }

    fn ready(&mut self, token: Token) {
        match token {
            Token::Signals => self.take_signals(),
            Token::Listener => self.server.accept(&mut self.poller),
            Token::Connection(number) => {
                for (call, incoming) in self.server.ready(number, &self.poller) {
                    match incoming {
                        Incoming::Request(request, flags) => self.call(call, &request, flags),
                        Incoming::Data { flags, payload } => {
                            self.copies.relays.message(call, flags, &payload, &self.poller);
                        }
                    }
                }
            }
            Token::Publisher => self.publisher.ready(&self.poller),
            Token::CopySource(number) | Token::CopyTarget(number) => {
                if self.copies.ready(number, &self.poller) {
                    self.output_ended();
                }
            }
            Token::LoggerReady(number) => self.logger_ready(number),
            Token::Oom(number) => self.oom(number),
            Token::Relay(number) => self.copies.relays.ready(number, &self.poller),
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.take() {
            match signal {
                libc::SIGCHLD => {
                    while let Some((pid, exit)) = self.reaper.reap() {
                        self.process_ended(pid, exit);
                    }
                }
                libc::SIGTERM | libc::SIGINT => self.end(),
                libc::SIGUSR1 => self.log.info(&format!(
                    "{} containers, {} runtimes at work",
                    self.containers.len(),
                    self.jobs.len()
                )),
                _ => {}
            }
        }
    }

    /// How long the loop may sleep.
    fn timeout(&self) -> Option<Duration> {
        let processes = self.containers.values().flat_map(|container| {
            container.execs.values().map(|exec| &exec.process).chain([&container.init])
        });
        let next = processes
            .filter_map(|process| process.drain_until)
            .chain(self.loggers.values().copied().flatten())
            .chain(self.loggers_starting.values().map(LoggerWait::until))
            .chain(self.publisher.deadline())
            .chain(self.server.deadline())
            .chain(self.ends_by)
            .chain(self.ooms.values().filter_map(Watched::due))
            .min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn expire(&mut self, now: Instant) {
        self.publisher.timeout(now, &self.poller);
        self.server.resume(now, &self.poller);
        self.give_up_loggers(now);
        self.kill_late_loggers(now);
        self.give_up_output(now);
        self.recheck_ooms(now);
    }

    fn call(&mut self, call: Call, request: &Request, flags: u8) {
        let Request { service, method, payload, .. } = request;
        let result = match service.as_str() {
            "containerd.task.v2.Task" | "containerd.task.v3.Task" => {
                self.task_call(call, method, payload)
            }
            sandbox::SERVICE => self.sandbox_call(call, method, payload),
            streaming::SERVICE => self.streaming_call(call, method, flags),
            _ => Err(Error::NotImplemented(format!("service {service}"))),
        };
        match result {
            Ok(Answer::Later) => {}
            Ok(Answer::Now(payload)) => self.server.reply(call, Ok(payload), &self.poller),
            Err(error) => self.server.reply(call, Err(error), &self.poller),
        }
    }

    /// Serves the task API. The messages of its versions 2 and 3 are the same on the wire.
    fn task_call(&mut self, call: Call, method: &str, payload: &[u8]) -> Result<Answer, Error> {
        match method {
            "State" => now(self.state(&decode(payload)?)),
            "Create" => later(self.create(call, decode(payload)?)),
            "Start" => later(self.start(call, &decode(payload)?)),
            "Delete" => later(self.delete(call, &decode(payload)?)),
            "Pids" => later(self.pids(call, &decode(payload)?)),
            "Pause" => later(self.pause(call, &decode(payload)?)),
            "Resume" => later(self.resume(call, &decode(payload)?)),
            "Checkpoint" => later(self.checkpoint(call, decode(payload)?)),
            "Kill" => later(self.kill(call, &decode(payload)?)),
            "Exec" => now(self.exec(decode(payload)?)),
            "ResizePty" => now(self.resize_pty(&decode(payload)?)),
            "CloseIO" => now(self.close_io(&decode(payload)?)),
            "Update" => later(self.update(call, &decode(payload)?)),
            "Wait" => later(self.wait_task(call, &decode(payload)?)),
            "Stats" => now(self.stats(&decode(payload)?)),
            "Connect" => now(self.connect(&decode::<api::ConnectRequest>(payload)?)),
            "Shutdown" => now(self.shutdown(&decode::<api::ShutdownRequest>(payload)?)),
            _ => Err(Error::NotImplemented(format!("method {method}"))),
        }
    }
}

/// Decodes a request.
pub(crate) fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, Error> {
    M::decode(payload).map_err(|error| Error::InvalidArgument(error.to_string()))
}

/// Answers with a message.
pub(crate) fn now<M: Message>(result: Result<M, Error>) -> Result<Answer, Error> {
    result.map(|message| Answer::Now(message.encode_to_vec()))
}

/// Leaves the answer to whoever finishes the work.
pub(crate) fn later(result: Result<(), Error>) -> Result<Answer, Error> {
    result.map(|()| Answer::Later)
}
