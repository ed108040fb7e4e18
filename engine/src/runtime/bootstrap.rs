//! How to reach a shim, as `shim start` prints it and as a bundle keeps it.
//!
//! Three generations of shims answer in three ways: with an address; with JSON, which adds a
//! version and a protocol; and with an encoded `containerd.runtime.bootstrap.v1.BootstrapResult`.
//! In a bundle, `bootstrap.json` has the JSON; shims of the first generation leave `address`.
//!
//! Source: containerd, `core/runtime/v2/shim.go`, `parseStartResponse`.

use prost::Message;
use proto::containerd::runtime::bootstrap::v1::BootstrapResult;
use serde::{Deserialize, Serialize};

use super::Error;

/// The newest version of the task API.
const VERSION_MAX: u8 = 3;

/// The version of shims that do not tell theirs.
const VERSION_MIN: u8 = 2;

/// How to reach a shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bootstrap {
    /// The version of the task API, 2 or 3.
    pub(super) version: u8,
    /// The socket, such as `unix:///run/containerd/s/ab12`.
    pub(super) address: String,
    /// What is spoken there.
    pub(super) protocol: String,
}

impl Bootstrap {
    /// Reads what `shim start` printed, or what a bundle has.
    ///
    /// # Errors
    ///
    /// `Start`: there is no address. `Unsupported`: this program does not speak that protocol, or
    /// not in that version.
    pub(super) fn parse(output: &[u8]) -> Result<Self, Error> {
        let result = match output.first() {
            None => Self::legacy(""),
            // A tag of the message's first fields; texts do not start with control characters.
            Some(0..0x20) if !output[0].is_ascii_whitespace() => Self::encoded(output)?,
            Some(_) => Self::text(&String::from_utf8_lossy(output)),
        };
        if result.version > VERSION_MAX {
            return Err(Error::Unsupported(format!(
                "unsupported shim version ({})",
                result.version
            )));
        }
        if result.protocol != "ttrpc" {
            return Err(Error::Unsupported(format!("unexpected protocol: {:?}", result.protocol)));
        }
        if result.address.is_empty() {
            return Err(Error::Start { text: "shim gave no address".to_owned() });
        }
        Ok(result)
    }

    fn encoded(output: &[u8]) -> Result<Self, Error> {
        let result = BootstrapResult::decode(output)
            .map_err(|error| Error::Start { text: format!("malformed answer: {error}") })?;
        Ok(Self {
            version: u8::try_from(result.version).unwrap_or(u8::MAX).max(VERSION_MIN),
            address: result.address,
            protocol: result.protocol.to_lowercase(),
        })
    }

    fn text(output: &str) -> Self {
        let text = output.trim();
        match serde_json::from_str::<Self>(text) {
            Ok(parsed) if parsed.version >= VERSION_MIN => {
                Self { protocol: parsed.protocol.to_lowercase(), ..parsed }
            }
            _ => Self::legacy(text),
        }
    }

    fn legacy(address: &str) -> Self {
        Self { version: VERSION_MIN, address: address.to_owned(), protocol: "ttrpc".to_owned() }
    }

    /// The form that a bundle keeps, which containerd reads too.
    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and a number can be encoded")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse() {
        let encoded = |version, protocol: &str| {
            let address = "unix:///s/a".to_owned();
            let protocol = protocol.to_owned();
            BootstrapResult { version, address, protocol, ..Default::default() }.encode_to_vec()
        };
        let json = |text: &str| text.as_bytes().to_vec();
        let reach = |version| Bootstrap {
            version,
            address: "unix:///s/a".to_owned(),
            protocol: "ttrpc".to_owned(),
        };
        let cases = [
            ("address", json("unix:///s/a"), Some(reach(2))),
            ("address and newline", json("unix:///s/a\n"), Some(reach(2))),
            (
                "json 2",
                json(r#"{"version":2,"address":"unix:///s/a","protocol":"ttrpc"}"#),
                Some(reach(2)),
            ),
            (
                "json 3",
                json(r#"{"version":3,"address":"unix:///s/a","protocol":"TTRPC"}"#),
                Some(reach(3)),
            ),
            ("json 4", json(r#"{"version":4,"address":"x","protocol":"ttrpc"}"#), None),
            ("json over grpc", json(r#"{"version":3,"address":"x","protocol":"grpc"}"#), None),
            ("encoded", encoded(3, "ttrpc"), Some(reach(3))),
            ("encoded 9", encoded(9, "ttrpc"), None),
            ("encoded over grpc", encoded(3, "grpc"), None),
            ("broken message", vec![0x12, 0x7f], None),
            ("nothing", vec![], None),
            ("white space", json(" \n"), None),
        ];
        for (case, output, want) in cases {
            assert_eq!(Bootstrap::parse(&output).ok(), want, "{case}");
        }
        assert_eq!(Bootstrap::parse(&reach(3).to_json()).ok(), Some(reach(3)));
    }
}
