//! runc-rs
pub mod cgroup;
pub mod features;
pub mod seccomp;
pub mod spec;
pub mod usage;
