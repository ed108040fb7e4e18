//! What happens, for clients over gRPC and for shims over ttrpc; see [`crate::events`].

use std::{pin::Pin, sync::Arc};

use futures::StreamExt;
use prost::Message;
use proto::{
    containerd::{
        services::events::{
            ttrpc::v1 as ttrpc_api,
            v1::{ForwardRequest, PublishRequest, SubscribeRequest, events_server},
        },
        types::Envelope,
    },
    ttrpc::{self, Code},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{required, scope, status};
use crate::{
    error::Error,
    events::{Exchange, SubscriptionError, check_topic},
    filter::Filter,
    runtime::Runtime,
};

/// The service; its ttrpc side is [`ttrpc::Service`].
#[derive(Clone)]
pub struct Events {
    exchange: Exchange,
    runtime: Arc<Runtime>,
    stop: CancellationToken,
}

impl Events {
    /// Publishes to `exchange`; events that others forward pass `runtime` first, which keeps an
    /// exit from being told twice. Subscriptions end with `stop`.
    pub fn new(exchange: Exchange, runtime: Arc<Runtime>, stop: CancellationToken) -> Self {
        Self { exchange, runtime, stop }
    }

    async fn pass_on(&self, envelope: Option<Envelope>) -> Result<(), Error> {
        let envelope =
            envelope.ok_or_else(|| Error::InvalidArgument("envelope is required".to_owned()))?;
        self.runtime.forward(envelope).await
    }
}

#[tonic::async_trait]
impl events_server::Events for Events {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<()>, Status> {
        let namespace = scope(&request)?.namespace;
        let PublishRequest { topic, event } = request.into_inner();
        check_topic(&topic).map_err(status)?;
        self.exchange.publish(&namespace, &topic, required("event", event)?);
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<ForwardRequest>) -> Result<Response<()>, Status> {
        self.pass_on(request.into_inner().envelope).await.map_err(status)?;
        Ok(Response::new(()))
    }

    type SubscribeStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<Envelope, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let filter = Filter::parse_all(&request.into_inner().filters)
            .map_err(|error| status(error.into()))?;
        let subscription = self.exchange.subscribe(filter);
        let events = futures::stream::unfold(Some(subscription), |subscription| async {
            let mut subscription = subscription?;
            match subscription.next().await {
                Ok(event) => Some((Ok(Arc::unwrap_or_clone(event)), Some(subscription))),
                Err(error @ SubscriptionError::TooSlow) => {
                    Some((Err(Status::resource_exhausted(error.to_string())), None))
                }
                Err(SubscriptionError::Ended) => None,
            }
        });
        let stop = self.stop.clone().cancelled_owned();
        Ok(Response::new(Box::pin(events.take_until(stop))))
    }
}

/// What shims call: `containerd.services.events.ttrpc.v1.Events/Forward`.
impl ttrpc::Service for Events {
    async fn call(&self, request: ttrpc::Request) -> Result<Vec<u8>, ttrpc::Status> {
        const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

        if (request.service.as_str(), request.method.as_str()) != (SERVICE, "Forward") {
            let text = format!("/{}/{} is not served", request.service, request.method);
            return Err(ttrpc::status(Code::Unimplemented, &text));
        }
        let wrong = |text: String| ttrpc::status(Code::InvalidArgument, &text);
        let message = ttrpc_api::ForwardRequest::decode(request.payload.as_slice())
            .map_err(|error| wrong(error.to_string()))?;
        self.pass_on(message.envelope).await.map_err(|error| wrong(error.to_string()))?;
        Ok(Vec::new())
    }
}
