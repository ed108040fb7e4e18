//! runc-rs
fn main() {}
