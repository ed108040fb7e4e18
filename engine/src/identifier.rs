//! The grammar that namespaces, containers and sandboxes are named by.
//!
//! Source: containerd, `pkg/identifiers`. An identifier is safe as one component of a path and as
//! a part of a host name, which is why clients build both from it.

/// The longest identifier, in bytes.
pub const LEN_MAX: usize = 76;

const PATTERN: &str = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$";

/// Checks that `text` is an identifier: letters and digits of ASCII, with single `.`, `_` or `-`
/// between them.
///
/// # Errors
///
/// The rule that `text` breaks.
pub fn check(text: &str) -> Result<(), ParseIdentifierError> {
    if text.is_empty() {
        return Err(ParseIdentifierError::Empty);
    }
    if text.len() > LEN_MAX {
        return Err(ParseIdentifierError::TooLong(text.to_owned()));
    }
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
    if !text.split(['.', '_', '-']).all(word) {
        return Err(ParseIdentifierError::Grammar(text.to_owned()));
    }
    Ok(())
}

/// Why a text is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdentifierError {
    /// There is no text.
    #[error("identifier must not be empty")]
    Empty,
    /// The text has more than [`LEN_MAX`] bytes.
    #[error("identifier {0:?} greater than maximum length ({LEN_MAX} characters)")]
    TooLong(String),
    /// The text has other characters, or separators at an end or next to each other.
    #[error("identifier {0:?} must match {PATTERN}")]
    Grammar(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar() {
        let long = "a".repeat(LEN_MAX);
        let longer = "a".repeat(LEN_MAX + 1);
        let cases = [
            ("letters", "default", true),
            ("separators", "k8s.io_a-b", true),
            ("longest", &long, true),
            ("too long", &longer, false),
            ("empty", "", false),
            ("separator first", ".a", false),
            ("separator last", "a-", false),
            ("two separators", "a--b", false),
            ("slash", "a/b", false),
            ("space", "a b", false),
            ("not ASCII", "ä", false),
            ("new line at the end", "a\n", false),
        ];
        for (case, text, want) in cases {
            assert_eq!(check(text).is_ok(), want, "{case}");
        }
    }
}
