//! The streaming API, by which a client reads and writes a process's streams without fifos.
//!
//! A call of `Stream` is a stream of the client; the copies' `Relays` know which
//! process's it is. Here is what lies between them and the connections: messages are handed on,
//! what is to be sent is sent, and a connection whose peer does not read gets no more until it does.

use proto::ttrpc::frame;

use crate::{
    error::Error,
    server::Call,
    shim::{Answer, Shim},
    stdio::Outgoing,
};

/// The service's name.
pub(crate) const SERVICE: &str = "containerd.services.streaming.v1.Streaming";

/// How many bytes may wait in a connection before output stays in its pipe.
const BACKLOG_LEN_MAX: usize = 64 << 10;

impl Shim {
    /// Serves `Stream`, whose messages come later.
    pub(crate) fn streaming_call(
        &mut self,
        call: Call,
        method: &str,
        flags: u8,
    ) -> Result<Answer, Error> {
        match method {
            "Stream" => self.copies.relays.open(call, flags).map(|()| Answer::Later),
            _ => Err(Error::NotImplemented(format!("method {method}"))),
        }
    }

    /// Tells streams of connections that have ended or have room again, sends what they have for
    /// their clients, and ends what has waited for them.
    pub(crate) fn tend_streams(&mut self) {
        let Self { server, poller, copies, .. } = self;
        for connection in copies.relays.full() {
            if server.backlog(connection) <= BACKLOG_LEN_MAX {
                copies.relays.set_full(connection, false, poller);
            }
        }
        loop {
            for connection in server.take_ended() {
                copies.relays.lost(connection, poller);
            }
            let outgoing = copies.relays.take_outgoing();
            if outgoing.is_empty() {
                break;
            }
            for outgoing in outgoing {
                let call = match outgoing {
                    Outgoing::Message(call, message) => {
                        server.send(call, 0, &message, poller);
                        call
                    }
                    Outgoing::End(call) => {
                        let flags = frame::REMOTE_CLOSED | frame::NO_DATA;
                        server.send(call, flags, &(), poller);
                        call
                    }
                    Outgoing::Failure(call, error) => {
                        server.reply(call, Err(error), poller);
                        call
                    }
                };
                if server.backlog(call.connection) > BACKLOG_LEN_MAX {
                    copies.relays.set_full(call.connection, true, poller);
                }
            }
        }
        if copies.relays.take_has_ended() {
            self.output_ended();
        }
    }
}
