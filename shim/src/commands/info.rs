//! `-info` and `-v`: what the shim is, and what its runtime can do.

use std::{
    io::{self, Read},
    process::{Command, Stdio},
};

use prost::Message;
use prost_types::Any;
use proto::{
    any,
    containerd::{
        runc::v1::Options,
        types::{RuntimeInfo, RuntimeVersion},
    },
};

use crate::{
    bootstrap::options_in,
    bundle::Bundle,
    commands::{CommandError, NAME},
    runtime::Runtime,
};

/// The type under which a runtime's features travel, as JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The most that is read from containerd, in bytes.
const INPUT_LEN_MAX: u64 = 10 << 20;

/// Reads options from standard input and returns an encoded `RuntimeInfo`.
///
/// # Errors
///
/// Standard input cannot be read.
pub fn info() -> Result<Vec<u8>, CommandError> {
    let mut input = Vec::new();
    let mut stdin = io::stdin().take(INPUT_LEN_MAX);
    stdin.read_to_end(&mut input).map_err(CommandError::io("read options"))?;
    let options = options_in(&input);
    let runtime = Runtime::new(&options, "default", &Bundle::new("."));
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: String::new(),
        }),
        options: (options != Options::default()).then(|| any::pack(&options)),
        features: features(runtime.program()),
        ..RuntimeInfo::default()
    };
    Ok(info.encode_to_vec())
}

/// What the runtime says about itself; nothing from one that does not know the question.
fn features(program: &str) -> Option<Any> {
    let output = Command::new(program).arg("features").stdin(Stdio::null()).output().ok()?;
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&output.stdout).is_ok();
    (output.status.success() && is_json)
        .then(|| Any { type_url: FEATURES.to_owned(), value: output.stdout })
}

/// The text of `-v`.
pub fn version() -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION");
    format!("containerd-shim-runc-rs-v2:\n  Version:  {version}\n\n").into_bytes()
}
