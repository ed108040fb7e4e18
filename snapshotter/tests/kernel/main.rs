//! What the kernel makes of the mounts that snapshotters hand out. Needs root.

mod images;
mod layers;
mod mapped;
mod modes;
mod mounted;
mod verity;
