//! Archives into the stores.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::Arc,
    thread::JoinHandle,
};

use bytes::{Buf, Bytes};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    Destination, Error, NameRule, Progress, Transfer, Work,
    archive::{self, ArchiveError, Contents, Sink},
    blocking, plan, unique,
};
use crate::{
    content::{self, NewWrite},
    digest::Digest,
    labels::Labels,
    namespace::Scope,
    oci::{Descriptor, media_type},
    streaming::ByteReceiver,
};

/// How many blobs may wait for the disk at once.
const COMMITS_MAX: usize = 4;

/// How many parts of an archive wait for the thread that stores them.
const FEED_LEN: usize = 16;

impl Transfer {
    /// Imports the images of the archive that comes over `stream`.
    ///
    /// # Errors
    ///
    /// As of [`Error`]. Names that were recorded before the error stay.
    pub async fn import(
        &self,
        scope: Scope,
        stream: ByteReceiver,
        to: Destination,
        progress: Progress,
    ) -> Result<(), Error> {
        let lease = self.lease(scope).await?;
        let work = self.work(&lease, None, progress.clone());
        work.progress.say("Importing", "", None).await;
        let contents = work.read_archive(stream).await?;
        for (descriptor, bytes) in contents.made {
            work.store_document(&descriptor, bytes.into(), Labels::new()).await?;
        }
        let mut done: Vec<Descriptor> = Vec::new();
        let mut skipped = None;
        let mut names = Vec::new();
        for image in &contents.index.manifests {
            // Each image has its own, since what is stopped stays so.
            let work = self.work(&lease, None, progress.clone());
            if !done.iter().any(|other| other.digest == image.digest) {
                match work.fill(image, None, &to).await {
                    Err(error @ (Error::NothingSelected { .. } | Error::Missing { .. })) => {
                        skipped = Some(error);
                        continue;
                    }
                    result => result?,
                }
                done.push(image.clone());
            }
            let of_image = to.rules.iter().flat_map(|rule: &NameRule| rule.names(image));
            let further = of_image.filter(|name| to.is_further(name));
            names.extend(further.map(|name| (name, image)));
        }
        match skipped {
            Some(error) if done.is_empty() => return Err(error),
            _ => {}
        }
        if !to.name.is_empty() || to.rules.iter().any(|rule| rule.add_digest || !rule.is_prefix) {
            let bytes = serde_json::to_vec(&contents.index).expect("plain data");
            let index = Descriptor::of(media_type::OCI_INDEX, &bytes);
            let labels = plan::child_labels(&contents.index.manifests);
            work.store_document(&index, bytes.into(), labels).await?;
            work.record_whole(&index, &to).await?;
        }
        for (name, image) in names {
            work.record(&name, image, &to.further_labels()).await?;
        }
        work.progress.say("Completed import", "", None).await;
        lease.end().await
    }
}

impl Work {
    async fn read_archive(self: &Arc<Self>, mut stream: ByteReceiver) -> Result<Contents, Error> {
        let (parts, feed) = mpsc::channel(FEED_LEN);
        let mut receiving = JoinSet::new();
        receiving.spawn(async move {
            loop {
                let part = stream.next().await.map_err(io::Error::other).transpose();
                let Some(part) = part else { return };
                let failed = part.is_err();
                if parts.send(part).await.is_err() || failed {
                    return;
                }
            }
        });
        let work = Arc::clone(self);
        blocking(move || {
            let feed = Feed { parts: feed, part: Bytes::new() };
            let mut blobs = Blobs { work, commits: VecDeque::new() };
            let contents = archive::read(feed, &mut blobs)?;
            blobs.settle(0)?;
            Ok(contents)
        })
        .await
    }
}

/// Reads what comes over a stream.
struct Feed {
    parts: mpsc::Receiver<io::Result<Bytes>>,
    part: Bytes,
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            match self.parts.blocking_recv() {
                None => return Ok(0),
                Some(part) => self.part = part?,
            }
        }
        let len = buffer.len().min(self.part.len());
        self.part.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

/// Keeps an archive's blobs in the content store.
///
/// A commit waits for the disk; the next blob is received meanwhile.
struct Blobs {
    work: Arc<Work>,
    commits: VecDeque<JoinHandle<Result<(), Error>>>,
}

impl Blobs {
    /// Waits until at most `rest` commits are under way.
    fn settle(&mut self, rest: usize) -> Result<(), Error> {
        while self.commits.len() > rest
            && let Some(commit) = self.commits.pop_front()
        {
            commit
                .join()
                .unwrap_or_else(|_| Err(Error::Stopped("a commit panicked".to_owned())))?;
        }
        Ok(())
    }
}

/// Commits what was written; a blob that is there already is as good.
fn commit(work: &Work, writer: content::Writer, digest: &Digest, size: u64) -> Result<(), Error> {
    let reference = writer.status().reference;
    match writer.commit(size, Some(digest), Labels::new()) {
        Ok(_) => Ok(()),
        Err(crate::error::Error::AlreadyExists(_)) => work.has_blob(digest).map(drop),
        Err(error) => {
            forget(work, &reference);
            Err(error.into())
        }
    }
}

/// Gives up a write: nobody can go on with it under a name that nobody knows.
fn forget(work: &Work, reference: &str) {
    if let Err(error) = work.content.abort(&work.scope.namespace, reference) {
        tracing::debug!(%error, reference, "remains of an import stay until collected");
    }
}

impl Sink for Blobs {
    type Error = Error;

    fn blob(
        &mut self,
        size: u64,
        data: &mut dyn FnMut() -> Result<Option<Vec<u8>>, ArchiveError>,
    ) -> Result<Descriptor, Error> {
        let reference = format!("import-{}", unique());
        let new = NewWrite { total: size, ..NewWrite::new(&reference) };
        let mut writer = self.work.content.writer(&self.work.scope, new)?;
        let mut receive = || {
            while let Some(part) = data()? {
                writer.write(&part)?;
            }
            Ok(())
        };
        if let Err(error) = receive() {
            drop(writer);
            forget(&self.work, &reference);
            return Err(error);
        }
        let digest = writer.digest().expect("the writer hashes");
        let (work, known) = (Arc::clone(&self.work), digest.clone());
        self.settle(COMMITS_MAX - 1)?;
        self.commits.push_back(std::thread::spawn(move || commit(&work, writer, &known, size)));
        Ok(Descriptor { digest, size, ..Descriptor::of("", b"") })
    }

    fn head(&mut self, blob: &Descriptor, len: usize) -> Result<Vec<u8>, Error> {
        self.settle(0)?;
        let mut head = Vec::new();
        let limit = u64::try_from(len).unwrap_or(u64::MAX);
        let read = self.work.blob(&blob.digest)?.into_reader().take(limit).read_to_end(&mut head);
        read.map_err(crate::error::Error::file("read", blob.digest.to_string()))?;
        Ok(head)
    }
}
