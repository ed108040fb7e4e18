//! Which fields an update replaces.
//!
//! A path is the name of a field, or the name of a map, a dot, and one of its keys; the key may
//! itself contain dots. An empty mask stands for whatever the object calls mutable.

use crate::labels::Labels;

/// One path of an update mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path<'a> {
    /// The whole field.
    Field(&'a str),
    /// One entry of a map: the field and the key.
    Entry(&'a str, &'a str),
}

impl<'a> Path<'a> {
    /// Reads a path; every text is one.
    pub fn parse(text: &'a str) -> Self {
        match text.split_once('.') {
            Some((field, key)) => Self::Entry(field, key),
            None => Self::Field(text),
        }
    }
}

/// Sets the entry `key` of `labels` to what `new` says; an entry that `new` lacks becomes empty, as
/// in containerd, where stores then drop it.
pub fn set_entry(labels: &mut Labels, key: &str, new: &Labels) {
    match new.get(key) {
        Some(value) if !value.is_empty() => labels.insert(key.to_owned(), value.clone()),
        _ => labels.remove(key),
    };
}

/// Sets all of `labels` to what `new` says, but for empty ones.
pub fn replace(labels: &mut Labels, new: &Labels) {
    labels.clone_from(new);
    labels.retain(|_, value| !value.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse() {
        let cases = [
            ("field", "labels", Path::Field("labels")),
            ("entry", "labels.a", Path::Entry("labels", "a")),
            ("dots in the key", "labels.a.b/c", Path::Entry("labels", "a.b/c")),
            ("empty key", "labels.", Path::Entry("labels", "")),
        ];
        for (case, text, want) in cases {
            assert_eq!(Path::parse(text), want, "{case}");
        }
    }
}
