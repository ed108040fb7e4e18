//! Commands with a deadline, their output, and terminals for them.

use std::{
    fmt,
    fs::File,
    io::{Read, Seek, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::wait::{self, DEADLINE};

/// What a command that has ended left.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command, as a person would type it.
    pub line: String,
    /// The exit code; 128 and the signal's number for one that a signal ended, as in a shell.
    pub code: i32,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Output {
    /// Gives the standard output of a command that succeeded.
    ///
    /// # Errors
    ///
    /// It failed; the error has the command and all that it wrote.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "{self}");
        Ok(self.stdout)
    }

    /// Gives the standard error of a command that failed.
    ///
    /// # Errors
    ///
    /// It succeeded.
    pub fn refused(self) -> Result<String> {
        ensure!(self.code != 0, "succeeded, but should not: {self}");
        Ok(self.stderr)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` gave {}; stdout {:?}; stderr {:?}",
            self.line,
            self.code,
            self.stdout,
            self.stderr.trim_end()
        )
    }
}

/// A command that runs, with its output going to files.
///
/// Files, not pipes: what a command leaves running in the background, a shim for example, may
/// hold a pipe open long after the command has ended.
pub struct Running {
    line: String,
    child: Child,
    stdout: File,
    stderr: File,
}

impl Running {
    /// Starts `command`; its standard input is what the command says, or `/dev/null`.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let line = line(command);
        let stdout = tempfile::tempfile()?;
        let stderr = tempfile::tempfile()?;
        let child = command
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("start `{line}`"))?;
        Ok(Self { line, child, stdout, stderr })
    }

    /// Its process, as numbered here.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to its standard output so far.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn stdout(&mut self) -> Result<String> {
        text(&mut self.stdout)
    }

    /// Waits until its standard output has `wanted`.
    ///
    /// # Errors
    ///
    /// It does not in time; the error has what was written instead.
    pub fn wait_for(&mut self, wanted: &str) -> Result<()> {
        let line = self.line.clone();
        wait::until(&format!("{wanted:?} from `{line}`"), || {
            Ok(self.stdout()?.contains(wanted).then_some(()))
        })
        .with_context(|| self.stdout().unwrap_or_default())
    }

    /// Gives the exit code if the command has ended.
    ///
    /// # Errors
    ///
    /// The kernel refuses to say.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        let status = self.child.try_wait()?;
        Ok(status.map(|status| status.code().unwrap_or(128 + status.signal().unwrap_or(0))))
    }

    /// Waits for the command's end; kills it when the deadline is over.
    ///
    /// # Errors
    ///
    /// The deadline is over; the error has what was written until then.
    pub fn finish(mut self) -> Result<Output> {
        let start = Instant::now();
        let mut rest = std::time::Duration::from_micros(200);
        let code = loop {
            if let Some(code) = self.ended()? {
                break code;
            }
            if start.elapsed() > DEADLINE {
                self.child.kill()?;
                self.child.wait()?;
                let (stdout, stderr) = (text(&mut self.stdout)?, text(&mut self.stderr)?);
                bail!("`{}` hangs; stdout {stdout:?}; stderr {stderr:?}", self.line);
            }
            std::thread::sleep(rest);
            rest = (rest * 2).min(std::time::Duration::from_millis(5));
        };
        let (stdout, stderr) = (text(&mut self.stdout)?, text(&mut self.stderr)?);
        Ok(Output { line: self.line.clone(), code, stdout, stderr })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs `command` to its end.
///
/// # Errors
///
/// It cannot be started, or hangs. An exit code other than zero is not an error here.
pub fn run(command: &mut Command) -> Result<Output> {
    Running::start(command.stdin(Stdio::null()))?.finish()
}

/// Runs `command` to its end with `input` as its standard input.
///
/// # Errors
///
/// Those of [`run`].
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<Output> {
    let mut file = tempfile::tempfile()?;
    file.write_all(input)?;
    file.rewind()?;
    Running::start(command.stdin(file))?.finish()
}

/// A command on a terminal of its own.
pub struct OnTerminal {
    child: Child,
    terminal: File,
    seen: String,
}

impl OnTerminal {
    /// Starts `command` on a terminal of `rows` and `columns`, which controls it.
    ///
    /// # Errors
    ///
    /// There is no terminal to be had, or the command cannot be started.
    pub fn start(command: &Command, rows: u16, columns: u16) -> Result<Self> {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&terminal)?;
        unlockpt(&terminal)?;
        tcsetwinsize(&terminal, size(rows, columns))?;
        let name = ptsname(&terminal, Vec::new())?.into_string()?;
        let inner = File::options().read(true).write(true).open(name)?;
        // setsid makes the terminal the controlling one, which spares unsafe code here.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args())
            .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(inner.try_clone()?)
            .stdout(inner.try_clone()?)
            .stderr(inner)
            .spawn()
            .context("start setsid")?;
        rustix::io::ioctl_fionbio(&terminal, true)?;
        Ok(Self { child, terminal: terminal.into(), seen: String::new() })
    }

    /// Changes the terminal's size, of which the command is told by a signal.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        Ok(tcsetwinsize(&self.terminal, size(rows, columns))?)
    }

    /// Types `keys`.
    ///
    /// # Errors
    ///
    /// The terminal takes no more.
    pub fn type_keys(&mut self, keys: &str) -> Result<()> {
        Ok(self.terminal.write_all(keys.as_bytes())?)
    }

    /// Waits until the terminal has shown `wanted` after what earlier calls waited for.
    ///
    /// # Errors
    ///
    /// It does not in time; the error has what was shown.
    pub fn wait_for(&mut self, wanted: &str) -> Result<()> {
        self.repeat_until(wanted, |_| Ok(()))
    }

    /// Changes the terminal's size until it has shown `wanted`. A command that has just started may
    /// not listen to the signal yet, and nobody is told of a size that is not new.
    ///
    /// # Errors
    ///
    /// As [`wait_for`](Self::wait_for).
    pub fn resize_until(&mut self, rows: u16, columns: u16, wanted: &str) -> Result<()> {
        self.repeat_until(wanted, |terminal| {
            terminal.resize(rows, columns + 1)?;
            terminal.resize(rows, columns)
        })
    }

    /// Types `keys` until the terminal has shown `wanted`. A command that makes the terminal raw
    /// drops what was typed before.
    ///
    /// # Errors
    ///
    /// As [`wait_for`](Self::wait_for).
    pub fn type_until(&mut self, keys: &str, wanted: &str) -> Result<()> {
        self.repeat_until(wanted, |terminal| terminal.type_keys(keys))
    }

    fn repeat_until(
        &mut self,
        wanted: &str,
        mut act: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        wait::until(&format!("{wanted:?} on the terminal"), || {
            act(self)?;
            self.read();
            let Some(at) = self.seen.find(wanted) else { return Ok(None) };
            self.seen.drain(..at + wanted.len());
            Ok(Some(()))
        })
        .with_context(|| format!("shown: {:?}", self.seen))
    }

    /// Waits for the command's end and gives its exit code.
    ///
    /// # Errors
    ///
    /// It does not end in time.
    pub fn finish(mut self) -> Result<i32> {
        wait::until("the end of the command on the terminal", || {
            self.read();
            Ok(self.child.try_wait()?)
        })
        .map(|status| status.code().unwrap_or(-1))
        .with_context(|| format!("shown: {:?}", self.seen))
    }

    fn read(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.terminal.read(&mut buffer) {
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn text(file: &mut File) -> Result<String> {
    // The command shares the file's offset, so what it writes would move with ours.
    let mut bytes = Vec::new();
    let mut chunk = [0; 65536];
    loop {
        let count = rustix::io::pread(&*file, &mut chunk[..], bytes.len() as u64)?;
        if count == 0 {
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        bytes.extend_from_slice(&chunk[..count]);
    }
}

fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}
