//! A shim under test: started as containerd does, with a bundle, fifos, and a place for events.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::{
        fs::{OpenOptionsExt, symlink},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use prost::Message;
use proto::{
    any,
    containerd::{
        runc::v1::Options, services::events::ttrpc::v1::ForwardRequest, task::v3 as api,
        types::Mount,
    },
    ttrpc::{Frame, Kind, Request, Response, Status, frame},
};
use tempfile::TempDir;

/// How long anything may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// The shim's program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_containerd-shim-runc-rs-v2");

/// A shim and its bundle, gone when the test is over, however it ends.
pub(crate) struct Shim {
    directory: TempDir,
    pub(crate) id: String,
    pub(crate) address: PathBuf,
    pub(crate) events: Receiver<String>,
    runtime: String,
}

impl Shim {
    /// Starts a shim for a container that runs `args`.
    pub(crate) fn start(test: &str, args: &[&str]) -> Self {
        Self::start_with(test, args, &runtime())
    }

    /// The same with another runtime.
    pub(crate) fn start_with(test: &str, args: &[&str], runtime: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "needs root: it starts containers");
        let directory = tempfile::tempdir().expect("temporary directory");
        let id = format!("shim-test-{test}-{}", std::process::id());
        let bundle = directory.path().join("bundle").join(&id);
        fs::create_dir_all(&bundle).expect("bundle");
        fs::write(bundle.join("config.json"), config(&id, args)).expect("config.json");
        make_image(&directory.path().join("image"));
        let events = listen_for_events(&directory.path().join("events.sock"));
        let address = start(directory.path(), &id);
        Self { directory, id, address, events, runtime: runtime.to_owned() }
    }

    /// Makes the bundle of another container, of which `annotations` may say that it belongs to
    /// this one's group, and gives where `start` says that its shim is, and its `Create`.
    pub(crate) fn start_another(
        &self,
        name: &str,
        args: &[&str],
        annotations: serde_json::Value,
    ) -> (PathBuf, api::CreateTaskRequest) {
        let id = format!("{}-{name}", self.id);
        let bundle = self.directory.path().join("bundle").join(&id);
        fs::create_dir_all(&bundle).expect("bundle");
        let mut spec: serde_json::Value = serde_json::from_slice(&config(&id, args)).expect("JSON");
        spec["annotations"] = annotations;
        fs::write(bundle.join("config.json"), spec.to_string()).expect("config.json");
        let address = start(self.directory.path(), &id);
        let bundle = bundle.to_string_lossy().into_owned();
        (address, api::CreateTaskRequest { id, bundle, ..self.create_request() })
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.directory.path().join("bundle").join(&self.id)
    }

    /// Where the containerd listens that the shim was started for.
    pub(crate) fn containerd(&self) -> String {
        self.directory.path().join("c.sock").to_string_lossy().into_owned()
    }

    /// The process ID of the shim.
    pub(crate) fn pid(&self) -> i32 {
        let text = fs::read_to_string(self.bundle().join("shim.pid")).expect("shim.pid");
        text.parse().expect("a number")
    }

    /// Makes a fifo and returns its path.
    pub(crate) fn fifo(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
            .expect("mkfifo");
        path.to_string_lossy().into_owned()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.address)
    }

    /// A `Create` that mounts the image as the container's root.
    pub(crate) fn create_request(&self) -> api::CreateTaskRequest {
        let options =
            Options { binary_name: self.runtime.clone(), root: self.root(), ..Options::default() };
        api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle().to_string_lossy().into_owned(),
            rootfs: vec![Mount {
                r#type: "bind".to_owned(),
                source: self.directory.path().join("image").to_string_lossy().into_owned(),
                options: vec!["rbind".to_owned(), "ro".to_owned()],
                ..Mount::default()
            }],
            options: Some(any::pack(&options)),
            ..api::CreateTaskRequest::default()
        }
    }

    /// The runtime's own directory.
    pub(crate) fn root(&self) -> String {
        self.directory.path().join("root").to_string_lossy().into_owned()
    }

    /// The next event's topic.
    pub(crate) fn event(&self) -> String {
        self.events.recv_timeout(TIMEOUT).expect("an event")
    }

    pub(crate) fn has_rootfs_mount(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        mounts.contains(&*self.bundle().join("rootfs").to_string_lossy())
    }

    /// Deletes the task and shuts the shim down, and checks that nothing is left.
    pub(crate) fn finish(self, client: &mut Client) {
        let id = self.id.clone();
        client.task::<()>("Shutdown", &api::ShutdownRequest { id, now: true }).expect("Shutdown");
        eventually("the shim ends", || UnixStream::connect(&self.address).is_err());
        eventually("the socket is removed", || !self.address.exists());
        assert!(!self.has_rootfs_mount(), "the rootfs is unmounted");
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // What a failed test leaves behind: the shim, and what `delete` cleans up.
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid())
            && UnixStream::connect(&self.address).is_ok()
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = delete(&self.bundle(), &self.id);
    }
}

/// Runs the `delete` command for a bundle.
pub(crate) fn delete(bundle: &Path, id: &str) -> api::DeleteResponse {
    let output = delete_output(bundle, id);
    api::DeleteResponse::decode(output.stdout.as_slice()).expect("a DeleteResponse")
}

/// The same, and what it prints.
pub(crate) fn delete_output(bundle: &Path, id: &str) -> std::process::Output {
    Command::new(PROGRAM)
        .args(["-namespace", "shim-test", "-id", id, "-address", "", "-bundle"])
        .arg(bundle)
        .arg("delete")
        .current_dir(bundle)
        .output()
        .expect("delete")
}

/// Runs the `start` command for a bundle, and gives where the shim listens.
fn start(directory: &Path, id: &str) -> PathBuf {
    let output = Command::new(PROGRAM)
        .args(["-namespace", "shim-test", "-id", id])
        .args(["-address", &directory.join("c.sock").to_string_lossy(), "start"])
        .env("TTRPC_ADDRESS", directory.join("events.sock"))
        .current_dir(directory.join("bundle").join(id))
        .stdin(Stdio::null())
        .output()
        .expect("start");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("an address");
    text.strip_prefix("unix://").expect("a path").into()
}

/// The runtime under test.
pub(crate) fn runtime() -> String {
    std::env::var("SHIM_TEST_RUNTIME").unwrap_or_else(|_| "runc".to_owned())
}

fn make_image(image: &Path) {
    for directory in ["bin", "proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(image.join(directory)).expect("image");
    }
    fs::copy("/bin/busybox", image.join("bin/busybox")).expect("busybox, static");
    for name in ["sh", "sleep", "cat", "echo", "true", "wc", "head", "stty"] {
        symlink("busybox", image.join("bin").join(name)).expect("symlink");
    }
}

fn config(id: &str, args: &[&str]) -> Vec<u8> {
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| serde_json::json!({"type": kind}));
    let spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": process(args),
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "shim-test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
        "linux": {"namespaces": namespaces, "cgroupsPath": format!("/{id}")},
    });
    serde_json::to_vec(&spec).expect("JSON")
}

/// A process of the OCI specification.
pub(crate) fn process(args: &[&str]) -> serde_json::Value {
    serde_json::json!({
        "args": args,
        "cwd": "/",
        "env": ["PATH=/bin", "TERM=xterm"],
        "user": {"uid": 0, "gid": 0},
    })
}

/// Answers events at `path`, and hands on their topics.
fn listen_for_events(path: &Path) -> Receiver<String> {
    let listener = UnixListener::bind(path).expect("bind");
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut input = Vec::new();
            while let Some((stream_id, payload)) = read_frame(&mut stream, &mut input) {
                let request = Request::decode(payload.as_slice()).expect("request");
                let forward = ForwardRequest::decode(request.payload.as_slice()).expect("event");
                let topic = forward.envelope.expect("envelope").topic;
                let mut output = Vec::new();
                let response = Response { status: None, payload: Vec::new() };
                frame::append(&mut output, Kind::Response, stream_id, &response).expect("short");
                if stream.write_all(&output).is_err() || send.send(topic).is_err() {
                    return;
                }
            }
        }
    });
    receive
}

fn read_frame(stream: &mut UnixStream, input: &mut Vec<u8>) -> Option<(u32, Vec<u8>)> {
    let mut buffer = [0; 4096];
    loop {
        if let Some((frame, len)) = Frame::parse(input).expect("frames") {
            let found = (frame.stream_id, frame.payload.to_vec());
            input.drain(..len);
            return Some(found);
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(len) => input.extend_from_slice(&buffer[..len]),
        }
    }
}

/// A connection to a shim.
pub(crate) struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    last_stream_id: u32,
    /// Answers that nobody has asked for yet.
    early: BTreeMap<u32, Vec<u8>>,
}

impl Client {
    pub(crate) fn connect(address: &Path) -> Self {
        let stream = UnixStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(TIMEOUT)).expect("timeout");
        Self { stream, input: Vec::new(), last_stream_id: 1, early: BTreeMap::new() }
    }

    /// Calls the task API, version 2 and 3 in turn.
    pub(crate) fn task<M: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
    ) -> Result<M, Status> {
        let stream_id = self.send(method, request);
        self.receive(stream_id)
    }

    /// Sends a call of the task API, and returns its number.
    pub(crate) fn send(&mut self, method: &str, request: &impl Message) -> u32 {
        let version = 2 + (self.last_stream_id + 2) / 2 % 2;
        self.send_to(&format!("containerd.task.v{version}.Task"), method, request)
    }

    /// Sends a call, and returns its number.
    pub(crate) fn send_to(&mut self, service: &str, method: &str, request: &impl Message) -> u32 {
        self.last_stream_id += 2;
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            ..Request::default()
        };
        let mut output = Vec::new();
        frame::append(&mut output, Kind::Request, self.last_stream_id, &request).expect("short");
        self.stream.write_all(&output).expect("write");
        self.last_stream_id
    }

    /// Waits for the answer to the call `stream_id`; others' are kept.
    pub(crate) fn receive<M: Message + Default>(&mut self, stream_id: u32) -> Result<M, Status> {
        let payload = loop {
            if let Some(payload) = self.early.remove(&stream_id) {
                break payload;
            }
            let (id, payload) =
                read_frame(&mut self.stream, &mut self.input).expect("an answer in time");
            self.early.insert(id, payload);
        };
        let response = Response::decode(payload.as_slice()).expect("response");
        match response.status {
            Some(status) if status.code != 0 => Err(status),
            _ => Ok(M::decode(response.payload.as_slice()).expect("message")),
        }
    }

    /// Writes bytes that are no call.
    pub(crate) fn write_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("write");
    }

    /// Whether the shim closes the connection.
    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 16]), Ok(0) | Err(_))
    }
}

/// Opens the client's end of an output fifo and reads it to its end.
pub(crate) fn read_all(path: &str) -> std::thread::JoinHandle<Vec<u8>> {
    // Both ends, without waiting, and then only the one: the shim may not be there yet.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut file: File = file.expect("open");
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        let mut has_begun = false;
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            match file.read(&mut buffer) {
                Ok(0) if has_begun => break,
                Ok(0) => std::thread::sleep(Duration::from_millis(1)),
                Ok(len) => {
                    has_begun = true;
                    all.extend_from_slice(&buffer[..len]);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        all
    })
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
