//! Whether the daemon serves. It does when it can answer, so the answer is always yes.

use futures::{StreamExt, future, stream::BoxStream};
use proto::grpc::health::v1::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// The service.
#[derive(Clone, Debug)]
pub struct Health {
    stop: CancellationToken,
}

impl Health {
    /// Ends its streams when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop }
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        // The protocol wants a word even about services that are not known, and later changes.
        let status = match request.into_inner().service.as_str() {
            "" => ServingStatus::Serving,
            _ => ServingStatus::ServiceUnknown,
        };
        let now = future::ready(Ok(HealthCheckResponse { status: status.into() }));
        let stop = self.stop.clone().cancelled_owned();
        let stream = futures::stream::once(now).chain(futures::stream::pending()).take_until(stop);
        Ok(Response::new(stream.boxed()))
    }
}
