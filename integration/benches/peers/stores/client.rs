//! Calls of the stores' services, in a namespace of their own.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use prost::bytes::Bytes;
use proto::containerd::{
    services::{
        containers::v1::{
            Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest,
            ListContainersRequest, container::Runtime, containers_client::ContainersClient,
        },
        content::v1::{
            DeleteContentRequest, WriteAction, WriteContentRequest, content_client::ContentClient,
        },
        images::v1::{
            CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest,
            images_client::ImagesClient,
        },
        leases::v1::{CreateRequest, DeleteRequest, leases_client::LeasesClient},
        snapshots::v1::{
            CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
            snapshots_client::SnapshotsClient,
        },
    },
    types::Descriptor,
};
use tonic::{
    Request,
    codegen::tokio_stream,
    transport::{Channel, Endpoint},
};

const NAMESPACE: &str = "bench-stores";

/// How much of a blob is in a message.
const CHUNK_LEN: usize = 1 << 20;

/// The length of a container's specification: that of a usual one.
const SPEC_LEN: usize = 4096;

/// The largest list.
const MESSAGE_LEN_MAX: usize = 64 << 20;

/// A connection. A clone shares it.
#[derive(Clone)]
pub(crate) struct Client(Channel);

/// What there are thousands of.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Images,
    Containers,
}

impl Kind {
    /// What they are called in rows.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Containers => "containers",
        }
    }
}

impl Client {
    pub(crate) async fn connect(address: &Path) -> Result<Self> {
        let address = format!("unix://{}", address.display());
        Ok(Self(Endpoint::from_shared(address)?.connect().await.context("connect")?))
    }

    /// Makes one with a number for a name, and with the number as a label.
    pub(crate) async fn create(&self, kind: Kind, number: usize) -> Result<()> {
        match kind {
            Kind::Images => self.create_image(number).await,
            Kind::Containers => self.create_container(&number.to_string()).await,
        }
    }

    pub(crate) async fn get(&self, kind: Kind, number: usize) -> Result<()> {
        match kind {
            Kind::Images => {
                let request = scoped(GetImageRequest { name: image_name(number) })?;
                ImagesClient::new(self.0.clone()).get(request).await?;
            }
            Kind::Containers => {
                let request = scoped(GetContainerRequest { id: number.to_string() })?;
                ContainersClient::new(self.0.clone()).get(request).await?;
            }
        }
        Ok(())
    }

    /// How many are listed.
    pub(crate) async fn list(&self, kind: Kind, filters: Vec<String>) -> Result<usize> {
        match kind {
            Kind::Images => {
                let client = ImagesClient::new(self.0.clone());
                let mut client = client.max_decoding_message_size(MESSAGE_LEN_MAX);
                let answer = client.list(scoped(ListImagesRequest { filters })?).await?;
                Ok(answer.into_inner().images.len())
            }
            // One message with all of them would be more than containerd sends.
            Kind::Containers => {
                let request = scoped(ListContainersRequest { filters })?;
                let answer = ContainersClient::new(self.0.clone()).list_stream(request).await?;
                let mut parts = answer.into_inner();
                let mut count = 0;
                while parts.message().await?.is_some() {
                    count += 1;
                }
                Ok(count)
            }
        }
    }

    async fn create_image(&self, number: usize) -> Result<()> {
        let target = Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: format!("sha256:{number:064x}"),
            size: 1,
            ..Descriptor::default()
        };
        let image = Image {
            name: image_name(number),
            labels: [("number".to_owned(), number.to_string())].into(),
            target: Some(target),
            ..Image::default()
        };
        let request = CreateImageRequest { image: Some(image), ..CreateImageRequest::default() };
        ImagesClient::new(self.0.clone()).create(scoped(request)?).await?;
        Ok(())
    }

    pub(crate) async fn delete_image(&self, number: usize) -> Result<()> {
        let request = DeleteImageRequest { name: image_name(number), ..Default::default() };
        ImagesClient::new(self.0.clone()).delete(scoped(request)?).await?;
        Ok(())
    }

    pub(crate) async fn create_container(&self, id: &str) -> Result<()> {
        let runtime = Runtime { name: "io.containerd.runc.v2".to_owned(), options: None };
        let spec = prost_types::Any { type_url: "types/x".to_owned(), value: vec![b'x'; SPEC_LEN] };
        let container = Container {
            id: id.to_owned(),
            labels: [("number".to_owned(), id.to_owned())].into(),
            runtime: Some(runtime),
            spec: Some(spec),
            ..Container::default()
        };
        let request = scoped(CreateContainerRequest { container: Some(container) })?;
        ContainersClient::new(self.0.clone()).create(request).await?;
        Ok(())
    }

    pub(crate) async fn delete_container(&self, id: &str) -> Result<()> {
        let request = scoped(DeleteContainerRequest { id: id.to_owned() })?;
        ContainersClient::new(self.0.clone()).delete(request).await?;
        Ok(())
    }

    /// Writes a blob of so many MiB, which no other `reference` makes, until it is committed: its
    /// digest.
    pub(crate) async fn ingest(&self, reference: &str, mebibytes: usize) -> Result<String> {
        let mut chunk = reference.as_bytes().repeat(CHUNK_LEN / reference.len() + 1);
        chunk.truncate(CHUNK_LEN);
        let chunk = Bytes::from(chunk);
        let name = reference.to_owned();
        let messages = (0..=mebibytes).map(move |number| {
            let offset = i64::try_from(number * CHUNK_LEN).unwrap_or(i64::MAX);
            let (action, data) = if number < mebibytes {
                (WriteAction::Write, chunk.clone())
            } else {
                (WriteAction::Commit, Bytes::new())
            };
            let (action, r#ref) = (action.into(), name.clone());
            WriteContentRequest { action, r#ref, offset, data, ..Default::default() }
        });
        let request = scoped(tokio_stream::iter(messages))?;
        let mut answers = ContentClient::new(self.0.clone()).write(request).await?.into_inner();
        let mut digest = String::new();
        while let Some(answer) = answers.message().await? {
            digest = answer.digest;
        }
        Ok(digest)
    }

    pub(crate) async fn delete_blob(&self, digest: String) -> Result<()> {
        let request = scoped(DeleteContentRequest { digest })?;
        ContentClient::new(self.0.clone()).delete(request).await?;
        Ok(())
    }

    pub(crate) async fn prepare(&self, key: &str, parent: &str) -> Result<()> {
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into(),
        };
        SnapshotsClient::new(self.0.clone()).prepare(scoped(request)?).await?;
        Ok(())
    }

    pub(crate) async fn commit(&self, key: &str, name: &str) -> Result<()> {
        let request = CommitSnapshotRequest {
            snapshotter: snapshotter(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into(),
            ..CommitSnapshotRequest::default()
        };
        SnapshotsClient::new(self.0.clone()).commit(scoped(request)?).await?;
        Ok(())
    }

    pub(crate) async fn remove(&self, key: &str) -> Result<()> {
        let request = RemoveSnapshotRequest { snapshotter: snapshotter(), key: key.to_owned() };
        SnapshotsClient::new(self.0.clone()).remove(scoped(request)?).await?;
        Ok(())
    }

    /// Has garbage collected, as whoever deletes a lease and waits for what that frees: how long
    /// the deletion takes.
    pub(crate) async fn collect(&self) -> Result<Duration> {
        let mut leases = LeasesClient::new(self.0.clone());
        let id = "bench".to_owned();
        leases.create(scoped(CreateRequest { id: id.clone(), ..Default::default() })?).await?;
        let begun = Instant::now();
        leases.delete(scoped(DeleteRequest { id, sync: true })?).await?;
        Ok(begun.elapsed())
    }
}

fn scoped<T>(message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse()?);
    Ok(request)
}

fn image_name(number: usize) -> String {
    format!("bench.test/image/{number}:1")
}

fn snapshotter() -> String {
    "overlayfs".to_owned()
}
