//! The keys of rows: names joined by NUL bytes.
//!
//! Only the last name may contain anything; those before it have a grammar without NUL, or are
//! checked by [`part`].

use crate::{error::Error, namespace::Namespace};

/// The prefix of everything in `namespace`.
pub(super) fn in_namespace(namespace: &Namespace) -> Vec<u8> {
    prefix(&[namespace.as_str()])
}

/// The key of `name` in `namespace`.
pub(super) fn of(namespace: &Namespace, name: &str) -> Vec<u8> {
    join(&[namespace.as_str(), name])
}

pub(super) fn join(parts: &[&str]) -> Vec<u8> {
    parts.join("\0").into_bytes()
}

pub(super) fn prefix(parts: &[&str]) -> Vec<u8> {
    let mut key = join(parts);
    key.push(0);
    key
}

/// Checks that `name` can stand before others.
pub(super) fn part(name: &str) -> Result<&str, Error> {
    if name.contains('\0') {
        return Err(Error::InvalidArgument(format!("name {name:?} contains a null")));
    }
    Ok(name)
}

/// The names in `key`, at most `N`; the last has the rest.
pub(super) fn split<const N: usize>(key: &[u8]) -> Result<[&str; N], Error> {
    let damaged = || Error::Damaged {
        what: format!("key {}", key.escape_ascii()),
        source: format!("not {N} names").into(),
    };
    let text = std::str::from_utf8(key).map_err(|_| damaged())?;
    let mut parts = text.splitn(N, '\0');
    let mut names = [""; N];
    for name in &mut names {
        *name = parts.next().ok_or_else(damaged)?;
    }
    Ok(names)
}
