//! How the images of an archive are called.

use super::super::document::Descriptor;

/// The annotation with an image's whole name.
pub(super) const IMAGE_NAME: &str = "io.containerd.image.name";

/// The annotation with a name or only a tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The rules of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Naming {
    /// The name that tags are put behind.
    pub(crate) base: String,
    /// Whether names that do not begin with `base` are left out.
    pub(crate) only_base: bool,
    /// Whether images are named by digest too.
    pub(crate) digests: bool,
    /// Whether those that have a name are left out of that.
    pub(crate) skip_named: bool,
}

impl Naming {
    /// The names of an image.
    pub(super) fn names(&self, manifest: &Descriptor) -> Vec<String> {
        let whole = manifest.annotation(IMAGE_NAME).map(str::to_owned);
        let name = whole.or_else(|| self.translate(manifest.annotation(REF_NAME)?));
        let by_digest = self.digests && !(self.skip_named && name.is_some());
        let digest = by_digest.then(|| format!("{}@{}", self.base, manifest.digest));
        name.into_iter().chain(digest).collect()
    }

    fn translate(&self, reference: &str) -> Option<String> {
        if !reference.contains(['/', ':', '@']) {
            return Some(format!("{}:{reference}", self.base));
        }
        let below = reference.strip_prefix(&self.base);
        let fits = below.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
        (fits || !self.only_base).then(|| reference.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let import = Naming {
            base: "import-2026-01-01".to_owned(),
            only_base: false,
            digests: false,
            skip_named: false,
        };
        let based = Naming { base: "foo/bar".to_owned(), only_base: true, ..import.clone() };
        let digests = Naming { digests: true, ..based.clone() };
        let skipping = Naming { skip_named: true, ..digests.clone() };
        let tag = (REF_NAME, "latest");
        let whole = (IMAGE_NAME, "docker.io/library/a:1");
        type Case<'a> = (&'a str, &'a Naming, Option<(&'a str, &'a str)>, &'a [&'a str]);
        let cases: [Case<'_>; 8] = [
            ("tag", &import, Some(tag), &["import-2026-01-01:latest"]),
            ("tag with base", &based, Some(tag), &["foo/bar:latest"]),
            ("whole name", &based, Some(whole), &["docker.io/library/a:1"]),
            ("other base", &based, Some((REF_NAME, "foo/barn:1")), &[]),
            ("same base", &based, Some((REF_NAME, "foo/bar:1")), &["foo/bar:1"]),
            ("no name", &import, None, &[]),
            ("digest", &digests, Some(tag), &["foo/bar:latest", "foo/bar@sha256:0"]),
            ("digest skipped", &skipping, Some(tag), &["foo/bar:latest"]),
        ];
        for (case, naming, annotation, want) in cases {
            let annotations =
                annotation.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter();
            let manifest = Descriptor {
                media_type: String::new(),
                digest: "sha256:0".to_owned(),
                size: 0,
                annotations: annotations.collect(),
                platform: None,
            };
            assert_eq!(naming.names(&manifest), want, "{case}");
        }
    }
}
