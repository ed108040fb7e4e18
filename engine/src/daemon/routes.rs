//! Which service a call is for.
//!
//! The path of a call is `/<service>/<method>`, so one look-up by name is all the routing there is;
//! that is why no web framework is linked.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::{Status, body::Body, codegen::Service, server::NamedService};

use super::limits;

type Answer = BoxFuture<'static, Result<Response<Body>, Infallible>>;

type Handler = Box<dyn Fn(Request<Body>) -> Answer + Send + Sync>;

/// The services by name. A clone is another handle on the same.
#[derive(Clone, Default)]
pub(super) struct Routes {
    handlers: Arc<HashMap<&'static str, Handler>>,
}

impl Routes {
    /// Adds a service, before there are clones.
    pub(super) fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        // tonic's services are always ready, so none has to be polled before it is called.
        let handler: Handler = Box::new(move |request| {
            let answer = service.clone().call(request);
            Box::pin(async move { answer.await.map(limits::translate) })
        });
        let handlers = Arc::get_mut(&mut self.handlers).expect("nobody else has the routes yet");
        handlers.insert(S::NAME, handler);
        self
    }
}

impl Service<Request<Body>> for Routes {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let path = request.uri().path();
        let name = path.strip_prefix('/').and_then(|path| path.split_once('/'));
        match name.and_then(|(name, _)| self.handlers.get(name)) {
            Some(handler) => handler(request),
            None => {
                let name = name.map_or(path, |(name, _)| name);
                let status = Status::unimplemented(format!("unknown service {name}"));
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}
