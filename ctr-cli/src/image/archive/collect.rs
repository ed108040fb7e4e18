//! Reads an archive into the content store.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use super::super::{
    blobs::write_stream,
    digest::{Digest, Hasher},
    tar::{Archive, Entry, EntryKind},
};
use crate::{client::Client, names};

/// The most that a file which is read into memory may have (CVE-2023-25153).
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// How many links lead to a file at most.
const LINKS_MAX: usize = 16;

/// What an archive holds.
#[derive(Default)]
pub(super) struct Collected {
    /// `index.json`.
    pub(super) index: Option<Vec<u8>>,
    /// `manifest.json`.
    pub(super) manifest: Option<Vec<u8>>,
    files: HashMap<String, Stored>,
    links: HashMap<String, String>,
}

/// A file that is in the content store now.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) digest: Digest,
    pub(super) size: i64,
    /// The first bytes, by which formats are told.
    pub(super) magic: [u8; 4],
}

impl Collected {
    /// The file at a path in the archive, through links.
    pub(super) fn file(&self, path: &str) -> anyhow::Result<&Stored> {
        let mut current = clean("", path);
        for _ in 0..LINKS_MAX {
            if let Some(stored) = self.files.get(&current) {
                return Ok(stored);
            }
            let next = self.links.get(&current);
            current =
                next.with_context(|| format!("the archive has no {path}: not found"))?.clone();
        }
        anyhow::bail!("{path} in the archive is a link to itself")
    }
}

/// Writes all files of an archive to the content store.
pub(super) async fn collect(
    client: &Client,
    reader: impl AsyncRead + Unpin,
) -> anyhow::Result<Collected> {
    let mut archive = Archive::new(reader);
    let mut collected = Collected::default();
    while let Some(entry) = archive.next().await? {
        let path = clean("", &entry.path);
        match (entry.kind, path.as_str()) {
            (EntryKind::File, "index.json") => {
                collected.index = Some(document(&mut archive, &entry).await?);
            }
            (EntryKind::File, "manifest.json") => {
                collected.manifest = Some(document(&mut archive, &entry).await?);
            }
            (EntryKind::File, "oci-layout" | "repositories") => {}
            (EntryKind::File, _) => {
                let stored = store(client, &mut archive, &entry, &path)
                    .await
                    .with_context(|| format!("import {path}"))?;
                collected.files.insert(path, stored);
            }
            (EntryKind::Hardlink, _) => {
                collected.links.insert(path, clean("", &entry.link));
            }
            (EntryKind::Symlink, _) => {
                let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                let target = clean(directory, &entry.link);
                collected.links.insert(path, target);
            }
            (EntryKind::Other, _) => {}
        }
    }
    Ok(collected)
}

async fn document<R: AsyncRead + Unpin>(
    archive: &mut Archive<R>,
    entry: &Entry,
) -> anyhow::Result<Vec<u8>> {
    ensure!(entry.size <= DOCUMENT_BYTES_MAX, "{} has {} bytes", entry.path, entry.size);
    let mut bytes = Vec::new();
    archive.contents(entry).read_to_end(&mut bytes).await?;
    ensure!(bytes.len() as u64 == entry.size, "the archive is cut short");
    Ok(bytes)
}

async fn store<R: AsyncRead + Unpin>(
    client: &Client,
    archive: &mut Archive<R>,
    entry: &Entry,
    path: &str,
) -> anyhow::Result<Stored> {
    let size = i64::try_from(entry.size)?;
    let expected = named_digest(path);
    // A name of its own: the content of an unnamed file is not known before it is read, so an
    // earlier attempt that was cut short cannot be continued.
    let reference = match &expected {
        Some(digest) => format!("import-{digest}"),
        None => names::unique("import"),
    };
    let mut hashing = Hashing::new(archive.contents(entry));
    let none = BTreeMap::new();
    write_stream(client, &reference, &mut hashing, size, expected.as_ref(), none).await?;
    // The store may have had it already and left the data unread.
    tokio::io::copy(&mut hashing, &mut tokio::io::sink()).await?;
    ensure!(hashing.count == entry.size, "the archive is cut short");
    let magic = hashing.magic;
    let digest = match expected {
        Some(digest) => digest,
        None => hashing.hasher.finish(),
    };
    Ok(Stored { digest, size, magic })
}

/// The digest in a path such as `blobs/sha256/<hex>`.
fn named_digest(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// A path without `.`, `..` and empty components, seen from a directory of the archive.
fn clean(directory: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
    magic: [u8; 4],
    count: u64,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Self {
        Self { inner, hasher: Hasher::new(), magic: [0; 4], count: 0 }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Hashing<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let new = &buffer.filled()[before..];
        let this = &mut *self;
        this.hasher.update(new);
        let start = usize::try_from(this.count).unwrap_or(usize::MAX).min(this.magic.len());
        for (slot, byte) in this.magic[start..].iter_mut().zip(new) {
            *slot = *byte;
        }
        this.count += new.len() as u64;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let cases = [
            ("", "./blobs/x", "blobs/x"),
            ("a/b", "../c/layer.tar", "a/c/layer.tar"),
            ("a", "../../../etc/passwd", "etc/passwd"),
            ("", "/a//b/", "a/b"),
        ];
        for (directory, path, want) in cases {
            assert_eq!(clean(directory, path), want, "{path} from {directory:?}");
        }
    }
}
