//! Moves bytes between a container's pipes and streams that clients open over ttrpc.
//!
//! A stream has an ID and two ends. The client's is a call of `Streaming/Stream`; the process's is
//! a pipe or a terminal. Either may be there first, and they find each other by the ID:
//!
//! ```text
//!  client ──Request──────> shim        a call, not yet of any stream
//!         ──StreamInit──>              the call is of stream ID
//!         <──Empty──────
//!
//!  output <──Data─────── pipe          as far as the client's windows reach
//!         ──WindowUpdate─>
//!  input  ──Data───────> pipe          as far as the shim's windows reach
//!         <──WindowUpdate─
//!
//!         <──end──────── the process has no more to say, does not listen any more, or is deleted
//! ```
//!
//! - **A client may come and go**, as with a fifo: while there is none, or one that gives no
//!   window, output is left in the pipe, where the process blocks once it is full; nothing is
//!   lost. What was on its way to a client that is lost is lost with it. A second client of a
//!   stream takes it over from the first, which may be the daemon before its restart.
//! - **Nobody waits for a client that is not there.** Output without a client does not hold up the
//!   deletion of its process; with a fifo that nobody reads it would be lost as well.
//! - **Input ends** when the client says so in the stream, or after `CloseIO` once no client is
//!   there. A client that is merely lost does not end it.
//! - **Bounded**: [`CLIENTS_MAX`] calls; [`WINDOW_LEN`] bytes of input wait for a process; one chunk
//!   of output is on its way to a connection that has no room.
//!
//! Nothing is written to a connection here. What is to be sent is an [`Outgoing`], taken by
//! [`Relays::take_outgoing`], and a connection without room is told by [`Relays::set_full`].
//!
//! Sources: containerd `core/transfer/streaming`, `core/streaming/proxy`, `internal/cri/io`.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
};

use prost::Message;
use prost_types::Any;
use proto::{
    any,
    containerd::{
        services::streaming::v1::StreamInit,
        types::transfer::{Data, WindowUpdate},
    },
    ttrpc::frame,
};
use rustix::io::{Errno, read, write};

use super::{copy::is_readable, uri::STREAM_ID_LEN_MAX};
use crate::{
    error::Error,
    poller::{Interest, Poller, Token},
    server::Call,
};

/// How many streams clients may have open. Each has a connection of its own with containerd, so
/// this leaves some for other calls.
const CLIENTS_MAX: usize = 192;

/// How many bytes of input a client may send before the process has taken them.
const WINDOW_LEN: usize = 64 << 10;

/// The most output in one message, in bytes.
const CHUNK_LEN: usize = 32 << 10;

/// The streams of a shim.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    ends: BTreeMap<u64, End>,
    clients: BTreeMap<Call, Client>,
    outgoing: Vec<Outgoing>,
    /// Connections that have no room.
    full: BTreeSet<u64>,
    /// Whether something has ended that someone may wait for.
    has_ended: bool,
}

/// Something to send.
#[derive(Debug, PartialEq)]
pub(crate) enum Outgoing {
    /// A message of a stream.
    Message(Call, Any),
    /// The stream's end.
    End(Call),
    /// The stream's end, and why.
    Failure(Call, Error),
}

/// A process's end.
#[derive(Debug)]
struct End {
    id: String,
    side: Side,
    /// Whether the poller watches its descriptor.
    watched: bool,
}

#[derive(Debug)]
enum Side {
    /// The process is not there yet.
    Reserved {
        closing: bool,
    },
    Output {
        source: OwnedFd,
        /// Whether nothing more will come, so that an empty source is the end.
        last: bool,
    },
    Input(Input),
    /// There will be no more; for clients that come now.
    Ended,
}

#[derive(Debug)]
struct Input {
    target: OwnedFd,
    /// What the process has not taken yet.
    pending: Vec<u8>,
    /// Whether there will be no more once no client is there.
    closing: bool,
    /// Whether the client has said that this was all.
    complete: bool,
}

/// A client's end: a call.
#[derive(Debug, Default)]
struct Client {
    /// Which stream it is of, once it has said.
    id: Option<String>,
    /// How many bytes it takes.
    window: usize,
    /// How many bytes it may send.
    granted: usize,
    /// Whether it sends no more.
    complete: bool,
}

/// The client's side: what calls bring.
impl Relays {
    /// Takes a call that will say which stream it is of.
    ///
    /// # Errors
    ///
    /// `ResourceExhausted`; `InvalidArgument` for a client that will say nothing.
    pub(crate) fn open(&mut self, call: Call, flags: u8) -> Result<(), Error> {
        if flags & frame::REMOTE_OPEN == 0 {
            return Err(Error::InvalidArgument("a stream begins with its ID".to_owned()));
        }
        if self.clients.len() >= CLIENTS_MAX {
            return Err(Error::ResourceExhausted(format!("{CLIENTS_MAX} streams")));
        }
        if self.clients.contains_key(&call) {
            return Err(Error::InvalidArgument("the call is there already".to_owned()));
        }
        self.clients.insert(call, Client::default());
        Ok(())
    }

    /// Takes a message, or flags alone. A stream whose client breaks the rules ends.
    pub(crate) fn message(&mut self, call: Call, flags: u8, payload: &[u8], poller: &Poller) {
        let mut result = match self.clients.contains_key(&call) {
            true => Ok(()),
            false => Err(Error::InvalidArgument("the stream is no longer active".to_owned())),
        };
        if result.is_ok() && flags & frame::NO_DATA == 0 {
            result = Any::decode(payload)
                .map_err(|error| Error::InvalidArgument(error.to_string()))
                .and_then(|message| self.take_message(call, &message, poller));
        }
        match result {
            Ok(()) if flags & frame::REMOTE_CLOSED != 0 => self.said_all(call, poller),
            Ok(()) => {}
            Err(error) => self.fail(call, error, poller),
        }
    }

    /// Takes note that a connection has ended.
    pub(crate) fn lost(&mut self, connection: u64, poller: &Poller) {
        self.full.remove(&connection);
        let of_it = |call: &&Call| call.connection == connection;
        for call in self.clients.keys().filter(of_it).copied().collect::<Vec<_>>() {
            self.forget(call, poller);
        }
    }

    /// Says whether a connection has no room for more.
    pub(crate) fn set_full(&mut self, connection: u64, is_full: bool, poller: &Poller) {
        let changed =
            if is_full { self.full.insert(connection) } else { self.full.remove(&connection) };
        if !changed {
            return;
        }
        let of_it = |(call, _): &(&Call, &Client)| call.connection == connection;
        let ids = self.clients.iter().filter(of_it).filter_map(|(_, client)| client.id.clone());
        for id in ids.collect::<Vec<_>>() {
            self.refresh_id(&id, poller);
        }
    }

    /// Connections that had no room when they were looked at last.
    pub(crate) fn full(&self) -> Vec<u64> {
        self.full.iter().copied().collect()
    }

    /// What is to be sent, in order.
    pub(crate) fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing)
    }

    /// Whether something has ended, since this was asked last, that someone may wait for.
    pub(crate) fn take_has_ended(&mut self) -> bool {
        std::mem::take(&mut self.has_ended)
    }

    fn take_message(&mut self, call: Call, message: &Any, poller: &Poller) -> Result<(), Error> {
        let decoded = |error: prost::DecodeError| Error::InvalidArgument(error.to_string());
        let Some(client) = self.clients.get_mut(&call) else { return Ok(()) };
        let Some(id) = client.id.clone() else {
            let init = any::unpack::<StreamInit>(message).map_err(decoded)?;
            return self.begin(call, init.unwrap_or_default().id, poller);
        };
        if let Some(WindowUpdate { update }) = any::unpack(message).map_err(decoded)? {
            let more = usize::try_from(update);
            let more = more.map_err(|_| {
                Error::InvalidArgument(format!("window update of {update} bytes in stream {id}"))
            })?;
            client.window = client.window.saturating_add(more);
            self.refresh_id(&id, poller);
            return Ok(());
        }
        let Some(Data { data }) = any::unpack(message).map_err(decoded)? else {
            let kind: String = any::type_name(message).chars().take(100).collect();
            return Err(Error::InvalidArgument(format!("message {kind:?} in stream {id}")));
        };
        client.granted = client.granted.checked_sub(data.len()).ok_or_else(|| {
            Error::ResourceExhausted(format!("data beyond the window of stream {id}"))
        })?;
        let (number, input) = self.input_mut(&id).ok_or_else(|| {
            // Nobody else is ever granted anything.
            Error::InvalidArgument(format!("data in stream {id}, which is output"))
        })?;
        input.pending.extend_from_slice(&data);
        self.refresh(number, poller);
        Ok(())
    }

    /// Makes a call the client of a stream, instead of the one that was.
    fn begin(&mut self, call: Call, id: String, poller: &Poller) -> Result<(), Error> {
        if id.is_empty() || id.len() > STREAM_ID_LEN_MAX {
            let text = format!("stream ID of {} bytes, not 1 to {STREAM_ID_LEN_MAX}", id.len());
            return Err(Error::InvalidArgument(text));
        }
        if let Some(before) = self.client_of(&id) {
            let text = format!("stream {id} was taken over by another client");
            self.clients.remove(&before);
            self.outgoing.push(Outgoing::Failure(before, Error::FailedPrecondition(text)));
        }
        if let Some(client) = self.clients.get_mut(&call) {
            client.id = Some(id.clone());
        }
        self.outgoing.push(Outgoing::Message(call, any::pack(&())));
        self.refresh_id(&id, poller);
        Ok(())
    }

    /// Takes note that a client sends no more.
    fn said_all(&mut self, call: Call, poller: &Poller) {
        match self.clients.get(&call).map(|client| client.id.clone()) {
            // It never said what it wants.
            Some(None) => self.finish_client(call),
            Some(Some(id)) => {
                if let Some(client) = self.clients.get_mut(&call) {
                    client.complete = true;
                }
                if let Some((number, input)) = self.input_mut(&id) {
                    input.complete = true;
                    self.refresh(number, poller);
                }
            }
            None => {}
        }
    }

    fn fail(&mut self, call: Call, error: Error, poller: &Poller) {
        self.outgoing.push(Outgoing::Failure(call, error));
        self.forget(call, poller);
    }

    /// Lets a client go.
    fn forget(&mut self, call: Call, poller: &Poller) {
        let Some(Client { id: Some(id), .. }) = self.clients.remove(&call) else { return };
        self.has_ended = true;
        self.refresh_id(&id, poller);
    }

    fn finish_client(&mut self, call: Call) {
        self.clients.remove(&call);
        self.outgoing.push(Outgoing::End(call));
    }

    fn client_of(&self, id: &str) -> Option<Call> {
        let found = self.clients.iter().find(|(_, client)| client.id.as_deref() == Some(id));
        found.map(|(call, _)| *call)
    }
}

/// The process's side: what its streams need.
impl Relays {
    /// Keeps the stream `id` for a process that is about to be, under a number of the poller's.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`: it is another process's.
    pub(crate) fn reserve(&mut self, id: &str, poller: &mut Poller) -> Result<u64, Error> {
        if self.ends.values().any(|end| end.id == id) {
            return Err(Error::AlreadyExists(format!("stream {id}")));
        }
        let number = poller.number();
        let side = Side::Reserved { closing: false };
        self.ends.insert(number, End { id: id.to_owned(), side, watched: false });
        Ok(number)
    }

    /// Sends what comes from `source` to the client of a reserved stream. It must not block.
    pub(crate) fn start_output(&mut self, number: u64, source: OwnedFd, poller: &Poller) {
        let Some(end) = self.ends.get_mut(&number) else { return };
        end.side = Side::Output { source, last: false };
        self.refresh(number, poller);
    }

    /// Gives what the client of a reserved stream sends to `target`, which must not block.
    pub(crate) fn start_input(&mut self, number: u64, target: OwnedFd, poller: &Poller) {
        let Some(end) = self.ends.get_mut(&number) else { return };
        let closing = matches!(end.side, Side::Reserved { closing: true });
        let id = end.id.clone();
        // A client may have said that this was all before the process was there.
        let client = self.client_of(&id).and_then(|call| self.clients.get(&call));
        let complete = client.is_some_and(|client| client.complete);
        let Some(end) = self.ends.get_mut(&number) else { return };
        end.side = Side::Input(Input { target, pending: Vec::new(), closing, complete });
        self.refresh(number, poller);
    }

    /// Ends an input once no client is there.
    pub(crate) fn close_input(&mut self, number: u64, poller: &Poller) {
        match self.ends.get_mut(&number).map(|end| &mut end.side) {
            Some(Side::Reserved { closing } | Side::Input(Input { closing, .. })) => {
                *closing = true
            }
            _ => return,
        }
        self.refresh(number, poller);
    }

    /// Lets an output end when its source is empty for the first time.
    pub(crate) fn finish(&mut self, number: u64, poller: &Poller) {
        if let Some(Side::Output { last, .. }) = self.ends.get_mut(&number).map(|e| &mut e.side) {
            *last = true;
            self.refresh(number, poller);
        }
    }

    /// Ends a stream and forgets it, whatever is left; `true` when it was there.
    pub(crate) fn stop(&mut self, number: u64, poller: &Poller) -> bool {
        self.end(number, poller);
        self.ends.remove(&number).is_some()
    }

    /// Whether output may still arrive somewhere.
    pub(crate) fn is_running(&self, number: u64) -> bool {
        self.ends.get(&number).is_some_and(|end| {
            matches!(end.side, Side::Output { .. }) && self.client_of(&end.id).is_some()
        })
    }

    /// Goes on with an end that is ready.
    pub(crate) fn ready(&mut self, number: u64, poller: &Poller) {
        let Some(end) = self.ends.get(&number) else { return };
        match end.side {
            Side::Output { .. } if self.is_wanted(end) => self.send_chunk(number, poller),
            _ => self.refresh(number, poller),
        }
    }

    fn send_chunk(&mut self, number: u64, poller: &Poller) {
        let Some(End { id, side: Side::Output { source, .. }, .. }) = self.ends.get(&number) else {
            return;
        };
        let Some(call) = self.client_of(id) else { return };
        let Some(client) = self.clients.get_mut(&call) else { return };
        let mut chunk = vec![0; client.window.min(CHUNK_LEN)];
        match read(source, &mut chunk) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A terminal whose last user is gone says EIO.
            Ok(0) | Err(_) => return self.end(number, poller),
            Ok(len) => {
                client.window -= len;
                chunk.truncate(len);
                let data = any::pack(&Data { data: chunk.into() });
                self.outgoing.push(Outgoing::Message(call, data));
            }
        }
        self.refresh(number, poller);
    }

    fn input_mut(&mut self, id: &str) -> Option<(u64, &mut Input)> {
        self.ends.iter_mut().find_map(|(number, end)| match &mut end.side {
            Side::Input(input) if end.id == id => Some((*number, input)),
            _ => None,
        })
    }

    fn refresh_id(&mut self, id: &str, poller: &Poller) {
        let found = self.ends.iter().find(|(_, end)| end.id == id);
        if let Some(number) = found.map(|(number, _)| *number) {
            self.refresh(number, poller);
        }
    }

    /// Does what an end and its client need now, whatever has changed.
    fn refresh(&mut self, number: u64, poller: &Poller) {
        let Some(end) = self.ends.get(&number) else { return };
        match &end.side {
            Side::Reserved { .. } => {}
            Side::Ended => self.end(number, poller),
            Side::Output { source, last } => {
                let wanted = self.is_wanted(end);
                if *last && wanted && !is_readable(source) {
                    return self.end(number, poller);
                }
                self.watch(number, wanted, poller);
            }
            Side::Input(_) => self.refresh_input(number, poller),
        }
    }

    /// Whether there is a client with room for output.
    fn is_wanted(&self, end: &End) -> bool {
        self.client_of(&end.id).is_some_and(|call| {
            let has_window = self.clients.get(&call).is_some_and(|client| client.window > 0);
            has_window && !self.full.contains(&call.connection)
        })
    }

    /// Hands the process what it takes, ends its input or asks for more.
    fn refresh_input(&mut self, number: u64, poller: &Poller) {
        let Some(End { id, side: Side::Input(input), .. }) = self.ends.get_mut(&number) else {
            return;
        };
        let id = id.clone();
        while !input.pending.is_empty() {
            match write(&input.target, &input.pending) {
                Ok(len) => drop(input.pending.drain(..len)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // It does not listen any more.
                Err(_) => return self.end(number, poller),
            }
        }
        let waiting = input.pending.len();
        if waiting == 0 {
            // Most inputs are silent for long.
            input.pending = Vec::new();
        }
        let (closing, complete) = (input.closing, input.complete);
        let client = self.client_of(&id);
        if waiting == 0 && (complete || closing && client.is_none()) {
            return self.end(number, poller);
        }
        self.watch(number, waiting > 0, poller);
        if let Some((call, client)) =
            client.and_then(|call| Some((call, self.clients.get_mut(&call)?)))
            && !complete
            && client.granted + waiting <= WINDOW_LEN / 2
        {
            let update = WINDOW_LEN - client.granted - waiting;
            client.granted += update;
            let update = WindowUpdate { update: i32::try_from(update).unwrap_or(i32::MAX) };
            self.outgoing.push(Outgoing::Message(call, any::pack(&update)));
        }
    }

    fn watch(&mut self, number: u64, wanted: bool, poller: &Poller) {
        let Some(end) = self.ends.get_mut(&number) else { return };
        let (fd, interest) = match &end.side {
            Side::Output { source, .. } => (source, Interest::Read),
            Side::Input(input) => (&input.target, Interest::Write),
            Side::Reserved { .. } | Side::Ended => return,
        };
        if wanted == end.watched {
            return;
        }
        end.watched = wanted;
        if !wanted {
            poller.remove(fd);
        } else if poller.add(fd, Token::Relay(number), interest).is_err() {
            // Nothing would ever come of it.
            self.end(number, poller);
        }
    }

    /// Closes the process's end, and tells the client.
    fn end(&mut self, number: u64, poller: &Poller) {
        let Some(end) = self.ends.get_mut(&number) else { return };
        let side = std::mem::replace(&mut end.side, Side::Ended);
        if std::mem::take(&mut end.watched)
            && let Side::Output { source: fd, .. } | Side::Input(Input { target: fd, .. }) = &side
        {
            // A duplicate elsewhere would keep the registration alive.
            poller.remove(fd);
        }
        let id = end.id.clone();
        if let Some(call) = self.client_of(&id) {
            self.finish_client(call);
        }
        self.has_ended |= matches!(side, Side::Output { .. });
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
