//! Reads protobuf messages of any type into JSON, by the descriptors that `proto` carries.
//!
//! Events, metrics and process details arrive as messages whose type the sender chose. Reading
//! them by descriptor shows all fields of all types, those of a newer API as well once `proto`
//! knows them. The JSON is Go's of the same message: names as in the `.proto`, zero left out;
//! times as RFC 3339, documents that travel as JSON as they are.

use anyhow::{Context as _, ensure};
use prost::{
    Message as _,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use prost_types::{
    Any, DescriptorProto, FieldDescriptorProto, FileDescriptorSet, Timestamp,
    field_descriptor_proto::{Label, Type},
};
use serde_json::{Map, Value, json};

/// How deep messages may be nested.
const DEPTH_MAX: usize = 32;

/// The fields of the message in `any`, or its type and length if the type is unknown.
pub(crate) fn decode(any: &Any) -> anyhow::Result<Value> {
    let name = proto::any::type_name(any);
    if name.contains('/') {
        return serde_json::from_slice(&any.value).with_context(|| name.to_owned());
    }
    let files = FileDescriptorSet::decode(proto::DESCRIPTORS).context("descriptors")?;
    match find(&files, name) {
        Some(descriptor) => {
            message(&files, descriptor, &any.value, DEPTH_MAX).with_context(|| name.to_owned())
        }
        None => Ok(json!({"type_url": any.type_url, "bytes": any.value.len()})),
    }
}

/// Finds a message by its full name, nested ones included.
fn find<'a>(files: &'a FileDescriptorSet, name: &str) -> Option<&'a DescriptorProto> {
    files.file.iter().find_map(|file| {
        let rest = match file.package() {
            "" => name,
            package => name.strip_prefix(package)?.strip_prefix('.')?,
        };
        let mut parts = rest.split('.');
        let first = parts.next()?;
        let mut found = file.message_type.iter().find(|message| message.name() == first)?;
        for part in parts {
            found = found.nested_type.iter().find(|message| message.name() == part)?;
        }
        Some(found)
    })
}

fn message(
    files: &FileDescriptorSet,
    descriptor: &DescriptorProto,
    mut bytes: &[u8],
    depth: usize,
) -> anyhow::Result<Value> {
    ensure!(depth > 0, "nested too deep");
    let mut fields = Map::new();
    while !bytes.is_empty() {
        let (number, wire) = decode_key(&mut bytes)?;
        let field = descriptor.field.iter().find(|field| field.number() == number.cast_signed());
        let Some(field) = field else {
            skip_field(wire, number, &mut bytes, DecodeContext::default())?;
            continue;
        };
        if wire == WireType::LengthDelimited {
            let len = usize::try_from(decode_varint(&mut bytes)?)?;
            let (own, rest) = bytes.split_at_checked(len).context("cut short")?;
            bytes = rest;
            delimited(files, field, own, depth, &mut fields)?;
        } else {
            let value = scalar(field.r#type(), wire, &mut bytes)?;
            insert(&mut fields, field, value);
        }
    }
    Ok(Value::Object(fields))
}

/// Reads a field that has a length: text, bytes, a message, a map's entry, packed numbers.
fn delimited(
    files: &FileDescriptorSet,
    field: &FieldDescriptorProto,
    mut bytes: &[u8],
    depth: usize,
    fields: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    match field.r#type() {
        Type::String => {
            insert(fields, field, String::from_utf8_lossy(bytes).into_owned().into());
        }
        Type::Bytes => insert(fields, field, bytes.to_vec().into()),
        Type::Message => {
            let name = field.type_name().trim_start_matches('.');
            let value = match name {
                "google.protobuf.Timestamp" => {
                    crate::output::timestamp(Some(&Timestamp::decode(bytes)?)).into()
                }
                "google.protobuf.Any" => decode(&Any::decode(bytes)?)?,
                _ => {
                    let descriptor = find(files, name).context("descriptor")?;
                    let value = message(files, descriptor, bytes, depth - 1)?;
                    let map = descriptor.options.as_ref().is_some_and(|own| own.map_entry());
                    if map {
                        return insert_entry(fields, field, value);
                    }
                    value
                }
            };
            insert(fields, field, value);
        }
        kind => {
            let wire = match kind {
                Type::Fixed64 | Type::Sfixed64 | Type::Double => WireType::SixtyFourBit,
                Type::Fixed32 | Type::Sfixed32 | Type::Float => WireType::ThirtyTwoBit,
                _ => WireType::Varint,
            };
            while !bytes.is_empty() {
                let value = scalar(kind, wire, &mut bytes)?;
                insert(fields, field, value);
            }
        }
    }
    Ok(())
}

fn scalar(kind: Type, wire: WireType, bytes: &mut &[u8]) -> anyhow::Result<Value> {
    let raw = match wire {
        WireType::Varint => decode_varint(bytes)?,
        WireType::SixtyFourBit => u64::from_le_bytes(take(bytes)?),
        WireType::ThirtyTwoBit => u32::from_le_bytes(take(bytes)?).into(),
        _ => anyhow::bail!("unexpected wire type"),
    };
    #[expect(clippy::cast_possible_truncation, reason = "the value was that narrow when encoded")]
    Ok(match kind {
        Type::Bool => (raw != 0).into(),
        Type::Double => f64::from_bits(raw).into(),
        Type::Float => f32::from_bits(raw as u32).into(),
        Type::Int32 | Type::Int64 | Type::Sfixed64 | Type::Enum => raw.cast_signed().into(),
        Type::Sfixed32 => (raw as u32).cast_signed().into(),
        Type::Sint32 | Type::Sint64 => ((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed()).into(),
        _ => raw.into(),
    })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> anyhow::Result<[u8; N]> {
    let (own, rest) = bytes.split_first_chunk::<N>().context("cut short")?;
    *bytes = rest;
    Ok(*own)
}

fn insert(fields: &mut Map<String, Value>, field: &FieldDescriptorProto, value: Value) {
    if field.label() == Label::Repeated {
        let list = fields.entry(field.name()).or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.push(value);
        }
    } else {
        fields.insert(field.name().to_owned(), value);
    }
}

fn insert_entry(
    fields: &mut Map<String, Value>,
    field: &FieldDescriptorProto,
    entry: Value,
) -> anyhow::Result<()> {
    let map = fields.entry(field.name()).or_insert_with(|| json!({}));
    let key = match &entry["key"] {
        Value::String(key) => key.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let value = match &entry["value"] {
        Value::Null => "".into(),
        value => value.clone(),
    };
    map.as_object_mut().context("map")?.insert(key, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proto::containerd::events::{NamespaceCreate, TaskExit};

    use super::*;

    #[test]
    fn messages() {
        let exit = TaskExit {
            container_id: "c1".to_owned(),
            pid: 7,
            exit_status: 137,
            exited_at: Some(Timestamp { seconds: 0, nanos: 500_000_000 }),
            ..Default::default()
        };
        let create = NamespaceCreate {
            name: "n".to_owned(),
            labels: [("a".to_owned(), "b".to_owned()), ("empty".to_owned(), String::new())].into(),
        };
        let unknown = Any { type_url: "x.Y".to_owned(), value: vec![0; 3] };
        let document = Any {
            type_url: proto::any::RUNTIME_SPEC.to_owned(),
            value: br#"{"ociVersion":"1"}"#.to_vec(),
        };
        let cases = [
            (
                "scalars",
                proto::any::pack(&exit),
                json!({"container_id": "c1", "pid": 7, "exit_status": 137,
                    "exited_at": "1970-01-01T00:00:00.5Z"}),
            ),
            (
                "map",
                proto::any::pack(&create),
                json!({"name": "n", "labels": {"a": "b", "empty": ""}}),
            ),
            ("unknown", unknown, json!({"type_url": "x.Y", "bytes": 3})),
            ("document", document, json!({"ociVersion": "1"})),
        ];
        for (case, any, want) in cases {
            assert_eq!(decode(&any).expect("well formed"), want, "{case}");
        }
    }

    #[test]
    fn garbage() {
        let cases: [&[u8]; 4] = [&[0x0a, 0xff], &[0x0a], &[0xff; 12], &[0x18]];
        for value in cases {
            let any =
                Any { type_url: "containerd.events.TaskExit".to_owned(), value: value.to_vec() };
            assert!(decode(&any).is_err(), "{value:x?}");
        }
    }
}
