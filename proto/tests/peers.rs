//! Compares the wire with two descriptions of it that were not written here.
//!
//! `containerd-client` and `k8s-cri` ship `.proto` files. They are older than what we speak, so
//! the comparison goes one way: everything that they have must be here, with the same number,
//! type, label and place, and every method with the same request and answer.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto, field_descriptor_proto::Type,
};

/// What is otherwise here because it has changed since in what it was taken from.
///
/// CRI made it bytes, which are the same on the wire: a value need not be text.
const CHANGED: &[&str] = &["runtime.v1.KeyValue.value"];

/// Fully qualified names, and what the wire needs to know of each.
type Facts = BTreeMap<String, String>;

/// Where the source of a crate is, which is fetched, but never built.
fn source(name: &str) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let manifest = packages
        .iter()
        .find(|package| package["name"] == name)
        .and_then(|package| package["manifest_path"].as_str())
        .expect("the crate is a dependency of the tests");
    Path::new(manifest).parent().expect("a manifest is in a directory").to_owned()
}

fn proto_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            // A copy of the same files is vendored once more.
            if path.file_name().is_none_or(|name| name != "vendor") {
                found.extend(proto_files(&path));
            }
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn facts(set: &FileDescriptorSet) -> Facts {
    let mut facts = Facts::new();
    for file in set.file.iter().filter(|file| file.package() != "google.protobuf") {
        for message in &file.message_type {
            of_message(file.package(), message, &mut facts);
        }
        for one in &file.enum_type {
            of_enum(file.package(), one, &mut facts);
        }
        for service in &file.service {
            of_service(file.package(), service, &mut facts);
        }
    }
    facts
}

fn of_message(scope: &str, message: &DescriptorProto, facts: &mut Facts) {
    let name = format!("{scope}.{}", message.name());
    facts.insert(name.clone(), "message".to_owned());
    for field in &message.field {
        let oneof = field.oneof_index.filter(|_| !field.proto3_optional());
        let oneof = oneof.and_then(|at| message.oneof_decl.get(usize::try_from(at).ok()?));
        facts.insert(
            format!("{name}.{}", field.name()),
            format!("{} {}", of_field(field), oneof.map_or("", |oneof| oneof.name())),
        );
    }
    for one in &message.enum_type {
        of_enum(&name, one, facts);
    }
    for nested in &message.nested_type {
        of_message(&name, nested, facts);
    }
}

fn of_field(field: &FieldDescriptorProto) -> String {
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().to_owned(),
        scalar => format!("{scalar:?}"),
    };
    format!("= {}, {:?} {kind}", field.number(), field.label())
}

fn of_enum(scope: &str, one: &EnumDescriptorProto, facts: &mut Facts) {
    for value in &one.value {
        let name = format!("{scope}.{}.{}", one.name(), value.name());
        facts.insert(name, format!("= {}", value.number()));
    }
}

fn of_service(scope: &str, service: &ServiceDescriptorProto, facts: &mut Facts) {
    for method in &service.method {
        let stream = |yes| if yes { "stream " } else { "" };
        facts.insert(
            format!("{scope}.{}/{}", service.name(), method.name()),
            format!(
                "{}{} -> {}{}",
                stream(method.client_streaming()),
                method.input_type(),
                stream(method.server_streaming()),
                method.output_type()
            ),
        );
    }
}

/// Names what `theirs` has and ours has not, or has otherwise.
fn differences(theirs: &FileDescriptorSet) -> (usize, Vec<String>) {
    let ours = FileDescriptorSet::decode(proto::DESCRIPTORS).expect("our own descriptors");
    let (ours, theirs) = (facts(&ours), facts(theirs));
    let wrong = theirs
        .iter()
        .filter(|(name, fact)| ours.get(*name) != Some(fact) && !CHANGED.contains(&name.as_str()))
        .map(|(name, fact)| format!("{name}: theirs {fact:?}, ours {:?}", ours.get(name)))
        .collect();
    (theirs.len(), wrong)
}

#[test]
fn containerd() {
    let vendor = source("containerd-client").join("vendor");
    let files = proto_files(&vendor.join("github.com/containerd/containerd/api"));
    let theirs = protox::compile(files, [vendor]).expect("their files are well formed");
    let (count, wrong) = differences(&theirs);
    assert!(count > 500, "only {count} facts");
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn cri() {
    let directory = source("k8s-cri").join("proto");
    let theirs = protox::compile([directory.join("v1.proto")], [directory]);
    let (count, wrong) = differences(&theirs.expect("their file is well formed"));
    assert!(count > 500, "only {count} facts");
    assert_eq!(wrong, Vec::<String>::new());
}
