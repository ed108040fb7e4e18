//! A connection to a shim, and the calls of its task API.
//!
//! Versions 2 and 3 of the API have the same messages under different names of the service. A shim
//! that says 3 and does not know it, because an older one still serves a shared socket, is asked
//! again with 2.
//!
//! Source: containerd, `core/runtime/v2/shim.go`, `api/runtime/task`.

use std::{
    io,
    os::linux::net::SocketAddrExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use prost::Message;
use proto::{
    containerd::task::v3,
    ttrpc::{CallError, Client, Code, KeyValue, Target},
};
use sys::sockets::{connect_now, lock_directory};
use tokio::net::UnixStream;

use super::{
    Error,
    actor::blocking,
    bootstrap::Bootstrap,
    error::{Attempt, is_shortage},
    sandbox::PROTOCOL,
};
use crate::namespace::Namespace;

/// How long connecting may take, with the wait for a socket that is not there yet.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long a shim that is dead or dying may take until the kernel has closed its socket.
const END_LIMIT: Duration = Duration::from_millis(500);

/// The pause before a socket is tried again.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);

/// A call of the task API: what it is named, what it answers, and how long that may take.
pub trait Call: Message {
    /// The answer.
    type Answer: Message + Default;
    /// The service; `None` for the task API.
    const SERVICE: Option<&'static str> = None;
    /// The name of the method.
    const METHOD: &'static str;
    /// How long an answer may take; `None` for as long as the shim lives.
    const LIMIT: Option<Duration>;
    /// What an error of the shim is prefixed with.
    const ATTEMPT: Attempt = Attempt::Other;

    /// Whether it may change what the shim says of init.
    fn changes_init() -> bool {
        !LOOKS.contains(&Self::METHOD)
    }
}

/// The methods after which init is in no other state than before.
const LOOKS: [&str; 9] =
    ["State", "Pids", "Exec", "ResizePty", "CloseIO", "Update", "Wait", "Stats", "Connect"];

/// Assigns the methods of the task API to their requests.
macro_rules! calls {
    ($($request:ident $method:literal -> $answer:ty, $limit:expr $(, $attempt:ident)?;)*) => {$(
        impl Call for v3::$request {
            type Answer = $answer;
            const METHOD: &'static str = $method;
            const LIMIT: Option<Duration> = $limit;
            $(const ATTEMPT: Attempt = Attempt::$attempt;)?
        }
    )*};
}

/// Looks at the shim's own memory.
const LOOK: Option<Duration> = Some(Duration::from_secs(2));
/// Runs the OCI runtime, or asks the kernel for something that can take a while.
const ACT: Option<Duration> = Some(Duration::from_secs(30));
/// Mounts root filesystems, runs hooks, and waits for programs of others.
const MAKE: Option<Duration> = Some(Duration::from_secs(120));
/// Writes a container's memory to disk.
const SAVE: Option<Duration> = Some(Duration::from_secs(1800));

calls! {
    StateRequest "State" -> v3::StateResponse, LOOK;
    CreateTaskRequest "Create" -> v3::CreateTaskResponse, MAKE, Create;
    StartRequest "Start" -> v3::StartResponse, MAKE;
    DeleteRequest "Delete" -> v3::DeleteResponse, MAKE, Delete;
    PidsRequest "Pids" -> v3::PidsResponse, ACT;
    PauseRequest "Pause" -> (), ACT;
    ResumeRequest "Resume" -> (), ACT;
    CheckpointTaskRequest "Checkpoint" -> (), SAVE;
    KillRequest "Kill" -> (), ACT;
    ExecProcessRequest "Exec" -> (), ACT;
    ResizePtyRequest "ResizePty" -> (), ACT;
    CloseIoRequest "CloseIO" -> (), ACT;
    UpdateTaskRequest "Update" -> (), ACT;
    WaitRequest "Wait" -> v3::WaitResponse, None;
    StatsRequest "Stats" -> v3::StatsResponse, Some(Duration::from_secs(5));
    ConnectRequest "Connect" -> v3::ConnectResponse, LOOK;
    ShutdownRequest "Shutdown" -> (), Some(Duration::from_secs(3));
}

/// A connection to a shim. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Shim {
    client: Client,
    reach: Arc<Reach>,
}

#[derive(Debug)]
struct Reach {
    id: String,
    address: String,
    version: AtomicU8,
    metadata: [KeyValue; 1],
}

impl Shim {
    /// Connects to the shim of the container `id`.
    ///
    /// # Errors
    ///
    /// `Connect`.
    pub(super) async fn connect(
        namespace: &Namespace,
        id: &str,
        bootstrap: &Bootstrap,
    ) -> Result<Self, Error> {
        let address = &bootstrap.address;
        let failed = |source| Error::Connect { address: address.clone(), source };
        let connecting = tokio::time::timeout(CONNECT_LIMIT, connect(address));
        let stream = match connecting.await {
            Ok(result) => result.map_err(failed)?,
            Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
        };
        let header =
            KeyValue { key: "containerd-namespace-ttrpc".to_owned(), value: namespace.to_string() };
        let reach = Reach {
            id: id.to_owned(),
            address: address.clone(),
            version: AtomicU8::new(bootstrap.version),
            metadata: [header],
        };
        Ok(Self { client: Client::new(stream), reach: Arc::new(reach) })
    }

    /// Makes a call, within the time that its kind may take.
    ///
    /// # Errors
    ///
    /// `Refused`, `NoAnswer`.
    pub(super) async fn call<C: Call>(&self, request: &C) -> Result<C::Answer, Error> {
        self.call_within(request, C::LIMIT).await
    }

    /// Makes a call, with another limit than its kind's.
    ///
    /// # Errors
    ///
    /// `Refused`, `NoAnswer`.
    pub(super) async fn call_within<C: Call>(
        &self,
        request: &C,
        limit: Option<Duration>,
    ) -> Result<C::Answer, Error> {
        let version = self.version();
        let mut result = self.call_version(version, request, limit).await;
        if let Err(CallError::Status(status)) = &result
            && status.code == Code::Unimplemented as i32
            && version > 2
            && C::SERVICE.is_none()
        {
            result = self.call_version(2, request, limit).await;
            let known = !matches!(&result, Err(CallError::Status(status)) if status.code == Code::Unimplemented as i32);
            if known {
                self.reach.version.store(2, Ordering::Relaxed);
            }
        }
        result.map_err(|error| match error {
            CallError::Status(status) => Error::Refused { attempt: C::ATTEMPT, status },
            source => Error::NoAnswer { id: self.reach.id.clone(), method: C::METHOD, source },
        })
    }

    async fn call_version<C: Call>(
        &self,
        version: u8,
        request: &C,
        limit: Option<Duration>,
    ) -> Result<C::Answer, CallError> {
        let task_service =
            if version == 2 { "containerd.task.v2.Task" } else { "containerd.task.v3.Task" };
        let service = C::SERVICE.unwrap_or(task_service);
        let target = Target { service, method: C::METHOD };
        self.client.call(target, request, &self.reach.metadata, limit).await
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Waits for the end of the connection.
    pub(super) async fn closed(&self) {
        self.client.closed().await;
    }

    /// The version of the task API that the shim is asked in.
    pub(super) fn version(&self) -> u8 {
        self.reach.version.load(Ordering::Relaxed)
    }

    /// How to reach it again.
    pub(super) fn bootstrap(&self) -> Bootstrap {
        let (version, address) = (self.version(), self.reach.address.clone());
        Bootstrap { version, address, protocol: PROTOCOL.to_owned() }
    }

    /// Where the shim serves. Containers that share a shim have the same.
    pub(super) fn address(&self) -> &str {
        &self.reach.address
    }
}

/// Removes the socket at `address` if nobody listens there any more.
///
/// A process that is about to end may listen a little longer than it answers. Whoever waits in its
/// queue is told when it stops, and this waits for [`END_LIMIT`]. `false` when there is too little of
/// something to find out.
pub(super) async fn remove_dead_socket(address: &str) -> bool {
    let path = Path::new(address.strip_prefix("unix://").unwrap_or(address)).to_owned();
    if !path.is_absolute() {
        return true;
    }
    let look = async {
        loop {
            let dead = path.clone();
            match blocking(move || Ok(try_remove_dead_socket(&dead))).await {
                Ok(Ok(Some(stream))) => closed(stream).await,
                Ok(Err(error)) => {
                    tracing::warn!(%error, address, "socket of a dead shim stays");
                    return !is_shortage(&error);
                }
                _ => return true,
            }
        }
    };
    tokio::time::timeout(END_LIMIT, look).await.unwrap_or(true)
}

/// How long another may hold the directory of sockets.
const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// Removes the socket if it is dead, and gives a connection if it is not. Nobody of this project makes
/// a socket in the directory meanwhile.
fn try_remove_dead_socket(path: &Path) -> io::Result<Option<std::os::unix::net::UnixStream>> {
    let _lock = match lock_directory(path, LOCK_LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(None) => return Err(io::Error::other("another holds the lock on its directory")),
        lock => lock?,
    };
    match connect_now(path) {
        Ok(stream) => Ok(stream),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map(|()| None)
        }
        // One that has no room for another client is served.
        Err(error) if is_shortage(&error) && error.kind() != io::ErrorKind::WouldBlock => {
            Err(error)
        }
        Err(_) => Ok(None),
    }
}

/// Waits until the other side closes what it has not said anything on.
async fn closed(stream: std::os::unix::net::UnixStream) {
    if stream.set_nonblocking(true).is_ok()
        && let Ok(stream) = UnixStream::from_std(stream)
    {
        let _ = stream.readable().await;
    }
}

/// Connects to `unix://<path>`, a path, or `@<name>` for a name without a file.
async fn connect(address: &str) -> io::Result<UnixStream> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    if let Some(name) = path.strip_prefix(['@', '\0']) {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
        stream.set_nonblocking(true)?;
        return UnixStream::from_std(stream);
    }
    loop {
        match UnixStream::connect(Path::new(path)).await {
            // A full backlog: the shim is alive and busy, or stopped.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_dead_sockets_are_removed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("socket");
        let address = format!("unix://{}", path.display());
        let listener = tokio::net::UnixListener::bind(&path).expect("bound");
        remove_dead_socket(&address).await;
        assert!(path.exists(), "somebody listens");
        drop(listener);
        remove_dead_socket(&address).await;
        assert!(!path.exists(), "nobody listens");
        let listener = tokio::net::UnixListener::bind(&path).expect("bound");
        let ending = async {
            // What waits is not taken; its end is the listener's.
            let connection = listener.accept().await.expect("somebody connects");
            drop((connection, listener));
        };
        tokio::join!(remove_dead_socket(&address), ending);
        assert!(!path.exists(), "nobody listens any more");
        std::fs::write(&path, "").expect("written");
        remove_dead_socket("@abstract").await;
        remove_dead_socket("socket").await;
        assert!(path.exists(), "no path of a socket");
    }
}
