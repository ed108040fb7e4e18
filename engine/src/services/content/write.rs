//! The conversation of a write.

use futures::{Stream, stream};
use proto::containerd::{
    events::ContentCreate,
    services::content::v1::{WriteAction, WriteContentRequest, WriteContentResponse},
};
use tonic::{Status, Streaming};

use super::{
    super::{
        blocking, status, timestamp,
        wire::{parse_digest, size_to_wire},
    },
    publish_create,
};
use crate::{
    content::{NewWrite, Store, Writer},
    digest::Digest,
    error::Error,
    events::Exchange,
    metadata::Resource,
    namespace::Scope,
};

/// One client's conversation.
pub(super) struct Session {
    store: Store,
    events: Exchange,
    scope: Scope,
    /// Open from the first message to the commit.
    writer: Option<Writer>,
    /// What the client has said last about the whole blob.
    reference: String,
    total: u64,
    expected: Option<Digest>,
    done: bool,
}

impl Session {
    pub(super) fn new(store: Store, events: Exchange, scope: Scope) -> Self {
        Self {
            store,
            events,
            scope,
            writer: None,
            reference: String::new(),
            total: 0,
            expected: None,
            done: false,
        }
    }

    /// Does what one message asks for.
    fn answer(&mut self, request: &WriteContentRequest) -> Result<WriteContentResponse, Status> {
        let action = WriteAction::try_from(request.action)
            .map_err(|_| status(Error::InvalidArgument("unknown write action".to_owned())))?;
        self.note(request)?;
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let opened = self.open(&request.r#ref)?;
                self.writer.insert(opened)
            }
        };
        let before = writer.status();
        let mut response = WriteContentResponse {
            action: request.action,
            offset: size_to_wire(before.offset),
            ..WriteContentResponse::default()
        };
        if action == WriteAction::Stat {
            response.started_at = timestamp(before.started);
            response.updated_at = timestamp(before.updated);
            response.total = size_to_wire(self.total);
        } else {
            write(writer, request)?;
            response.offset = size_to_wire(writer.offset());
        }
        response.digest = writer.digest().map(|digest| digest.to_string()).unwrap_or_default();
        if action == WriteAction::Commit {
            response.digest = self.commit(request)?.to_string();
        }
        Ok(response)
    }

    /// Remembers what the client says about the whole blob. It need not say the same each time;
    /// the last word counts, and the commit finds out.
    fn note(&mut self, request: &WriteContentRequest) -> Result<(), Status> {
        if request.total > 0 {
            self.total = u64::try_from(request.total).expect("positive");
        }
        if request.expected.is_empty() {
            return Ok(());
        }
        let expected = parse_digest(&request.expected)?;
        self.expected = Some(expected.clone());
        if self.writer.is_none() {
            return Ok(());
        }
        // From before the look, so that what is seen is still there when it is leased.
        let keep = self.store.metadata().referring();
        if self.store.info(&self.scope.namespace, &expected).is_ok() {
            let resource = Resource::content(&expected);
            let leased = self.store.metadata().lease_seen(&keep, &self.scope, &resource);
            leased.map_err(status)?;
            drop(keep);
            self.writer = None;
            if let Err(error) = self.store.abort(&self.scope.namespace, &self.reference) {
                tracing::debug!(%error, reference = self.reference, "nothing to abort");
            }
            let message = format!("blob with expected digest {expected} exists");
            return Err(Status::already_exists(message));
        }
        Ok(())
    }

    fn open(&mut self, reference: &str) -> Result<Writer, Status> {
        if reference.is_empty() {
            let message = "first message must have a reference";
            return Err(Status::invalid_argument(message));
        }
        reference.clone_into(&mut self.reference);
        let mut new = NewWrite::new(reference);
        new.total = self.total;
        new.expected.clone_from(&self.expected);
        self.store.writer(&self.scope, new).map_err(status)
    }

    fn commit(&mut self, request: &WriteContentRequest) -> Result<Digest, Status> {
        let writer = self.writer.take().expect("opened by the first message");
        self.done = true;
        let committed = writer
            .commit(self.total, self.expected.as_ref(), request.labels.clone())
            .map_err(status)?;
        let event = ContentCreate {
            digest: committed.digest.to_string(),
            size: size_to_wire(committed.size),
            ..ContentCreate::default()
        };
        publish_create(&self.events, &self.scope.namespace, &event);
        Ok(committed.digest)
    }
}

/// Appends the bytes of a message; without an offset they start the blob anew.
fn write(writer: &mut Writer, request: &WriteContentRequest) -> Result<(), Status> {
    let at = size_to_wire(writer.offset());
    if request.offset > 0 && request.offset != at {
        let wanted = request.offset;
        let message = format!("write @{wanted} must occur at current offset {at}");
        return Err(status(Error::OutOfRange(message)));
    }
    if request.offset == 0 && at > 0 {
        writer.truncate().map_err(status)?;
    }
    writer.write(&request.data).map_err(status)
}

/// Answers message by message, until the commit, the client's end, or the first error.
pub(super) fn converse(
    session: Session,
    requests: Streaming<WriteContentRequest>,
) -> impl Stream<Item = Result<WriteContentResponse, Status>> {
    stream::try_unfold((session, requests), |(mut session, mut requests)| async move {
        if session.done {
            return Ok(None);
        }
        let Some(request) = requests.message().await? else { return Ok(None) };
        let (answer, session) = blocking(move || {
            let answer = session.answer(&request);
            Ok((answer, session))
        })
        .await?;
        Ok(Some((answer?, (session, requests))))
    })
}
