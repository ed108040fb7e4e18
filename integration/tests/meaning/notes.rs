//! Which rows differ from containerd, and why.

/// With which containerd a difference is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum With {
    Any,
    /// Debian's, which is older than what gantryd follows.
    Debian,
}

use With::{Any, Debian};

/// The names of rows, and why they differ.
const NOTES: &[(&[&str], With, &str)] = &[
    (
        &[
            "namespace: update all",
            "namespace: update a label",
            "namespace: update a label away",
            "namespace: update what is not there",
        ],
        Any,
        "containerd's answer has no namespace in it",
    ),
    (
        &["namespace: update its name", "namespace: update labels"],
        Any,
        "containerd's text does not end with its cause",
    ),
    (
        &["namespace: update with a long label", "snapshot: list by a broken filter"],
        Any,
        "containerd's code is unknown, though its text says what is invalid",
    ),
    (
        &[
            "image: list by a broken filter",
            "image: list by another broken filter",
            "image: list by an open quote",
            "container: list by a broken filter",
            "lease: list by a broken filter",
        ],
        Any,
        "containerd's text names the cause twice",
    ),
    (&["content: an unknown action"], Any, "containerd ignores it"),
    (
        &["lease: create with a long label", "lease: list"],
        Any,
        "containerd does not check labels of leases",
    ),
    (
        &[
            "snapshot: prepare on an active one",
            "snapshot: view of an active one",
            "snapshot: commit a committed one",
            "snapshot: mounts of a committed one",
        ],
        Any,
        "containerd names the key by which its snapshotter knows it",
    ),
    (
        &[
            "snapshot: prepare without a key",
            "snapshot: commit without a name",
            "snapshot: stat without a key",
            "snapshot: remove without a key",
        ],
        Any,
        "containerd has its database say that there is no name, or looks for one that is empty",
    ),
    (
        &["isolated: begin what it has", "isolated: commit what it has"],
        Debian,
        "containerd 2 lets a namespace share what it has by a label",
    ),
    (
        &[
            "namespace: create with a label of 4097",
            "image: create with a long label",
            "container: create with a long label",
            "content: commit with a long label",
            "content: update with a long label",
            "snapshot: update with a long label",
        ],
        Debian,
        "containerd 2 says how long it is",
    ),
    (
        &[
            "image: create without a digest",
            "image: create with no digest",
            "image: create with a short digest",
            "image: create with an unknown digest",
            "image: create without a size",
            "image: create with a negative size",
            "image: create without a media type",
            "image: update to a bad target",
        ],
        Debian,
        "containerd 2 writes target in lower case",
    ),
];

/// Why the row of this name differs, with a newer containerd or with Debian's.
pub(crate) fn find(name: &str, newer: bool) -> Option<&'static str> {
    let about = |(names, with, _): &&(&[&str], With, &str)| {
        names.contains(&name) && (*with == Any || !newer)
    };
    NOTES.iter().find(about).map(|(_, _, why)| *why)
}

/// The names of all rows that differ.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    NOTES.iter().flat_map(|(names, _, _)| names.iter().copied())
}
