//! One choice of daemon, shim, runtime and client, ready to be driven.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Result;

use crate::{
    daemon::{Daemon, Kind, Options},
    image::{self, Flavour, Image},
    process::{self, Output, Running},
    programs,
    stage::{self, Stage, View},
};

/// The reference under which [`Cell`] has its image.
pub const IMAGE: &str = "registry.test/busybox:1";

/// Which shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shim {
    /// Debian's containerd's, written in Go.
    Go,
    /// A newer containerd's ([`programs::newer`]).
    Newer,
    /// Ours.
    Own,
}

/// Which OCI runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Debian's runc.
    Runc,
    /// Debian's crun.
    Crun,
    /// Ours.
    RuncRs,
}

/// Which command-line client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// Debian's ctr.
    Debian,
    /// Ours.
    Own,
}

/// A choice of four programs that meet only over their protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The engine.
    pub daemon: Kind,
    /// The shim.
    pub shim: Shim,
    /// The runtime.
    pub runtime: Runtime,
    /// The client.
    pub client: Client,
}

impl Choice {
    /// What every other choice is compared with: nothing of ours.
    pub const STOCK: Self = Self {
        daemon: Kind::Containerd,
        shim: Shim::Go,
        runtime: Runtime::Runc,
        client: Client::Debian,
    };

    /// Nothing but ours.
    pub const OWN: Self = Self {
        daemon: Kind::Gantryd,
        shim: Shim::Own,
        runtime: Runtime::RuncRs,
        client: Client::Own,
    };

    /// Nothing but a newer containerd's, with Debian's runc.
    pub const NEWER: Self = Self::WITH_NEWER[0];

    /// All choices, the stock one first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for daemon in [Kind::Containerd, Kind::Gantryd] {
            for shim in [Shim::Go, Shim::Own] {
                for runtime in [Runtime::Runc, Runtime::Crun, Runtime::RuncRs] {
                    for client in [Client::Debian, Client::Own] {
                        all.push(Self { daemon, shim, runtime, client });
                    }
                }
            }
        }
        all.extend(Self::WITH_NEWER);
        all
    }

    /// The choices with programs of a newer containerd, its own first. Few: what is new in it are the
    /// borders between daemon and shim, so each is crossed both ways.
    const WITH_NEWER: [Self; 5] = {
        const fn choice(daemon: Kind, shim: Shim, runtime: Runtime, client: Client) -> Choice {
            Choice { daemon, shim, runtime, client }
        }
        [
            choice(Kind::Newer, Shim::Newer, Runtime::Runc, Client::Debian),
            choice(Kind::Newer, Shim::Own, Runtime::Runc, Client::Debian),
            choice(Kind::Newer, Shim::Own, Runtime::RuncRs, Client::Own),
            choice(Kind::Gantryd, Shim::Newer, Runtime::Runc, Client::Debian),
            choice(Kind::Gantryd, Shim::Newer, Runtime::RuncRs, Client::Own),
        ]
    };

    /// Finds the choice that is shown as `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|choice| choice.to_string() == name)
    }

    /// What the stage must look like for these programs.
    pub fn view(self) -> View {
        View { cgroup_v1_only: self.runtime == Runtime::Crun, ..View::default() }
    }

    /// Names the programs of the choice that are not there.
    pub fn missing(self) -> Vec<String> {
        [self.daemon(), self.shim(), self.runtime(), self.client()]
            .into_iter()
            .filter_map(|program| program.err().map(|error| error.to_string()))
            .collect()
    }

    fn daemon(self) -> Result<PathBuf> {
        match self.daemon {
            Kind::Containerd => programs::debian("containerd"),
            Kind::Newer => programs::newer("containerd"),
            Kind::Gantryd => programs::own("gantryd"),
        }
    }

    /// Where the shim is.
    ///
    /// # Errors
    ///
    /// It is neither installed nor built.
    pub fn shim(self) -> Result<PathBuf> {
        match self.shim {
            Shim::Go => programs::debian("containerd-shim-runc-v2"),
            Shim::Newer => programs::newer("containerd-shim-runc-v2"),
            Shim::Own => programs::own("containerd-shim-runc-rs-v2"),
        }
    }

    /// Where the runtime is.
    ///
    /// # Errors
    ///
    /// It is neither installed nor built.
    pub fn runtime(self) -> Result<PathBuf> {
        match self.runtime {
            Runtime::Runc => programs::debian("runc"),
            Runtime::Crun => programs::debian("crun"),
            Runtime::RuncRs => programs::own("runc-rs"),
        }
    }

    /// Where the client is.
    ///
    /// # Errors
    ///
    /// It is neither installed nor built.
    pub fn client(self) -> Result<PathBuf> {
        match self.client {
            Client::Debian => programs::debian("ctr"),
            Client::Own => programs::own("ctr"),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let daemon = match self.daemon {
            Kind::Containerd => "containerd",
            Kind::Newer => "newer-containerd",
            Kind::Gantryd => "gantryd",
        };
        let shim = match self.shim {
            Shim::Go => "go-shim",
            Shim::Newer => "newer-go-shim",
            Shim::Own => "own-shim",
        };
        let runtime = match self.runtime {
            Runtime::Runc => "runc",
            Runtime::Crun => "crun",
            Runtime::RuncRs => "runc-rs",
        };
        let client = if self.client == Client::Debian { "debian-ctr" } else { "own-ctr" };
        write!(f, "{daemon}/{shim}/{runtime}/{client}")
    }
}

/// A daemon that runs, with an image, and a client for it.
pub struct Cell {
    choice: Choice,
    client: PathBuf,
    runtime: PathBuf,
    daemon: Daemon,
    directory: PathBuf,
    namespace: String,
    next_id: AtomicU32,
}

impl Cell {
    /// Starts the daemon of `choice` on `stage` and imports [`IMAGE`].
    ///
    /// # Errors
    ///
    /// A program is missing, or the daemon does not do as it should.
    pub fn start(choice: Choice, stage: &Stage) -> Result<Self> {
        let cell = Self::bare(choice, stage)?;
        cell.import(&image::busybox(Flavour::Oci)?, IMAGE)?;
        Ok(cell)
    }

    /// Starts the daemon of `choice` on `stage`.
    ///
    /// # Errors
    ///
    /// Those of [`Self::start`].
    pub fn bare(choice: Choice, stage: &Stage) -> Result<Self> {
        Self::with_programs(choice, stage, choice.shim()?, choice.runtime()?)
    }

    /// Starts the daemon of `choice` on `stage`, with programs that stand in for those of the choice.
    ///
    /// # Errors
    ///
    /// Those of [`Self::start`].
    pub fn with_programs(
        choice: Choice,
        stage: &Stage,
        shim: PathBuf,
        runtime: PathBuf,
    ) -> Result<Self> {
        let directory = stage.directory().join(choice.to_string().replace('/', "-"));
        let state = match choice.daemon {
            Kind::Containerd => "/run/containerd",
            Kind::Newer => "/run/newer-containerd",
            Kind::Gantryd => "/run/gantry",
        };
        let daemon = Daemon::start(Options {
            kind: choice.daemon,
            root: directory.join("root"),
            state: state.into(),
            shim,
            runtime: runtime.clone(),
            scratch: directory.clone(),
        })?;
        Ok(Self {
            choice,
            client: choice.client()?,
            runtime,
            daemon,
            directory,
            namespace: stage::namespace(std::process::id()),
            next_id: AtomicU32::new(0),
        })
    }

    /// The programs.
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// The engine, to look at.
    pub fn running_daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// The engine.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// The containerd namespace in which everything happens.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A path for a file of the test's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The runtime.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// A container's id that was not given before.
    pub fn id(&self) -> String {
        // Cells on one stage share the cgroups, so the daemon's initial tells them apart.
        let initial = match self.choice.daemon {
            Kind::Containerd => 'c',
            Kind::Newer => 'n',
            Kind::Gantryd => 'g',
        };
        format!("{initial}{}", self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// The client's command with `words`, in the namespace.
    pub fn command(&self, words: &[&str]) -> Command {
        self.command_at(&self.daemon, &self.namespace, words)
    }

    /// The client's command with `words`, for another daemon or another namespace.
    pub fn command_at(&self, daemon: &Daemon, namespace: &str, words: &[&str]) -> Command {
        let mut command = Command::new(&self.client);
        command.arg("--address").arg(daemon.address()).args(["--namespace", namespace]).args(words);
        command
    }

    /// Runs the client to its end.
    ///
    /// # Errors
    ///
    /// It cannot be started, or hangs.
    pub fn ctr(&self, words: &[&str]) -> Result<Output> {
        process::run(&mut self.command(words))
    }

    /// Runs the client to its end and gives what it wrote.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn ok(&self, words: &[&str]) -> Result<String> {
        self.ctr(words)?.ok()
    }

    /// Runs the client to its end and gives what it complained about.
    ///
    /// # Errors
    ///
    /// It succeeds.
    pub fn refused(&self, words: &[&str]) -> Result<String> {
        self.ctr(words)?.refused()
    }

    /// Starts the client and leaves it running.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn spawn(&self, words: &[&str]) -> Result<Running> {
        Running::start(self.command(words).stdin(std::process::Stdio::null()))
    }

    /// The words of `ctr run` with `flags`, for a container `id` of [`IMAGE`] that runs `argv`.
    ///
    /// The runtime is named, except where ours is to be what our shim takes by itself.
    pub fn run_words(&self, flags: &[&str], id: &str, argv: &[&str]) -> Vec<String> {
        let mut words = vec!["run".to_owned()];
        let is_own = self.choice.shim == Shim::Own && self.choice.runtime == Runtime::RuncRs;
        if !is_own || programs::own("runc-rs").ok().as_ref() != Some(&self.runtime) {
            words.extend(["--runc-binary".to_owned(), self.runtime.display().to_string()]);
        }
        let rest = flags.iter().chain([&IMAGE, &id]).chain(argv);
        words.extend(rest.map(|&word| word.to_owned()));
        words
    }

    /// Runs `ctr run` as [`Self::run_words`] has it, to its end.
    ///
    /// # Errors
    ///
    /// It cannot be started, or hangs.
    pub fn run(&self, flags: &[&str], id: &str, argv: &[&str]) -> Result<Output> {
        let words = self.run_words(flags, id, argv);
        self.ctr(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Starts a container in the background, and gives its id.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn background(&self, flags: &[&str], argv: &[&str]) -> Result<String> {
        let id = self.id();
        self.run(&[&["-d"], flags].concat(), &id, argv)?.ok()?;
        Ok(id)
    }

    /// Ends a container of [`Self::background`] and removes it.
    ///
    /// # Errors
    ///
    /// A step fails.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.ok(&["tasks", "rm", "-f", id])?;
        self.ok(&["containers", "rm", id])?;
        Ok(())
    }

    /// Imports `image` as `name`.
    ///
    /// # Errors
    ///
    /// The import fails.
    pub fn import(&self, image: &Image, name: &str) -> Result<String> {
        let archive = self.file("import.tar");
        std::fs::write(&archive, image::oci_archive(image, name))?;
        self.ok(&["images", "import", &archive.display().to_string()])
    }
}
