//! What garbage collection does, and why.

use futures::{StreamExt as _, stream::BoxStream};
use proto::gantry::services::gc::v1::{
    self as api, ExplainRequest, ExplainResponse, RunRequest, RunResponse, gc_server,
};
use tonic::{Request, Response, Status};

use super::{blocking, scope};
use crate::gc::{Doomed, Explanation, Inspector, Kind, Link, Object, Scheduler};

/// How many objects a message of the list has at most.
const BATCH_LEN: usize = 1000;

/// The service.
#[derive(Clone)]
pub struct Gc {
    inspector: Inspector,
    scheduler: Scheduler,
}

impl Gc {
    /// Serves what `inspector` sees, and what `scheduler` does.
    pub fn new(inspector: Inspector, scheduler: Scheduler) -> Self {
        Self { inspector, scheduler }
    }
}

#[tonic::async_trait]
impl gc_server::Gc for Gc {
    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let object = request.into_inner().object;
        let inspector = self.inspector.clone();
        let found = blocking(move || inspector.explain(&namespace, &object)).await?;
        let explanations = found.into_iter().map(explanation_to_wire).collect();
        Ok(Response::new(ExplainResponse { explanations }))
    }

    type RunStream = BoxStream<'static, Result<RunResponse, Status>>;

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<Self::RunStream>, Status> {
        let garbage = if request.into_inner().dry_run {
            let inspector = self.inspector.clone();
            blocking(move || inspector.doomed()).await?
        } else {
            let scheduler = self.scheduler.clone();
            blocking(move || scheduler.collect().map(|collected| collected.list())).await?
        };
        let garbage = garbage.into_iter().map(garbage_to_wire);
        let batches = futures::stream::iter(garbage).chunks(BATCH_LEN);
        let answers = batches.map(|garbage| Ok(RunResponse { garbage }));
        Ok(Response::new(answers.boxed()))
    }
}

fn explanation_to_wire(explanation: Explanation) -> api::Explanation {
    let Explanation { object, kept, chain, reason } = explanation;
    let link = |Link { object, by }| api::Link { object: Some(object_to_wire(object)), by };
    api::Explanation {
        object: Some(object_to_wire(object)),
        kept,
        chain: chain.into_iter().map(link).collect(),
        reason,
    }
}

fn garbage_to_wire(Doomed { object, bytes }: Doomed) -> api::Garbage {
    api::Garbage { object: Some(object_to_wire(object)), bytes }
}

fn object_to_wire(object: Object) -> api::Object {
    let kind = object.kind.word().to_owned();
    let snapshotter = match object.kind {
        Kind::Snapshot(snapshotter) => snapshotter,
        _ => String::new(),
    };
    let namespace = object.namespace.to_string();
    api::Object { namespace, kind, snapshotter, name: object.name }
}
