//! Paths of layer entries.

use super::EntryProblem;

/// What whiteouts start with.
pub(super) const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// The name that makes a directory opaque.
pub(super) const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// The name of files that AUFS kept for itself.
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";

/// A place in a layer: the directories from the root, and a name in the last of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Joined by slashes, without one in front; empty for the root.
    pub(super) directory: Vec<u8>,
    pub(super) name: Vec<u8>,
}

/// What an entry's path means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The root itself, which keeps its attributes, as in containerd.
    Root,
    /// Something that AUFS left behind, which is no part of the layer.
    Ignored,
    /// A file of whatever type.
    File(Place),
    /// The removal of what lower layers have at this place.
    Whiteout(Place),
    /// The removal of all that lower layers have in this directory.
    Opaque { directory: Vec<u8> },
}

/// Cleans `path`: empty parts and `.` go, `..` takes back what is in front of it, and never more.
pub(super) fn components(path: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

/// Splits a path that leads somewhere below the root.
pub(super) fn place(path: &[u8]) -> Option<Place> {
    let parts = components(path);
    let (name, directories) = parts.split_last()?;
    Some(Place { directory: directories.join(&b'/'), name: name.to_vec() })
}

/// Finds out what the path of an entry means.
pub(super) fn target(path: &[u8]) -> Result<Target, EntryProblem> {
    let parts = components(path);
    let Some((name, directories)) = parts.split_last() else { return Ok(Target::Root) };
    if let Some(whiteout) = directories.iter().find(|part| part.starts_with(WHITEOUT_PREFIX)) {
        let is_meta = whiteout.starts_with(WHITEOUT_META_PREFIX);
        return if is_meta { Ok(Target::Ignored) } else { Err(EntryProblem::BelowWhiteout) };
    }
    let directory = directories.join(&b'/');
    if *name == WHITEOUT_OPAQUE {
        return Ok(Target::Opaque { directory });
    }
    if name.starts_with(WHITEOUT_META_PREFIX) {
        return Ok(Target::Ignored);
    }
    match name.strip_prefix(WHITEOUT_PREFIX) {
        None => Ok(Target::File(Place { directory, name: name.to_vec() })),
        Some(b"" | b"." | b"..") => Err(EntryProblem::WhiteoutName),
        Some(name) => Ok(Target::Whiteout(Place { directory, name: name.to_vec() })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(directory: &str, name: &str) -> Place {
        Place { directory: directory.into(), name: name.into() }
    }

    #[test]
    fn targets() {
        use Target::{File, Ignored, Opaque, Root, Whiteout};
        let cases = [
            ("etc/passwd", Ok(File(at("etc", "passwd")))),
            ("./etc//./passwd/", Ok(File(at("etc", "passwd")))),
            ("/etc/passwd", Ok(File(at("etc", "passwd")))),
            ("../../etc/passwd", Ok(File(at("etc", "passwd")))),
            ("a/../../b", Ok(File(at("", "b")))),
            ("./", Ok(Root)),
            ("", Ok(Root)),
            ("a/..", Ok(Root)),
            ("a/.wh.b", Ok(Whiteout(at("a", "b")))),
            (".wh.b", Ok(Whiteout(at("", "b")))),
            ("a/.wh....", Ok(Whiteout(at("a", "...")))),
            ("a/.wh..wh..opq", Ok(Opaque { directory: "a".into() })),
            (".wh..wh..opq", Ok(Opaque { directory: "".into() })),
            (".wh..wh.plnk", Ok(Ignored)),
            (".wh..wh.plnk/1.2", Ok(Ignored)),
            ("a/.wh.", Err(EntryProblem::WhiteoutName)),
            ("a/.wh..", Err(EntryProblem::WhiteoutName)),
            ("a/.wh...", Err(EntryProblem::WhiteoutName)),
            ("a/.wh.b/c", Err(EntryProblem::BelowWhiteout)),
        ];
        for (path, want) in cases {
            assert_eq!(target(path.as_bytes()), want, "{path:?}");
        }
    }
}
