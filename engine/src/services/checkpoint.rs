//! Checkpoints in the content store.
//!
//! A checkpoint is two blobs: a tar stream of criu's directory, and the container's specification.
//! Who asked for it gets their descriptors, and keeps them by a lease until an index refers to both.
//!
//! Source: containerd, `plugins/services/tasks/local.go` (`Checkpoint`, `Create`).

use std::{fs::File, os::unix::fs::DirBuilderExt, path::Path};

use prost::Message;
use prost_types::Any;
use proto::containerd::types;

use super::{diff::archive, wire::descriptor_to_wire};
use crate::{
    content::Store,
    error::Error,
    labels::Labels,
    namespace::{Namespace, Scope},
    oci::Descriptor,
};

/// The media type of criu's directory.
const IMAGE: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";

/// The media type of the specification.
const CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";

/// Makes an empty directory for criu.
pub(super) fn make_folder(folder: &Path) -> Result<(), Error> {
    let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(folder);
    made.map_err(Error::file("create", folder))
}

/// Keeps what criu wrote into `folder`, and the specification of the container.
pub(super) fn keep(
    content: &Store,
    scope: &Scope,
    folder: &Path,
    spec: Option<&Any>,
) -> Result<Vec<types::Descriptor>, Error> {
    let image = archive(content, scope, folder, IMAGE)?;
    let spec = spec.map(Message::encode_to_vec).unwrap_or_default();
    let digest = content.put(scope, &spec, Labels::new())?;
    let config = Descriptor { digest, ..Descriptor::of(CONFIG, &spec) };
    Ok(vec![descriptor_to_wire(image), descriptor_to_wire(config)])
}

/// The blob with criu's directory that a client wants restored.
pub(super) fn find(
    content: &Store,
    namespace: &Namespace,
    descriptor: types::Descriptor,
) -> Result<File, Error> {
    if descriptor.media_type != IMAGE {
        let kind = descriptor.media_type;
        return Err(Error::InvalidArgument(format!("unsupported checkpoint type {kind:?}")));
    }
    let digest = descriptor.digest.parse().map_err(|error| {
        let text = &descriptor.digest;
        Error::InvalidArgument(format!("checkpoint.Digest {text:?} invalid: {error}"))
    })?;
    content.blob(namespace, &digest)?.into_file()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use snapshotter::Mount;

    use super::*;
    use crate::{
        diff::{self, Limits},
        metadata,
    };

    #[test]
    fn kept_and_found() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| folder.path().join(name);
        let metadata = metadata::Store::open(&path("m.redb")).expect("opens");
        let content = Store::open(&path("content"), metadata).expect("opens");
        let namespace: Namespace = "default".parse().expect("a namespace");
        let scope = Scope { namespace: namespace.clone(), lease: None };
        let (image, restored) = (path("image"), path("restored"));
        make_folder(&image).expect("made");
        make_folder(&restored).expect("made");
        fs::write(image.join("pages-1.img"), "pages").expect("written");
        let spec = Any { type_url: "t".to_owned(), value: vec![1] };
        let parts = keep(&content, &scope, &image, Some(&spec)).expect("kept");
        let kinds: Vec<_> = parts.iter().map(|part| part.media_type.as_str()).collect();
        assert_eq!(kinds, [IMAGE, CONFIG]);
        let digest = parts[1].digest.parse().expect("a digest");
        let config = content.blob(&namespace, &digest).expect("there");
        let config = config.read_all(1 << 20).expect("read");
        assert_eq!(Any::decode(config.as_slice()).expect("decoded"), spec);

        let archive = find(&content, &namespace, parts[0].clone()).expect("found");
        let target = [Mount::bind(restored.display().to_string(), false)];
        diff::apply(archive, &target, &Limits::default()).expect("unpacked");
        assert_eq!(fs::read(restored.join("pages-1.img")).expect("read"), b"pages");

        let wrong_kind = find(&content, &namespace, parts[1].clone());
        assert!(matches!(wrong_kind, Err(Error::InvalidArgument(_))), "{wrong_kind:?}");
        let elsewhere = "other".parse().expect("a namespace");
        let absent = find(&content, &elsewhere, parts[0].clone());
        assert!(matches!(absent, Err(Error::NotFound(_))), "{absent:?}");
    }
}
