//! Calls to a shim's socket.
//!
//! Versions 2 and 3 of the task API have the same messages under different names; a shim that does
//! not know one is asked by the other.

use std::{io, os::linux::net::SocketAddrExt, time::Duration};

use anyhow::Context as _;
use prost::Message;
use proto::{
    containerd::task::v3,
    ttrpc::{CallError, Client, Code, KeyValue, Target},
};
use tokio::net::UnixStream;

/// How long a shim may take to take a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How long a shim may take to answer.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A connection to a shim.
pub(super) struct Connection {
    client: Client,
    address: String,
    version: u32,
    metadata: [KeyValue; 1],
}

impl Connection {
    /// Connects to the shim at `address`, which speaks `version` of the task API.
    pub(super) async fn open(namespace: &str, address: &str, version: u32) -> anyhow::Result<Self> {
        let failed = || format!("connect to the shim at {address}");
        let stream = tokio::time::timeout(CONNECT_LIMIT, connect(address));
        let stream = stream.await.with_context(failed)?.with_context(failed)?;
        let header =
            KeyValue { key: "containerd-namespace-ttrpc".to_owned(), value: namespace.to_owned() };
        let address = address.to_owned();
        Ok(Self { client: Client::new(stream), address, version, metadata: [header] })
    }

    /// Makes a call.
    pub(super) async fn call<A: Message + Default>(
        &self,
        method: &'static str,
        request: &impl Message,
    ) -> anyhow::Result<A> {
        let answer = self.call_within(method, request, Some(CALL_LIMIT)).await;
        answer.map_err(|error| self.explain(method, error))
    }

    /// Asks the shim to exit; it may be gone before its answer.
    pub(super) async fn shutdown(&self, request: &v3::ShutdownRequest) -> anyhow::Result<()> {
        match self.call_within("Shutdown", request, Some(CALL_LIMIT)).await {
            Ok(()) | Err(CallError::Closed) => Ok(()),
            Err(error) => Err(self.explain("Shutdown", error)),
        }
    }

    /// Waits for the end of a process, however long that takes.
    pub(super) async fn wait(&self, request: &v3::WaitRequest) -> anyhow::Result<v3::WaitResponse> {
        let answer = self.call_within("Wait", request, None).await;
        answer.map_err(|error| self.explain("Wait", error))
    }

    /// Makes a call that must be answered within `limit`, if there is one.
    pub(super) async fn call_within<A: Message + Default>(
        &self,
        method: &'static str,
        request: &impl Message,
        limit: Option<Duration>,
    ) -> Result<A, CallError> {
        let mut answer = Err(CallError::Closed);
        for version in if self.version == 2 { [2, 3] } else { [3, 2] } {
            let service =
                if version == 2 { "containerd.task.v2.Task" } else { "containerd.task.v3.Task" };
            let target = Target { service, method };
            answer = self.client.call(target, request, &self.metadata, limit).await;
            let unknown = matches!(&answer, Err(CallError::Status(status))
                if status.code == Code::Unimplemented as i32);
            if !unknown {
                break;
            }
        }
        answer
    }

    fn explain(&self, method: &str, error: CallError) -> anyhow::Error {
        match error {
            CallError::Status(status) => anyhow::anyhow!("{}", status.message),
            error => anyhow::Error::new(error)
                .context(format!("shim at {} does not answer {method}", self.address)),
        }
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
    UnixStream::connect(path).await
}
