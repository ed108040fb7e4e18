//! ttrpc: gRPC's calls without HTTP/2, for the sockets between engine and shim.
//!
//! A connection carries frames, and nothing else. A frame is a header of ten bytes and a payload:
//!
//! ```text
//!  0        4          8      9       10
//!  | length | stream ID | type | flags | payload, `length` bytes
//! ```
//!
//! Numbers are big-endian. A client numbers its calls with odd stream IDs; a request (type 1) and
//! the response (type 2) to it share one. Data frames (type 3) belong to streaming calls, which only
//! the shim serves: the client and the server here answer one with an error. A streaming call is a
//! request with the flag [`REMOTE_OPEN`](frame::REMOTE_OPEN), data in both directions, and at its
//! end data with [`REMOTE_CLOSED`](frame::REMOTE_CLOSED), or a response with an error.
//!
//! [`frame`] knows the format and does no I/O, so that the shim's event loop and the engine's
//! tasks share it. Source: containerd/ttrpc, `PROTOCOL.md`.

//! Over it, and with tokio, are a [`Client`] and a server ([`serve`]).

#[cfg(feature = "ttrpc-async")]
mod client;
pub mod frame;
#[cfg(feature = "ttrpc-async")]
mod read;
#[cfg(feature = "ttrpc-async")]
mod server;

#[cfg(feature = "ttrpc-async")]
pub use client::{CALLS_MAX, CallError, Client, Target};
pub use frame::{Code, Frame, FrameError, KeyValue, Kind, Request, Response, Status};
#[cfg(feature = "ttrpc-async")]
pub use server::{CONNECTIONS_MAX, Service, metadata, serve, status};
