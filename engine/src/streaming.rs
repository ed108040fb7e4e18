//! Named streams between a client and the engine.
//!
//! A client opens a stream under a name of its choice and then names it in a request, such as a
//! transfer: "the archive comes over stream X, tell progress over stream Y". A stream carries
//! messages of any type both ways. For bytes there is a convention (containerd,
//! `core/transfer/streaming`): `Data` messages one way, and `WindowUpdate` messages the other,
//! which grant how many bytes may come; whoever sends bytes waits for a grant.
//!
//! A stream is taken by one request. It ends for the client when the request drops it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use prost_types::Any;
use proto::{
    any,
    containerd::types::transfer::{Data, WindowUpdate},
};
use tokio::sync::mpsc;

use crate::namespace::Namespace;

/// How many messages wait in a stream, each way.
pub const QUEUE_LEN_MAX: usize = 16;

/// The most streams that wait for the request that names them.
pub const STREAMS_MAX: usize = 1024;

/// How many bytes a sender may be ahead of us, and how few make us grant more.
const WINDOW_LEN: i32 = 8 << 20;
const WINDOW_LOW: i32 = WINDOW_LEN / 2;

/// The most bytes in one message that we send; Go's clients take at most 4 MiB.
const DATA_LEN_MAX: usize = 1 << 20;

/// The engine's end of a stream.
#[derive(Debug)]
pub struct Stream {
    /// What the client sends; ends when the client closes its side.
    pub incoming: mpsc::Receiver<Any>,
    /// What goes to the client.
    pub outgoing: mpsc::Sender<Any>,
}

/// The streams that are open and not taken yet.
#[derive(Debug, Default)]
pub struct Streams {
    open: Mutex<HashMap<(Namespace, String), Stream>>,
}

impl Streams {
    /// Keeps a stream until a request of `namespace` takes it by its name.
    ///
    /// # Errors
    ///
    /// The name is in use, or [`STREAMS_MAX`] streams wait.
    pub fn register(
        &self,
        namespace: Namespace,
        name: String,
        stream: Stream,
    ) -> Result<(), StreamError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, stream| !stream.outgoing.is_closed());
        if open.len() >= STREAMS_MAX {
            return Err(StreamError::TooMany);
        }
        match open.entry((namespace, name)) {
            std::collections::hash_map::Entry::Occupied(entry) => {
                Err(StreamError::Taken { name: entry.key().1.clone() })
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(stream);
                Ok(())
            }
        }
    }

    /// Ends the streams that nobody has taken.
    pub fn close(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Takes the stream of this name.
    ///
    /// # Errors
    ///
    /// There is none; a client opens a stream, and waits for the answer, before it names it.
    pub fn take(&self, namespace: &Namespace, name: &str) -> Result<Stream, StreamError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.clone(), name.to_owned());
        open.remove(&key).ok_or(StreamError::NotFound { name: key.1 })
    }
}

/// Why there is no stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum StreamError {
    /// No client has opened it.
    #[error("stream {name:?}: not found")]
    NotFound { name: String },
    /// A stream of this name waits already.
    #[error("stream {name:?}: already exists")]
    Taken { name: String },
    /// Too many streams wait.
    #[error("more than {STREAMS_MAX} streams wait for a request")]
    TooMany,
    /// The client went away in the middle.
    #[error("the stream was closed")]
    Closed,
    /// The client sent something else than bytes or grants.
    #[error("the stream has a message of type {type_name:?}")]
    Unexpected { type_name: String },
    /// The message is not of the type that it says.
    #[error("the stream has a broken message")]
    Broken(#[from] prost::DecodeError),
}

/// Receives bytes, and grants the sender more as they are taken.
pub struct ByteReceiver {
    stream: Stream,
    granted: i32,
}

impl ByteReceiver {
    /// Receives the bytes of `stream`.
    pub fn new(stream: Stream) -> Self {
        Self { stream, granted: 0 }
    }

    /// The next bytes, or `None` at the end.
    ///
    /// # Errors
    ///
    /// The message is not `Data`.
    pub async fn next(&mut self) -> Result<Option<bytes::Bytes>, StreamError> {
        loop {
            if self.granted < WINDOW_LOW {
                let update = WINDOW_LEN - self.granted;
                // A client that has sent everything need not listen any more.
                if self.stream.outgoing.send(any::pack(&WindowUpdate { update })).await.is_ok() {
                    self.granted = WINDOW_LEN;
                }
            }
            let Some(message) = self.stream.incoming.recv().await else { return Ok(None) };
            let Some(Data { data }) = any::unpack(&message)? else {
                let type_name = any::type_name(&message).to_owned();
                return Err(StreamError::Unexpected { type_name });
            };
            self.granted =
                self.granted.saturating_sub_unsigned(u32::try_from(data.len()).unwrap_or(u32::MAX));
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }
}

/// Sends bytes as fast as the receiver grants them.
pub struct ByteSender {
    stream: Stream,
    granted: usize,
}

impl ByteSender {
    /// Sends bytes over `stream`.
    pub fn new(stream: Stream) -> Self {
        Self { stream, granted: 0 }
    }

    /// Sends all of `bytes`, waiting for grants.
    ///
    /// # Errors
    ///
    /// The receiver closed the stream, or sent something else than a grant.
    pub async fn send(&mut self, mut bytes: bytes::Bytes) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            while self.granted == 0 {
                let message = self.stream.incoming.recv().await.ok_or(StreamError::Closed)?;
                let Some(WindowUpdate { update }) = any::unpack(&message)? else {
                    let type_name = any::type_name(&message).to_owned();
                    return Err(StreamError::Unexpected { type_name });
                };
                self.granted = usize::try_from(update).unwrap_or(0);
            }
            let data = bytes.split_to(bytes.len().min(self.granted).min(DATA_LEN_MAX));
            self.granted -= data.len();
            let message = any::pack(&Data { data });
            self.stream.outgoing.send(message).await.map_err(|_| StreamError::Closed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Stream, Stream) {
        let (ours, theirs) = (mpsc::channel(QUEUE_LEN_MAX), mpsc::channel(QUEUE_LEN_MAX));
        let engine = Stream { incoming: theirs.1, outgoing: ours.0 };
        (engine, Stream { incoming: ours.1, outgoing: theirs.0 })
    }

    #[tokio::test]
    async fn bytes_cross() {
        let (engine, client) = pair();
        let sent = bytes::Bytes::from(vec![7; 20 << 20]);
        let bytes = sent.clone();
        let sender = tokio::spawn(async move { ByteSender::new(client).send(bytes).await });
        let mut receiver = ByteReceiver::new(engine);
        let mut received = Vec::new();
        while let Some(data) = receiver.next().await.expect("data") {
            received.extend_from_slice(&data);
        }
        assert_eq!(sender.await.expect("no panic"), Ok(()));
        assert_eq!(received, sent);
    }

    #[tokio::test]
    async fn names() {
        let streams = Streams::default();
        let namespace: Namespace = "default".parse().expect("an identifier");
        let (engine, client) = pair();
        let register = |stream| streams.register(namespace.clone(), "a".to_owned(), stream);
        assert_eq!(register(engine), Ok(()));
        let taken = Err(StreamError::Taken { name: "a".to_owned() });
        assert_eq!(register(pair().0), taken);
        assert!(streams.take(&namespace, "a").is_ok());
        let missing = StreamError::NotFound { name: "a".to_owned() };
        assert_eq!(streams.take(&namespace, "a").map(|_| ()), Err(missing));
        drop(client);
    }
}
