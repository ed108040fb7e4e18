//! A strict shim without a container: it serves the task API, its process is a `sleep`, and its
//! binary is a script. What it was asked, and what is left of it, can be looked at.

use std::{
    collections::HashMap,
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use engine::{
    events::{Exchange, Subscription},
    filter::Filter,
    namespace::Namespace,
    runtime::{Create, Runtime, RuntimeTable, Settings},
};
use prost::Message;
use proto::{
    containerd::{runtime::sandbox::v1 as api, task::v3},
    ttrpc::{self, Code, Frame, Kind, Request, Response, frame},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::Notify,
    task::JoinSet,
};

/// The number of the fake init. No process can have it (`PID_MAX_LIMIT`).
pub(crate) const INIT: u32 = (1 << 22) + 4242;

/// How a fake shim behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As a shim should.
    #[default]
    Good,
    /// Reads and does not answer.
    Stuck,
    /// Refuses to create.
    CreateFails,
    /// Answers with what is no frame.
    Garbage,
    /// Answers with a frame that is longer than any may be.
    Oversized,
    /// Ends the connection in the middle of a frame.
    Cut,
    /// Answers with a frame whose message is not the one that was asked for.
    OddMessage,
    /// Does not say who it is.
    Anonymous,
    /// The same, and ends the connection of who asks for a sandbox.
    NoSandbox,
    /// Runs on when it is shut down, until [`FakeShim::end`].
    Lingers,
}

/// A folder with a shim's binary, the sockets of shims, and the directories of a runtime.
pub(crate) struct Stage {
    folder: tempfile::TempDir,
    pub(crate) events: Exchange,
    pub(crate) namespace: Namespace,
    shims: Mutex<HashMap<String, Arc<FakeShim>>>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let ended = v3::DeleteResponse { pid: INIT, exit_status: 137, exited_at: None };
        let ended = ended.encode_to_vec().into_iter().map(|byte| format!("\\{byte:03o}"));
        let script = format!(
            "#!/bin/sh\n\
             for last; do :; done\n\
             while [ $# -gt 0 ]; do [ \"$1\" = -id ] && id=$2; shift; done\n\
             echo \"$last $id\" >> {0}/calls\n\
             [ $last = delete ] && [ -e {0}/unlucky ] && echo no luck >&2 && exit 1\n\
             [ -e {0}/shared ] && id=$(cat {0}/shared)\n\
             [ $last = start ] && echo unix://{0}/$id.sock && exit\n\
             printf '{1}'\n",
            folder.path().display(),
            ended.collect::<String>()
        );
        let binary = folder.path().join("shim");
        fs::write(&binary, script).expect("written");
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("permitted");
        let namespace = "default".parse().expect("an identifier");
        Self { folder, events: Exchange::default(), namespace, shims: Mutex::default() }
    }

    pub(crate) fn runtime(&self) -> Runtime {
        let path = self.folder.path();
        let settings = Settings {
            root: path.join("root"),
            state: path.join("state"),
            address: path.join("sock"),
            ttrpc_address: path.join("sock.ttrpc"),
            version: "2.3.0",
            debug: false,
            open_files_limit: None,
            runtimes: RuntimeTable::new(),
        };
        Runtime::open(settings, self.events.clone()).expect("opens")
    }

    /// Lets a shim for `id` wait for calls.
    pub(crate) fn shim(&self, id: &str, manner: Manner) -> Arc<FakeShim> {
        self.shim_and_socket(id, manner).0
    }

    /// The same, with the socket that it listens at.
    pub(crate) fn shim_and_socket(&self, id: &str, manner: Manner) -> (Arc<FakeShim>, OwnedFd) {
        let path = self.folder.path().join(format!("{id}.sock"));
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(path).expect("bound");
        let socket = listener.as_fd().try_clone_to_owned().expect("copied");
        let shim = FakeShim::start(listener, manner);
        self.shims.lock().expect("no panic").insert(id.to_owned(), Arc::clone(&shim));
        (shim, socket)
    }

    /// What makes a task for `id` under a fake shim.
    pub(crate) fn request(&self, id: &str) -> Create {
        let runtime = self.folder.path().join("shim").display().to_string();
        Create { id: id.to_owned(), runtime, ..Create::default() }
    }

    /// Where the fakes are; a test may keep its own files there.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.state().join("default").join(id)
    }

    pub(crate) fn sandbox_bundle(&self, id: &str) -> PathBuf {
        let folder = self.folder.path().join("state/io.containerd.sandbox.controller.v1.shim");
        folder.join("default").join(id)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state/io.containerd.runtime.v2.task")
    }

    /// How the binary was called, as in `start c1`.
    pub(crate) fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(crate) fn subscribe(&self) -> Subscription {
        self.events.subscribe(Filter::default())
    }

    /// Lets all tasks from now on have the shim of one name.
    pub(crate) fn share(&self, id: &str) {
        fs::write(self.folder.path().join("shared"), id).expect("written");
    }

    /// Whether the binary's `delete` fails.
    pub(crate) fn unlucky(&self, fails: bool) {
        let path = self.folder.path().join("unlucky");
        let done = if fails { fs::write(path, "") } else { fs::remove_file(path) };
        done.expect("written or removed");
    }

    /// That nothing is left of sandboxes.
    pub(crate) fn assert_no_sandboxes(&self) {
        for folder in ["state", "root"] {
            let folder = self.folder.path().join(folder);
            let left = files(&folder.join("io.containerd.sandbox.controller.v1.shim/default"));
            assert!(left.is_empty(), "{left:?}");
        }
    }

    /// That no bundle and no working directory is left.
    pub(crate) fn assert_nothing_left(&self) {
        for folder in [self.state(), self.folder.path().join("root/io.containerd.runtime.v2.task")]
        {
            let left: Vec<_> = files(&folder.join("default"));
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.expect("readable").path()).collect()
}

/// A shim. Its end is that of its process.
pub(crate) struct FakeShim {
    manner: Mutex<Manner>,
    asked: Mutex<Vec<String>>,
    made_with: Mutex<v3::CreateTaskRequest>,
    stopped_within: Mutex<Vec<u32>>,
    process: Mutex<Child>,
    init: AtomicU32,
    state: Mutex<State>,
    exited: Notify,
    dropped: Notify,
    down: Notify,
}

#[derive(Default)]
struct State {
    created: bool,
    inits: HashMap<String, u32>,
    exit_status: Option<u32>,
}

impl FakeShim {
    fn start(listener: UnixListener, manner: Manner) -> Arc<Self> {
        let shim = Arc::new(Self {
            manner: Mutex::new(manner),
            asked: Mutex::default(),
            made_with: Mutex::default(),
            stopped_within: Mutex::default(),
            process: Mutex::new(sleep()),
            init: AtomicU32::new(INIT),
            state: Mutex::default(),
            exited: Notify::new(),
            dropped: Notify::new(),
            down: Notify::new(),
        });
        let serving = Arc::clone(&shim);
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            let accept = async {
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => {
                            connections.spawn(Arc::clone(&serving).connection(stream));
                        }
                        // Without a descriptor it is not even known whether somebody is there.
                        Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    }
                }
            };
            tokio::select! {
                () = accept => {}
                () = serving.down.notified() => {}
            }
        });
        shim
    }

    /// The methods that were called.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }

    /// How often a task was made.
    pub(crate) fn made(&self) -> usize {
        self.asked().iter().filter(|method| *method == "Create").count()
    }

    /// What the last task was made with.
    pub(crate) fn made_with(&self) -> v3::CreateTaskRequest {
        self.made_with.lock().expect("no panic").clone()
    }

    /// The patience, in seconds, that stops of the sandbox have come with.
    pub(crate) fn stopped_within(&self) -> Vec<u32> {
        self.stopped_within.lock().expect("no panic").clone()
    }

    pub(crate) fn behave(&self, manner: Manner) {
        *self.manner.lock().expect("no panic") = manner;
    }

    /// Says of the next init that it is this process; of one that is 0, when it is started.
    pub(crate) fn init_is(&self, pid: u32) {
        self.init.store(pid, Ordering::Relaxed);
    }

    /// Lets init end.
    pub(crate) fn exit(&self, status: u32) {
        self.state.lock().expect("no panic").exit_status = Some(status);
        self.exited.notify_waiters();
    }

    /// Ends the connections.
    pub(crate) fn drop_connections(&self) {
        self.dropped.notify_waiters();
    }

    /// Dies, with the connections.
    pub(crate) fn die(&self) {
        let mut process = self.process.lock().expect("no panic");
        process.kill().expect("killed");
        process.wait().expect("reaped");
        self.down.notify_one();
    }

    /// Ends its process as one that ends by itself does; `false` when somebody has killed it before.
    pub(crate) fn end(&self) -> bool {
        let mut process = self.process.lock().expect("no panic");
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).expect("a number");
        kill_process(pid, Signal::TERM).expect("it was not reaped");
        let status = process.wait().expect("reaped");
        status.signal() == Some(Signal::TERM.as_raw())
    }

    /// Whether its process has ended.
    pub(crate) fn is_dead(&self) -> bool {
        self.process.lock().expect("no panic").try_wait().is_ok_and(|status| status.is_some())
    }

    async fn connection(self: Arc<Self>, stream: UnixStream) {
        let (mut reading, writing) = stream.into_split();
        let writing = Arc::new(tokio::sync::Mutex::new(writing));
        let mut calls = JoinSet::new();
        let mut buffer = Vec::new();
        loop {
            let read = tokio::select! {
                read = reading.read_buf(&mut buffer) => read,
                () = self.dropped.notified() => break,
            };
            if !read.is_ok_and(|count| count > 0) {
                break;
            }
            while let Some((frame, used)) = Frame::parse(&buffer).expect("frames") {
                let request = Request::decode(frame.payload).expect("a request");
                let (shim, writing, id) =
                    (Arc::clone(&self), Arc::clone(&writing), frame.stream_id);
                buffer.drain(..used);
                self.asked.lock().expect("no panic").push(request.method.clone());
                calls.spawn(async move {
                    let response = shim.answer(request).await;
                    let bytes = match &response {
                        Ok(response) => encode(id, response),
                        Err(manner) => nonsense(*manner, id),
                    };
                    let mut writing = writing.lock().await;
                    let _ = writing.write_all(&bytes).await;
                    if response == Err(Manner::Cut) {
                        let _ = writing.shutdown().await;
                    }
                });
            }
        }
    }

    /// An error for what is no answer.
    async fn answer(&self, request: Request) -> Result<Response, Manner> {
        let manner = *self.manner.lock().expect("no panic");
        match manner {
            Manner::Stuck => std::future::pending().await,
            Manner::Garbage | Manner::Oversized | Manner::Cut | Manner::OddMessage => {
                return Err(manner);
            }
            Manner::NoSandbox if request.method == "SandboxStatus" => return Err(Manner::Cut),
            Manner::Good
            | Manner::CreateFails
            | Manner::Lingers
            | Manner::Anonymous
            | Manner::NoSandbox => {}
        }
        let result = match request.method.as_str() {
            "Create" if manner == Manner::CreateFails => {
                Err(ttrpc::status(Code::Unknown, "OCI runtime create failed: no luck"))
            }
            "Wait" => {
                self.exited().await;
                let exit_status = self.status().unwrap_or_default();
                Ok(v3::WaitResponse { exit_status, exited_at: None }.encode_to_vec())
            }
            "Kill" => {
                let kill = v3::KillRequest::decode(request.payload.as_slice()).expect("a request");
                let result = self.look("Kill");
                if result.is_ok() && kill.signal == 9 {
                    self.exit(137);
                }
                result
            }
            "StopSandbox" => {
                let stop = api::StopSandboxRequest::decode(request.payload.as_slice());
                let stop = stop.expect("a request");
                self.stopped_within.lock().expect("no panic").push(stop.timeout_secs);
                self.exit(0);
                Ok(vec![])
            }
            "WaitSandbox" => {
                self.exited().await;
                Ok(api::WaitSandboxResponse::default().encode_to_vec())
            }
            "Shutdown" | "ShutdownSandbox" if manner == Manner::Lingers => Ok(vec![]),
            "ShutdownSandbox" => {
                self.die();
                Ok(vec![])
            }
            "CreateSandbox" | "StartSandbox" | "SandboxStatus" => Ok(vec![]),
            "Create" => {
                let made = v3::CreateTaskRequest::decode(request.payload.as_slice());
                let made = made.expect("a request");
                let init = self.init.load(Ordering::Relaxed);
                self.state.lock().expect("no panic").inits.insert(made.id.clone(), init);
                *self.made_with.lock().expect("no panic") = made;
                self.look("Create")
            }
            "State" | "Start" => {
                let asked = v3::StateRequest::decode(request.payload.as_slice());
                self.look_at(&request.method, &asked.expect("a request").id)
            }
            "Connect" if [Manner::Anonymous, Manner::NoSandbox].contains(&manner) => {
                Err(ttrpc::status(Code::Unknown, "no such thing is said here"))
            }
            method => self.look(method),
        };
        Ok(match result {
            Ok(payload) => Response { status: None, payload },
            Err(status) => Response { status: Some(status), payload: vec![] },
        })
    }

    async fn exited(&self) {
        loop {
            let exited = self.exited.notified();
            if self.state.lock().expect("no panic").exit_status.is_some() {
                return;
            }
            exited.await;
        }
    }

    /// Answers what is asked of the init of `id`.
    fn look_at(&self, method: &str, id: &str) -> Result<Vec<u8>, ttrpc::Status> {
        let mut state = self.state.lock().expect("no panic");
        let Some(&pid) = state.inits.get(id).filter(|_| state.created) else {
            return Err(missing());
        };
        if method == "Start" {
            let pid = if pid == 0 { self.init.load(Ordering::Relaxed) } else { pid };
            state.inits.insert(id.to_owned(), pid);
            return Ok(v3::StartResponse { pid }.encode_to_vec());
        }
        let status = if state.exit_status.is_some() { 3 } else { 2 };
        let exit_status = state.exit_status.unwrap_or_default();
        let answer = v3::StateResponse { pid, status, exit_status, ..Default::default() };
        Ok(answer.encode_to_vec())
    }

    fn look(&self, method: &str) -> Result<Vec<u8>, ttrpc::Status> {
        let mut state = self.state.lock().expect("no panic");
        match method {
            "Connect" => {
                let mut process = self.process.lock().expect("no panic");
                // The shim of the container's next task.
                if process.try_wait().is_ok_and(|status| status.is_some()) {
                    *process = sleep();
                }
                let shim_pid = process.id();
                let answer = v3::ConnectResponse { shim_pid, ..Default::default() };
                Ok(answer.encode_to_vec())
            }
            "Create" => {
                state.created = true;
                let pid = self.init.load(Ordering::Relaxed);
                Ok(v3::CreateTaskResponse { pid }.encode_to_vec())
            }
            "Delete" if !state.created => Err(missing()),
            "Delete" => {
                let Some(exit_status) = state.exit_status else {
                    let text = "task must be stopped before deletion: running: failed precondition";
                    return Err(ttrpc::status(Code::FailedPrecondition, text));
                };
                (state.created, state.exit_status) = (false, None);
                let answer = v3::DeleteResponse { pid: INIT, exit_status, exited_at: None };
                Ok(answer.encode_to_vec())
            }
            "Shutdown" if !state.created => {
                let mut process = self.process.lock().expect("no panic");
                process.kill().expect("killed");
                process.wait().expect("reaped");
                Ok(vec![])
            }
            "Shutdown" | "Kill" if state.created => Ok(vec![]),
            _ => Err(missing()),
        }
    }

    fn status(&self) -> Option<u32> {
        self.state.lock().expect("no panic").exit_status
    }
}

fn missing() -> ttrpc::Status {
    ttrpc::status(Code::NotFound, "container not created: not found")
}

fn encode(id: u32, response: &Response) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::append(&mut bytes, Kind::Response, id, response).expect("short");
    bytes
}

fn nonsense(manner: Manner, id: u32) -> Vec<u8> {
    let mut good = encode(id, &Response { status: None, payload: vec![0xff; 64] });
    match manner {
        // The length is what a frame begins with.
        Manner::Oversized => good[..4].copy_from_slice(&u32::MAX.to_be_bytes()),
        Manner::Cut => good.truncate(good.len() / 2),
        Manner::OddMessage => {}
        _ => return vec![0xff; 16],
    }
    good
}

fn sleep() -> Child {
    Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().expect("spawned")
}

impl Drop for FakeShim {
    fn drop(&mut self) {
        if let Ok(process) = self.process.get_mut() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
