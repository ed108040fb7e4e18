//! A server whose connections are independent, and whose calls of one connection are not.
//!
//! The calls of a connection are answered one by one, in the order in which they came. That is what
//! keeps the events of a shim in order, and what bounds the memory of a connection: one request and
//! one answer. A client that does not take its answers blocks nobody but itself.

use std::{future::Future, sync::Arc, time::Duration};

use prost::Message;
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};

use super::{
    Code, Kind, Request, Response, Status,
    frame::{self, KeyValue},
    read::FrameReader,
};

/// The most connections at a time; further ones wait to be accepted.
pub const CONNECTIONS_MAX: usize = 4096;

/// How long a call may take that says nothing about it.
const CALL_TIME_MAX: Duration = Duration::from_secs(60);

/// How long to wait after `accept` failed, which it does when descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers calls.
pub trait Service: Send + Sync + 'static {
    /// Gives the encoded answer to a call.
    ///
    /// # Errors
    ///
    /// What the caller is told instead.
    fn call(&self, request: Request) -> impl Future<Output = Result<Vec<u8>, Status>> + Send;
}

/// Serves connections to `listener`, until it is dropped.
pub async fn serve(listener: UnixListener, service: Arc<impl Service>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let place =
            Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = Arc::clone(&service);
                connections.spawn(async move {
                    connection(stream, &*service).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Serves a connection to its end: that of the stream, or the first frame that is none.
async fn connection(mut stream: UnixStream, service: &impl Service) {
    let (reading, mut writing) = stream.split();
    let mut frames = FrameReader::new(reading);
    while let Ok(Some(frame)) = frames.next().await {
        let result = match frame.kind {
            Kind::Request => answer(&frame.payload, service).await,
            Kind::Response => return,
            Kind::Data => Err(status(Code::Unimplemented, "streaming calls are not served")),
        };
        if writing.write_all(&encode(frame.stream_id, result)).await.is_err() {
            return;
        }
    }
}

async fn answer(payload: &[u8], service: &impl Service) -> Result<Vec<u8>, Status> {
    let request = Request::decode(payload)
        .map_err(|error| status(Code::InvalidArgument, &format!("malformed request: {error}")))?;
    let asked = u64::try_from(request.timeout_nano).unwrap_or(0);
    let limit = match asked {
        0 => CALL_TIME_MAX,
        nanos => CALL_TIME_MAX.min(Duration::from_nanos(nanos)),
    };
    tokio::time::timeout(limit, service.call(request))
        .await
        .unwrap_or_else(|_| Err(status(Code::DeadlineExceeded, "the call took too long")))
}

fn encode(stream_id: u32, result: Result<Vec<u8>, Status>) -> Vec<u8> {
    let response = match result {
        Ok(payload) => Response { status: None, payload },
        Err(status) => Response { status: Some(status), payload: vec![] },
    };
    let mut bytes = Vec::new();
    if let Err(error) = frame::append(&mut bytes, Kind::Response, stream_id, &response) {
        let status = Some(status(Code::ResourceExhausted, &error.to_string()));
        let short = Response { status, payload: vec![] };
        frame::append(&mut bytes, Kind::Response, stream_id, &short).expect("a status is short");
    }
    bytes
}

/// The status of a failed call.
pub fn status(code: Code, message: &str) -> Status {
    Status { code: code as i32, message: message.to_owned() }
}

/// The first value of `key` in the metadata of a request.
pub fn metadata<'a>(request: &'a Request, key: &str) -> Option<&'a str> {
    request.metadata.iter().find(|entry: &&KeyValue| entry.key == key).map(|e| e.value.as_str())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::ttrpc::{CallError, Client, Target};

    /// Answers with the request's payload, and remembers the methods.
    #[derive(Default)]
    struct Echo {
        methods: Mutex<Vec<String>>,
    }

    impl Service for Echo {
        async fn call(&self, request: Request) -> Result<Vec<u8>, Status> {
            if request.method == "Slow" {
                std::future::pending::<()>().await;
            }
            self.methods.lock().expect("no panic holds it").push(request.method.clone());
            match request.method.as_str() {
                "Missing" => Err(status(Code::Unimplemented, "no such method")),
                "Huge" => Ok(vec![0; frame::PAYLOAD_LEN_MAX]),
                _ => Ok(request.payload),
            }
        }
    }

    async fn call(client: &Client, method: &str) -> Result<KeyValue, CallError> {
        let target = Target { service: "test", method };
        let request = KeyValue { key: "k".to_owned(), value: method.to_owned() };
        client.call(target, &request, &[], Some(Duration::from_secs(5))).await
    }

    #[tokio::test]
    async fn serves() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("socket");
        let service = Arc::new(Echo::default());
        let listener = UnixListener::bind(&path).expect("bound");
        let server = tokio::spawn(serve(listener, Arc::clone(&service)));
        let connect = || async { UnixStream::connect(&path).await.expect("served") };

        let client = Client::new(connect().await);
        let cases = [("Echo", None), ("Missing", Some(12)), ("Huge", Some(8)), ("Again", None)];
        for (method, want) in cases {
            let got = call(&client, method).await;
            let code = match &got {
                Ok(_) => None,
                Err(CallError::Status(status)) => Some(status.code),
                Err(error) => panic!("{method}: {error}"),
            };
            assert_eq!(code, want, "{method}");
        }

        // One that sends garbage and one that is stuck disturb no other.
        let mut hostile = connect().await;
        hostile.write_all(&[0xee; 100]).await.expect("open");
        let stuck = Client::new(connect().await);
        let target = Target { service: "test", method: "Slow" };
        let (question, limit) = (KeyValue::default(), Some(Duration::from_millis(50)));
        let slow = stuck.call::<KeyValue>(target, &question, &[], limit);
        let (got, again) = tokio::join!(slow, call(&client, "Last"));
        assert!(matches!(got, Err(CallError::Deadline { .. } | CallError::Status(_))), "{got:?}");
        again.expect("answered");
        let methods = service.methods.lock().expect("no panic holds it").clone();
        assert_eq!(methods, ["Echo", "Missing", "Huge", "Again", "Last"]);
        server.abort();
        client.closed().await;
    }
}
