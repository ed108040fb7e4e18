//! The daemon's Transfer service: pulls, pushes, imports and exports that the daemon does.
//!
//! Besides the call, which lasts as long as the work, there are streams that the client opens
//! under names of its choice and puts into the call's messages: progress, answers to registries
//! that want credentials, and archives.
//!
//! Source: containerd, `core/transfer/proxy`, `core/streaming`, `core/transfer/streaming`.

mod archive_stream;
mod credentials;
mod progress;
mod registry;
mod stream;

pub(crate) use archive_stream::{receive, send};
pub(crate) use registry::RegistryFlags;
pub(crate) use stream::Stream;

use std::future::Future;

use anyhow::bail;
use prost_types::Any;
use proto::containerd::services::transfer::v1::{TransferOptions, TransferRequest};
use tonic::Code;

use self::{credentials::Credentials, progress::Progress};
use crate::{client::Client, error::has_code};

/// Transfers from `source` to `destination`, showing progress, while `others` serves the streams
/// that they name. An error of the transfer says more than one of a stream.
pub(crate) async fn transfer(
    client: &Client,
    source: Any,
    destination: Any,
    others: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let mut stream = open_progress(client).await?;
    let request = TransferRequest {
        source: Some(source),
        destination: Some(destination),
        options: Some(TransferOptions { progress_stream: stream.id().to_owned() }),
    };
    let mut progress = Progress::new();
    let mut service = client.transfer();
    let mut call = std::pin::pin!(service.transfer(request));
    let mut others = std::pin::pin!(others);
    let mut served = None;
    let mut watching = true;
    let result = loop {
        tokio::select! {
            biased;
            message = stream.next(), if watching => match message {
                Ok(Some(any)) => progress.update(&any)?,
                // The call says how it ends; without progress there is only less to see.
                Ok(None) | Err(_) => watching = false,
            },
            result = &mut call => break result,
            result = &mut others, if served.is_none() => served = Some(result),
        }
    };
    progress.finish();
    match result {
        Ok(_) => served.unwrap_or(Ok(())),
        Err(status) => Err(status.into()),
    }
}

/// Opens the stream of progress, which a daemon has that has the Transfer service.
async fn open_progress(client: &Client) -> anyhow::Result<Stream> {
    match Stream::open(client, "progress").await {
        Err(error) if has_code(&error, Code::Unimplemented) => {
            bail!("this daemon has no Transfer service, which the command needs: not implemented")
        }
        result => result,
    }
}
