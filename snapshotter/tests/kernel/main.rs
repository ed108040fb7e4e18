//! What the kernel makes of the mounts that snapshotters hand out. Needs root.

mod layers;
mod modes;
mod mounted;
