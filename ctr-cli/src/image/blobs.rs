//! Blobs in the daemon's content store.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use proto::containerd::services::content::v1::{
    InfoRequest, ReadContentRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use tokio::{io::AsyncReadExt as _, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::digest::Digest;
use crate::client::Client;

/// The largest document that is read into memory.
const DOCUMENT_BYTES_MAX: usize = 16 << 20;

/// Bytes per message when a blob is written.
const CHUNK_BYTES: usize = 1 << 20;

/// Reads a document, such as a manifest, and checks that it is the one that was asked for.
pub(crate) async fn read_blob(client: &Client, digest: &Digest) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream_blob(client, digest.as_str(), |chunk| {
        ensure!(
            bytes.len() + chunk.len() <= DOCUMENT_BYTES_MAX,
            "{digest} is larger than {DOCUMENT_BYTES_MAX} bytes"
        );
        bytes.extend_from_slice(chunk);
        Ok(())
    })
    .await?;
    let is_sha256 = digest.as_str().starts_with("sha256:");
    ensure!(
        !is_sha256 || Digest::of(&bytes) == *digest,
        "content store returned other bytes than {digest}"
    );
    Ok(bytes)
}

/// Gives the bytes of a blob to `sink`, in order.
pub(crate) async fn stream_blob(
    client: &Client,
    digest: &str,
    mut sink: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
    let mut chunks = client.content().read(request).await?.into_inner();
    while let Some(chunk) = chunks.message().await? {
        sink(&chunk.data)?;
    }
    Ok(())
}

/// Whether the store has a blob.
pub(crate) async fn blob_exists(client: &Client, digest: &str) -> anyhow::Result<bool> {
    match client.content().info(InfoRequest { digest: digest.to_owned() }).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(status.into()),
    }
}

/// Writes a blob that is in memory, unless it is there already; sets its labels either way.
pub(crate) async fn write_blob(
    client: &Client,
    bytes: &[u8],
    labels: BTreeMap<String, String>,
) -> anyhow::Result<Digest> {
    let digest = Digest::of(bytes);
    let size = i64::try_from(bytes.len())?;
    let reference = format!("ctr-{digest}");
    write_stream(client, &reference, bytes, size, Some(&digest), labels).await?;
    Ok(digest)
}

/// Writes a blob from a stream and commits it.
///
/// `size` is the expected size, or 0 if it is not known.
///
/// # Errors
///
/// The stream has another digest or size, or the store refuses it. The ingest stays, and is
/// taken up again by the next write with the same `reference`.
pub(crate) async fn write_stream(
    client: &Client,
    reference: &str,
    mut reader: impl tokio::io::AsyncRead + Unpin,
    size: i64,
    expected: Option<&Digest>,
    labels: BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let (requests, receiver) = mpsc::channel(1);
    let expected = expected.map_or_else(String::new, Digest::to_string);
    let request = |action: WriteAction| WriteContentRequest {
        action: action.into(),
        r#ref: reference.to_owned(),
        total: size,
        expected: expected.clone(),
        ..Default::default()
    };
    requests.send(request(WriteAction::Stat)).await.context("content store")?;
    let responses = client.content().write(ReceiverStream::new(receiver)).await;
    let mut responses = match responses {
        Ok(responses) => responses.into_inner(),
        Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    let Some(status) = answer(&mut responses).await? else { return Ok(()) };
    let mut offset = status.offset;
    skip(&mut reader, offset).await?;
    loop {
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        if (&mut reader).take(CHUNK_BYTES as u64).read_to_end(&mut data).await? == 0 {
            break;
        }
        let len = i64::try_from(data.len())?;
        let message =
            WriteContentRequest { offset, data: data.into(), ..request(WriteAction::Write) };
        if requests.send(message).await.is_err() {
            // The store has ended the call; its last answer says why.
            break;
        }
        let Some(_) = answer(&mut responses).await? else { return Ok(()) };
        offset += len;
    }
    ensure!(size == 0 || offset == size, "{reference}: {offset} bytes instead of {size}");
    let commit = WriteContentRequest {
        offset,
        total: offset,
        labels: labels.into_iter().collect(),
        ..request(WriteAction::Commit)
    };
    requests.send(commit).await.context("content store")?;
    answer(&mut responses).await?;
    Ok(())
}

/// The next answer of the store, or `None` if it has the blob already.
async fn answer(
    responses: &mut Streaming<WriteContentResponse>,
) -> anyhow::Result<Option<WriteContentResponse>> {
    match responses.message().await {
        Ok(Some(response)) => Ok(Some(response)),
        Ok(None) => bail!("content store ended the write early"),
        Err(status) if status.code() == Code::AlreadyExists => Ok(None),
        Err(status) => Err(status.into()),
    }
}

async fn skip(reader: &mut (impl tokio::io::AsyncRead + Unpin), bytes: i64) -> anyhow::Result<()> {
    let bytes = u64::try_from(bytes)?;
    let skipped = tokio::io::copy(&mut reader.take(bytes), &mut tokio::io::sink()).await?;
    ensure!(skipped == bytes, "the stream is shorter than what was written of it before");
    Ok(())
}
