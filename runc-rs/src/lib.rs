//! runc-rs
pub mod seccomp;
pub mod spec;
