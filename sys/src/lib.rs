//! Kernel facilities, one file each: mechanism only, and the home of unsafe code.

pub mod bpf;
pub mod error;
pub mod mount;
pub mod seccomp;
pub mod signal;
pub mod spawn;
pub mod tree;
