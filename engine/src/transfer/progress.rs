//! How far a transfer is, told to the client while it runs.
//!
//! The work counts; a reporter looks at the counts a few times a second and sends what changed.
//! So telling costs the work nothing, and a client that does not listen holds nothing up.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, mpsc};

use crate::oci::{Descriptor, Role};

/// How often counts are looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// How many messages wait for a slow client before counts are skipped.
const QUEUE_LEN_MAX: usize = 64;

/// One message about a transfer (containerd, `transfer.Progress`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What happens: a state of an item, or words.
    pub event: String,
    /// The item, by its ingest ref, or an image's name.
    pub name: String,
    /// The items that refer to this one.
    pub parents: Vec<String>,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// The blob.
    pub descriptor: Option<Descriptor>,
}

/// Where a transfer is with a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Known of.
    Waiting,
    /// On its way.
    Downloading,
    /// In the content store.
    Complete,
    /// Was in the content store before.
    Exists,
    /// Being unpacked from the content store.
    Extracting,
    /// Stored and unpacked.
    Extracted,
}

impl State {
    const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Downloading,
        Self::Complete,
        Self::Exists,
        Self::Extracting,
        Self::Extracted,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Downloading => "downloading",
            Self::Complete => "complete",
            Self::Exists => "already exists",
            Self::Extracting => "extracting",
            Self::Extracted => "extracted",
        }
    }
}

/// A blob whose progress is told.
#[derive(Debug)]
pub(super) struct Item {
    descriptor: Descriptor,
    parent: String,
    state: AtomicU8,
    done: AtomicU64,
}

impl Item {
    /// Says that the blob is in another state.
    pub(super) fn set(&self, state: State) {
        if matches!(state, State::Complete | State::Exists | State::Extracted) {
            self.done.store(self.descriptor.size, Ordering::Relaxed);
        }
        self.state.store(state as u8, Ordering::Release);
    }

    /// Says that `bytes` more are done.
    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn look(&self) -> (State, u64) {
        let state = State::ALL[usize::from(self.state.load(Ordering::Acquire))];
        (state, self.done.load(Ordering::Relaxed))
    }

    fn message(&self, (state, done): (State, u64)) -> Message {
        Message {
            event: state.name().to_owned(),
            name: ingest_ref(&self.descriptor),
            parents: vec![self.parent.clone()],
            done,
            total: self.descriptor.size,
            descriptor: Some(self.descriptor.clone()),
        }
    }
}

/// The name of a blob's ingest: what it is, and its digest (containerd, `remotes.MakeRefKey`).
pub(super) fn ingest_ref(descriptor: &Descriptor) -> String {
    let kind = match descriptor.role() {
        Role::Index => "index",
        Role::Manifest => "manifest",
        Role::Config => "config",
        Role::Layer => "layer",
        Role::Other => "unknown",
    };
    format!("{kind}-{}", descriptor.digest)
}

/// Where the work tells its progress. A clone tells the same client.
#[derive(Clone, Default)]
pub struct Progress {
    inner: Option<Arc<Inner>>,
}

/// Dropped when nobody works any more, which `ended` tells.
struct Inner {
    messages: mpsc::Sender<Message>,
    items: Arc<Mutex<Vec<Arc<Item>>>>,
    ended: Arc<Notify>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}

impl Progress {
    /// Progress that nobody listens to.
    pub fn none() -> Self {
        Self::default()
    }

    /// Progress, and the messages about it. They end when every clone is gone and the last counts
    /// were sent. Must be called within a runtime.
    pub fn channel() -> (Self, mpsc::Receiver<Message>) {
        let (messages, receiver) = mpsc::channel(QUEUE_LEN_MAX);
        let (items, ended) = (Arc::default(), Arc::default());
        tokio::spawn(report(Arc::clone(&items), Arc::clone(&ended), messages.clone()));
        (Self { inner: Some(Arc::new(Inner { messages, items, ended })) }, receiver)
    }

    /// Tells something in words.
    pub(super) async fn say(
        &self,
        event: impl Into<String>,
        name: &str,
        descriptor: Option<&Descriptor>,
    ) {
        if let Some(inner) = &self.inner {
            let message = Message {
                event: event.into(),
                name: name.to_owned(),
                parents: Vec::new(),
                done: 0,
                total: 0,
                descriptor: descriptor.cloned(),
            };
            // A client that went away is noticed by the call, not here.
            let _ = inner.messages.send(message).await;
        }
    }

    /// A blob that `parent` refers to and whose progress is told from now on.
    pub(super) fn item(&self, descriptor: &Descriptor, parent: &str) -> Arc<Item> {
        let item = Arc::new(Item {
            descriptor: descriptor.clone(),
            parent: parent.to_owned(),
            state: AtomicU8::new(State::Waiting as u8),
            done: AtomicU64::new(0),
        });
        if let Some(inner) = &self.inner {
            inner.items.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&item));
        }
        item
    }
}

/// Sends what changed, until nobody works any more; then once again.
async fn report(
    items: Arc<Mutex<Vec<Arc<Item>>>>,
    ended: Arc<Notify>,
    messages: mpsc::Sender<Message>,
) {
    let mut told: Vec<(Arc<Item>, (State, u64))> = Vec::new();
    loop {
        let alive = tokio::select! {
            () = tokio::time::sleep(INTERVAL) => true,
            () = ended.notified() => false,
        };
        for item in items.lock().unwrap_or_else(PoisonError::into_inner).iter().skip(told.len()) {
            told.push((Arc::clone(item), (State::Waiting, u64::MAX)));
        }
        for (item, last) in &mut told {
            let now = item.look();
            if now != *last {
                *last = now;
                if messages.send(item.message(now)).await.is_err() {
                    return;
                }
            }
        }
        if !alive {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::media_type;

    #[tokio::test]
    async fn tells_changes_and_the_end() {
        let descriptor = Descriptor::of(media_type::OCI_LAYER, b"layer");
        let (progress, mut messages) = Progress::channel();
        let item = progress.item(&descriptor, "image");
        let name = ingest_ref(&descriptor);
        let mut next = async || {
            let message = messages.recv().await?;
            Some((message.event, message.name, message.done))
        };
        assert_eq!(next().await, Some(("waiting".to_owned(), name.clone(), 0)));
        item.set(State::Downloading);
        item.add(2);
        assert_eq!(next().await, Some(("downloading".to_owned(), name.clone(), 2)));
        progress.say("saved", "image", None).await;
        assert_eq!(next().await, Some(("saved".to_owned(), "image".to_owned(), 0)));
        item.set(State::Extracted);
        drop(progress);
        assert_eq!(next().await, Some(("extracted".to_owned(), name, 5)));
        assert_eq!(next().await, None);
    }
}
