//! What clients attach to objects: short texts by name.

use std::collections::BTreeMap;

/// The largest label, in bytes of key and value together.
pub const LABEL_LEN_MAX: usize = 4096;

/// The label of a compressed layer with the digest of what is in it.
pub const LABEL_UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// How much of a key an error shows, in bytes.
const KEY_SHOWN_MAX: usize = 64;

/// The labels of an object, in the order of their keys.
pub type Labels = BTreeMap<String, String>;

/// Checks every label.
///
/// # Errors
///
/// The first label, in the order of keys, that is none.
///
/// Source: containerd, `pkg/labels`; that a key may not be empty its database says.
pub fn check(labels: &Labels) -> Result<(), LabelError> {
    labels.iter().try_for_each(|(key, value)| check_one(key, value))
}

/// Checks one label.
///
/// # Errors
///
/// It has no key, or is larger than [`LABEL_LEN_MAX`].
pub fn check_one(key: &str, value: &str) -> Result<(), LabelError> {
    if key.is_empty() {
        return Err(LabelError::NoKey);
    }
    let len = key.len() + value.len();
    if len <= LABEL_LEN_MAX {
        return Ok(());
    }
    let fits = key.char_indices().take_while(|(at, char)| at + char.len_utf8() <= KEY_SHOWN_MAX);
    Err(LabelError::TooLong { len, key: fits.map(|(_, char)| char).collect() })
}

/// Why a text by a name is no label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum LabelError {
    /// Its key is empty.
    #[error("label key must not be empty")]
    NoKey,
    /// It is larger than [`LABEL_LEN_MAX`].
    #[error(
        "label key and value length ({len} bytes) greater than maximum size ({LABEL_LEN_MAX} bytes), key: {key}"
    )]
    TooLong { len: usize, key: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_label() {
        let key = "k".repeat(100);
        let too_long = LabelError::TooLong { len: LABEL_LEN_MAX + 1, key: "k".repeat(64) };
        let cases = [
            ("fits", key.as_str(), LABEL_LEN_MAX - 100, Ok(())),
            ("too long", &key, LABEL_LEN_MAX - 99, Err(too_long)),
            ("no value", &key, 0, Ok(())),
            ("no key", "", 1, Err(LabelError::NoKey)),
        ];
        for (case, key, value, want) in cases {
            assert_eq!(check_one(key, &"v".repeat(value)), want, "{case}");
        }
    }
}
