//! A private engine: Debian's containerd, a newer one, or gantryd.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    process::{self, Output},
    programs, wait,
};

/// Which program is the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Debian's.
    Containerd,
    /// A newer one ([`programs::newer`]).
    Newer,
    /// Ours.
    Gantryd,
}

/// How an engine is to be started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which program.
    pub kind: Kind,
    /// Where it keeps what must survive.
    pub root: PathBuf,
    /// Where it keeps what need not, and its socket.
    pub state: PathBuf,
    /// The shim that it runs for `io.containerd.runc.v2`.
    pub shim: PathBuf,
    /// The runtime that a shim finds as `runc`.
    pub runtime: PathBuf,
    /// A directory for its configuration, its log and links to programs.
    pub scratch: PathBuf,
}

/// An engine that runs, and ends with this value.
pub struct Daemon {
    options: Options,
    child: Child,
}

impl Daemon {
    /// Starts an engine and waits until it answers.
    ///
    /// # Errors
    ///
    /// It does not come up; the error has its log.
    pub fn start(options: Options) -> Result<Self> {
        for directory in [&options.root, &options.state, &options.scratch] {
            fs::create_dir_all(directory)?;
        }
        let programs = options.scratch.join("bin");
        if !programs.exists() {
            fs::create_dir_all(&programs)?;
            std::os::unix::fs::symlink(&options.shim, programs.join("containerd-shim-runc-v2"))?;
            std::os::unix::fs::symlink(&options.runtime, programs.join("runc"))?;
        }
        fs::write(options.scratch.join("config.toml"), configuration(&options))?;
        let child = launch(&options)?;
        let mut daemon = Self { options, child };
        daemon.wait_until_it_answers()?;
        Ok(daemon)
    }

    /// The socket.
    pub fn address(&self) -> PathBuf {
        address(&self.options)
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it was started.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.options.scratch.join("log")).unwrap_or_default()
    }

    /// Asks it to stop, or kills it, waits for its end, and starts it again.
    ///
    /// # Errors
    ///
    /// It does not end, or does not come up again.
    pub fn restart(&mut self, signal: Signal) -> Result<()> {
        self.stop(signal)?;
        self.launch_again()
    }

    /// Starts it again after [`Self::stop`].
    ///
    /// # Errors
    ///
    /// It does not come up.
    pub fn launch_again(&mut self) -> Result<()> {
        self.launch_without_waiting()?;
        self.wait_until_it_answers()
    }

    /// Starts it again after [`Self::stop`], and leaves it to the caller to wait for its answers.
    ///
    /// # Errors
    ///
    /// The program cannot be started.
    pub fn launch_without_waiting(&mut self) -> Result<()> {
        self.child = launch(&self.options)?;
        Ok(())
    }

    /// Sends `signal` and waits for the end.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn stop(&mut self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).context("signal the engine")?;
        wait::until("the engine's end", || Ok(self.child.try_wait()?))?;
        Ok(())
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let client = programs::own("ctr").ok().or_else(|| programs::find("ctr"));
        let client = client.context("no ctr to ask the engine with")?;
        let address = self.address();
        let answers = wait::until("the engine's answer", || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the engine has ended with {status}");
            }
            let asked = address.exists().then(|| ask(&client, &address)).transpose()?;
            Ok(asked.filter(|output| output.code == 0))
        });
        answers.map(drop).with_context(|| self.log())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.stop(Signal::TERM).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn ask(client: &Path, address: &Path) -> Result<Output> {
    process::run(Command::new(client).arg("--address").arg(address).arg("version"))
}

fn address(options: &Options) -> PathBuf {
    options.state.join(match options.kind {
        Kind::Gantryd if !replaces_containerd(options) => "gantry.sock",
        _ => "containerd.sock",
    })
}

/// Whether the engine is ours, where containerd would be.
fn replaces_containerd(options: &Options) -> bool {
    options.kind == Kind::Gantryd && options.state == Path::new("/run/containerd")
}

fn launch(options: &Options) -> Result<Child> {
    let program = match options.kind {
        Kind::Containerd => programs::debian("containerd")?,
        Kind::Newer => programs::newer("containerd")?,
        Kind::Gantryd => programs::own("gantryd")?,
    };
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(options.scratch.join("log"))
        .context("open the engine's log")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let links = options.scratch.join("bin");
    let layout = replaces_containerd(options).then_some(["--compat", "containerd"]);
    Command::new(&program)
        .arg("--config")
        .arg(options.scratch.join("config.toml"))
        .args(layout.into_iter().flatten())
        .env("PATH", format!("{}:{}:{path}", links.display(), programs::ours().display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}

fn configuration(options: &Options) -> String {
    let (root, state) = (options.root.display(), options.state.display());
    let address = address(options);
    let address = address.display();
    match options.kind {
        // Without CRI, which looks for networks and images of its own.
        Kind::Containerd | Kind::Newer => format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{address}\"\n"
        ),
        Kind::Gantryd => {
            let mut paths = format!("root = \"{root}\"\n");
            if !replaces_containerd(options) {
                paths += &format!("state = \"{state}\"\n[grpc]\naddress = \"{address}\"\n");
            }
            let shim = options.shim.display();
            format!("{paths}[runtimes.\"io.containerd.runc.v2\"]\nshim = \"{shim}\"\n")
        }
    }
}
