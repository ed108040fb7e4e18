//! Layers: applies them to directories, and makes them from directories.
//!
//! A layer is a tar stream, perhaps compressed, with the changes from one tree of files to
//! another (OCI image-spec, "layer"). [`apply()`] makes the changes, [`compare()`] finds them. Both
//! work on the mounts of snapshots, and on the directories behind these where they can, so that
//! most layers need no mount at all.
//!
//! # Invariants
//!
//! - **Nothing outside the target is touched.** Every path of a layer is resolved by the kernel
//!   inside the target (`openat2` with `RESOLVE_IN_ROOT`), and every change is made through the
//!   descriptor that this gave. No path is ever joined as text.
//! - **One pass.** Bytes are inflated, hashed and written as they come; a layer is never whole in
//!   memory, nor twice on disk.
//! - **Bounded.** What a layer may ask for has a limit ([`Limits`]).
//! - **Bit-stable.** The same two trees give the same bytes, on any machine.
//!
//! Blocking; it takes `Read` and `Write`. Sources: OCI image-spec `layer.md`; containerd
//! `pkg/archive` (rules of replacement, order and form of what is compared), `core/diff/apply`.

mod apply;
mod compare;
mod compression;
mod error;
mod paths;
mod processor;
pub(crate) mod tar;
mod view;

pub use self::{
    apply::{Applied, Limits, adopt, apply},
    compare::{CompareOptions, Compared, compare},
    compression::{Compression, Decoder, Encoder, HEAD_LEN, UnknownCompression},
    error::{DiffError, EntryProblem},
    processor::{Chain, Processor, Processors, Running},
    tar::TarError,
};
