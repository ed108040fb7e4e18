//! runc-rs
pub mod cgroup;
pub mod seccomp;
pub mod spec;
