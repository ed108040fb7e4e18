//! Transfers: which source goes to which destination.
//!
//! | from                | to                  |                |
//! |---------------------|---------------------|----------------|
//! | `OCIRegistry`       | `ImageStore`        | pull           |
//! | `ImageImportStream` | `ImageStore`        | import         |
//! | `ImageStore`        | `ImageExportStream` | export         |
//! | `ImageStore`        | `ImageStore`        | tag            |
//!
//! A transfer ends when its call is cancelled.

use std::{path::PathBuf, sync::Arc, time::Duration};

use prost_types::Any;
use proto::{
    any,
    containerd::{
        services::transfer::v1::{TransferRequest, transfer_server},
        types::{
            self,
            transfer::{
                AuthRequest, AuthResponse, AuthType, ImageExportStream, ImageImportStream,
                ImageStore, OciRegistry, Progress as Wire, RegistryResolver,
            },
        },
    },
};
use tokio::{sync::Mutex, task::JoinSet};
use tonic::{Request, Response, Status};

use super::{scope, status, status::transfer_status};
use crate::{
    error::Error,
    namespace::Scope,
    oci::Descriptor,
    platform::Platform,
    reference::Reference,
    registry::{self, Client, Credentials, Secret},
    streaming::{ByteReceiver, ByteSender, Stream, Streams},
    transfer::{
        Destination, ExportOptions, Message, NameRule, Platforms, Progress, Transfer as Work,
        UnpackTarget,
    },
};

/// The snapshotter that is used when the client names none.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

/// How long a client may take to be told the last of a transfer's progress.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// The service.
#[derive(Clone)]
pub struct Transfer {
    work: Work,
    streams: Arc<Streams>,
    /// The folder of `hosts.toml` files that is used when the client names none.
    hosts: PathBuf,
}

impl Transfer {
    /// Serves transfers.
    pub fn new(work: Work, streams: Arc<Streams>, hosts: PathBuf) -> Self {
        Self { work, streams, hosts }
    }

    fn stream(&self, scope: &Scope, name: &str) -> Result<Stream, Status> {
        let stream = self.streams.take(&scope.namespace, name);
        stream.map_err(|error| transfer_status(error.into()))
    }

    /// Progress that goes to the stream of this name, if there is a name, and the task that sends
    /// it, which ends when everything was told.
    fn progress(&self, scope: &Scope, name: &str) -> Result<(Progress, JoinSet<()>), Status> {
        let mut sending = JoinSet::new();
        if name.is_empty() {
            return Ok((Progress::none(), sending));
        }
        let stream = self.stream(scope, name)?;
        let (progress, mut messages) = Progress::channel();
        sending.spawn(async move {
            while let Some(message) = messages.recv().await {
                if stream.outgoing.send(any::pack(&wire(message))).await.is_err() {
                    return;
                }
            }
        });
        Ok((progress, sending))
    }

    async fn pull(
        &self,
        scope: Scope,
        from: OciRegistry,
        to: ImageStore,
        progress: Progress,
    ) -> Result<(), Status> {
        let reference: Reference = from.reference.parse().map_err(|error| {
            let text = sys::error::Chain(&error as &dyn std::error::Error).to_string();
            status(Error::InvalidArgument(text))
        })?;
        let resolver = from.resolver.unwrap_or_default();
        let credentials = self.credentials(&scope, &resolver, &from.reference)?;
        let options = registry::Options {
            directory: Some(match resolver.host_dir.as_str() {
                "" => self.hosts.clone(),
                named => named.into(),
            }),
            scheme: Some(resolver.default_scheme).filter(|scheme| !scheme.is_empty()),
            headers: resolver.headers.into_iter().collect(),
        };
        let host = reference.host().to_owned();
        let client = tokio::task::spawn_blocking(move || {
            let endpoints = registry::endpoints(&host, &options)?;
            Client::new(reference, endpoints, credentials)
        });
        let client = client.await.map_err(|error| Status::internal(error.to_string()))?;
        let client =
            client.map_err(|error| transfer_status(registry::Error::from(error).into()))?;
        let to = self.destination(to)?;
        self.work.pull(scope, client, to, progress).await.map_err(transfer_status)
    }

    fn credentials(
        &self,
        scope: &Scope,
        resolver: &RegistryResolver,
        reference: &str,
    ) -> Result<Arc<dyn Credentials>, Status> {
        if resolver.auth_stream.is_empty() {
            return Ok(Arc::new(Anonymous));
        }
        let stream = self.stream(scope, &resolver.auth_stream)?;
        let reference = reference.to_owned();
        Ok(Arc::new(Asked { reference, stream: Mutex::new(stream) }))
    }

    fn destination(&self, wire: ImageStore) -> Result<Destination, Status> {
        let unpack = |one: types::transfer::UnpackConfiguration| UnpackTarget {
            platform: one.platform.map_or_else(Platform::host, platform),
            snapshotter: match one.snapshotter {
                name if name.is_empty() => DEFAULT_SNAPSHOTTER.to_owned(),
                name => name,
            },
        };
        let rule = |one: types::transfer::ImageReference| NameRule {
            name: one.name,
            is_prefix: one.is_prefix,
            allow_overwrite: one.allow_overwrite,
            add_digest: one.add_digest,
            skip_named_digest: one.skip_named_digest,
        };
        crate::labels::check(&wire.labels)
            .map_err(|error| status(Error::InvalidArgument(error.to_string())))?;
        Ok(Destination {
            name: wire.name,
            labels: wire.labels,
            platforms: platforms(wire.platforms),
            all_metadata: wire.all_metadata,
            limit: usize::try_from(wire.manifest_limit).unwrap_or(usize::MAX),
            rules: wire.extra_references.into_iter().map(rule).collect(),
            unpack: wire.unpacks.into_iter().map(unpack).collect(),
        })
    }
}

impl Transfer {
    async fn run(
        &self,
        scope: Scope,
        source: &Any,
        destination: &Any,
        progress: Progress,
    ) -> Result<(), Status> {
        if let Some(to) = unpack::<ImageStore>(destination)? {
            if let Some(from) = unpack::<OciRegistry>(source)? {
                return self.pull(scope, from, to, progress).await;
            }
            if let Some(from) = unpack::<ImageImportStream>(source)? {
                let stream = ByteReceiver::new(self.stream(&scope, &from.stream)?);
                let to = self.destination(to)?;
                let result = self.work.import(scope, stream, to, progress).await;
                return result.map_err(transfer_status);
            }
            if let Some(from) = unpack::<ImageStore>(source)? {
                let result = self.work.tag(scope, from.name, to.name, to.labels).await;
                return result.map_err(transfer_status);
            }
        }
        if let (Some(to), Some(from)) =
            (unpack::<ImageExportStream>(destination)?, unpack::<ImageStore>(source)?)
        {
            let stream = ByteSender::new(self.stream(&scope, &to.stream)?);
            let options = export_options(from, to);
            let result = self.work.export(scope, options, stream, progress).await;
            return result.map_err(transfer_status);
        }
        Err(unsupported(source, destination))
    }
}

#[tonic::async_trait]
impl transfer_server::Transfer for Transfer {
    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let TransferRequest { source, destination, options } = request.into_inner();
        let source = super::required("source", source)?;
        let destination = super::required("destination", destination)?;
        let name = options.unwrap_or_default().progress_stream;
        let (progress, mut sending) = self.progress(&scope, &name)?;
        self.run(scope, &source, &destination, progress).await?;
        // The client has asked to be told; one that does not listen holds up only itself.
        let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, sending.join_next()).await;
        Ok(Response::new(()))
    }
}

fn unpack<M: prost::Message + prost::Name + Default>(any: &Any) -> Result<Option<M>, Status> {
    any::unpack(any).map_err(|error| status(Error::InvalidArgument(error.to_string())))
}

fn unsupported(source: &Any, destination: &Any) -> Status {
    let (from, to) = (any::type_name(source), any::type_name(destination));
    status(Error::NotImplemented(format!("transfer from {from} to {to}")))
}

fn export_options(from: ImageStore, to: ImageExportStream) -> ExportOptions {
    let further = from.extra_references.into_iter().map(|reference| reference.name);
    let names = std::iter::once(from.name).chain(further).filter(|name| !name.is_empty());
    let wanted = if to.platforms.is_empty() { from.platforms } else { to.platforms };
    ExportOptions {
        names: names.collect(),
        platforms: match platforms(wanted) {
            Platforms::All if !to.all_platforms => Platforms::Only(vec![Platform::host()]),
            _ if to.all_platforms => Platforms::All,
            platforms => platforms,
        },
        skip_docker_manifest: to.skip_compatibility_manifest,
        skip_non_distributable: to.skip_non_distributable,
    }
}

fn platforms(wire: Vec<types::Platform>) -> Platforms {
    if wire.is_empty() {
        return Platforms::All;
    }
    Platforms::Only(wire.into_iter().map(platform).collect())
}

fn platform(wire: types::Platform) -> Platform {
    let types::Platform { os, architecture, variant, os_version, .. } = wire;
    Platform { os, architecture, variant, os_version }.normalize()
}

fn wire(message: Message) -> Wire {
    let count = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
    Wire {
        event: message.event,
        name: message.name,
        parents: message.parents,
        progress: count(message.done),
        total: count(message.total),
        desc: message.descriptor.map(|descriptor: Descriptor| types::Descriptor {
            media_type: descriptor.media_type,
            digest: descriptor.digest.to_string(),
            size: count(descriptor.size),
            annotations: descriptor.annotations,
        }),
    }
}

/// No credentials.
struct Anonymous;

#[tonic::async_trait]
impl Credentials for Anonymous {
    async fn secret(&self, _host: &str, _challenges: &[String]) -> Option<Secret> {
        None
    }
}

/// Credentials that the client is asked for, over a stream.
struct Asked {
    reference: String,
    stream: Mutex<Stream>,
}

#[tonic::async_trait]
impl Credentials for Asked {
    async fn secret(&self, host: &str, challenges: &[String]) -> Option<Secret> {
        let request = AuthRequest {
            host: host.to_owned(),
            reference: self.reference.clone(),
            wwwauthenticate: challenges.to_vec(),
        };
        let mut stream = self.stream.lock().await;
        stream.outgoing.send(any::pack(&request)).await.ok()?;
        let answer: AuthResponse = any::unpack(&stream.incoming.recv().await?).ok()??;
        match answer.auth_type() {
            AuthType::Credentials if answer.username.is_empty() && answer.secret.is_empty() => None,
            AuthType::Credentials => {
                Some(Secret::Password { user: answer.username, password: answer.secret })
            }
            AuthType::Refresh => Some(Secret::Refresh(answer.secret)),
            AuthType::Header => Some(Secret::Header(answer.secret)),
            AuthType::None => None,
        }
    }
}
