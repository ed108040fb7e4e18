//! Names of snapshots.

use std::fmt;

/// The longest name of a snapshot, in bytes.
pub const NAME_LEN_MAX: usize = 4096;

/// The longest namespace, in bytes. The engine's own limit is lower.
pub const NAMESPACE_LEN_MAX: usize = 256;

/// The name of a snapshot: the key of an active one or of a view, the name of a committed one.
///
/// Keys of different namespaces are different. Within a namespace a name is any text, since
/// clients make them up: `extract-1-abcd sha256:…`, paths, identifiers. It is no path component,
/// and nothing but the database sees it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    namespace: Box<str>,
    name: Box<str>,
}

impl Key {
    /// Checks lengths.
    ///
    /// # Errors
    ///
    /// [`KeyError`]: the name or the namespace is empty or too long.
    pub fn new(namespace: &str, name: &str) -> Result<Self, KeyError> {
        match (namespace.len(), name.len()) {
            (0, _) => Err(KeyError::NoNamespace),
            (_, 0) => Err(KeyError::NoName),
            (len, _) if len > NAMESPACE_LEN_MAX => Err(KeyError::NamespaceLength { len }),
            (_, len) if len > NAME_LEN_MAX => Err(KeyError::NameLength { len }),
            _ => Ok(Self { namespace: namespace.into(), name: name.into() }),
        }
    }

    /// The key `name` in the namespace of `self`.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn sibling(&self, name: &str) -> Result<Self, KeyError> {
        Self::new(&self.namespace, name)
    }

    /// The containerd namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name within the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key that a record holds, which was checked when it was written.
    pub(crate) fn stored(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// Only the name: messages go to clients, who know their namespace.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:?}", self.namespace, self.name)
    }
}

/// Why texts are not a [`Key`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum KeyError {
    /// The namespace is empty.
    #[error("snapshot namespace is empty")]
    NoNamespace,
    /// The name is empty.
    #[error("snapshot key is empty")]
    NoName,
    /// The namespace is longer than [`NAMESPACE_LEN_MAX`].
    #[error("snapshot namespace is {len} bytes long, more than {NAMESPACE_LEN_MAX}")]
    NamespaceLength { len: usize },
    /// The name is longer than [`NAME_LEN_MAX`].
    #[error("snapshot key is {len} bytes long, more than {NAME_LEN_MAX}")]
    NameLength { len: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        let long = "n".repeat(NAME_LEN_MAX + 1);
        let cases = [
            ("plain", "default", "a", Ok(())),
            ("odd characters", "default", "extract-1 sha256:00/../\0", Ok(())),
            ("longest", "default", &long[1..], Ok(())),
            ("no namespace", "", "a", Err(KeyError::NoNamespace)),
            ("no name", "default", "", Err(KeyError::NoName)),
            ("too long", "default", &long, Err(KeyError::NameLength { len: NAME_LEN_MAX + 1 })),
            ("long namespace", &long, "a", Err(KeyError::NamespaceLength { len: long.len() })),
        ];
        for (case, namespace, name, want) in cases {
            assert_eq!(Key::new(namespace, name).map(|_| ()), want, "{case}");
        }
    }
}
