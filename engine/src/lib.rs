//! The engine, `gantryd`.
//!
//! # Map
//!
//! A module names only modules of its own line or of lines above it.
//!
//! | line    | modules                                                | may                  |
//! |---------|--------------------------------------------------------|----------------------|
//! | words   | [`digest`]                                             | neither I/O nor async |
//! | state   | [`diff`]                                               | block, no tokio      |

pub mod diff;
pub mod digest;
