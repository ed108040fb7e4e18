//! Kernel facilities, one file each: mechanism only, and the home of unsafe code.

pub mod affinity;
pub mod bpf;
pub mod btrfs;
pub mod descriptors;
pub mod error;
pub mod execute;
pub mod keyring;
pub mod loop_device;
pub mod loopback;
pub mod mount;
pub mod mount_attributes;
pub mod namespace;
pub mod pidfd;
pub mod residency;
pub mod rtnetlink;
pub mod scheduling;
pub mod seccomp;
pub mod seccomp_notify;
pub mod short_lived;
pub mod signal;
pub mod sockets;
pub mod spawn;
pub mod trace;
pub mod tree;
pub mod usage;
pub mod user_namespace;
