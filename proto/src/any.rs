//! Messages of any type, as containerd sends them.
//!
//! containerd's type URLs are bare: `containerd.runc.v1.Options`, without the host that protobuf
//! puts in front. Readers take both. OCI documents travel as JSON under
//! `types.containerd.io/opencontainers/...` (containerd, `typeurl`).

use prost::{DecodeError, Message, Name};
use prost_types::Any;

/// The type URL under which an OCI runtime specification travels, as JSON.
pub const RUNTIME_SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// The type URL under which the process of an exec travels, as JSON.
pub const RUNTIME_PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// The type URL under which a change of resources travels, as JSON.
pub const RUNTIME_RESOURCES: &str =
    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// Packs a message under its bare name.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// The name of the type in `any`, without the host.
pub fn type_name(any: &Any) -> &str {
    any.type_url.strip_prefix("type.googleapis.com/").unwrap_or(&any.type_url)
}

/// Whether `any` holds an `M`.
pub fn is<M: Name>(any: &Any) -> bool {
    type_name(any) == M::full_name()
}

/// Unpacks an `M`, or gives `None` when `any` holds another type.
///
/// # Errors
///
/// The bytes are not an encoded `M`.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<Option<M>, DecodeError> {
    if is::<M>(any) { M::decode(any.value.as_slice()).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::runc::v1::Options;

    #[test]
    fn round_trip() {
        let options = Options { binary_name: "runc-rs".to_owned(), ..Default::default() };
        let mut any = pack(&options);
        assert_eq!(any.type_url, "containerd.runc.v1.Options");
        assert_eq!(unpack::<Options>(&any).expect("well formed"), Some(options.clone()));
        any.type_url = format!("type.googleapis.com/{}", any.type_url);
        assert_eq!(unpack::<Options>(&any).expect("well formed"), Some(options));
    }
}
