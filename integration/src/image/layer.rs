//! A layer, entry by entry.

use tar::{Builder, EntryType, Header};

/// A filesystem changeset in the making.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    path: String,
    mode: u32,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    HardLink(String),
}

impl Layer {
    /// Adds a directory.
    #[must_use]
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.with(path, mode, Kind::Directory)
    }

    /// Adds a regular file.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.with(path, mode, Kind::File(content.into()))
    }

    /// Adds a symbolic link to `target`.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.with(path, 0o777, Kind::Symlink(target.to_owned()))
    }

    /// Adds another name of the file at `target`.
    #[must_use]
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        let same = self.entries.iter().find(|entry| entry.path == target);
        let mode = same.map_or(0o755, |entry| entry.mode);
        self.with(path, mode, Kind::HardLink(target.to_owned()))
    }

    /// Removes what lower layers have at `path`.
    #[must_use]
    pub fn whiteout(self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.file(&format!("{parent}/.wh.{name}"), 0o644, "")
    }

    /// Hides what lower layers have in the directory `path`.
    #[must_use]
    pub fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), 0o644, "")
    }

    fn with(mut self, path: &str, mode: u32, kind: Kind) -> Self {
        self.entries.push(Entry { path: path.trim_start_matches('/').to_owned(), mode, kind });
        self
    }

    /// Writes the layer as an archive.
    ///
    /// # Panics
    ///
    /// A path or a link's target is longer than the archive's format allows.
    pub fn tar(&self) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for entry in &self.entries {
            let mut header = Header::new_gnu();
            header.set_mode(entry.mode);
            header.set_mtime(1_767_225_600);
            header.set_size(0);
            let written = match &entry.kind {
                Kind::Directory => {
                    header.set_entry_type(EntryType::Directory);
                    builder.append_data(&mut header, format!("{}/", entry.path), [].as_slice())
                }
                Kind::File(content) => {
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, &entry.path, content.as_slice())
                }
                Kind::Symlink(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    builder.append_link(&mut header, &entry.path, target)
                }
                Kind::HardLink(target) => {
                    header.set_entry_type(EntryType::Link);
                    builder.append_link(&mut header, &entry.path, target)
                }
            };
            written.expect("an entry that the archive's format can hold");
        }
        builder.into_inner().expect("a vector takes all bytes")
    }
}
