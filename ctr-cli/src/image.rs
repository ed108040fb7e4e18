//! Images: documents in the content store, and the snapshots that are made of them.

mod archive;
mod blobs;
mod checkpoint;
mod digest;
mod document;
mod leased;
mod resolve;
mod rootfs;
mod tar;
mod unpack;
mod walk;

pub(crate) use archive::{ImportOptions, Naming, import};
pub(crate) use blobs::{blob_exists, stream_blob, write_stream};
pub(crate) use checkpoint::{
    Checkpoint, Origin as CheckpointOrigin, part as checkpoint_part, read_any,
};
pub(crate) use digest::{Digest, chain_id};
pub(crate) use document::{Descriptor, to_api};
pub(crate) use leased::{EXPIRE_LABEL, Lease, expiry};
pub(crate) use resolve::{Resolved, find_image, resolve, resolve_snapshotter};
pub(crate) use rootfs::{directory_accounts, snapshot_accounts};
pub(crate) use unpack::{exists as snapshot_exists, unpack};
pub(crate) use walk::{contents, platforms};
