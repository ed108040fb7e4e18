//! A client of many calls at a time over one connection.
//!
//! # Rules
//!
//! - **Multiplexed.** Calls do not wait for each other; answers come in any order.
//! - **Deadlines.** Each call has one, or waits as long as the connection lives; the server is told.
//! - **Cancel-safe.** A call that is dropped is forgotten: its frame is sent whole or not at all, and
//!   its late answer is thrown away. ttrpc has no message to stop a call on the server.
//! - **Loss.** When the connection ends, every call in flight fails with [`CallError::Closed`], and
//!   so does every later one. A client does not reconnect: whoever owns it knows what a loss means.
//! - **Bounded.** [`CALLS_MAX`] calls in flight, [`QUEUE_LEN_MAX`] frames on their way to the
//!   kernel, one frame of at most [`PAYLOAD_LEN_MAX`](frame::PAYLOAD_LEN_MAX) bytes being received.
//!
//! A connection is served by one task, in which reading and writing do not wait for each other: a
//! server that stops reading until its answers are taken cannot block this end.
//!
//! Stream IDs are given in the order in which frames are sent, since a server refuses an ID that is
//! lower than one it has seen.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prost::{DecodeError, Message};
use tokio::{
    io::AsyncWriteExt,
    net::{UnixStream, unix::WriteHalf},
    sync::{mpsc, oneshot, watch},
};

use super::{
    Code, Kind, Request, Response, Status,
    frame::{self, FrameError, KeyValue},
    read::{FrameReader, OwnedFrame},
};

/// The most calls in flight on a connection.
pub const CALLS_MAX: usize = 16 << 10;

/// The most frames that wait to be written.
const QUEUE_LEN_MAX: usize = 32;

/// A connection to a server. Clones share it; it is closed when the last one is dropped.
#[derive(Clone)]
pub struct Client {
    frames: mpsc::Sender<Vec<u8>>,
    calls: Arc<Calls>,
    closed: watch::Receiver<bool>,
}

impl Client {
    /// Speaks ttrpc over a connected socket. Must be called within a tokio runtime.
    pub fn new(stream: UnixStream) -> Self {
        let (frames, queue) = mpsc::channel(QUEUE_LEN_MAX);
        let (ended, closed) = watch::channel(false);
        let calls = Arc::new(Calls::default());
        tokio::spawn(serve(stream, queue, Arc::clone(&calls), ended));
        Self { frames, calls, closed }
    }

    /// Calls `method` of `service` and waits for its answer, at most for `timeout`.
    ///
    /// # Errors
    ///
    /// - [`Status`](CallError::Status): the server answered with an error.
    /// - [`Deadline`](CallError::Deadline): it did not answer in time. It may still do the work.
    /// - [`Closed`](CallError::Closed): the connection ended. The server may have done the work.
    /// - The others say what is wrong with the request or the answer.
    pub async fn call<A: Message + Default>(
        &self,
        target: Target<'_>,
        request: &impl Message,
        metadata: &[KeyValue],
        timeout: Option<Duration>,
    ) -> Result<A, CallError> {
        let request = Request {
            service: target.service.to_owned(),
            method: target.method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: timeout.map_or(0, |t| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX)),
            metadata: metadata.to_vec(),
        };
        let answer = self.exchange(&request);
        let response = match timeout {
            None => answer.await,
            Some(limit) => tokio::time::timeout(limit, answer)
                .await
                .unwrap_or(Err(CallError::Deadline { limit })),
        }?;
        match response.status {
            Some(status) if status.code != Code::Ok as i32 => Err(CallError::Status(status)),
            _ => A::decode(response.payload.as_slice()).map_err(CallError::Answer),
        }
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) {
        // An error means that the task of the connection is gone, which is an end too.
        let _ = self.closed.clone().wait_for(|closed| *closed).await;
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    async fn exchange(&self, request: &Request) -> Result<Response, CallError> {
        let mut bytes = Vec::new();
        frame::append(&mut bytes, Kind::Request, 0, request).map_err(CallError::Request)?;
        let place = self.frames.reserve().await.map_err(|_| CallError::Closed)?;
        let mut call = self.calls.begin(|stream_id| {
            bytes[4..8].copy_from_slice(&stream_id.to_be_bytes());
            place.send(bytes);
        })?;
        (&mut call.answer).await.unwrap_or(Err(CallError::Closed))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// The full name of the service, as in `containerd.task.v3.Task`.
    pub service: &'a str,
    /// The name of the method, as in `Create`.
    pub method: &'a str,
}

type Answer = Result<Response, CallError>;

/// The calls in flight.
#[derive(Default)]
struct Calls(Mutex<InFlight>);

#[derive(Default)]
struct InFlight {
    last_id: Option<u32>,
    ended: bool,
    by_id: HashMap<u32, oneshot::Sender<Answer>>,
}

impl Calls {
    /// Gives a call its stream ID; `send` hands its frame to the writer, before any later one.
    fn begin(self: &Arc<Self>, send: impl FnOnce(u32)) -> Result<Call, CallError> {
        let mut calls = self.lock();
        if calls.ended {
            return Err(CallError::Closed);
        }
        if calls.by_id.len() >= CALLS_MAX {
            return Err(CallError::TooMany);
        }
        // A connection that used up its 2^31 IDs is as good as ended.
        let id = calls.last_id.map_or(Some(1), |id| id.checked_add(2)).ok_or(CallError::Closed)?;
        calls.last_id = Some(id);
        let (sender, answer) = oneshot::channel();
        calls.by_id.insert(id, sender);
        send(id);
        Ok(Call { calls: Arc::clone(self), id, answer })
    }

    fn answer(&self, id: u32, answer: Answer) {
        let waiting = self.lock().by_id.remove(&id);
        if let Some(caller) = waiting {
            // The caller may have left.
            let _ = caller.send(answer);
        }
    }

    fn end(&self) {
        let waiting = {
            let mut calls = self.lock();
            calls.ended = true;
            std::mem::take(&mut calls.by_id)
        };
        drop(waiting);
    }

    fn lock(&self) -> MutexGuard<'_, InFlight> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call in flight, which is forgotten when this is dropped.
struct Call {
    calls: Arc<Calls>,
    id: u32,
    answer: oneshot::Receiver<Answer>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.lock().by_id.remove(&self.id);
    }
}

async fn serve(
    mut stream: UnixStream,
    queue: mpsc::Receiver<Vec<u8>>,
    calls: Arc<Calls>,
    ended: watch::Sender<bool>,
) {
    let (reading, writing) = stream.split();
    let mut frames = FrameReader::new(reading);
    let read = async {
        while let Ok(Some(frame)) = frames.next().await {
            if !deliver(&calls, frame) {
                break;
            }
        }
    };
    tokio::select! {
        () = read => {}
        _ = write(writing, queue) => {}
    }
    calls.end();
    ended.send_replace(true);
}

/// Gives an answer to its caller; `false` when the server breaks the protocol.
fn deliver(calls: &Calls, frame: OwnedFrame) -> bool {
    let answer = match frame.kind {
        Kind::Request => return false,
        Kind::Response => Response::decode(frame.payload.as_slice()).map_err(CallError::Answer),
        Kind::Data => Err(CallError::Streaming),
    };
    calls.answer(frame.stream_id, answer);
    true
}

async fn write(mut stream: WriteHalf<'_>, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(bytes) = queue.recv().await {
        stream.write_all(&bytes).await?;
    }
    stream.shutdown().await
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum CallError {
    /// The server answered with an error.
    #[error("{}", .0.message)]
    Status(Status),
    /// There was no answer in time.
    #[error("no answer within {limit:?}")]
    Deadline { limit: Duration },
    /// The connection ended before the answer.
    #[error("ttrpc connection closed")]
    Closed,
    /// [`CALLS_MAX`] calls are in flight.
    #[error("{CALLS_MAX} ttrpc calls are in flight")]
    TooMany,
    /// The request cannot be sent.
    #[error("ttrpc request")]
    Request(#[source] FrameError),
    /// The answer is not an encoded message of the expected type.
    #[error("malformed ttrpc answer")]
    Answer(#[source] DecodeError),
    /// The server answered with a stream.
    #[error("ttrpc answer is a stream")]
    Streaming,
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::ttrpc::frame::PAYLOAD_LEN_MAX;

    const STATE: Target<'static> = Target { service: "containerd.task.v3.Task", method: "State" };
    const LONG: Duration = Duration::from_secs(30);

    /// A client and the server's end of its connection.
    fn pair() -> (Client, UnixStream) {
        let (near, far) = UnixStream::pair().expect("sockets can be made");
        (Client::new(near), far)
    }

    fn text(value: &str) -> KeyValue {
        KeyValue { key: value.to_owned(), value: String::new() }
    }

    async fn ask(client: &Client, limit: Duration) -> Result<KeyValue, CallError> {
        client.call(STATE, &text("question"), &[], Some(limit)).await
    }

    fn answer_to(stream_id: u32, payload: &KeyValue) -> Vec<u8> {
        let response = Response { status: None, payload: payload.encode_to_vec() };
        let mut bytes = Vec::new();
        frame::append(&mut bytes, Kind::Response, stream_id, &response).expect("short");
        bytes
    }

    /// Answers `count` calls, the last one first.
    async fn answer_backwards(far: UnixStream, count: usize) -> UnixStream {
        let (reading, mut writing) = far.into_split();
        let mut frames = FrameReader::new(reading);
        let mut asked = Vec::new();
        while asked.len() < count {
            let frame = frames.next().await.expect("well formed").expect("open");
            let request = Request::decode(frame.payload.as_slice()).expect("well formed");
            asked.push((frame.stream_id, request.payload));
        }
        assert!(asked.is_sorted(), "stream IDs rise");
        for (stream_id, payload) in asked.into_iter().rev() {
            let echo = KeyValue::decode(payload.as_slice()).expect("well formed");
            writing.write_all(&answer_to(stream_id, &echo)).await.expect("open");
        }
        frames.into_inner().reunite(writing).expect("of one socket")
    }

    #[tokio::test]
    async fn thousand_calls_at_a_time() {
        let (client, far) = pair();
        let server = tokio::spawn(answer_backwards(far, 1000));
        let calls: Vec<_> = (0..1000)
            .map(|i| {
                let client = client.clone();
                tokio::spawn(async move {
                    let want = text(&i.to_string());
                    let got: KeyValue =
                        client.call(STATE, &want, &[], Some(LONG)).await.expect("answered");
                    assert_eq!(got, want);
                })
            })
            .collect();
        for call in calls {
            call.await.expect("answered as asked");
        }
        server.await.expect("served");
        assert_eq!(client.calls.lock().by_id.len(), 0);
    }

    #[tokio::test]
    async fn loss_fails_every_call() {
        let (client, mut far) = pair();
        let other = client.clone();
        let call = tokio::spawn(async move { ask(&other, LONG).await });
        far.read_u8().await.expect("the call arrives");
        drop(far);
        assert!(matches!(call.await.expect("no panic"), Err(CallError::Closed)));
        client.closed().await;
        assert!(matches!(ask(&client, LONG).await, Err(CallError::Closed)));
    }

    #[tokio::test]
    async fn deadline_and_cancel_forget_the_call() {
        let (client, far) = pair();
        let got = ask(&client, Duration::from_millis(20)).await;
        assert!(matches!(got, Err(CallError::Deadline { .. })), "{got:?}");
        tokio::select! {
            biased;
            _ = ask(&client, LONG) => panic!("nobody answers"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(client.calls.lock().by_id.len(), 0);
        // The answers to both come late, and the connection goes on.
        let server = tokio::spawn(answer_backwards(far, 2));
        let mut far = server.await.expect("served");
        let call = ask(&client, LONG);
        let reply = async { far.write_all(&answer_to(5, &text("third"))).await.expect("open") };
        assert_eq!(tokio::join!(call, reply).0.expect("answered"), text("third"));
    }

    #[tokio::test]
    async fn hostile_servers() {
        let status = Response {
            status: Some(Status { code: Code::NotFound as i32, message: "gone".to_owned() }),
            payload: vec![],
        };
        let mut not_found = Vec::new();
        frame::append(&mut not_found, Kind::Response, 1, &status).expect("short");
        let garbage = [0xff; 64];
        let cases: &[(&str, &[u8], &str)] = &[
            ("error", &not_found, "gone"),
            ("not a response", b"\0\0\0\x02\0\0\0\x01\x02\0\xff\xff", "malformed ttrpc answer"),
            ("stream", b"\0\0\0\0\0\0\0\x01\x03\0", "ttrpc answer is a stream"),
            ("request", b"\0\0\0\0\0\0\0\x01\x01\0", "ttrpc connection closed"),
            ("garbage", &garbage, "ttrpc connection closed"),
            ("too long", b"\x7f\0\0\0\0\0\0\x01\x02\0", "ttrpc connection closed"),
            ("cut", b"\0\0\0\x09\0\0\0\x01\x02\0\0", "ttrpc connection closed"),
        ];
        for (case, bytes, want) in cases {
            let (client, mut far) = pair();
            let call = ask(&client, LONG);
            let serve = async {
                far.write_all(bytes).await.expect("open");
                far.shutdown().await.expect("open");
            };
            let (got, ()) = tokio::join!(call, serve);
            assert_eq!(got.expect_err(case).to_string(), *want, "{case}");
        }
    }

    #[tokio::test]
    async fn unknown_answers_are_ignored() {
        let (client, mut far) = pair();
        let call = ask(&client, LONG);
        let serve = async {
            far.write_all(&answer_to(99, &text("whose"))).await.expect("open");
            far.write_all(&answer_to(1, &text("mine"))).await.expect("open");
        };
        assert_eq!(tokio::join!(call, serve).0.expect("answered"), text("mine"));
    }

    #[tokio::test]
    async fn long_requests_are_refused_here() {
        let (client, _far) = pair();
        let long = text(&"x".repeat(PAYLOAD_LEN_MAX));
        let got = client.call::<KeyValue>(STATE, &long, &[], Some(LONG)).await;
        assert!(matches!(got, Err(CallError::Request(FrameError::TooLong { .. }))), "{got:?}");
        assert!(!client.is_closed());
    }
}
