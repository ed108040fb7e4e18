//! Words that several services translate.

use proto::containerd::types;
use snapshotter::Mount;
use tonic::Status;

use super::status;
use crate::{digest::Digest, error::Error, oci::Descriptor};

pub(super) fn parse_digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|error| {
        status(Error::InvalidArgument(format!("digest {text:?} invalid: {error}")))
    })
}

pub(super) fn descriptor_from_wire(wire: types::Descriptor) -> Result<Descriptor, Status> {
    let digest = wire.digest.parse().map_err(|error| {
        let text = wire.digest;
        status(Error::InvalidArgument(format!("target.Digest {text:?} invalid: {error}")))
    })?;
    Ok(Descriptor {
        media_type: wire.media_type,
        digest,
        // A negative size is as wrong as none, and is refused as such.
        size: u64::try_from(wire.size).unwrap_or(0),
        platform: None,
        annotations: wire.annotations,
        urls: Vec::new(),
    })
}

pub(super) fn descriptor_to_wire(descriptor: Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type,
        digest: descriptor.digest.to_string(),
        size: size_to_wire(descriptor.size),
        annotations: descriptor.annotations,
    }
}

/// A size or an offset; no file is larger than what the wire can say.
pub(super) fn size_to_wire(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

pub(super) fn mounts_to_wire(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let to_wire = |mount: Mount| types::Mount {
        r#type: mount.kind,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    mounts.into_iter().map(to_wire).collect()
}

pub(crate) fn mounts_from_wire(mounts: Vec<types::Mount>) -> Vec<Mount> {
    let from_wire = |mount: types::Mount| Mount {
        kind: mount.r#type,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    mounts.into_iter().map(from_wire).collect()
}
