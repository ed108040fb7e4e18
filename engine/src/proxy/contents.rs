//! Blobs that a plugin keeps, over containerd's content service.
//!
//! Source: containerd, `core/content/proxy`.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use proto::containerd::services::content::v1::{
    AbortRequest, DeleteContentRequest, InfoRequest, ListContentRequest, ReadContentRequest,
    StatusRequest, WriteAction, WriteContentRequest, WriteContentResponse,
    content_client::ContentClient,
};
use snapshotter::external::{Reason, Refused};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use super::{LIST_LEN_MAX, MESSAGE_LEN_MAX, Plugin};
use crate::{
    content::external::{Backend, Placed, Progress, Session},
    digest::Digest,
    gc,
    labels::Labels,
    namespace::Namespace,
};

/// What the label that keeps a blob in another program's collections says.
const KEPT: &str = "gantry";

/// How much of a blob one message carries, in bytes. Programs in Go take messages up to 4 MiB.
const CHUNK_LEN: usize = 1 << 20;

/// How often a write is tried that has a writer. It can only be one of ours: the plugin has not yet seen that
/// it ended.
const LOCKED_TRIES: u32 = 20;
const LOCKED_PAUSE: Duration = Duration::from_millis(50);

/// The blobs of a plugin.
#[derive(Clone, Debug)]
pub struct RemoteContent {
    plugin: Plugin,
}

impl RemoteContent {
    /// The blobs that `plugin` keeps.
    pub fn new(plugin: Plugin) -> Self {
        Self { plugin }
    }

    fn client(&self) -> ContentClient<Channel> {
        ContentClient::new(self.plugin.channel.clone()).max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    /// A request in the name of a namespace, or of none.
    fn request<T>(&self, namespace: Option<&Namespace>, message: T) -> Request<T> {
        match namespace {
            Some(namespace) => self.plugin.request(namespace.as_str(), message),
            None => Request::new(message),
        }
    }

    fn wait<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Refused> {
        self.plugin.wait(self.plugin.deadlines.short, call)
    }
}

impl Backend for RemoteContent {
    fn name(&self) -> &str {
        self.plugin.name()
    }

    fn size(&self, namespace: &Namespace, digest: &Digest) -> Result<Option<u64>, Refused> {
        let mut client = self.client();
        let message = InfoRequest { digest: digest.to_string() };
        let request = self.request(Some(namespace), message);
        let answer = found(self.wait(async move { client.info(request).await }))?;
        let Some(answer) = answer else { return Ok(None) };
        let info = answer.into_inner().info;
        let info = info.ok_or_else(|| self.plugin.away("its answer lacks the blob"))?;
        Ok(Some(count(info.size)))
    }

    fn read(
        &self,
        namespace: &Namespace,
        digest: &Digest,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, Refused> {
        let mut client = self.client();
        let message = ReadContentRequest {
            digest: digest.to_string(),
            offset: wire(offset),
            size: wire(len as u64),
        };
        let request = self.request(Some(namespace), message);
        self.wait(async move {
            let mut messages = client.read(request).await?.into_inner();
            let mut bytes = Vec::new();
            while bytes.len() < len
                && let Some(message) = messages.message().await?
            {
                bytes.extend_from_slice(&message.data);
            }
            bytes.truncate(len);
            Ok(bytes)
        })
    }

    fn write(
        &self,
        namespace: &Namespace,
        reference: &str,
        total: u64,
    ) -> Result<Box<dyn Session>, Refused> {
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            total: wire(total),
            ..WriteContentRequest::default()
        };
        let (this, namespace) = (self.clone(), namespace.clone());
        let (send, answers, answer) = self.wait(async move {
            let mut tries = LOCKED_TRIES;
            loop {
                match this.converse(&namespace, first.clone()).await {
                    // Its connection would have a cause.
                    Err(status) if tries > 0 && is_locked(&status) => {
                        tries -= 1;
                        tokio::time::sleep(LOCKED_PAUSE).await;
                    }
                    result => return result,
                }
            }
        })?;
        let plugin = self.plugin.clone();
        let mut talk =
            Conversation { plugin, send, answers: Some(answers), offset: 0, digest: None };
        talk.note(&answer);
        Ok(Box::new(talk))
    }

    fn progress(
        &self,
        namespace: &Namespace,
        reference: &str,
    ) -> Result<Option<Progress>, Refused> {
        let mut client = self.client();
        let message = StatusRequest { r#ref: reference.to_owned() };
        let request = self.request(Some(namespace), message);
        let answer = found(self.wait(async move { client.status(request).await }))?;
        let status = answer.and_then(|answer| answer.into_inner().status);
        Ok(status.map(|status| Progress {
            offset: count(status.offset),
            updated: status
                .updated_at
                .and_then(|time| SystemTime::try_from(time).ok())
                .unwrap_or(SystemTime::UNIX_EPOCH),
        }))
    }

    fn abort(&self, namespace: &Namespace, reference: &str) -> Result<(), Refused> {
        let mut client = self.client();
        let request = self.request(Some(namespace), AbortRequest { r#ref: reference.to_owned() });
        found(self.wait(async move { client.abort(request).await })).map(drop)
    }

    fn remove(&self, namespace: &Namespace, digest: &Digest) -> Result<(), Refused> {
        let mut client = self.client();
        let message = DeleteContentRequest { digest: digest.to_string() };
        let request = self.request(Some(namespace), message);
        found(self.wait(async move { client.delete(request).await })).map(drop)
    }

    fn blobs(&self, namespace: Option<&Namespace>) -> Result<Vec<Digest>, Refused> {
        let mut client = self.client();
        let request = self.request(namespace, ListContentRequest::default());
        self.wait(async move {
            let mut messages = client.list(request).await?.into_inner();
            let mut found = Vec::new();
            while let Some(message) = messages.message().await? {
                // Of an algorithm that is not known here there is no record either.
                found.extend(message.info.iter().filter_map(|info| info.digest.parse().ok()));
                if found.len() > LIST_LEN_MAX {
                    let text = format!("it lists more than {LIST_LEN_MAX} blobs");
                    return Err(Status::resource_exhausted(text));
                }
            }
            Ok(found)
        })
    }
}

type Opened =
    (mpsc::Sender<WriteContentRequest>, Streaming<WriteContentResponse>, WriteContentResponse);

impl RemoteContent {
    /// Begins the conversation of a write with its first message.
    async fn converse(
        &self,
        namespace: &Namespace,
        first: WriteContentRequest,
    ) -> Result<Opened, Status> {
        let (send, requests) = mpsc::channel(1);
        // There is room for one, and a plugin may answer nothing before it has it.
        send.try_send(first).map_err(|_| Status::internal("a new channel is full"))?;
        let request = self.plugin.request(namespace.as_str(), ReceiverStream::new(requests));
        let mut answers = self.client().write(request).await?.into_inner();
        let answer = answers.message().await?.ok_or_else(ended)?;
        Ok((send, answers, answer))
    }
}

/// An open write at a plugin.
struct Conversation {
    plugin: Plugin,
    send: mpsc::Sender<WriteContentRequest>,
    /// Nothing once a call has failed.
    answers: Option<Streaming<WriteContentResponse>>,
    offset: u64,
    digest: Option<Digest>,
}

impl Conversation {
    fn note(&mut self, answer: &WriteContentResponse) {
        self.offset = count(answer.offset);
        self.digest = answer.digest.parse().ok();
    }

    /// Says one thing and waits for the answer.
    fn ask(
        &mut self,
        within: Duration,
        request: WriteContentRequest,
    ) -> Result<WriteContentResponse, Refused> {
        let answers = self.answers.take();
        let mut answers = answers.ok_or_else(|| self.plugin.away("the write has ended"))?;
        let send = self.send.clone();
        let (answers, answer) = self.plugin.wait(within, async move {
            // When it has hung up, it has said why.
            let _ = send.send(request).await;
            let answer = answers.message().await?.ok_or_else(ended)?;
            Ok((answers, answer))
        })?;
        self.answers = Some(answers);
        Ok(answer)
    }
}

impl Session for Conversation {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn digest(&self) -> Option<Digest> {
        self.digest.clone()
    }

    fn rewind(&mut self) {
        // What comes next has offset 0, which means that.
        self.offset = 0;
        self.digest = None;
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        for part in bytes.chunks(CHUNK_LEN) {
            let request = WriteContentRequest {
                action: WriteAction::Write.into(),
                offset: wire(self.offset),
                data: Bytes::copy_from_slice(part),
                ..WriteContentRequest::default()
            };
            let want = self.offset + part.len() as u64;
            let answer = self.ask(self.plugin.deadlines.long, request)?;
            self.note(&answer);
            if self.offset != want {
                let text = format!("it has {} bytes of {want} that were sent", self.offset);
                return Err(Refused { reason: Reason::Other, message: self.plugin.message(&text) });
            }
        }
        Ok(())
    }

    fn commit(&mut self, expected: Option<&Digest>) -> Result<Placed, Refused> {
        let known = expected.cloned().or_else(|| self.digest.clone());
        let request = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: wire(self.offset),
            offset: wire(self.offset),
            expected: expected.map(Digest::to_string).unwrap_or_default(),
            // One that collects garbage itself knows nothing of what keeps the blob here.
            labels: Labels::from([(gc::ROOT.to_owned(), KEPT.to_owned())]),
            ..WriteContentRequest::default()
        };
        let (committed, is_new) = match self.ask(self.plugin.deadlines.long, request) {
            Ok(answer) => (answer.digest.parse().ok(), true),
            Err(Refused { reason: Reason::AlreadyExists, .. }) => (known, false),
            Err(refused) => return Err(refused),
        };
        let message = match committed {
            Some(digest) if expected.is_none_or(|expected| *expected == digest) => {
                return Ok(Placed { digest, is_new });
            }
            Some(digest) => format!("it has committed {digest}"),
            None => "it does not tell what it has committed".to_owned(),
        };
        Err(Refused { reason: Reason::Other, message: self.plugin.message(&message) })
    }
}

fn ended() -> Status {
    Status::unavailable("it has ended the write")
}

/// Whether somebody else has the write open.
fn is_locked(status: &Status) -> bool {
    let said = std::error::Error::source(status).is_none();
    said && status.code() == Code::Unavailable && status.message().contains("locked")
}

/// Nothing where the plugin knows of nothing.
fn found<T>(answer: Result<T, Refused>) -> Result<Option<T>, Refused> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Refused { reason: Reason::NotFound, .. }) => Ok(None),
        Err(refused) => Err(refused),
    }
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn wire(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
