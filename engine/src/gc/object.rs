//! What garbage collection tells apart.

use std::fmt;

use crate::namespace::Namespace;

/// The kinds of objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the words of the project")]
pub enum Kind {
    Lease,
    Image,
    Container,
    Sandbox,
    Content,
    /// Of this snapshotter.
    Snapshot(String),
    Ingest,
    /// Another program that keeps blobs or snapshots.
    Plugin,
}

/// An object, as its records name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "named after what they hold")]
pub struct Object {
    pub namespace: Namespace,
    pub kind: Kind,
    pub name: String,
}

impl Kind {
    /// The kind without the snapshotter.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Image => "image",
            Self::Container => "container",
            Self::Sandbox => "sandbox",
            Self::Content => "content",
            Self::Snapshot(_) => "snapshot",
            Self::Ingest => "ingest",
            Self::Plugin => "plugin",
        }
    }
}

/// As clients write it: `snapshot/overlayfs/<key>`, and for other kinds `<kind>/<name>`.
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Snapshot(snapshotter) => write!(f, "snapshot/{snapshotter}/{}", self.name),
            kind => write!(f, "{}/{}", kind.word(), self.name),
        }
    }
}
