//! How a containerd and a shim agree on each other when the shim starts.
//!
//! What `start` gets on standard input and prints has changed over time, and a shim cannot ask
//! which containerd called it. It can tell from what it gets:
//!
//! | containerd | standard input of `start` | understands | gets from us |
//! |---|---|---|---|
//! | 1.2 to 1.6 | options, an `Any` | an address | an address |
//! | 1.7 to 2.2 | options, an `Any`, with `MAX_SHIM_VERSION` set | an address; JSON up to that version | JSON |
//! | 2.3 and later | `BootstrapParams` | `BootstrapResult`; JSON; an address | `BootstrapResult` |
//!
//! The bytes of an `Any` may decode as `BootstrapParams`: its first two fields have the same
//! numbers and wire types. The parameters repeat the container's ID and the namespace, which
//! stand on the command line too; only what repeats them is taken for parameters.
//!
//! Sources: containerd `pkg/shim/compat.go`, `core/runtime/v2/shim.go` (`parseStartResponse`).

use std::path::PathBuf;

use prost::Message;
use prost_types::Any;
use proto::{
    any,
    containerd::{
        runc::v1::Options,
        runtime::bootstrap::v1::{BootstrapParams, BootstrapResult, LogLevel},
    },
};
use serde::Serialize;

/// The newest version of the task API that the shim serves.
const VERSION_MAX: i32 = 3;

/// What a containerd said about itself and the shim that it wants.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    /// How it wants the answer.
    pub dialect: Dialect,
    /// The options for the runtime.
    pub options: Options,
    /// Where sockets go, if not to the default place.
    pub socket_directory: Option<PathBuf>,
    /// Where containerd takes events; `None` where the environment says so.
    pub events_address: Option<PathBuf>,
    /// Whether to log more; `None` where only the command line says so.
    pub debug: Option<bool>,
}

/// The form of the answer to `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// The address and nothing else.
    Address,
    /// JSON with a version of the task API up to this one.
    Json(i32),
    /// An encoded `BootstrapResult`.
    Protobuf,
}

impl Request {
    /// Reads what containerd wrote to standard input, with the value of `MAX_SHIM_VERSION` and the
    /// ID and namespace of the command line.
    pub(crate) fn parse(
        input: &[u8],
        version_max: Option<&str>,
        id: &str,
        namespace: &str,
    ) -> Self {
        if let Ok(params) = BootstrapParams::decode(input)
            && params.instance_id == id
            && params.namespace == namespace
        {
            return Self::from_params(&params);
        }
        let dialect = match version_max.and_then(|text| text.parse().ok()) {
            Some(version @ 2..) => Dialect::Json(VERSION_MAX.min(version)),
            _ => Dialect::Address,
        };
        let options = options_in(input);
        Self { dialect, options, socket_directory: None, events_address: None, debug: None }
    }

    fn from_params(params: &BootstrapParams) -> Self {
        let values = params.extensions.iter().filter_map(|extension| extension.value.as_ref());
        let options =
            values.filter_map(|value| any::unpack::<Options>(value).ok().flatten()).next();
        Self {
            dialect: Dialect::Protobuf,
            options: options.unwrap_or_default(),
            socket_directory: path(params.socket_dir.as_deref().unwrap_or_default()),
            events_address: path(&params.containerd_ttrpc_address),
            debug: Some(params.log_level <= LogLevel::Debug as i32),
        }
    }
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

/// The options in an encoded `Any`. Options of another runtime, or none, mean defaults.
pub(crate) fn options_in(input: &[u8]) -> Options {
    let packed = Any::decode(input).unwrap_or_default();
    any::unpack::<Options>(&packed).ok().flatten().unwrap_or_default()
}

impl Dialect {
    /// The bytes that tell containerd where the shim listens.
    pub(crate) fn answer(self, address: &str) -> Vec<u8> {
        #[derive(Serialize)]
        struct Answer<'a> {
            version: i32,
            address: &'a str,
            protocol: &'a str,
        }

        match self {
            Self::Address => address.as_bytes().to_vec(),
            Self::Json(version) => {
                let answer = Answer { version, address, protocol: "ttrpc" };
                serde_json::to_vec(&answer).expect("strings and a number always serialise")
            }
            Self::Protobuf => BootstrapResult {
                version: VERSION_MAX,
                address: address.to_owned(),
                protocol: "ttrpc".to_owned(),
                ..BootstrapResult::default()
            }
            .encode_to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::containerd::runtime::bootstrap::v1::Extension;

    use super::*;

    fn options() -> Options {
        Options { binary_name: "crun".to_owned(), ..Options::default() }
    }

    #[test]
    fn parse() {
        let packed = any::pack(&options());
        let params = BootstrapParams {
            instance_id: "c1".to_owned(),
            namespace: "moby".to_owned(),
            log_level: LogLevel::Debug as i32,
            socket_dir: Some("/s".to_owned()),
            containerd_ttrpc_address: "/t".to_owned(),
            extensions: vec![Extension { value: Some(packed.clone()) }],
            ..BootstrapParams::default()
        };
        let legacy = |dialect, options| Request {
            dialect,
            options,
            socket_directory: None,
            events_address: None,
            debug: None,
        };
        let cases = [
            ("nothing, 1.6", vec![], None, legacy(Dialect::Address, Options::default())),
            ("options, 1.6", packed.encode_to_vec(), None, legacy(Dialect::Address, options())),
            (
                "options, 1.7",
                packed.encode_to_vec(),
                Some("2"),
                legacy(Dialect::Json(2), options()),
            ),
            ("a later maximum", vec![], Some("9"), legacy(Dialect::Json(3), Options::default())),
            ("no number", vec![], Some("x"), legacy(Dialect::Address, Options::default())),
            (
                "garbage",
                b"\xff\xff\xff".to_vec(),
                None,
                legacy(Dialect::Address, Options::default()),
            ),
            (
                "2.3",
                params.encode_to_vec(),
                Some("2"),
                Request {
                    dialect: Dialect::Protobuf,
                    options: options(),
                    socket_directory: Some("/s".into()),
                    events_address: Some("/t".into()),
                    debug: Some(true),
                },
            ),
        ];
        for (case, input, version_max, want) in cases {
            assert_eq!(Request::parse(&input, version_max, "c1", "moby"), want, "{case}");
        }
    }

    #[test]
    fn answers() {
        assert_eq!(Dialect::Address.answer("unix:///s"), b"unix:///s");
        assert_eq!(
            Dialect::Json(2).answer("unix:///s"),
            br#"{"version":2,"address":"unix:///s","protocol":"ttrpc"}"#
        );
        let result = BootstrapResult::decode(Dialect::Protobuf.answer("unix:///s").as_slice());
        assert_eq!(result.expect("encoded").version, 3);
    }
}
