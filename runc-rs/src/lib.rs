//! runc-rs
