//! Decisions of a transfer that need no I/O: what to fetch, which labels keep it, how to name it.

use std::collections::BTreeMap;

use crate::{
    digest::Digest,
    labels::Labels,
    oci::{ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, Descriptor, Document, Role},
    platform::Platform,
};

/// The label of a configuration with the chain ID of its unpacked layers, by snapshotter.
const LABEL_GC_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";

/// The label of a committed snapshot with the chain ID of what is in it.
pub(super) const LABEL_SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// The label of a blob with the repositories of a host that have it.
const LABEL_SOURCE: &str = "containerd.io/distribution.source.";

/// For which platforms an image's content is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platforms {
    /// All that the image has.
    All,
    /// What runs on these, each with its best match first.
    Only(Vec<Platform>),
}

impl Platforms {
    /// The rank of what is made for `platform`; `None` if it is not wanted. What says no platform
    /// is wanted.
    fn rank(&self, platform: Option<&Platform>) -> Option<u32> {
        match (self, platform) {
            (Self::All, _) | (_, None) => Some(0),
            (Self::Only(wanted), Some(platform)) => {
                wanted.iter().filter_map(|want| want.rank(platform)).min()
            }
        }
    }

    /// The children of a document that are wanted, the best match first.
    pub fn select(&self, document: &Document) -> Vec<Descriptor> {
        let mut ranked: Vec<(u32, Descriptor)> = document
            .children()
            .into_iter()
            .filter_map(|child| Some((self.rank(child.platform.as_ref())?, child)))
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, child)| child).collect()
    }
}

/// The labels by which a document keeps its children alive (containerd, `ChildGCLabels`).
pub(super) fn child_labels(children: &[Descriptor]) -> Labels {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut labels = Labels::new();
    for child in children {
        let prefix = match child.role() {
            Role::Index | Role::Manifest => "containerd.io/gc.ref.content.m.",
            Role::Layer => "containerd.io/gc.ref.content.l.",
            Role::Config => "containerd.io/gc.ref.content.config",
            Role::Other => "containerd.io/gc.ref.content.",
        };
        let count = counts.entry(prefix).or_default();
        let key = if prefix.ends_with('.') || *count > 0 {
            format!("{prefix}{count}")
        } else {
            prefix.to_owned()
        };
        *count += 1;
        labels.insert(key, child.digest.to_string());
    }
    labels
}

/// The label by which a configuration keeps the unpacked layers alive.
pub(super) fn snapshot_label(snapshotter: &str, chain_id: &Digest) -> (String, String) {
    (format!("{LABEL_GC_SNAPSHOT}{snapshotter}"), chain_id.to_string())
}

/// The label that tells where a blob came from: `host` without port, and the repository.
pub(super) fn source_label(host: &str, repository: &str) -> (String, String) {
    let name = host.split(':').next().unwrap_or(host);
    (format!("{LABEL_SOURCE}{name}"), repository.to_owned())
}

/// How the images of an archive are named (containerd, `transfer.ImageReference`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameRule {
    /// The name, or its part before the tag.
    pub name: String,
    /// Whether `name` is a part to which a tag or a digest is added.
    pub is_prefix: bool,
    /// Whether a full name in the archive counts even if it does not start with `name`.
    pub allow_overwrite: bool,
    /// Whether the image is also known by its digest.
    pub add_digest: bool,
    /// Whether it is not, if it has a name.
    pub skip_named_digest: bool,
}

impl NameRule {
    /// The names of an image of an archive.
    pub fn names(&self, image: &Descriptor) -> Vec<String> {
        if !self.is_prefix {
            return Vec::new();
        }
        let by_digest = || format!("{}@{}", self.name, image.digest);
        match self.annotated_name(image) {
            None if self.add_digest => vec![by_digest()],
            None => Vec::new(),
            Some(name) if self.add_digest && !self.skip_named_digest => vec![name, by_digest()],
            Some(name) => vec![name],
        }
    }

    /// The further name of what is transferred as a whole: what an archive's index lists, or what a
    /// name at a registry stands for.
    pub fn name_of_whole(&self, whole: &Descriptor) -> Option<String> {
        match self.add_digest {
            true => Some(format!("{}@{}", self.name, whole.digest)),
            false if self.is_prefix || self.name.is_empty() => None,
            false => Some(self.name.clone()),
        }
    }

    fn annotated_name(&self, image: &Descriptor) -> Option<String> {
        let annotation = |key| image.annotations.get(key).filter(|value| !value.is_empty());
        let given =
            annotation(ANNOTATION_IMAGE_NAME).or_else(|| annotation(ANNOTATION_REF_NAME))?;
        if !given.contains(['/', ':', '@']) {
            return (!self.name.is_empty()).then(|| format!("{}:{given}", self.name));
        }
        (self.allow_overwrite || self.is_prefix_of(given)).then(|| given.clone())
    }

    fn is_prefix_of(&self, full: &str) -> bool {
        let rest = full.strip_prefix(&self.name);
        !self.name.is_empty()
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Index, media_type};

    fn image(platform: Option<&str>, bytes: &[u8]) -> Descriptor {
        let platform = platform.map(|text| Platform::parse(text).expect("well formed"));
        Descriptor { platform, ..Descriptor::of(media_type::OCI_MANIFEST, bytes) }
    }

    #[test]
    fn select() {
        let (arm, x86, x64) = (
            image(Some("linux/arm64"), b"arm"),
            image(Some("linux/386"), b"x86"),
            image(Some("linux/amd64"), b"x64"),
        );
        let document = Document::Index(Index {
            schema_version: 2,
            media_type: String::new(),
            manifests: vec![arm.clone(), x86.clone(), x64.clone()],
        });
        let only = |text| Platforms::Only(vec![Platform::parse(text).expect("well formed")]);
        let cases = [
            ("all", Platforms::All, vec![arm.clone(), x86.clone(), x64.clone()]),
            ("best first", only("linux/amd64"), vec![x64, x86]),
            ("one", only("linux/arm64"), vec![arm]),
            ("none", only("linux/s390x"), vec![]),
        ];
        for (case, platforms, want) in cases {
            assert_eq!(platforms.select(&document), want, "{case}");
        }
    }

    #[test]
    fn labels() {
        let children = [
            Descriptor::of(media_type::OCI_CONFIG, b"c"),
            Descriptor::of(media_type::OCI_LAYER, b"0"),
            Descriptor::of(media_type::DOCKER_LAYER_GZIP, b"1"),
            Descriptor::of("x/y", b"x"),
        ];
        let keys: Vec<String> = child_labels(&children).into_keys().collect();
        let want =
            ["0", "config", "l.0", "l.1"].map(|key| format!("containerd.io/gc.ref.content.{key}"));
        assert_eq!(keys, want);
    }

    #[test]
    fn names_of_the_whole() {
        let whole = image(None, b"");
        let pinned = format!("h/p@{}", whole.digest);
        let cases = [
            ("a name", false, false, Some("h/p".to_owned())),
            ("by digest", false, true, Some(pinned.clone())),
            ("a part of a name", true, false, None),
            ("a part, by digest", true, true, Some(pinned)),
        ];
        for (case, is_prefix, add_digest, want) in cases {
            let rule = NameRule {
                name: "h/p".to_owned(),
                is_prefix,
                add_digest,
                skip_named_digest: true,
                ..NameRule::default()
            };
            assert_eq!(rule.name_of_whole(&whole), want, "{case}");
        }
        assert_eq!(NameRule::default().name_of_whole(&whole), None, "nothing");
    }

    #[test]
    fn names() {
        let rule = NameRule { name: "h/p".to_owned(), is_prefix: true, ..NameRule::default() };
        let overwrite = NameRule { allow_overwrite: true, ..rule.clone() };
        let digest = NameRule { add_digest: true, ..rule.clone() };
        let pinned = format!("h/p@{}", image(None, b"").digest);
        let cases: [(&str, &NameRule, Option<&str>, Vec<&str>); 8] = [
            ("tag", &rule, Some("v1"), vec!["h/p:v1"]),
            ("full name with the prefix", &rule, Some("h/p:v2"), vec!["h/p:v2"]),
            ("partial match", &rule, Some("h/proxy:v2"), vec![]),
            ("another name", &rule, Some("other/x:1"), vec![]),
            ("another name, allowed", &overwrite, Some("other/x:1"), vec!["other/x:1"]),
            ("no name", &rule, None, vec![]),
            ("no name, by digest", &digest, None, vec![&pinned]),
            ("name and digest", &digest, Some("v1"), vec!["h/p:v1", &pinned]),
        ];
        for (case, rule, annotation, want) in cases {
            let mut image = image(None, b"");
            if let Some(name) = annotation {
                image.annotations.insert(ANNOTATION_REF_NAME.to_owned(), name.to_owned());
            }
            assert_eq!(rule.names(&image), want, "{case}");
        }
    }
}
