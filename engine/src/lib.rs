//! The engine, `gantryd`.
//!
//! # Map
//!
//! A module names only modules of its own line or of lines above it.
//!
//! | line    | modules                                                | may                  |
//! |---------|--------------------------------------------------------|----------------------|
//! | words   | [`digest`], [`error`], [`field_mask`], [`filter`], [`identifier`], [`labels`], [`namespace`], [`oci`], [`platform`], [`mod@reference`] | neither I/O nor async |
//! | state   | `lock`, [`content`], [`diff`], [`durability`], [`gc`], [`import`], [`metadata`], [`db`] | block, no tokio |
//! | work    | [`events`], [`registry`], [`runtime`], [`restart`], [`streaming`], [`transfer`] | async                |
//! | surface | [`proxy`], [`services`]                                | async; tonic and the wire's types |
//! | wiring  | [`config`], [`daemon`], [`mod@fuzz`]                   | everything           |

pub mod config;
pub mod content;
pub mod daemon;
pub mod db;
pub mod diff;
pub mod digest;
pub mod durability;
pub mod error;
pub mod events;
pub mod field_mask;
pub mod filter;
pub mod fuzz;
pub mod gc;
pub mod identifier;
pub mod import;
pub mod labels;
mod lock;
pub mod metadata;
pub mod namespace;
pub mod oci;
pub mod platform;
pub mod proxy;
pub mod reference;
pub mod registry;
pub mod restart;
pub mod runtime;
pub mod services;
pub mod streaming;
pub mod transfer;
