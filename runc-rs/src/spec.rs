//! A bundle's `config.json`: the parts of the OCI runtime-spec 1.3 that Linux has.

pub mod resources;
pub mod seccomp;

use serde::{Deserialize, Deserializer};

/// Reads `null` as the default value, as programs that write specs in Go expect.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
