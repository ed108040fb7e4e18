//! Labels that an image brought along.
//!
//! Clients copy the labels of an image's configuration to the containers that they make from it. A
//! label of the restart monitor's among them would let an image choose a program that runs on the
//! host, or a file of the host's that is written (CVE-2026-53488). So a label of the monitor's that
//! the image has too, with the same value, is taken for the image's: it is left out of the record
//! when a container is made, while it is known which image was used, and not heeded in older
//! records.
//!
//! Clients are written in Go, whose JSON takes `labels` and `LABELS` for `Labels`, and merges what
//! is given twice. So nothing is made of the documents' structure here: any pair of texts in any
//! document that can be reached from the image counts as a label. Of a document that cannot be read
//! to its end, or of too many, everything is believed.

use std::{collections::HashSet, fmt};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::policy::PREFIX;
use crate::{
    content::Store, digest::Digest, error::Error, metadata::Container, namespace::Namespace,
    oci::DOCUMENT_LEN_MAX,
};

/// The most blobs that are looked at for one image.
const BLOBS_MAX: usize = 1024;

/// The most bytes of documents that are read for one image.
const DOCUMENTS_LEN_MAX: u64 = 64 << 20;

/// Takes the labels of the monitor's out of `container` that its image brought, and gives their
/// keys.
///
/// An image that the namespace does not have brings none. Blocks.
///
/// # Errors
///
/// `Database`, `File`: the image cannot be read.
pub fn strip_image_labels(
    content: &Store,
    namespace: &Namespace,
    container: &mut Container,
) -> Result<Vec<String>, Error> {
    let has_any = container.labels.keys().any(|key| key.starts_with(PREFIX));
    if !has_any || container.image.is_empty() {
        return Ok(Vec::new());
    }
    let root = match content.metadata().image(namespace, &container.image) {
        Ok(image) => image.target.digest,
        Err(Error::NotFound(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let brought = brought(content, namespace, root)?;
    let theirs = |key: &String, value: &String| {
        key.starts_with(PREFIX)
            && brought.as_ref().is_none_or(|all| all.contains(&(key.clone(), value.clone())))
    };
    let labels = std::mem::take(&mut container.labels);
    let (stripped, kept) = labels.into_iter().partition(|(key, value)| theirs(key, value));
    container.labels = kept;
    let stripped: crate::labels::Labels = stripped;
    Ok(stripped.into_keys().collect())
}

/// The labels of the monitor's in what is below `root`; `None` for any.
fn brought(
    content: &Store,
    namespace: &Namespace,
    root: Digest,
) -> Result<Option<HashSet<(String, String)>>, Error> {
    let mut found = Found::default();
    let mut seen = HashSet::from([root.clone()]);
    let mut pending = vec![root];
    let mut room = DOCUMENTS_LEN_MAX;
    while let Some(digest) = pending.pop() {
        let blob = match content.blob(namespace, &digest) {
            Err(Error::NotFound(_)) => continue,
            blob => blob?,
        };
        let mut first = [0];
        blob.read_at(&mut first, 0)?;
        // Layers are most of the blobs, and begin otherwise.
        if !matches!(first, [b'{' | b' ' | b'\t' | b'\r' | b'\n']) {
            continue;
        }
        if seen.len() > BLOBS_MAX || blob.size() > DOCUMENT_LEN_MAX.min(room) {
            return Ok(None);
        }
        room -= blob.size();
        let bytes = blob.read_all(DOCUMENT_LEN_MAX)?;
        if found.read(&bytes).is_err() {
            return Ok(None);
        }
        pending.extend(found.digests.drain(..).filter(|digest| seen.insert(digest.clone())));
    }
    Ok(Some(found.labels))
}

/// What documents have in them, wherever in them it is.
#[derive(Debug, Default)]
struct Found {
    labels: HashSet<(String, String)>,
    digests: Vec<Digest>,
}

impl Found {
    fn read(&mut self, document: &[u8]) -> Result<(), serde_json::Error> {
        let mut json = serde_json::Deserializer::from_slice(document);
        Value { key: "", found: self }.deserialize(&mut json)?;
        json.end()
    }
}

/// A value of a document, and the key that it is under.
struct Value<'a> {
    key: &'a str,
    found: &'a mut Found,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        if self.key.starts_with(PREFIX) {
            self.found.labels.insert((self.key.to_owned(), text.to_owned()));
        } else if let Ok(digest) = text.parse() {
            self.found.digests.push(digest);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(Value { key: &key, found: self.found })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Value { key: "", found: self.found })?.is_some() {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        labels::Labels,
        metadata::{self, Image},
        namespace::Scope,
        oci::{Descriptor, media_type},
    };

    #[test]
    fn labels_of_the_image_are_not_the_containers() {
        let uri = "containerd.io/restart.loguri";
        let config = |labels: &str| format!(r#"{{"config":{{"Labels":{labels}}}}}"#);
        let deep = format!(
            r#"{{"x":{}1{},"config":{{"Labels":{{"{uri}":"file:///x"}}}}}}"#,
            "[".repeat(500),
            "]".repeat(500)
        );
        let cases = [
            ("none", config("null"), vec![]),
            ("same", config(&format!(r#"{{"{uri}":"file:///x"}}"#)), vec![uri]),
            ("another", config(&format!(r#"{{"{uri}":"file:///y"}}"#)), vec![]),
            (
                "as Go reads it",
                format!(r#" {{"CONFIG":{{"label\u017f":{{"{uri}":"file:///x"}}}},"config":{{}}}}"#),
                vec![uri],
            ),
            ("cannot be read", deep, vec![uri, "containerd.io/restart.status"]),
            ("no document", "\u{1f}".to_owned(), vec![]),
        ];
        for (case, config, want) in cases {
            let folder = tempfile::tempdir().expect("a temporary directory");
            let records = metadata::Store::open(&folder.path().join("db")).expect("opens");
            let content = Store::open(folder.path(), records.clone()).expect("opens");
            let namespace: Namespace = "default".parse().expect("an identifier");
            let scope = Scope { namespace: namespace.clone(), lease: None };
            let put = |bytes: &[u8]| content.put(&scope, bytes, Labels::new()).expect("stored");
            let digest = put(config.as_bytes());
            let manifest = format!(r#"{{"Config":{{"digest":"{digest}"}}}}"#);
            put(manifest.as_bytes());
            let index =
                format!(r#"{{"manifests":[{{"digest":"{}"}}]}}"#, Digest::of(manifest.as_bytes()));
            put(index.as_bytes());
            let image = Image {
                name: "i".to_owned(),
                labels: Labels::new(),
                target: Descriptor::of(media_type::OCI_INDEX, index.as_bytes()),
                created: SystemTime::UNIX_EPOCH,
                updated: SystemTime::UNIX_EPOCH,
            };
            records.create_image(&scope, image).expect("made");

            let mut container = super::super::sample("c1");
            container.image = "i".to_owned();
            let own = [(uri, "file:///x"), ("containerd.io/restart.status", "running"), ("a", "b")];
            container.labels = own.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            let got = strip_image_labels(&content, &namespace, &mut container).expect("readable");
            assert_eq!(got, want, "{case}");
            assert_eq!(container.labels.len(), 3 - want.len(), "{case}");
        }
    }
}
