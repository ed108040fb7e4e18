//! What all records have in common.
//!
//! A record is an encoded protocol buffer message of this module's siblings, so that fields can be
//! added; the messages are documented in `docs/formats.md` and are no part of the API.

use std::{
    ops::ControlFlow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prost::Message;

use super::{
    key,
    rows::{Rows, Table, View},
};
use crate::{
    error::Error,
    filter::{Fields, Filter},
    labels::Labels,
    namespace::Namespace,
};

/// The message in `value`; `what` says whose it is, if it is none. Lists read thousands.
pub(super) fn decode<M: Message + Default>(
    what: impl FnOnce() -> String,
    value: &[u8],
) -> Result<M, Error> {
    M::decode(value).map_err(|source| Error::Damaged { what: what(), source: Box::new(source) })
}

/// The digest in a record.
pub(super) fn digest(
    what: impl FnOnce() -> String,
    text: &str,
) -> Result<crate::digest::Digest, Error> {
    text.parse().map_err(|source: crate::digest::ParseDigestError| Error::Damaged {
        what: what(),
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

/// The objects of a namespace that `filter` selects, by name; `read` makes one of its name and its
/// record.
pub(super) fn select<T: Fields>(
    rows: &dyn Rows,
    table: Table,
    namespace: &Namespace,
    filter: &Filter,
    read: impl Fn(&str, &[u8]) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut found = Vec::new();
    rows.scan(table, &key::in_namespace(namespace), &mut |key, value| {
        let [_, name] = key::split(key)?;
        let object = read(name, value)?;
        if filter.matches(&object) {
            found.push(object);
        }
        Ok(())
    })?;
    Ok(found)
}

/// Some objects of a list that is read piece by piece.
#[derive(Debug)]
pub struct Page<T> {
    /// The objects, in order.
    pub objects: Vec<T>,
    /// The name after which the list goes on; nothing at its end.
    pub next: Option<String>,
}

/// The objects of a namespace that come after the name `after`, by name, until their records are
/// `len_max` bytes or more. `read` makes an object of its name and its record, or leaves it out.
pub(super) fn select_after<T>(
    view: &View,
    table: Table,
    namespace: &Namespace,
    after: &str,
    len_max: usize,
    mut read: impl FnMut(&str, &[u8]) -> Result<Option<T>, Error>,
) -> Result<Page<T>, Error> {
    let mut page = Page { objects: Vec::new(), next: None };
    let mut len = 0;
    let (prefix, after) = (key::in_namespace(namespace), key::of(namespace, after));
    view.scan_after(table, &prefix, &after, |key, value| {
        let [_, name] = key::split(key)?;
        let Some(object) = read(name, value)? else { return Ok(ControlFlow::Continue(())) };
        page.objects.push(object);
        len += value.len();
        if len < len_max {
            return Ok(ControlFlow::Continue(()));
        }
        page.next = Some(name.to_owned());
        Ok(ControlFlow::Break(()))
    })?;
    Ok(page)
}

/// Checks labels that a client gave, and drops the empty ones: they are not stored.
pub(super) fn checked(field: &str, mut labels: Labels) -> Result<Labels, Error> {
    crate::labels::check(&labels)
        .map_err(|error| Error::InvalidArgument(format!("{field}: {error}")))?;
    labels.retain(|_, value| !value.is_empty());
    Ok(labels)
}
