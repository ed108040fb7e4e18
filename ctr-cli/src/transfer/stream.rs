//! A named stream of messages between this client and the daemon.

use anyhow::Context as _;
use prost_types::Any;
use proto::containerd::services::streaming::v1::StreamInit;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{client::Client, names};

/// Messages that may wait to be sent.
const QUEUE: usize = 4;

/// A stream, known to the daemon by its name.
pub(crate) struct Stream {
    id: String,
    outgoing: Option<mpsc::Sender<Any>>,
    incoming: Streaming<Any>,
}

impl Stream {
    /// Opens a stream and waits until the daemon knows it.
    pub(crate) async fn open(client: &Client, prefix: &str) -> anyhow::Result<Self> {
        let id = names::unique(prefix);
        let (outgoing, receiver) = mpsc::channel(QUEUE);
        let init = proto::any::pack(&StreamInit { id: id.clone() });
        outgoing.send(init).await.context("stream")?;
        let response = client.streaming().stream(ReceiverStream::new(receiver)).await?;
        let mut incoming = response.into_inner();
        // The first message is empty and says that the name is registered.
        incoming.message().await?;
        Ok(Self { id, outgoing: Some(outgoing), incoming })
    }

    /// The stream's name.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The next message from the daemon. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Any>> {
        Ok(self.incoming.message().await?)
    }

    /// Sends a message; `false` means that the daemon no longer listens.
    pub(crate) async fn send(&self, message: Any) -> bool {
        match &self.outgoing {
            Some(outgoing) => outgoing.send(message).await.is_ok(),
            None => false,
        }
    }

    /// Says that nothing more will be sent.
    pub(crate) fn close(&mut self) {
        self.outgoing = None;
    }
}
