//! The connection to a daemon.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use proto::containerd::services as api;
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// Where daemons listen, in the order in which they are looked for.
pub(crate) const SOCKETS: [&str; 2] =
    ["/run/gantry/gantry.sock", "/run/containerd/containerd.sock"];

/// The longest message that is accepted; lists grow with the number of objects.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Bytes that a peer may send ahead on one stream, and on the connection.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// How calls reach the daemon.
pub(crate) type Service = InterceptedService<Channel, Headers>;

/// What each call carries besides its message.
#[derive(Clone, Debug)]
pub(crate) struct Headers {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

/// A connection to a daemon, in one namespace. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    headers: Headers,
    namespace: String,
}

/// Makes the methods that give a service's client.
macro_rules! services {
    ($($name:ident: $module:ident :: $client_module:ident :: $client:ident;)*) => {
        $(
            pub(crate) fn $name(&self)
            -> api::$module::v1::$client_module::$client<Service> {
                api::$module::v1::$client_module::$client::new(self.service())
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX)
            }
        )*
    };
}

impl Client {
    services! {
        containers: containers::containers_client::ContainersClient;
        content: content::content_client::ContentClient;
        diff: diff::diff_client::DiffClient;
        events: events::events_client::EventsClient;
        images: images::images_client::ImagesClient;
        introspection: introspection::introspection_client::IntrospectionClient;
        leases: leases::leases_client::LeasesClient;
        namespaces: namespaces::namespaces_client::NamespacesClient;
        sandbox_controllers: sandbox::controller_client::ControllerClient;
        sandboxes: sandbox::store_client::StoreClient;
        snapshots: snapshots::snapshots_client::SnapshotsClient;
        streaming: streaming::streaming_client::StreamingClient;
        tasks: tasks::tasks_client::TasksClient;
        transfer: transfer::transfer_client::TransferClient;
        version: version::version_client::VersionClient;
    }

    /// The service that explains garbage collection, which only our daemon has.
    pub(crate) fn gc(&self) -> proto::gantry::services::gc::v1::gc_client::GcClient<Service> {
        proto::gantry::services::gc::v1::gc_client::GcClient::new(self.service())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Connects to the daemon at `address`, or to the one that is there.
    pub(crate) async fn connect(
        address: Option<&str>,
        namespace: &str,
        timeout: Option<Duration>,
    ) -> anyhow::Result<Self> {
        let path = socket_path(address)?;
        let headers = Headers {
            namespace: namespace.parse().with_context(|| {
                format!("namespace {namespace:?}: a header cannot carry it: invalid argument")
            })?,
            lease: None,
        };
        let connect = UnixStream::connect(&path);
        let stream = match timeout {
            Some(timeout) => tokio::time::timeout(timeout, connect)
                .await
                .with_context(|| format!("connect to {}", path.display()))?,
            None => connect.await,
        };
        let stream = stream.with_context(|| format!("connect to {}", path.display()))?;
        let channel = channel(stream).await?;
        Ok(Self { channel, headers, namespace: namespace.to_owned() })
    }

    /// The namespace in which this client works.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// This connection with everything that is made through it kept by a lease.
    pub(crate) fn with_lease(&self, id: &str) -> anyhow::Result<Self> {
        let mut client = self.clone();
        client.headers.lease = Some(id.parse().with_context(|| format!("lease {id:?}"))?);
        Ok(client)
    }

    fn service(&self) -> Service {
        InterceptedService::new(self.channel.clone(), self.headers.clone())
    }
}

/// Runs HTTP/2 on a connected socket.
async fn channel(stream: UnixStream) -> anyhow::Result<Channel> {
    // The socket is there already, so the first call of the connector takes it; when it breaks,
    // the daemon is gone and so is the state that a command works on.
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| std::io::Error::other("connection to the daemon lost")) }
    });
    Endpoint::from_static("http://localhost")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES * 2)
        .connect_with_connector(connector)
        .await
        .context("talk to the daemon")
}

/// The path in an address, which may have containerd's `unix://` before it.
pub(crate) fn socket_path(address: Option<&str>) -> anyhow::Result<PathBuf> {
    if let Some(address) = address {
        return Ok(PathBuf::from(address.strip_prefix("unix://").unwrap_or(address)));
    }
    match SOCKETS.into_iter().find(|path| Path::new(path).exists()) {
        Some(path) => Ok(PathBuf::from(path)),
        None => bail!(
            "no daemon: neither {} nor {} is there; --address names another",
            SOCKETS[0],
            SOCKETS[1]
        ),
    }
}
