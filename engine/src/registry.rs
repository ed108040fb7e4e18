//! Registries: finds images by name and fetches their blobs, by the OCI distribution API.
//!
//! ```text
//!  Reference ──hosts──> endpoints, in order: mirrors first, the registry itself last
//!                           │ per endpoint: TLS, headers, credentials, tokens
//!                           v
//!            resolve / document / blob: the first endpoint that has it answers
//! ```
//!
//! # Invariants
//!
//! 1. Credentials go to the host that they are for, over the connection that they were asked for
//!    on, and to no other: not to the target of a redirect (CVE-2020-15157), not to the `urls` of
//!    a descriptor, which are never contacted.
//! 2. Nothing that a registry sends is trusted: documents have a size limit and are checked
//!    against their digest, blobs by whoever stores them.
//! 3. Every wait has a bound: connecting, the head of an answer, and silence within a body.
//!
//! Sources: OCI distribution-spec 1.1; containerd's `hosts.toml`; RFC 6750, RFC 7235.

mod auth;
mod blob;
mod client;
mod hosts;
mod http;

pub use auth::{Credentials, Secret};
pub use blob::BlobStream;
pub use client::Client;
pub use hosts::{Endpoint, HostsError, Options, endpoints};

use crate::{digest::Digest, oci::DocumentError};

/// Why a registry could not give what was asked for.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum Error {
    /// The configuration for the host is not usable.
    #[error("registry configuration")]
    Hosts(#[from] HostsError),
    /// No endpoint has it.
    #[error("{what}: not found")]
    NotFound { what: String },
    /// The registry wants other credentials, or any.
    #[error("{what}: {host} refuses: {status}")]
    Denied { what: String, host: String, status: hyper::StatusCode },
    /// An answer that is neither what was asked for nor one of the above.
    #[error("{what}: {host} answers {status}{detail}")]
    Status { what: String, host: String, status: hyper::StatusCode, detail: String },
    /// The connection failed, or broke.
    #[error("{what}: {host}")]
    Connection { what: String, host: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// Nothing came for too long.
    #[error("{what}: {host} is silent for {seconds} seconds")]
    Silent { what: String, host: String, seconds: u64 },
    /// The answer breaks the protocol.
    #[error("{what}: {host}: {problem}")]
    Protocol { what: String, host: String, problem: String },
    /// A document is not what its descriptor says.
    #[error("{what}")]
    Document { what: String, source: DocumentError },
    /// The registry says that the tag stands for one digest, and sends another.
    #[error("{what}: the registry sent {got} for {want}")]
    Digest { what: String, want: Digest, got: Digest },
}

impl Error {
    /// Whether another endpoint, or the same one a little later, may do better.
    fn is_passing(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::Silent { .. } => true,
            Self::Status { status, .. } => status.is_server_error() || status.as_u16() == 429,
            _ => false,
        }
    }
}
