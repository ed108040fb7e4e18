//! Parts of the engine that are other programs: containerd's proxy plugins.
//!
//! A [`Plugin`] is a socket with a name. It is connected to when it is first asked for something, and
//! again after it was away, so neither the daemon's start nor a plugin's restart waits for anything.
//! Every call ends by a deadline: a plugin that is away, is stuck, or does not speak gRPC costs its
//! caller an error that names it, and nobody else anything.
//!
//! Source: containerd, `cmd/containerd/server/server.go` (`LoadPlugins`); its calls have no deadline.

mod contents;
mod diffs;
mod snapshots;

use std::{path::PathBuf, sync::mpsc, time::Duration};

use snapshotter::external::{Reason, Refused};
use tokio::{runtime::Handle, time::error::Elapsed};
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use crate::{error::Error, services::NAMESPACE_HEADER};

pub use self::{contents::RemoteContent, snapshots::Remote};

/// The largest message that a plugin may send, in bytes.
const MESSAGE_LEN_MAX: usize = 16 << 20;

/// How much a plugin may list.
const LIST_LEN_MAX: usize = 1 << 20;

/// How long a plugin may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a plugin may take to answer.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Questions, and small changes.
    pub short: Duration,
    /// What may have to fetch, copy or delete a whole layer.
    pub long: Duration,
    /// What reads and unpacks, or makes, a whole layer.
    pub layer: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let [short, long, layer] = [10, 120, 1800].map(Duration::from_secs);
        Self { short, long, layer }
    }
}

/// Another program, by the socket on which it serves. A clone shares the connection.
#[derive(Clone, Debug)]
pub struct Plugin {
    name: String,
    address: PathBuf,
    channel: Channel,
    handle: Handle,
    deadlines: Deadlines,
}

impl Plugin {
    /// The plugin `name` that serves at `address`, a path, maybe with `unix://` before it. Must be
    /// called within a tokio runtime, which the calls are made on. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: `address` is not the absolute path of a socket.
    pub fn new(name: &str, address: &str, deadlines: Deadlines) -> Result<Self, Error> {
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        let invalid = |why: String| {
            Error::InvalidArgument(format!("proxy plugin {name:?}: address {address:?}: {why}"))
        };
        if !path.is_absolute() {
            return Err(invalid("is not the absolute path of a socket".to_owned()));
        }
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))
            .map_err(|error| invalid(error.to_string()))?;
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy();
        Ok(Self {
            name: name.to_owned(),
            address: path,
            channel,
            handle: Handle::current(),
            deadlines,
        })
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A request in the name of `namespace`.
    fn request<T>(&self, namespace: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // Names of namespaces are identifiers, which headers can carry.
        if let Ok(value) = MetadataValue::try_from(namespace) {
            request.metadata_mut().insert(NAMESPACE_HEADER, value);
        }
        request
    }

    /// Waits for `call`, for `within` at most. For blocking code; the call is made on the runtime.
    ///
    /// # Errors
    ///
    /// What the plugin said, or `Unavailable`.
    fn wait<T: Send + 'static>(
        &self,
        within: Duration,
        call: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Refused> {
        let (send, receive) = mpsc::sync_channel(1);
        self.handle.spawn(async move {
            // Nobody may be waiting any more.
            let _ = send.send(tokio::time::timeout(within, call).await);
        });
        let answer = receive.recv().map_err(|_ended| self.away("this daemon is stopping"))?;
        self.outcome(within, answer)
    }

    /// What came of a call that had `within`.
    fn outcome<T>(
        &self,
        within: Duration,
        answer: Result<Result<T, Status>, Elapsed>,
    ) -> Result<T, Refused> {
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(self.refused(&status)),
            Err(_elapsed) => {
                let seconds = within.as_secs_f32();
                Err(self.away(&format!("no answer within {seconds} s")))
            }
        }
    }

    /// That the plugin did not answer, or not in our language.
    fn away(&self, why: &str) -> Refused {
        Refused { reason: Reason::Unavailable, message: self.message(why) }
    }

    fn message(&self, text: &str) -> String {
        format!("proxy plugin {:?} at {}: {text}", self.name, self.address.display())
    }

    /// What the plugin said. What has a cause was not said by it, but by the connection.
    fn refused(&self, status: &Status) -> Refused {
        if let Some(source) = std::error::Error::source(status) {
            return self.away(&sys::error::Chain(source).to_string());
        }
        let reason = match status.code() {
            Code::NotFound => Reason::NotFound,
            Code::AlreadyExists => Reason::AlreadyExists,
            Code::InvalidArgument => Reason::InvalidArgument,
            Code::FailedPrecondition => Reason::FailedPrecondition,
            Code::Unimplemented => Reason::NotImplemented,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Reason::Unavailable,
            _ => Reason::Other,
        };
        Refused { reason, message: self.message(status.message()) }
    }
}
