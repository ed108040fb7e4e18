//! ctr-cli
fn main() {}
