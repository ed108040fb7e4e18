//! Container ids.

use std::{fmt, path::Path, str::FromStr};

/// The name of a container, unique in a root directory, where it names a directory.
///
/// Letters, digits and `_+-.`, and neither `.` nor `..`: what runc accepts. Parsing is the only
/// way to get one, so it may be used as a path component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerId(String);

/// The most bytes an id may have: it becomes a file name.
const LEN_MAX: usize = 255;

impl ContainerId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ParseIdError::Empty);
        }
        if text.len() > LEN_MAX {
            return Err(ParseIdError::TooLong { len: text.len() });
        }
        if text == "." || text == ".." {
            return Err(ParseIdError::Dots);
        }
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"_+-.".contains(b);
        match text.bytes().position(|b| !allowed(&b)) {
            Some(at) => Err(ParseIdError::Character { at }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<Path> for ContainerId {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

/// Why a text is not a container id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum ParseIdError {
    /// There is no text.
    #[error("container id cannot be empty")]
    Empty,
    /// The text is longer than a file name may be.
    #[error("id is {len} bytes long, more than 255")]
    TooLong { len: usize },
    /// The text is the name of a directory itself or of its parent.
    #[error("id is a relative path")]
    Dots,
    /// The text has a byte outside letters, digits and `_+-.`, first at this offset.
    #[error("id has a forbidden character at offset {at}")]
    Character { at: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse() {
        use ParseIdError as E;
        let cases = [
            ("plain", "ubuntu01".to_owned(), Ok(())),
            ("all kinds", "a_B+3-.x".to_owned(), Ok(())),
            ("hidden", ".a".to_owned(), Ok(())),
            ("empty", String::new(), Err(E::Empty)),
            ("self", ".".to_owned(), Err(E::Dots)),
            ("parent", "..".to_owned(), Err(E::Dots)),
            ("path", "a/b".to_owned(), Err(E::Character { at: 1 })),
            ("space", " a".to_owned(), Err(E::Character { at: 0 })),
            ("not ascii", "ä".to_owned(), Err(E::Character { at: 0 })),
            ("too long", "x".repeat(256), Err(E::TooLong { len: 256 })),
        ];
        for (case, text, want) in cases {
            let got = text.parse::<ContainerId>().map(|id| id.to_string());
            assert_eq!(got, want.map(|()| text), "{case}");
        }
    }
}
