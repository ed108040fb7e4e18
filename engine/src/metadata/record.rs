//! What all records have in common.
//!
//! A record is an encoded protocol buffer message of this module's siblings, so that fields can be
//! added; the messages are documented in `docs/formats.md` and are no part of the API.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::{error::Error, labels::Labels};

pub(super) fn decode<M: Message + Default>(what: &str, value: &[u8]) -> Result<M, Error> {
    M::decode(value)
        .map_err(|source| Error::Damaged { what: what.to_owned(), source: Box::new(source) })
}

/// The digest in a record.
pub(super) fn digest(what: &str, text: &str) -> Result<crate::digest::Digest, Error> {
    text.parse().map_err(|source: crate::digest::ParseDigestError| Error::Damaged {
        what: what.to_owned(),
        source: Box::new(source),
    })
}

/// Nanoseconds since 1970, before it negative; what does not fit is the nearest that does.
pub(super) fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |before| -before)
        }
    }
}

/// The reverse of [`nanoseconds`].
pub(super) fn time(nanoseconds: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanoseconds.unsigned_abs());
    if nanoseconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

/// Checks labels that a client gave, and drops the empty ones: they are not stored.
pub(super) fn checked(field: &str, mut labels: Labels) -> Result<Labels, Error> {
    crate::labels::check(&labels)
        .map_err(|error| Error::InvalidArgument(format!("{field}: {error}")))?;
    labels.retain(|_, value| !value.is_empty());
    Ok(labels)
}
