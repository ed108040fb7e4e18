//! What a filter can ask an event for.
//!
//! Events are messages of some twenty types. Rather than decode each into its own type to read one
//! field, a table says which fields of a type are texts and under which number they travel, and a
//! small reader finds them in the encoded message. Of a type that is not in the table no field is
//! known, as in containerd (`events/*_fieldpath.pb.go`).

use std::borrow::Cow;

use prost::{
    bytes::Buf,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use proto::{any::type_name, containerd::types::Envelope};

use crate::filter::{Fields, value};

/// What stands under a field's number.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    Bool,
    /// A map of texts; a filter asks it for the rest of its path, with dots.
    Labels,
    Message(&'static [Field]),
}

type Field = (&'static str, u32, Shape);

use Shape::{Bool, Labels, Message, Text};

const IO: &[Field] =
    &[("stdin", 1, Text), ("stdout", 2, Text), ("stderr", 3, Text), ("terminal", 4, Bool)];
const RUNTIME: &[Field] = &[("name", 1, Text)];
const NAMED: &[Field] = &[("name", 1, Text), ("labels", 2, Labels)];
const NAME: &[Field] = &[("name", 1, Text)];
const TASK: &[Field] = &[("container_id", 1, Text)];
const EXEC: &[Field] = &[("container_id", 1, Text), ("exec_id", 2, Text)];
const SANDBOX: &[Field] = &[("sandbox_id", 1, Text)];

/// The fields of the messages in `containerd.events`.
fn fields_of(message: &str) -> &'static [Field] {
    match message {
        "ContentCreate" => &[("digest", 1, Text), ("mediaType", 3, Text)],
        "ContentDelete" => &[("digest", 1, Text)],
        "SnapshotPrepare" => &[("key", 1, Text), ("parent", 2, Text), ("snapshotter", 5, Text)],
        "SnapshotCommit" => &[("key", 1, Text), ("name", 2, Text), ("snapshotter", 5, Text)],
        "SnapshotRemove" => &[("key", 1, Text), ("snapshotter", 5, Text)],
        "SandboxCreate" | "SandboxStart" | "SandboxExit" => SANDBOX,
        "ContainerCreate" => {
            &[("id", 1, Text), ("image", 2, Text), ("runtime", 3, Message(RUNTIME))]
        }
        "ContainerUpdate" => {
            &[("id", 1, Text), ("image", 2, Text), ("labels", 3, Labels), ("snapshot_key", 4, Text)]
        }
        "ContainerDelete" => &[("id", 1, Text)],
        "ImageCreate" | "ImageUpdate" | "NamespaceCreate" | "NamespaceUpdate" => NAMED,
        "ImageDelete" | "NamespaceDelete" => NAME,
        "TaskCreate" => &[
            ("container_id", 1, Text),
            ("bundle", 2, Text),
            ("io", 4, Message(IO)),
            ("checkpoint", 5, Text),
        ],
        "TaskDelete" => &[("container_id", 1, Text), ("id", 5, Text)],
        "TaskExit" => &[("container_id", 1, Text), ("id", 2, Text)],
        "TaskStart" | "TaskOOM" | "TaskPaused" | "TaskResumed" => TASK,
        "TaskExecAdded" | "TaskExecStarted" => EXEC,
        "TaskCheckpointed" => &[("container_id", 1, Text), ("checkpoint", 2, Text)],
        _ => &[],
    }
}

/// An event, as filters see it.
pub(super) struct EventFields<'e>(pub(super) &'e Envelope);

impl Fields for EventFields<'_> {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        match path {
            [field] if field == "namespace" => value(&self.0.namespace),
            [field] if field == "topic" => value(&self.0.topic),
            [field, rest @ ..] if field == "event" => {
                let event = self.0.event.as_ref()?;
                let (package, message) = type_name(event).rsplit_once('.')?;
                let known =
                    package == "containerd.events" || package == "containerd.services.images.v1";
                let fields = if known { fields_of(message) } else { &[] };
                find(&event.value, fields, rest).map(Cow::Owned)
            }
            _ => None,
        }
    }
}

fn find(message: &[u8], fields: &[Field], path: &[String]) -> Option<String> {
    let (name, rest) = path.split_first()?;
    let (_, number, shape) = fields.iter().find(|(field, ..)| field == name)?;
    match shape {
        Text => last(message, *number).and_then(text),
        // As containerd: "true" or "false", and present either way.
        Bool => Some((varint(message, *number) != 0).to_string()),
        Labels => {
            let key = rest.join(".");
            let entries = payloads(message, *number);
            let found = entries
                .into_iter()
                .rfind(|entry| last(entry, 1).unwrap_or_default() == key.as_bytes())?;
            last(found, 2).and_then(text)
        }
        Message(fields) => find(last(message, *number)?, fields, rest),
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// The last of the field's values, which is the one that counts for a field that does not repeat.
fn last(message: &[u8], number: u32) -> Option<&[u8]> {
    payloads(message, number).pop()
}

/// The values of a field with a length, up to where the message is broken, if it is.
fn payloads(mut message: &[u8], number: u32) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Ok((tag, wire)) = next_key(&mut message) {
        if tag == number && wire == WireType::LengthDelimited {
            let Ok(len) = decode_varint(&mut message) else { break };
            let Some((payload, rest)) =
                usize::try_from(len).ok().and_then(|len| message.split_at_checked(len))
            else {
                break;
            };
            found.push(payload);
            message = rest;
        } else if skip_field(wire, tag, &mut message, DecodeContext::default()).is_err() {
            break;
        }
    }
    found
}

fn varint(mut message: &[u8], number: u32) -> u64 {
    let mut found = 0;
    while let Ok((tag, wire)) = next_key(&mut message) {
        if tag == number && wire == WireType::Varint {
            found = decode_varint(&mut message).unwrap_or(0);
        } else if skip_field(wire, tag, &mut message, DecodeContext::default()).is_err() {
            break;
        }
    }
    found
}

fn next_key(message: &mut &[u8]) -> Result<(u32, WireType), ()> {
    if !message.has_remaining() {
        return Err(());
    }
    decode_key(message).map_err(drop)
}

#[cfg(test)]
mod tests {
    use prost_types::Any;
    use proto::{
        any::pack,
        containerd::events::{
            ContainerCreate, NamespaceCreate, TaskCreate, TaskIo, container_create,
        },
    };

    use super::*;

    fn envelope(event: Any) -> Envelope {
        Envelope {
            timestamp: None,
            namespace: "default".to_owned(),
            topic: "/some/topic".to_owned(),
            event: Some(event),
        }
    }

    #[test]
    fn fields() {
        let task = pack(&TaskCreate {
            container_id: "c".to_owned(),
            pid: 300,
            io: Some(TaskIo { stdout: "/out".to_owned(), terminal: true, ..Default::default() }),
            ..Default::default()
        });
        let container = pack(&ContainerCreate {
            id: "c".to_owned(),
            runtime: Some(container_create::Runtime {
                name: "io.containerd.runc.v2".to_owned(),
                options: None,
            }),
            ..Default::default()
        });
        let namespace = pack(&NamespaceCreate {
            name: "n".to_owned(),
            labels: [("a.b".to_owned(), "c".to_owned())].into(),
        });
        let broken = Any { value: vec![0x0a, 0x7f, b'x'], ..task.clone() };
        let foreign = Any { type_url: "my.TaskCreate".to_owned(), ..task.clone() };
        let cases: &[(&str, &Any, &[&str], Option<&str>)] = &[
            ("namespace", &task, &["namespace"], Some("default")),
            ("topic", &task, &["topic"], Some("/some/topic")),
            ("text", &task, &["event", "container_id"], Some("c")),
            ("empty text", &task, &["event", "bundle"], None),
            ("number", &task, &["event", "pid"], None),
            ("nested", &task, &["event", "io", "stdout"], Some("/out")),
            ("nested truth", &task, &["event", "io", "terminal"], Some("true")),
            ("message itself", &task, &["event", "io"], None),
            ("runtime", &container, &["event", "runtime", "name"], Some("io.containerd.runc.v2")),
            ("label with a dot", &namespace, &["event", "labels", "a", "b"], Some("c")),
            ("absent label", &namespace, &["event", "labels", "a"], None),
            ("unknown field", &task, &["event", "colour"], None),
            ("no field", &task, &["event"], None),
            ("unknown top", &task, &["timestamp"], None),
            ("broken message", &broken, &["event", "container_id"], None),
            ("foreign type", &foreign, &["event", "container_id"], None),
        ];
        for (case, event, path, want) in cases {
            let envelope = envelope((*event).clone());
            let path: Vec<_> = path.iter().map(|&part| part.to_owned()).collect();
            assert_eq!(EventFields(&envelope).field(&path).as_deref(), *want, "{case}");
        }
    }
}
