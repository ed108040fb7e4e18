//! Filesystem changesets as snapshots.
//!
//! A layer of an image is a committed snapshot; the root filesystem of a container is an active
//! snapshot on top of the image's last layer. [`Snapshotter`] is the contract, [`Overlay`],
//! [`Erofs`], [`Native`] and [`Btrfs`] keep it, [`External`] hands it on to another program, [`testsuite`] proves it.
//!
//! # Architecture invariant: one store
//!
//! What a snapshotter knows lives in tables of a database that its caller opened
//! ([`Transactions`]), beside whatever else the caller keeps there. So a crash cannot leave two
//! databases that disagree, and a caller may change its own records and a snapshot's in one
//! commit. The directories follow the records: a directory without a record is garbage.
//!
//! The tables are described in [`records`] and [`made`].

mod directories;
mod erofs;
mod error;
pub mod external;
mod key;
mod layout;
pub mod made;
mod mount;
pub mod records;
mod store;
pub mod testsuite;
mod transactions;
mod tree;
mod turns;

use std::{collections::BTreeMap, ops::ControlFlow, time::SystemTime};

pub use crate::{
    error::Error,
    external::External,
    key::{Key, KeyError, NAME_LEN_MAX, NAMESPACE_LEN_MAX},
    layout::{
        Layout,
        btrfs::{Btrfs, Subvolumes},
        images::{Erofs, Images},
        native::{Copies, Native},
        overlay::{Overlay, OverlayOptions, Remap, UPPERDIR_LABEL},
    },
    mount::Mount,
    store::Store,
    transactions::{Change, Transactions},
};

/// The labels of a snapshot, by name.
pub type Labels = BTreeMap<String, String>;

/// Keeps filesystem changesets as snapshots and hands out the mounts that show them.
///
/// # Model
///
/// | kind      | made by   | mounts    | may be a parent | ended by                     |
/// |-----------|-----------|-----------|-----------------|------------------------------|
/// | active    | `prepare` | writable  | no              | `commit`, `rebase`, `remove` |
/// | view      | `view`    | read-only | no              | `remove`                     |
/// | committed | `commit`  | none      | yes             | `remove`                     |
///
/// All kinds share one key space, within which a key is unique. A snapshot and its parent are of
/// one namespace. A snapshot without a parent starts empty. Mounting is the caller's work: a
/// snapshotter returns mounts and makes none, so it has none to leak. ([`Erofs`] makes some, of
/// committed snapshots, and says why.)
///
/// # Rules for implementations
///
/// - **Atomic.** A call that returns an error has changed nothing that a later call can see.
/// - **Crash-safe.** After a crash, the call that was cut short has either happened or not;
///   `cleanup` frees the disk space that it may have left behind. After one of the machine,
///   [`suspects`](Self::suspects) tells which snapshots may lack files.
/// - **Concurrent.** Calls on different keys may overlap. Of calls that race for one key, the
///   results are those of some order of them.
/// - **Blocking.** Calls wait for the disk. Async callers use a blocking thread.
///
/// [`testsuite::run`] checks these rules, and every implementation passes it.
///
/// Source: containerd, `core/snapshots/snapshotter.go`. Differences: the service layer applies
/// filters and field paths, not `walk` and `update`; `rebase` is an option of `Commit` there; and
/// `Close` is `Drop`.
pub trait Snapshotter: Send + Sync {
    /// Makes `key` an active snapshot on top of `parent`, and returns its mounts.
    ///
    /// # Errors
    ///
    /// - `AlreadyExists`: a snapshot of any kind has `key`.
    /// - `NotFound`, `WrongKind`: `parent` is not a committed snapshot.
    /// - `OtherNamespace`: `parent` is not in `key`'s namespace.
    /// - `Unsupported`, `Label`: a label asks for what is not done, or not in the form for it.
    fn prepare(&self, key: &Key, parent: Option<&Key>, labels: Labels)
    -> Result<Vec<Mount>, Error>;

    /// Makes `key` a read-only look at `parent`, and returns its mounts.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare).
    fn view(&self, key: &Key, parent: Option<&Key>, labels: Labels) -> Result<Vec<Mount>, Error>;

    /// The mounts of an active snapshot or view, the same as when it was made.
    ///
    /// # Errors
    ///
    /// - `NotFound`, `NotMountable`: `key` is neither an active snapshot nor a view.
    fn mounts(&self, key: &Key) -> Result<Vec<Mount>, Error>;

    /// Makes the changes in the active snapshot `key` the committed snapshot `name`, and frees
    /// `key`. The labels of `key` are not inherited.
    ///
    /// The caller has unmounted `key`; writes still in flight are in the result or not.
    ///
    /// # Errors
    ///
    /// - `NotFound`, `WrongKind`: `key` is not an active snapshot.
    /// - `AlreadyExists`: a snapshot of any kind has `name`.
    fn commit(&self, name: &Key, key: &Key, labels: Labels) -> Result<(), Error>;

    /// Commits the active snapshot `key`, which was made without a parent, as `name` on top of
    /// `parent`.
    ///
    /// So layers can be unpacked at the same time and put in order afterwards. What `key` holds
    /// must be a changeset that was made without looking at the parent: for [`Overlay`], the
    /// contents of an upper directory. A `key` that already has this very parent is committed as
    /// by [`commit`](Self::commit).
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit), and:
    ///
    /// - `NotFound`, `WrongKind`: `parent` is not a committed snapshot.
    /// - `OtherParent`: `key` has another parent.
    /// - `Unsupported`: a snapshot of this implementation holds its parent's content.
    fn rebase(&self, name: &Key, key: &Key, parent: &Key, labels: Labels) -> Result<(), Error>;

    /// Whether [`rebase`](Self::rebase) is supported.
    fn can_rebase(&self) -> bool;

    /// Removes the snapshot `key`; its disk space is free soon, and at the latest after `cleanup`.
    ///
    /// # Errors
    ///
    /// - `NotFound`: no snapshot has `key`.
    /// - `HasChildren`: `key` is the parent of another snapshot.
    fn remove(&self, key: &Key) -> Result<(), Error>;

    /// Removes the snapshots `keys`, children before their parents, as part of `transaction`,
    /// together with what the caller changes there. Their disk space is free after a `cleanup`
    /// that comes after the commit.
    ///
    /// Returns which were removed: those are left that are gone, or that have children.
    ///
    /// # Errors
    ///
    /// - `Database`: only.
    fn remove_within(
        &self,
        transaction: &redb::WriteTransaction,
        keys: &[Key],
    ) -> Result<Vec<Key>, Error>;

    /// What is known of the snapshot `key`.
    ///
    /// # Errors
    ///
    /// - `NotFound`: no snapshot has `key`.
    fn stat(&self, key: &Key) -> Result<Info, Error>;

    /// Lets `edit` change the labels of the snapshot `key`, and returns what is known of it then.
    ///
    /// No other update comes between what `edit` reads and what it leaves. `edit` may be called
    /// more than once, each time with the labels as they are.
    ///
    /// # Errors
    ///
    /// - `NotFound`: no snapshot has `key`.
    fn update(&self, key: &Key, edit: &mut EditLabels<'_>) -> Result<Info, Error>;

    /// Shows every snapshot of `namespace`, or of all namespaces, to `visit`, in the order of
    /// their keys, as they were at one moment.
    ///
    /// `visit` may call the snapshotter.
    ///
    /// # Errors
    ///
    /// - `Database`, `External`: only.
    fn walk(
        &self,
        namespace: Option<&str>,
        visit: &mut dyn FnMut(Info) -> ControlFlow<()>,
    ) -> Result<(), Error>;

    /// What [`walk`](Self::walk) shows, as far as it is known without asking another program.
    ///
    /// Of an external snapshotter the labels that it adds by itself are missing. Never waits for
    /// it, so this is for whoever holds others up.
    ///
    /// # Errors
    ///
    /// - `Database`: only.
    fn walk_records(
        &self,
        namespace: Option<&str>,
        visit: &mut dyn FnMut(Info) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        self.walk(namespace, visit)
    }

    /// What there is at another program, by its names there, that this database has not had it make:
    /// nothing here touches it. Waits for that program; `None` when there is none.
    ///
    /// # Errors
    ///
    /// - `Database`, `External`: only.
    fn foreign(&self) -> Result<Option<Vec<String>>, Error> {
        Ok(None)
    }

    /// The disk space that the snapshot `key` takes beyond that of its parents.
    ///
    /// Takes time in proportion to the number of files, unless `key` is committed.
    ///
    /// # Errors
    ///
    /// - `NotFound`: no snapshot has `key`.
    fn usage(&self, key: &Key) -> Result<Usage, Error>;

    /// Writes the files of all committed snapshots to disk, and notes that.
    ///
    /// Waits for the disk, with what others have written to it. Until it was called, a committed
    /// snapshot is as safe as a file that was not synced: a crash of this program does it no harm,
    /// one of the machine makes it one of the [`suspects`](Self::suspects).
    ///
    /// # Errors
    ///
    /// - `File`: the disk failed; nothing was noted.
    fn sync(&self) -> Result<(), Error>;

    /// The committed snapshots that may have lost files when the machine stopped, each after its
    /// parent.
    ///
    /// They refuse to be the parent of anything, and what is on top of them to be mounted, until
    /// they were [renewed](Self::renew).
    ///
    /// # Errors
    ///
    /// - `Database`: only.
    fn suspects(&self) -> Result<Vec<Info>, Error>;

    /// Lets `fill` write the files of the committed snapshot `name` anew, as if into an active one
    /// with the same parent, and puts them in the place of those that are there.
    ///
    /// For suspects, before anything uses them: whoever has the old files mounted keeps them.
    /// Durable when this returns.
    ///
    /// # Errors
    ///
    /// - `NotFound`, `WrongKind`: `name` is not a committed snapshot.
    /// - `Suspect`: one below it is suspect still.
    /// - `Fill`: `fill` failed; nothing was changed.
    fn renew(&self, name: &Key, fill: &mut Fill<'_>) -> Result<(), Error>;

    /// Frees the disk space of removed snapshots and of calls that were cut short.
    ///
    /// # Errors
    ///
    /// - `File`: something could not be deleted; the rest was.
    fn cleanup(&self) -> Result<(), Error>;
}

/// What [`Snapshotter::renew`] writes, to what the mounts show.
pub type Fill<'a> =
    dyn FnMut(&[Mount]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// What [`Snapshotter::update`] does to labels.
pub type EditLabels<'a> = dyn FnMut(&mut Labels) + Send + 'a;

/// The kinds of snapshots; see [`Snapshotter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only, cannot be committed.
    View,
    /// Writable.
    Active,
    /// Never changes, may be a parent.
    Committed,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        })
    }
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The name of a committed snapshot, the key of another.
    pub key: Key,
    /// What may be done with it.
    pub kind: Kind,
    /// The committed snapshot below it.
    pub parent: Option<Key>,
    /// Set by clients, and read by garbage collection.
    pub labels: Labels,
    /// When it was made; of a committed snapshot, when it was committed.
    pub created: SystemTime,
    /// When it was made or last updated.
    pub updated: SystemTime,
}

/// Disk space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// The number of files of all types, directories included; hard links count once.
    pub inodes: u64,
    /// The size of the blocks that they take.
    pub bytes: u64,
}
