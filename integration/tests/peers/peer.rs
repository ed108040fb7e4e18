//! An engine that runs containers on our runtime, and its command line.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};
use integration::{
    image::{self, Flavour},
    process::{self, Output},
    programs,
    stage::{self, Stage},
    wait,
};
use rustix::process::{Pid, Signal, kill_process};

/// The image that all containers are of.
pub(crate) const IMAGE: &str = "peer.test/busybox:1";

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// podman, which starts runtimes by itself, by way of conmon.
    Podman,
    /// dockerd, with a containerd and shims of its own.
    Docker,
}

impl Kind {
    /// The name of its command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Podman, Self::Docker].into_iter().find(|kind| kind.name() == name)
    }

    /// Names the programs that are not there.
    pub(crate) fn missing(self) -> Vec<String> {
        let programs: &[&str] = match self {
            Self::Podman => &["podman", "conmon", "docker-init"],
            Self::Docker => &["docker", "dockerd", "containerd", "docker-init"],
        };
        let absent = programs.iter().filter_map(|name| programs::debian(name).err());
        let own = runtime().err();
        absent.chain(own).map(|error| error.to_string()).collect()
    }
}

/// The runtime: ours, or the one that the caller names.
fn runtime() -> Result<PathBuf> {
    match std::env::var_os("GANTRY_RUNTIME") {
        Some(chosen) => Ok(chosen.into()),
        None => programs::own("runc-rs"),
    }
}

/// An engine that is ready to be driven; a daemon ends with this value.
pub(crate) struct Peer {
    kind: Kind,
    client: PathBuf,
    runtime: PathBuf,
    directory: PathBuf,
    namespace: String,
    /// The cgroup below which all containers are, as a path.
    parent: String,
    daemon: Option<Child>,
    next: AtomicU32,
}

impl Peer {
    /// Starts the engine, if it has a daemon, and loads [`IMAGE`].
    pub(crate) fn start(kind: Kind, stage: &Stage) -> Result<Self> {
        let directory = stage.directory().join(kind.name());
        fs::create_dir_all(&directory)?;
        // Containers with user namespaces come to their root through here as somebody else.
        for open in [stage.directory(), &directory] {
            fs::set_permissions(open, fs::Permissions::from_mode(0o711))?;
        }
        let namespace = stage::namespace(std::process::id());
        let mut peer = Self {
            kind,
            client: programs::debian(kind.name())?,
            runtime: runtime()?,
            directory,
            parent: format!("/{namespace}"),
            namespace,
            daemon: None,
            next: AtomicU32::new(0),
        };
        match kind {
            // Without CAP_SYS_RESOURCE limits cannot be as high as podman has them by itself.
            Kind::Podman => fs::write(
                peer.file("containers.conf"),
                "[containers]\ndefault_ulimits = [\"nofile=512:512\", \"nproc=512:512\"]\n\
                 [engine]\nruntime_supports_json = [\"runc-rs\", \"runc\", \"crun\"]\n",
            )?,
            Kind::Docker => peer.launch()?,
        }
        peer.load()?;
        // What an engine makes once, for its first container, is no leak.
        peer.run(&["--network", "host"], &["true"])?.ok()?;
        Ok(peer)
    }

    fn load(&self) -> Result<()> {
        let archive = self.file("image.tar");
        let layers = image::busybox_layers()?;
        let image = image::busybox(Flavour::Docker)?;
        fs::write(&archive, image::docker_archive(&image, &layers, IMAGE))?;
        self.ok(&["load", "--input", &archive.display().to_string()])?;
        Ok(())
    }

    fn launch(&mut self) -> Result<()> {
        let log = fs::File::create(self.file("log"))?;
        fs::write(self.file("daemon.json"), "{}")?;
        let path = |name: &str| self.file(name).display().to_string();
        let daemon = Command::new(programs::debian("dockerd")?)
            .args(["--config-file", &path("daemon.json"), "--pidfile", &path("pid")])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--host", &self.address(), "--storage-driver", "vfs"])
            .args(["--add-runtime", &format!("runc-rs={}", self.runtime.display())])
            .args(["--default-runtime", "runc-rs"])
            .args(["--bridge", "none", "--iptables=false", "--ip6tables=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start dockerd")?;
        let daemon = self.daemon.insert(daemon);
        let pid = Pid::from_child(daemon);
        wait::until("dockerd's answer", || {
            if rustix::process::test_kill_process(pid).is_err() {
                bail!("dockerd has ended");
            }
            let asked = process::run(&mut self.command(&["version"]))?;
            Ok((asked.code == 0).then_some(()))
        })
        .with_context(|| fs::read_to_string(self.file("log")).unwrap_or_default())
    }

    fn address(&self) -> String {
        format!("unix://{}", self.file("docker.sock").display())
    }

    /// Which engine it is.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// A path for a file of the test's own.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The name of the cgroup below which all containers are.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The client's command with `words`.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.client);
        match self.kind {
            Kind::Docker => {
                command.args(["--host", &self.address()]);
                command.env("DOCKER_CONFIG", self.file("client"));
            }
            Kind::Podman => {
                command.arg("--root").arg(self.file("root"));
                command.arg("--runroot").arg(self.file("run"));
                command.arg("--tmpdir").arg(self.file("tmp"));
                command.arg("--runtime").arg(&self.runtime);
                command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
                command.args(["--events-backend", "file"]);
                command.env("CONTAINERS_CONF", self.file("containers.conf"));
            }
        }
        command.args(words);
        command
    }

    /// Runs the client to its end.
    pub(crate) fn call(&self, words: &[&str]) -> Result<Output> {
        process::run(&mut self.command(words))
    }

    /// Runs the client to its end and gives what it wrote.
    pub(crate) fn ok(&self, words: &[&str]) -> Result<String> {
        self.call(words)?.ok()
    }

    /// The words of `run` for a container without a network that runs `argv`.
    pub(crate) fn run_words<'a>(&'a self, flags: &[&'a str], argv: &[&'a str]) -> Vec<&'a str> {
        let mut words = vec!["run", "--cgroup-parent", &self.parent];
        if !flags.contains(&"--network") {
            words.extend(["--network", "none"]);
        }
        words.extend(flags.iter().chain([&IMAGE]).chain(argv));
        words
    }

    /// Runs a container to its end.
    pub(crate) fn run(&self, flags: &[&str], argv: &[&str]) -> Result<Output> {
        self.call(&self.run_words(&[&["--rm"], flags].concat(), argv))
    }

    /// Runs a shell script in a container, to its end, and gives what it wrote.
    pub(crate) fn script(&self, flags: &[&str], script: &str) -> Result<String> {
        self.run(flags, &["sh", "-c", script])?.ok()
    }

    /// Starts a container that runs a shell script in the background, and gives its name.
    pub(crate) fn background(&self, flags: &[&str], script: &str) -> Result<String> {
        let name = format!("peer-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let flags = [&["--detach", "--name", &name], flags].concat();
        self.ok(&self.run_words(&flags, &["sh", "-c", script]))?;
        Ok(name)
    }

    /// What a container is doing, in the engine's word.
    pub(crate) fn status(&self, name: &str) -> Result<String> {
        let format = "{{.State.Status}}";
        Ok(self
            .ok(&["inspect", "--type", "container", "--format", format, name])?
            .trim()
            .to_owned())
    }

    /// Waits until a container has logged `wanted`.
    pub(crate) fn wait_for_log(&self, name: &str, wanted: &str) -> Result<()> {
        wait::until(&format!("{wanted:?} in the log of {name}"), || {
            Ok(self.ok(&["logs", name])?.contains(wanted).then_some(()))
        })
    }

    /// Ends and removes all containers.
    pub(crate) fn remove_all(&self) -> Result<()> {
        let all = self.ok(&["ps", "--all", "--quiet"])?;
        let ids: Vec<&str> = all.split_whitespace().collect();
        if !ids.is_empty() {
            self.ok(&[&["rm", "--force"], ids.as_slice()].concat())?;
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let Some(daemon) = &mut self.daemon else { return };
        let ended = kill_process(Pid::from_child(daemon), Signal::TERM).is_ok()
            && wait::until("dockerd's end", || Ok(daemon.try_wait()?)).is_ok();
        if !ended {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// The text of a file of a cgroup, as a container sees its own, by its names in v1 and in v2.
pub(crate) fn cgroup_file(controller: &str, v1: &str, v2: &str) -> String {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if unified {
        format!("cat /sys/fs/cgroup/{v2}")
    } else {
        format!("cat /sys/fs/cgroup/{controller}/{v1}")
    }
}
