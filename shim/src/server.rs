//! The ttrpc server: connections, frames in, replies and messages of streaming calls out.
//!
//! A call is answered whenever its answer is known, in any order: [`Call`] names it, and a reply
//! to a connection that is gone is dropped. What a caller asked for goes on when it hangs up.
//!
//! Limits: a frame is at most [`frame::PAYLOAD_LEN_MAX`]; a connection whose peer does not read
//! its replies is closed when [`BACKLOG_LEN_MAX`] bytes wait; at most [`CONNECTIONS_MAX`] are
//! open, and further ones are closed at once.
//!
//! Without free descriptors nobody can be accepted, and the listener stays ready, so a loop that
//! tried again at once would spin. One descriptor is held in reserve: whoever connects first gets
//! it, so that a daemon that comes back reaches its containers. Those after it wait in the
//! kernel's queue until a look every [`ACCEPT_PAUSE`] finds a free one for the reserve.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    time::{Duration, Instant},
};

use prost::Message;
use proto::ttrpc::{Frame, Kind, Request, Response, frame};

use crate::{
    error::Error,
    poller::{Interest, Poller, Token},
    socket,
};

/// How many connections may be open.
const CONNECTIONS_MAX: usize = 256;

/// How long a server that has no descriptor for a connection waits before it looks again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How many bytes of replies may wait for one peer.
const BACKLOG_LEN_MAX: usize = 16 << 20;

/// How many bytes one read takes.
const READ_LEN: usize = 4096;

/// A buffer that is empty and larger than this gives its memory back.
const BUFFER_KEEP_MAX: usize = 16 << 10;

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call {
    /// The number of the connection that it came by.
    pub connection: u64,
    stream_id: u32,
}

impl Call {
    /// The call `stream_id` of a connection.
    pub(crate) fn new(connection: u64, stream_id: u32) -> Self {
        Self { connection, stream_id }
    }
}

/// What a peer has sent.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A new call, and the flags of its frame.
    Request(Request, u8),
    /// A message of a streaming call.
    Data {
        /// The flags of the frame.
        flags: u8,
        /// The encoded message.
        payload: Vec<u8>,
    },
}

/// Listens and keeps the connections.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    connections: BTreeMap<u64, Connection>,
    /// A descriptor that is given up for a connection when there is no other: the listener's copy,
    /// which needs nothing but the number.
    reserve: Option<UnixListener>,
    /// When to accept again, while the listener is not watched.
    paused_until: Option<Instant>,
    /// Connections that have ended, of which nobody was told yet.
    ended: Vec<u64>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Whether the poller tells of room for output.
    waits_for_room: bool,
    /// Whether the peer takes nothing any more. What it has sent is still read, to its end.
    deaf: bool,
}

impl Server {
    /// Serves on `listener`.
    ///
    /// # Errors
    ///
    /// The kernel refuses to watch it.
    pub(crate) fn new(listener: UnixListener, poller: &Poller) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        poller.add(&listener, Token::Listener, Interest::Read)?;
        let reserve = Some(listener.try_clone()?);
        Ok(Self {
            listener,
            connections: BTreeMap::new(),
            reserve,
            paused_until: None,
            ended: Vec::new(),
        })
    }

    /// Takes the connections that wait. Strangers and those over the limit are closed.
    pub(crate) fn accept(&mut self, poller: &mut Poller) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(stream, poller),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_about_the_peer(&error) => {}
                Err(_) if self.reserve.take().is_some() => {}
                Err(_) => {
                    poller.remove(&self.listener);
                    self.paused_until = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.refill();
    }

    /// When the server wants to be [`resume`](Self::resume)d.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Accepts again, if it is time to and a descriptor is free.
    pub(crate) fn resume(&mut self, now: Instant, poller: &Poller) {
        if self.paused_until.is_none_or(|until| now < until) {
            return;
        }
        self.refill();
        let watched = self.reserve.is_some()
            && poller.add(&self.listener, Token::Listener, Interest::Read).is_ok();
        self.paused_until = (!watched).then(|| now + ACCEPT_PAUSE);
    }

    /// Takes a free descriptor for the reserve, where there is one.
    fn refill(&mut self) {
        if self.reserve.is_none() {
            self.reserve = self.listener.try_clone().ok();
        }
    }

    fn welcome(&mut self, stream: UnixStream, poller: &mut Poller) {
        let welcome = self.connections.len() < CONNECTIONS_MAX
            && socket::peer_is_trusted(&stream)
            && stream.set_nonblocking(true).is_ok();
        let number = poller.number();
        let token = Token::Connection(number);
        if welcome && poller.add(&stream, token, Interest::Read).is_ok() {
            let connection = Connection {
                stream,
                input: Vec::new(),
                output: Vec::new(),
                waits_for_room: false,
                deaf: false,
            };
            self.connections.insert(number, connection);
        }
    }

    /// Goes on with a connection that is ready, and returns what of its messages is whole now.
    ///
    /// A connection that ends, or sends what is not ttrpc, is closed.
    pub(crate) fn ready(&mut self, number: u64, poller: &Poller) -> Vec<(Call, Incoming)> {
        let Some(connection) = self.connections.get_mut(&number) else { return Vec::new() };
        let mut calls = Vec::new();
        let more = connection.flush(number, poller) && connection.read();
        // What came just before the end counts: a client may say its last words and leave.
        let is_ttrpc = connection.take_calls(number, &mut calls);
        if !(more && is_ttrpc && connection.flush(number, poller)) {
            self.close(number);
        }
        calls
    }

    fn close(&mut self, number: u64) {
        self.connections.remove(&number);
        self.ended.push(number);
    }

    /// The connections that have ended since this was asked last.
    pub(crate) fn take_ended(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.ended)
    }

    /// Sends a message of a streaming call, or flags alone.
    pub(crate) fn send(&mut self, call: Call, flags: u8, message: &impl Message, poller: &Poller) {
        let Some(connection) = self.connections.get_mut(&call.connection) else { return };
        if !connection.push(Kind::Data, call.stream_id, flags, message)
            || !connection.flush(call.connection, poller)
        {
            self.close(call.connection);
        }
    }

    /// How many bytes a peer has not taken yet.
    pub(crate) fn backlog(&self, connection: u64) -> usize {
        self.connections.get(&connection).map_or(0, |connection| connection.output.len())
    }

    /// Answers a call, and closes a connection that cannot take the answer.
    pub(crate) fn reply(&mut self, call: Call, result: Result<Vec<u8>, Error>, poller: &Poller) {
        let Some(connection) = self.connections.get_mut(&call.connection) else { return };
        let response = match result {
            Ok(payload) => Response { status: None, payload },
            Err(error) => Response { status: Some(error.status()), payload: Vec::new() },
        };
        if !connection.push(Kind::Response, call.stream_id, 0, &response)
            || !connection.flush(call.connection, poller)
        {
            self.close(call.connection);
        }
    }

    /// Whether no peer has replies to take.
    pub(crate) fn is_flushed(&self) -> bool {
        self.connections.values().all(|connection| connection.output.is_empty())
    }
}

impl Connection {
    /// Reads what is there; `false` at the end.
    fn read(&mut self) -> bool {
        let mut buffer = [0; READ_LEN];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(len) => {
                    self.input.extend_from_slice(&buffer[..len]);
                    // More than one frame can be: the rest is read in the next turn.
                    if len < READ_LEN || self.input.len() > frame::PAYLOAD_LEN_MAX {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Takes the whole frames out of the input; `false` when it is not ttrpc.
    fn take_calls(&mut self, number: u64, calls: &mut Vec<(Call, Incoming)>) -> bool {
        let input = std::mem::take(&mut self.input);
        let mut used = 0;
        loop {
            match Frame::parse(&input[used..]) {
                Err(_) => return false,
                Ok(None) => break,
                Ok(Some((frame, len))) => {
                    used += len;
                    let call = Call::new(number, frame.stream_id);
                    match incoming(&frame) {
                        Some(incoming) => calls.push((call, incoming)),
                        None => {
                            let error = Error::InvalidArgument("not a request".to_owned());
                            let status = Some(error.status());
                            let response = Response { status, payload: Vec::new() };
                            self.push(Kind::Response, frame.stream_id, 0, &response);
                        }
                    }
                }
            }
        }
        self.input = input;
        self.input.drain(..used);
        give_back(&mut self.input);
        true
    }

    fn push(&mut self, kind: Kind, stream_id: u32, flags: u8, message: &impl Message) -> bool {
        if self.deaf {
            return true;
        }
        frame::append_with_flags(&mut self.output, kind, stream_id, flags, message).is_ok()
            && self.output.len() <= BACKLOG_LEN_MAX
    }

    /// Writes what the peer takes, and waits for room for the rest. Of a peer that takes nothing any more the
    /// reader finds the end.
    fn flush(&mut self, number: u64, poller: &Poller) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(len) => drop(self.output.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.deaf = true;
                    self.output.clear();
                }
            }
        }
        give_back(&mut self.output);
        // Most answers are taken at once, and nothing changes.
        let waits = !self.output.is_empty();
        if waits == self.waits_for_room {
            return true;
        }
        self.waits_for_room = waits;
        let interest = if waits { Interest::ReadWrite } else { Interest::Read };
        poller.modify(&self.stream, Token::Connection(number), interest).is_ok()
    }
}

/// What a frame says, if a client may say it.
fn incoming(frame: &Frame<'_>) -> Option<Incoming> {
    match frame.kind {
        Kind::Request => {
            let request = Request::decode(frame.payload).ok()?;
            Some(Incoming::Request(request, frame.flags))
        }
        Kind::Data => Some(Incoming::Data { flags: frame.flags, payload: frame.payload.to_vec() }),
        Kind::Response => None,
    }
}

/// Whether an accept failed because of the one who connected, and the next may succeed.
fn is_about_the_peer(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

/// Frees an empty buffer that one large message has grown.
fn give_back(buffer: &mut Vec<u8>) {
    if buffer.is_empty() && buffer.capacity() > BUFFER_KEEP_MAX {
        *buffer = Vec::new();
    }
}
