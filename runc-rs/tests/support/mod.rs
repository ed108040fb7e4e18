//! Bundles of busybox, and the program that is tested.

#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod criu;

use std::{
    fs,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{fs::symlink, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

/// How long anything may take that is waited for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

const BUSYBOX: &str = "/bin/busybox";

const APPLETS: [&str; 20] = [
    "sh", "cat", "true", "id", "mount", "env", "sleep", "hostname", "ls", "readlink", "touch",
    "tty", "stty", "grep", "stat", "pwd", "umask", "mkdir", "kill", "head",
];

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A bundle with one container's id; what is left of the container goes with it.
pub(crate) struct Bundle {
    directory: tempfile::TempDir,
    pub(crate) id: String,
    pub(crate) config: Value,
    pub(crate) program: PathBuf,
    /// Whether systemd is to make the cgroup.
    pub(crate) systemd_cgroup: bool,
}

impl Bundle {
    /// A bundle that runs a shell script.
    pub(crate) fn new(script: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make containers and need root; run them as root, or only `--lib`"
        );
        assert!(Path::new(BUSYBOX).exists(), "{BUSYBOX} is missing: install busybox-static");
        let directory = tempfile::tempdir().expect("temporary directory");
        let rootfs = directory.path().join("rootfs");
        for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
            fs::create_dir_all(rootfs.join(name)).expect("make rootfs");
        }
        fs::copy(BUSYBOX, rootfs.join("bin/busybox")).expect("copy busybox");
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).expect("link applet");
        }
        fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nu:x:1000:1000::/home/u:\n",
        )
        .expect("write passwd");
        // Others must come to the root filesystem, for user namespaces.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), open).expect("open bundle");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("test-{}-{number}", std::process::id());
        let program = PathBuf::from(env!("CARGO_BIN_EXE_runc-rs"));
        let mut bundle =
            Self { directory, id, config: Value::Null, program, systemd_cgroup: false };
        bundle.config = bundle.spec();
        bundle.config["process"]["terminal"] = json!(false);
        bundle.config["process"]["args"] = json!(["sh", "-c", script]);
        bundle.config["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.id));
        bundle
    }

    /// Uses a copy of the program that no other test runs. Another process makes it: this one has
    /// threads that fork, and their children would have it open for writing for a moment.
    pub(crate) fn copy_program(&mut self) {
        let copy = self.path().join("runc-rs");
        let status = Command::new("cp").arg(&self.program).arg(&copy).status().expect("run cp");
        assert!(status.success(), "copy program");
        self.program = copy;
    }

    fn spec(&self) -> Value {
        let output = self.command(&["spec", "-b", self.path_text()]).output().expect("run spec");
        assert!(output.status.success(), "spec: {}", text(&output.stderr));
        let config = self.path().join("config.json");
        serde_json::from_slice(&fs::read(config).expect("read config")).expect("parse config")
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path_text(&self) -> &str {
        self.path().to_str().expect("temporary directories have plain names")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// Where containers are recorded.
    pub(crate) fn root(&self) -> PathBuf {
        self.path().join("state")
    }

    pub(crate) fn write_config(&self) {
        let text = serde_json::to_vec(&self.config).expect("JSON");
        fs::write(self.path().join("config.json"), text).expect("write config");
    }

    /// The program with this bundle's root directory and `words`.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.root());
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Runs the program, and returns its status, output and errors.
    pub(crate) fn call(&self, words: &[&str]) -> Answer {
        Answer::new(self.command(words).output().expect("run the program"))
    }

    /// `run`, in the foreground.
    pub(crate) fn run(&self) -> Answer {
        self.write_config();
        self.call(&["run", "-b", self.path_text(), &self.id])
    }

    /// `create`, with its output going nowhere, for the container keeps it open.
    pub(crate) fn create(&self) -> i32 {
        self.write_config();
        let mut command = self.command(&["create", "-b", self.path_text(), &self.id]);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.expect("run create").code().expect("no signal")
    }

    /// A command on this container.
    pub(crate) fn on(&self, command: &str, more: &[&str]) -> Answer {
        let words: Vec<&str> =
            [command, self.id.as_str()].into_iter().chain(more.iter().copied()).collect();
        self.call(&words)
    }

    /// What `state` says.
    pub(crate) fn state(&self) -> Value {
        let answer = self.on("state", &[]);
        assert_eq!(answer.status, 0, "state: {}", answer.stderr);
        serde_json::from_str(&answer.stdout).expect("state is JSON")
    }

    /// Creates and starts it.
    pub(crate) fn start(&self) {
        assert_eq!(self.create(), 0, "create");
        let answer = self.on("start", &[]);
        assert_eq!(answer.status, 0, "start: {}", answer.stderr);
    }

    /// Waits for a status.
    pub(crate) fn wait_for(&self, status: &str) {
        wait_until(&format!("status {status}"), || self.state()["status"] == status);
    }

    /// What is left of the container, one line each.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let record = self.root().join(&self.id);
        if record.exists() {
            found.push(format!("directory {}", record.display()));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
        found.extend(
            mounts.lines().filter(|line| line.contains(self.path_text())).map(str::to_owned),
        );
        let mut cgroups = vec![PathBuf::from("/sys/fs/cgroup")];
        while let Some(directory) = cgroups.pop() {
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name == self.id || name.ends_with(&format!("-{}.scope", self.id)) {
                    found.push(format!("cgroup {}", entry.path().display()));
                }
                cgroups.push(entry.path());
            }
        }
        for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
            let root = fs::read_link(entry.path().join("root")).unwrap_or_default();
            let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            if root.starts_with(self.path()) || line.contains(&self.id) {
                found.push(format!("process {}: {line}", entry.path().display()));
            }
        }
        found
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.call(&["delete", "--force", &self.id]);
    }
}

/// Receives a descriptor, as one comes over a console socket.
pub(crate) fn receive_descriptor(socket: &UnixStream) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let mut slices = [IoSliceMut::new(&mut name)];
    recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC).expect("receive");
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.expect("a descriptor")
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    pub(crate) fn new(output: Output) -> Self {
        Self {
            status: output.status.code().expect("the program was not killed"),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until something is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
