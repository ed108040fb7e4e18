//! `Create`: mounts, streams, the runtime's `create`, and back again when a step fails.
//!
//! ```text
//!  Create ──> mounts ──> streams ──(logging program?)──> wait until it is ready ─┐
//!                                        │ no                                    │
//!                                        └────────> runtime create <─────────────┘
//!                                                        │
//!   reply, TaskCreate <── container <── terminal, pid <──┘
//! ```
//!
//! A runtime whose `create` fails leaves nothing, except when it was killed, for want of memory
//! perhaps, or when its container cannot be attached to: then its `delete` comes before the reply.
//!
//! A container that is restored has no process yet: its `Create` ends after the streams, and
//! `Start` runs the runtime's `restore`. Whatever fails, [`Shim::undo_create`] takes back what
//! was done: copies, logging program, mounts.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use proto::{
    any,
    containerd::{
        events::{TaskCreate, TaskIo},
        runc::v1::Options,
        task::v3 as api,
        types::Mount as ApiMount,
    },
};
use rustix::process::{Pid, Signal, kill_process};
use sys::mount::{Mount, mount_all, unmount_all};

use crate::{
    bundle::Bundle,
    error::Error,
    metrics::Paths,
    runtime::{Command, Runtime},
    server::Call,
    shim::Shim,
    stdio::{self, Io, Logger, Owner, Prepared, Streams},
    task::{
        container::{Checkpoint, Container, Process, check_id},
        job::{self, Job, Then},
    },
};

/// How long a logging program may take to end when it was asked to.
const LOGGER_TERM_MAX: Duration = Duration::from_secs(10);

/// How long a logging program may take to be ready.
const LOGGER_READY_MAX: Duration = Duration::from_secs(60);

/// A container that is being created.
#[derive(Debug)]
pub(crate) struct Creation {
    call: Call,
    request: api::CreateTaskRequest,
    options: Options,
    runtime: Runtime,
    bundle: Bundle,
    prepared: Prepared,
    has_own_pid_namespace: bool,
}

/// What waits for a logging program.
#[derive(Debug)]
pub(crate) struct LoggerWait {
    pub(super) logger: Logger,
    until: Instant,
    pub(super) then: AfterLogger,
}

/// What goes on when a logging program is ready.
#[derive(Debug)]
pub(super) enum AfterLogger {
    Create(Box<Creation>),
    Exec { id: String, exec: String, call: Call, prepared: Box<Prepared> },
}

impl LoggerWait {
    pub(super) fn new(logger: Logger, then: AfterLogger) -> Self {
        Self { logger, until: Instant::now() + LOGGER_READY_MAX, then }
    }

    /// When it is given up.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }
}

impl Shim {
    /// Serves `Create`.
    pub(crate) fn create(
        &mut self,
        call: Call,
        request: api::CreateTaskRequest,
    ) -> Result<(), Error> {
        check_id(&request.id)?;
        self.sandbox.check_open()?;
        if self.containers.contains_key(&request.id) || self.creating.contains(&request.id) {
            return Err(Error::AlreadyExists(format!("container {}", request.id)));
        }
        let options = request.options.as_ref().map(any::unpack::<Options>).transpose();
        let options = options.map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let options = options.flatten().unwrap_or_default();
        let bundle = Bundle::new(PathBuf::from(&request.bundle));
        let runtime = Runtime::new(&options, &self.config.namespace, &bundle);
        let config = bundle.config().map_err(|error| Error::unknown("read config.json", &error))?;
        bundle
            .write_runtime(runtime.program(), &options)
            .map_err(|error| Error::unknown("write the runtime's name", &error))?;
        mount_rootfs(&bundle, &request.rootfs)?;
        let mut creation = Box::new(Creation {
            call,
            options,
            runtime,
            bundle,
            prepared: Prepared::default(),
            has_own_pid_namespace: config.has_own_pid_namespace(),
            request,
        });
        if let Err(error) = self.prepare_streams(&mut creation) {
            self.undo_create(&mut creation);
            return Err(Error::unknown("failed to create init process I/O", &error));
        }
        self.creating.insert(creation.request.id.clone());
        match self.take_starting_logger(&mut creation.prepared) {
            Some((number, logger)) => {
                let then = AfterLogger::Create(creation);
                self.loggers_starting.insert(number, LoggerWait::new(logger, then));
            }
            None => self.create_by_runtime(creation),
        }
        Ok(())
    }

    fn prepare_streams(&mut self, creation: &mut Creation) -> io::Result<()> {
        let request = &creation.request;
        let streams = streams(request);
        let owner = Owner {
            id: &request.id,
            namespace: &self.config.namespace,
            ids: (creation.options.io_uid, creation.options.io_gid),
            socket: &self.config.socket,
        };
        creation.prepared = stdio::prepare(&streams, owner, &mut self.copies, &mut self.poller)?;
        Ok(())
    }

    /// Takes the logging program out of `prepared`, to wait for it.
    pub(super) fn take_starting_logger(
        &mut self,
        prepared: &mut Prepared,
    ) -> Option<(u64, Logger)> {
        let (number, logger) = prepared.logger.take()?;
        self.loggers.insert(logger.pid, None);
        Some((number, logger))
    }

    /// Goes on when a logging program is ready, or is not to be.
    pub(crate) fn logger_ready(&mut self, number: u64) {
        let Some(wait) = self.loggers_starting.get(&number) else { return };
        let Some(ready) = wait.logger.is_ready() else { return };
        self.logger_settled(number, ready);
    }

    /// Gives up those that take too long.
    pub(crate) fn give_up_loggers(&mut self, now: Instant) {
        let late = |wait: &LoggerWait| wait.until <= now;
        let late: Vec<u64> = self
            .loggers_starting
            .iter()
            .filter_map(|(&number, wait)| late(wait).then_some(number))
            .collect();
        late.into_iter().for_each(|number| self.logger_settled(number, false));
    }

    fn logger_settled(&mut self, number: u64, ready: bool) {
        let Some(LoggerWait { logger, then, .. }) = self.loggers_starting.remove(&number) else {
            return;
        };
        self.poller.remove(&logger.ready);
        match then {
            AfterLogger::Create(creation) if ready => self.create_by_runtime(creation),
            AfterLogger::Create(creation) => self.create_failed(*creation, no_logger()),
            AfterLogger::Exec { id, exec, call, prepared } if ready => {
                self.exec_by_runtime(id, exec, call, prepared);
            }
            AfterLogger::Exec { id, exec, call, prepared } => {
                self.exec_failed((&id, &exec), call, *prepared, no_logger());
            }
        }
    }

    fn create_by_runtime(&mut self, mut creation: Box<Creation>) {
        if !creation.request.checkpoint.is_empty() {
            return self.created(*creation, None);
        }
        let child = std::mem::take(&mut creation.prepared.child);
        let console = creation.prepared.console.as_ref().map(|socket| socket.path().to_owned());
        let streams = match console {
            Some(_) => job::Streams::Captured,
            None => job::Streams::Container(child),
        };
        let (runtime, options) = (creation.runtime.clone(), creation.options.clone());
        let (id, bundle) = (creation.request.id.clone(), creation.bundle.clone());
        let pid_file = bundle.pid_file(None);
        let command = Command::Create {
            id: &id,
            bundle: bundle.path(),
            pid_file: &pid_file,
            console: console.as_deref(),
            options: &options,
        };
        match Job::start(&runtime, &command, streams, Then::Create(creation)) {
            Ok((pid, job)) => {
                self.reaper.hold();
                self.jobs.insert(pid, job);
            }
            Err((error, then)) => {
                if let Then::Create(creation) = *then {
                    let error = Error::unknown("OCI runtime create failed", &error);
                    self.create_failed(*creation, error);
                }
            }
        }
    }

    /// Goes on when the runtime's `create` has ended.
    pub(super) fn create_ended(
        &mut self,
        mut creation: Creation,
        result: Result<(), String>,
        was_killed: bool,
    ) {
        // A runtime that fails takes back what it did, unless it was killed.
        let leaves_something = was_killed || result.is_ok();
        let attached = match result {
            Ok(()) => self.attach(&mut creation),
            Err(message) => Err(Error::Unknown(format!("OCI runtime create failed: {message}"))),
        };
        match attached {
            Ok(pid) => self.created(creation, Some(pid)),
            Err(error) if leaves_something => self.uncreate(creation, error),
            Err(error) => self.create_failed(creation, error),
        }
        self.reaper.release();
    }

    /// Has the runtime remove what its `create` has left: cgroups, records, perhaps a process.
    fn uncreate(&mut self, creation: Creation, error: Error) {
        let (runtime, id) = (creation.runtime.clone(), creation.request.id.clone());
        let command = Command::Delete { id: &id, force: true };
        let then = Then::Uncreate(Box::new(creation), error);
        match Job::start(&runtime, &command, job::Streams::Captured, then) {
            Ok((pid, job)) => drop(self.jobs.insert(pid, job)),
            Err((failure, then)) => {
                self.log.error(&format!("remove what a create has left: {failure}"));
                if let Then::Uncreate(creation, error) = *then {
                    self.create_failed(*creation, error);
                }
            }
        }
    }

    fn attach(&mut self, creation: &mut Creation) -> Result<Pid, Error> {
        let prepared = &mut creation.prepared;
        prepared
            .attach(&mut self.copies, &mut self.poller)
            .map_err(|error| Error::unknown("failed to retrieve console master", &error))?;
        let pid = creation.bundle.read_pid(None);
        pid.map_err(|error| Error::unknown("failed to retrieve OCI runtime container pid", &error))
    }

    /// Takes note of a logging program that has ended while its process was still being made: its
    /// number may be anyone's by now, and nothing is to be waited for.
    pub(super) fn settle_logger(&self, io: &mut Io) {
        if let Some(logger) = io.logger()
            && !self.loggers.contains_key(&logger)
        {
            io.logger_exited(logger);
        }
    }

    fn created(&mut self, creation: Creation, pid: Option<Pid>) {
        let Creation { call, request, options, runtime, bundle, mut prepared, .. } = creation;
        self.settle_logger(&mut prepared.io);
        self.creating.remove(&request.id);
        let mut init = Process::new(streams(&request), Io::default());
        init.pid = pid;
        let raw_pid = init.raw_pid();
        let mut checkpoint = None;
        if request.checkpoint.is_empty() {
            init.io = prepared.io;
        } else {
            checkpoint = Some(Checkpoint {
                image: request.checkpoint.clone(),
                parent: request.parent_checkpoint.clone(),
                prepared: Box::new(prepared),
            });
        }
        let container = Container {
            id: request.id.clone(),
            bundle,
            runtime,
            options,
            init,
            execs: Default::default(),
            has_own_pid_namespace: creation.has_own_pid_namespace,
            checkpoint,
            held_exit: None,
            cgroups: Paths::new(),
            runtime_deleted: false,
        };
        self.containers.insert(request.id.clone(), container);
        let event = TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(TaskIo {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            }),
            checkpoint: request.checkpoint,
            pid: raw_pid,
        };
        self.publisher.publish("/tasks/create", &event, &self.poller);
        self.reply(call, Ok(api::CreateTaskResponse { pid: raw_pid }));
        if let Some(pid) = pid {
            self.watch_oom(&request.id);
            if let Some(exit) = self.reaper.claim(pid) {
                self.init_exited(&request.id, exit);
            }
        }
        self.created_in_sandbox(&request.id);
    }

    pub(super) fn create_failed(&mut self, mut creation: Creation, error: Error) {
        self.creating.remove(&creation.request.id);
        self.undo_create(&mut creation);
        self.reply(creation.call, Err::<api::CreateTaskResponse, _>(error));
        self.sandbox_may_have_stopped();
    }

    fn undo_create(&mut self, creation: &mut Creation) {
        self.close_streams(std::mem::take(&mut creation.prepared.io));
        if !creation.request.rootfs.is_empty()
            && let Err(error) = unmount_all(&creation.bundle.rootfs())
        {
            self.log.warn(&sys::error::Chain(&error).to_string());
        }
    }

    /// Ends a process's streams, and gives its logging program time to end.
    pub(super) fn close_streams(&mut self, mut io: Io) {
        // One that has ended already is asked nothing: its number may be another's.
        self.settle_logger(&mut io);
        if let Some(deadline) = io.logger().and_then(|logger| self.loggers.get_mut(&logger)) {
            deadline.get_or_insert_with(|| Instant::now() + LOGGER_TERM_MAX);
        }
        io.close(&mut self.copies, &self.poller);
    }

    /// Kills the logging programs that were asked to end and have not.
    pub(crate) fn kill_late_loggers(&mut self, now: Instant) {
        for (&pid, deadline) in &mut self.loggers {
            if deadline.is_some_and(|deadline| deadline <= now) {
                // It is a child that was not reaped, so the pid is its own. Its exit removes it.
                let _ = kill_process(pid, Signal::KILL);
                *deadline = None;
            }
        }
    }
}

/// Mounts what `Create` brings at the bundle's `rootfs`.
fn mount_rootfs(bundle: &Bundle, mounts: &[ApiMount]) -> Result<(), Error> {
    if mounts.is_empty() {
        return Ok(());
    }
    let rootfs = bundle.rootfs();
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Error::unknown("failed to mount rootfs component", error)
    };
    let made = fs::DirBuilder::new().mode(0o711).create(&rootfs);
    made.or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    })
    .map_err(|error| failed(&error))?;
    let mounts: Vec<Mount> = mounts
        .iter()
        .map(|mount| Mount {
            kind: mount.r#type.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
        })
        .collect();
    mount_all(&mounts, &rootfs).map_err(|error| failed(&error))
}

fn streams(request: &api::CreateTaskRequest) -> Streams {
    Streams {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    }
}

fn no_logger() -> Error {
    Error::Unknown("the logging binary ended before it was ready, or took too long".to_owned())
}
