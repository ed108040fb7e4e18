//! Garbage collection.

/// The label with the time after which an object is not kept for its own sake (RFC 3339).
pub const EXPIRE: &str = "containerd.io/gc.expire";
