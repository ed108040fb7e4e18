//! Named streams; see [`crate::streaming`].

use std::{pin::Pin, sync::Arc};

use prost_types::Any;
use proto::containerd::services::streaming::v1::{StreamInit, streaming_server};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming as Messages};

use super::scope;
use crate::streaming::{QUEUE_LEN_MAX, Stream, StreamError, Streams};

/// The service.
#[derive(Clone)]
pub struct Streaming {
    streams: Arc<Streams>,
    stop: CancellationToken,
}

impl Streaming {
    /// Registers what clients open with `streams`. Those that no request has taken end with `stop`.
    pub fn new(streams: Arc<Streams>, stop: CancellationToken) -> Self {
        Self { streams, stop }
    }
}

#[tonic::async_trait]
impl streaming_server::Streaming for Streaming {
    type StreamStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<Any, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Messages<Any>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let namespace = scope(&request)?.namespace;
        let mut messages = request.into_inner();
        let first = messages.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("the stream has no name"))?;
        let init: Option<StreamInit> = proto::any::unpack(&first)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let Some(StreamInit { id }) = init else {
            let got = proto::any::type_name(&first);
            return Err(Status::invalid_argument(format!("the stream starts with a {got}")));
        };

        let (to_client, outgoing) = mpsc::channel(QUEUE_LEN_MAX);
        let (from_client, incoming) = mpsc::channel(QUEUE_LEN_MAX);
        // The answer that tells the client that the stream may be named.
        to_client.try_send(proto::any::pack(&Empty {})).expect("the queue is empty");
        let stream = Stream { incoming, outgoing: to_client };
        self.streams.register(namespace, id, stream).map_err(refusal)?;
        let (streams, stop) = (Arc::clone(&self.streams), self.stop.clone());
        tokio::spawn(async move {
            let mut pumping = std::pin::pin!(pump(messages, from_client));
            tokio::select! {
                () = &mut pumping => return,
                () = stop.cancelled() => streams.close(),
            }
            pumping.await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing).map(Ok))))
    }
}

/// The message that containerd answers with, `google.protobuf.Empty`.
#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

impl prost::Name for Empty {
    const NAME: &'static str = "Empty";
    const PACKAGE: &'static str = "google.protobuf";
}

/// Hands messages on until either side is done. Ends with the client's half of the stream, with
/// the request that took the stream, or with the connection, whichever comes first.
async fn pump(mut messages: Messages<Any>, to: mpsc::Sender<Any>) {
    loop {
        let message = tokio::select! {
            message = messages.message() => message,
            () = to.closed() => return,
        };
        match message {
            Ok(Some(message)) => {
                if to.send(message).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(%status, "stream broke");
                return;
            }
        }
    }
}

fn refusal(error: StreamError) -> Status {
    let text = error.to_string();
    match error {
        StreamError::Taken { .. } => Status::already_exists(text),
        StreamError::NotFound { .. } => Status::not_found(text),
        StreamError::TooMany => Status::resource_exhausted(text),
        StreamError::Closed | StreamError::Unexpected { .. } | StreamError::Broken(_) => {
            Status::invalid_argument(text)
        }
    }
}
