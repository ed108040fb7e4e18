//! The engine, `gantryd`.
//!
//! # Map
//!
//! A module names only modules of its own line or of lines above it.
//!
//! | line    | modules                                                | may                  |
//! |---------|--------------------------------------------------------|----------------------|
//! | words   | [`digest`], [`oci`], [`platform`], [`reference`]          | neither I/O nor async |
//! | state   | [`diff`]                                               | block, no tokio      |
//! | work    | [`registry`]                                           | async                |

pub mod diff;
pub mod digest;
pub mod oci;
pub mod platform;
pub mod reference;
pub mod registry;
