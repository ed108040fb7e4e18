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

/// Checks the size of every label.
///
/// # Errors
///
/// The first label, in the order of keys, that is larger than [`LABEL_LEN_MAX`].
///
/// Source: containerd, `pkg/labels`.
pub fn check(labels: &Labels) -> Result<(), LabelTooLong> {
    labels.iter().try_for_each(|(key, value)| check_one(key, value))
}

/// Checks the size of one label.
///
/// # Errors
///
/// It is larger than [`LABEL_LEN_MAX`].
pub fn check_one(key: &str, value: &str) -> Result<(), LabelTooLong> {
    let len = key.len() + value.len();
    if len <= LABEL_LEN_MAX {
        return Ok(());
    }
    let fits = key.char_indices().take_while(|(at, char)| at + char.len_utf8() <= KEY_SHOWN_MAX);
    Err(LabelTooLong { len, key: fits.map(|(_, char)| char).collect() })
}

/// A label is larger than [`LABEL_LEN_MAX`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "label key and value length ({len} bytes) greater than maximum size ({LABEL_LEN_MAX} bytes), key: {key}"
)]
pub struct LabelTooLong {
    len: usize,
    key: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit() {
        let key = "k".repeat(100);
        let cases = [
            ("fits", LABEL_LEN_MAX - 100, Ok(())),
            (
                "too long",
                LABEL_LEN_MAX - 99,
                Err(LabelTooLong { len: LABEL_LEN_MAX + 1, key: "k".repeat(64) }),
            ),
        ];
        for (case, value, want) in cases {
            assert_eq!(check_one(&key, &"v".repeat(value)), want, "{case}");
        }
    }
}
