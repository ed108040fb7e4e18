//! Events on their way to containerd.
//!
//! Events go out in the order in which they happened, one at a time: the next one is sent when
//! containerd has confirmed the one before. While containerd is away they wait, and are offered
//! again after a pause that grows to [`PAUSE_MAX`]. At most [`QUEUE_MAX`] wait; then the oldest is
//! dropped, because a containerd that was away for so long asks for the state of its tasks anyway.
//! An event that containerd refuses is offered [`REFUSALS_MAX`] times.
//!
//! ```text
//!  idle ──event──> connect ──> sent ──confirmed──> next event, or idle
//!                     ^          │
//!                     └─ pause <─┴── no connection, no answer in time, connection lost
//! ```
//!
//! Source: containerd `pkg/shim/publisher.go`; service `containerd.services.events.ttrpc.v1.Events`.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use prost::{Message, Name};
use proto::{
    any,
    containerd::{services::events::ttrpc::v1::ForwardRequest, types::Envelope},
    ttrpc::{
        Frame, Kind, Request, Response,
        frame::{self, KeyValue},
    },
};

use crate::poller::{Interest, Poller, Token};

/// How many events may wait.
const QUEUE_MAX: usize = 2048;

/// How often an event that containerd refuses is offered.
const REFUSALS_MAX: u32 = 5;

/// How long containerd may take to confirm an event.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The first pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Sends events to containerd.
#[derive(Debug)]
pub(crate) struct Publisher {
    address: PathBuf,
    namespace: String,
    queue: VecDeque<Envelope>,
    link: Link,
    refusals: u32,
    last_stream_id: u32,
}

/// The connection to containerd.
#[derive(Debug)]
enum Link {
    /// None, and none needed.
    Closed,
    /// None until the time has come to try again.
    Pausing { until: Instant, pause: Duration },
    /// Open; nothing is on its way.
    Idle(UnixStream),
    /// Open; the first event of the queue is on its way.
    Sent { stream: UnixStream, output: Vec<u8>, input: Vec<u8>, stream_id: u32, until: Instant },
}

impl Publisher {
    /// Publishes for `namespace` to the containerd that listens at `address`.
    pub(crate) fn new(address: PathBuf, namespace: String) -> Self {
        Self {
            address,
            namespace,
            queue: VecDeque::new(),
            link: Link::Closed,
            refusals: 0,
            last_stream_id: 0,
        }
    }

    /// Puts an event, of which now is the time, at the end of the queue.
    pub(crate) fn publish<M: Message + Name>(&mut self, topic: &str, event: &M, poller: &Poller) {
        if self.address.as_os_str().is_empty() {
            return;
        }
        if self.queue.len() == QUEUE_MAX {
            // The first one may be on its way; the one behind it is the oldest that is not.
            self.queue.remove(1);
        }
        self.queue.push_back(Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(any::pack(event)),
        });
        if matches!(self.link, Link::Closed | Link::Idle(_)) {
            self.send_next(poller);
        }
    }

    /// Whether everything that was published has arrived.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// When [`timeout`](Self::timeout) is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.link {
            Link::Pausing { until, .. } | Link::Sent { until, .. } => Some(*until),
            Link::Closed | Link::Idle(_) => None,
        }
    }

    /// Goes on after a pause, or gives up waiting for an answer.
    pub(crate) fn timeout(&mut self, now: Instant, poller: &Poller) {
        match &self.link {
            Link::Pausing { until, .. } if *until <= now => self.send_next(poller),
            Link::Sent { until, .. } if *until <= now => self.pause(),
            _ => {}
        }
    }

    /// Goes on with the connection when it is ready.
    pub(crate) fn ready(&mut self, poller: &Poller) {
        let Link::Sent { stream, output, input, stream_id, .. } = &mut self.link else {
            // Nothing was asked, so this is the end of the connection; or that of an earlier one,
            // which says nothing about the pause.
            if let Link::Idle(_) = self.link {
                self.link = Link::Closed;
            }
            return;
        };
        match progress(stream, output, input, *stream_id) {
            Ok(Progress::Waiting) => {
                let interest = if output.is_empty() { Interest::Read } else { Interest::ReadWrite };
                if poller.modify(&*stream, Token::Publisher, interest).is_err() {
                    self.pause();
                }
            }
            Ok(Progress::Answered { refused }) => {
                self.refusals = if refused { self.refusals + 1 } else { 0 };
                if refused && self.refusals < REFUSALS_MAX {
                    self.pause();
                    return;
                }
                self.refusals = 0;
                self.queue.pop_front();
                if let Link::Sent { stream, .. } = std::mem::replace(&mut self.link, Link::Closed) {
                    self.link = Link::Idle(stream);
                }
                self.send_next(poller);
            }
            Err(_) => self.pause(),
        }
    }

    /// Sends the first event of the queue, if there is one.
    fn send_next(&mut self, poller: &Poller) {
        let Some(envelope) = self.queue.front() else {
            // All that the queue has grown to in a bad time is not needed in a good one.
            self.queue.shrink_to(0);
            if let Link::Pausing { .. } = self.link {
                self.link = Link::Closed;
            }
            return;
        };
        self.last_stream_id += 2;
        let stream_id = self.last_stream_id - 1;
        let mut output = Vec::new();
        let request = request(envelope, &self.namespace);
        if frame::append(&mut output, Kind::Request, stream_id, &request).is_err() {
            // Too large for any containerd.
            self.queue.pop_front();
            return self.send_next(poller);
        }
        let stream = match std::mem::replace(&mut self.link, Link::Closed) {
            Link::Idle(stream) => Ok(stream),
            before => {
                let pause = pause_after(&before);
                self.connect(poller).map_err(|_| pause)
            }
        };
        match stream {
            Ok(stream) => {
                let until = Instant::now() + ANSWER_MAX;
                self.link = Link::Sent { stream, output, input: Vec::new(), stream_id, until };
                self.ready(poller);
            }
            Err(pause) => {
                self.link = Link::Pausing { until: Instant::now() + pause, pause };
            }
        }
    }

    fn connect(&self, poller: &Poller) -> io::Result<UnixStream> {
        let stream = connect(&self.address)?;
        poller.add(&stream, Token::Publisher, Interest::Read)?;
        Ok(stream)
    }

    fn pause(&mut self) {
        let pause = pause_after(&self.link);
        self.link = Link::Pausing { until: Instant::now() + pause, pause };
    }
}

fn pause_after(link: &Link) -> Duration {
    match link {
        Link::Pausing { pause, .. } => (*pause * 2).min(PAUSE_MAX),
        _ => PAUSE_MIN,
    }
}

/// Connects without waiting for a listener that has no room.
fn connect(address: &std::path::Path) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(address)?)?;
    Ok(socket.into())
}

fn request(envelope: &Envelope, namespace: &str) -> Request {
    Request {
        service: "containerd.services.events.ttrpc.v1.Events".to_owned(),
        method: "Forward".to_owned(),
        payload: ForwardRequest { envelope: Some(envelope.clone()) }.encode_to_vec(),
        timeout_nano: ANSWER_MAX.as_nanos() as i64,
        metadata: vec![KeyValue {
            key: "containerd-namespace-ttrpc".to_owned(),
            value: namespace.to_owned(),
        }],
    }
}

/// How far an exchange has come.
enum Progress {
    Waiting,
    Answered { refused: bool },
}

fn progress(
    stream: &mut UnixStream,
    output: &mut Vec<u8>,
    input: &mut Vec<u8>,
    stream_id: u32,
) -> io::Result<Progress> {
    while !output.is_empty() {
        match stream.write(output) {
            Ok(len) => drop(output.drain(..len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    let mut buffer = [0; 512];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => input.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    while let Some((frame, len)) = Frame::parse(input).map_err(io::Error::other)? {
        let answer = (frame.kind == Kind::Response && frame.stream_id == stream_id)
            .then(|| Response::decode(frame.payload));
        input.drain(..len);
        if let Some(answer) = answer {
            let status = answer.map_err(io::Error::other)?.status;
            return Ok(Progress::Answered {
                refused: status.is_some_and(|status| status.code != 0),
            });
        }
    }
    Ok(Progress::Waiting)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use proto::{containerd::events::TaskStart, ttrpc::Status};

    use super::*;

    /// Answers the next request on `peer` with `status`, and returns the topic of its event.
    fn answer(peer: &mut UnixStream, status: Option<Status>) -> String {
        let mut input = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            if let Some((frame, _)) = Frame::parse(&input).expect("frames") {
                let request = Request::decode(frame.payload).expect("request");
                let forward = ForwardRequest::decode(request.payload.as_slice()).expect("event");
                let mut output = Vec::new();
                let response = Response { status, payload: Vec::new() };
                frame::append(&mut output, Kind::Response, frame.stream_id, &response)
                    .expect("short");
                peer.write_all(&output).expect("write");
                return forward.envelope.expect("envelope").topic;
            }
            let len = peer.read(&mut buffer).expect("read");
            input.extend_from_slice(&buffer[..len]);
        }
    }

    fn event() -> TaskStart {
        TaskStart { container_id: "c".to_owned(), pid: 1 }
    }

    #[test]
    fn keeps_order_and_waits_for_each() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).expect("bind");
        let poller = Poller::new().expect("epoll");
        let mut publisher = Publisher::new(path, "ns".to_owned());
        publisher.publish("/1", &event(), &poller);
        publisher.publish("/2", &event(), &poller);
        let (mut peer, _) = listener.accept().expect("accept");
        for topic in ["/1", "/2"] {
            assert_eq!(answer(&mut peer, None), topic);
            publisher.ready(&poller);
        }
        assert!(publisher.is_empty());
    }

    #[test]
    fn tries_again_when_containerd_comes_back() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        let poller = Poller::new().expect("epoll");
        let mut publisher = Publisher::new(path.clone(), "ns".to_owned());
        publisher.publish("/1", &event(), &poller);
        let deadline = publisher.deadline().expect("a pause");
        let listener = UnixListener::bind(&path).expect("bind");
        publisher.timeout(deadline, &poller);
        let (mut peer, _) = listener.accept().expect("accept");
        assert_eq!(answer(&mut peer, None), "/1");
        publisher.ready(&poller);
        assert!(publisher.is_empty());
    }

    #[test]
    fn the_end_of_an_earlier_connection_ends_no_pause() {
        let poller = Poller::new().expect("epoll");
        let mut publisher = Publisher::new("/nonexistent/s".into(), "ns".to_owned());
        publisher.publish("/1", &event(), &poller);
        publisher.ready(&poller);
        assert!(publisher.deadline().is_some());
    }

    #[test]
    fn is_bounded() {
        let poller = Poller::new().expect("epoll");
        let mut publisher = Publisher::new("/nonexistent/s".into(), "ns".to_owned());
        for _ in 0..QUEUE_MAX + 10 {
            publisher.publish("/1", &event(), &poller);
        }
        assert_eq!(publisher.queue.len(), QUEUE_MAX);
    }
}
