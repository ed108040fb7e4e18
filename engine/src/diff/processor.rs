//! Programs that turn layers of other media types into ones that are understood here.
//!
//! For a layer whose media type a program accepts, the blob is the program's standard input, and
//! what it prints is of the media type that it returns, which another program may accept in turn,
//! until it is a layer. Each gets the client's payload under its name at descriptor 3, if there is
//! one, and the media type in `STREAM_PROCESSOR_MEDIATYPE`.
//!
//! A blob is never whole in memory: kernel pipes are between the programs. What a program says on
//! standard error is in the error when it fails, up to a limit; one that prints nothing for too
//! long is ended.
//!
//! Source: containerd, `core/diff/stream.go`, `stream_unix.go`. Two differences: of several that
//! accept a type, the first by name is taken, not a random one; and what a program prints after
//! the end of the layer, and its exit status, are waited for before the layer counts as applied.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, Write},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid},
};
use sys::spawn::CommandChild as _;

use super::{Compression, DiffError};

/// The environment variable with the media type that a program is to read.
const MEDIA_TYPE_VARIABLE: &str = "STREAM_PROCESSOR_MEDIATYPE";

/// How many programs a layer may go through: types that return to each other have no end.
const CHAIN_LEN_MAX: usize = 16;

/// How much of what a program says on standard error is kept, in bytes.
const STDERR_LEN_MAX: usize = 16 << 10;

/// How long a program may print nothing: it may ask for a key elsewhere.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// How long a program that has printed everything may take to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long what an ended program has said may take to arrive.
const STDERR_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it is looked whether a program has ended.
const EXIT_POLL: Duration = Duration::from_millis(5);

/// A program, as the configuration names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Processor {
    /// The media types that it reads.
    pub accepts: Vec<String>,
    /// The media type that it writes.
    pub returns: String,
    /// The program, by its path or its name.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// What is added to its environment, as `NAME=value`.
    pub env: Vec<String>,
}

/// The programs by name.
pub type Processors = BTreeMap<String, Processor>;

/// The programs that a layer goes through, in order; none when it is understood as it is.
#[derive(Debug)]
pub struct Chain<'p> {
    steps: Vec<Step<'p>>,
    silence_max: Duration,
}

#[derive(Debug)]
struct Step<'p> {
    name: &'p str,
    processor: &'p Processor,
    media_type: &'p str,
}

impl<'p> Chain<'p> {
    /// Finds the programs for a layer of this type; nothing when there are none.
    pub fn find(processors: &'p Processors, media_type: &'p str) -> Option<Self> {
        let mut steps = Vec::new();
        let mut media_type = media_type;
        while steps.len() < CHAIN_LEN_MAX {
            let accepts = |(_, one): &(&String, &Processor)| {
                one.accepts.iter().any(|accepted| accepted == media_type)
            };
            let Some((name, processor)) = processors.iter().find(accepts) else {
                // Compression is found out by the first bytes.
                let is_layer = Compression::of_media_type(media_type).is_some();
                return is_layer.then_some(Self { steps, silence_max: SILENCE_MAX });
            };
            steps.push(Step { name, processor, media_type });
            media_type = &processor.returns;
            if media_type == crate::oci::media_type::OCI_LAYER {
                return Some(Self { steps, silence_max: SILENCE_MAX });
            }
        }
        None
    }

    /// Whether the layer is understood as it is.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Starts the programs on `blob`; each gets its payload by its name.
    ///
    /// # Errors
    ///
    /// `Processor`: one cannot be started.
    pub fn start(
        &self,
        blob: File,
        payloads: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Running, DiffError> {
        let mut running = Running {
            programs: Vec::new(),
            output: None,
            silence_max: self.silence_max,
            at_end: false,
            silent: false,
        };
        let mut blob = Some(blob);
        for step in &self.steps {
            let input = match running.output.take() {
                Some(before) => Stdio::from(before),
                None => blob.take().map_or_else(Stdio::null, Stdio::from),
            };
            let payload = payloads.get(step.name).map(Vec::as_slice);
            // Those that were started before are ended when this fails.
            let (program, output) = step.start(input, payload).map_err(|source| {
                let message = format!("start {:?}: {source}", step.processor.path);
                let source = io::Error::new(source.kind(), message);
                DiffError::Processor { name: step.name.to_owned(), source }
            })?;
            running.programs.push(program);
            running.output = Some(output);
        }
        Ok(running)
    }
}

impl Step<'_> {
    fn start(&self, input: Stdio, payload: Option<&[u8]>) -> io::Result<(Program, ChildStdout)> {
        let Processor { path, args, env, .. } = self.processor;
        let mut command = Command::new(path);
        command.args(args);
        // As Go's exec: what is not of this form sets nothing.
        command.envs(env.iter().filter_map(|pair| pair.split_once('=')));
        command.env(MEDIA_TYPE_VARIABLE, self.media_type);
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).parent_death_signal(libc::SIGKILL);
        command.pass_fds(payload.map(memory).transpose()?.into_iter().collect());
        let mut child = command.spawn().map_err(sys::spawn::name_shortage)?;
        let stderr = child.stderr.take().expect("a pipe");
        let output = child.stdout.take().expect("a pipe");
        let (said, (done, ended)) = (Arc::default(), mpsc::channel());
        let name = self.name.to_owned();
        // When there is no thread for it, dropping the program ends it.
        let program = Program { name, child, reaped: false, said: Arc::clone(&said), ended };
        let reader = thread::Builder::new().name("processor".to_owned());
        reader.spawn(move || {
            keep_start(stderr, &said);
            // Perhaps nobody waits.
            let _ = done.send(());
        })?;
        Ok((program, output))
    }
}

/// Programs that are at work. To read from it gives what the last one prints; dropping it ends
/// them.
pub struct Running {
    programs: Vec<Program>,
    output: Option<ChildStdout>,
    silence_max: Duration,
    at_end: bool,
    silent: bool,
}

struct Program {
    name: String,
    child: Child,
    /// Whether its number, which is also that of its group, may be another's.
    reaped: bool,
    /// The start of what it said on standard error, and whether that is all.
    said: Arc<Mutex<Vec<u8>>>,
    ended: mpsc::Receiver<()>,
}

impl Running {
    /// Ends the programs, and says whether `result`, which was made of their output, counts: when
    /// one has failed, its error is the cause of whatever else went wrong.
    ///
    /// # Errors
    ///
    /// `Processor`, or that of `result`.
    pub fn finish<T>(mut self, result: Result<T, DiffError>) -> Result<T, DiffError> {
        if let Some(name) = self.programs.last().filter(|_| self.silent).map(|one| &one.name) {
            let message = format!("printed nothing for {} s", self.silence_max.as_secs());
            let source = io::Error::new(io::ErrorKind::TimedOut, message);
            return Err(DiffError::Processor { name: name.clone(), source });
        }
        // Whoever still wants to print ends of that; who has nothing more to print, ends.
        drop(self.output.take());
        let deadline = Instant::now() + EXIT_TIMEOUT;
        let mut failure = None;
        for program in &mut self.programs {
            let complete = self.at_end && result.is_ok();
            failure = failure.or(program.end(deadline, complete));
        }
        match failure {
            Some(failure) => Err(failure),
            None => result,
        }
    }
}

impl Program {
    /// Waits until the program ends, or ends it. Returns why it failed; that it was hung up on
    /// because its output was of no use is none of its failures.
    fn end(&mut self, deadline: Instant, complete: bool) -> Option<DiffError> {
        while !self.has_ended() && Instant::now() < deadline {
            thread::sleep(EXIT_POLL);
        }
        let in_time = self.has_ended();
        // Also what it has started and not waited for.
        self.kill();
        let status = self.child.wait().ok().filter(|_| in_time);
        let problem = match status {
            Some(status) if status.success() => return None,
            Some(status) if !complete && was_hung_up(status) => return None,
            Some(status) => status.to_string(),
            None => format!("did not end within {} s", EXIT_TIMEOUT.as_secs()),
        };
        // Whoever left its group may hold on to standard error.
        let _ = self.ended.recv_timeout(STDERR_TIMEOUT);
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let said = String::from_utf8_lossy(&said);
        let message = match said.trim() {
            "" => problem,
            said => format!("{problem}: {said}"),
        };
        let (name, source) = (self.name.clone(), io::Error::other(message));
        Some(DiffError::Processor { name, source })
    }

    /// Whether the program has ended; it is not reaped, so its number stays its own.
    fn has_ended(&self) -> bool {
        let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) else { return true };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(pid), options), Ok(None))
    }

    /// Ends the program, if it has not ended, and what it has started.
    fn kill(&mut self) {
        if !self.reaped
            && let Some(group) = Pid::from_raw(self.child.id().cast_signed())
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
        self.reaped = true;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Read for Running {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(output) = &mut self.output else { return Ok(0) };
        let timeout = Timespec::try_from(self.silence_max).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(output, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout))? == 0 {
            self.silent = true;
            return Err(io::ErrorKind::TimedOut.into());
        }
        let len = output.read(buffer)?;
        self.at_end |= len == 0 && !buffer.is_empty();
        Ok(len)
    }
}

/// Whether the program ended because nobody reads what it prints.
fn was_hung_up(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    status.signal() == Some(libc::SIGPIPE)
}

/// Reads to the end, so that the program does not wait for somebody to do it, and keeps the start.
fn keep_start(mut source: impl Read, kept: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = source.read(&mut buffer) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = STDERR_LEN_MAX - kept.len();
        kept.extend_from_slice(&buffer[..len.min(room)]);
    }
}

/// A file in memory with these bytes, to be read from its start.
fn memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("payload", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

#[cfg(test)]
mod tests;
