//! Names of images, and `key=value` arguments.

use std::collections::BTreeMap;

/// The registry of names that do not say theirs.
const DEFAULT_DOMAIN: &str = "docker.io";

/// The reference that people mean by a short name: `nginx:1.21.6` is
/// `docker.io/library/nginx:1.21.6`.
///
/// A reference that names its registry is returned as it is, except that a missing tag becomes
/// `latest`. The first component is a registry if it has a dot or a port, or is `localhost`.
/// Source: distribution, `reference.ParseDockerRef`.
pub(crate) fn normalise(name: &str) -> String {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if is_domain(first) => (first, rest.to_owned()),
        _ => (DEFAULT_DOMAIN, name.to_owned()),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
        format!("library/{path}")
    } else {
        path
    };
    let last = path.rsplit('/').next().unwrap_or(&path);
    if last.contains(':') || last.contains('@') {
        format!("{domain}/{path}")
    } else {
        format!("{domain}/{path}:latest")
    }
}

fn is_domain(component: &str) -> bool {
    component == "localhost"
        || component.contains(['.', ':'])
        || component.chars().any(|c| c.is_ascii_uppercase())
}

/// Labels given as `key=value`; a key alone has the empty value, which clears it.
pub(crate) fn labels<S: AsRef<str>>(pairs: &[S]) -> BTreeMap<String, String> {
    let split = |pair: &S| {
        let (key, value) = pair.as_ref().split_once('=').unwrap_or((pair.as_ref(), ""));
        (key.to_owned(), value.to_owned())
    };
    pairs.iter().map(split).collect()
}

/// Labels as tables show them.
pub(crate) fn label_text(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

/// Labels in a table, where none are a dash.
pub(crate) fn label_cell(labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() { "-".to_owned() } else { label_text(labels) }
}

/// The paths of an update mask that sets just these labels.
pub(crate) fn label_paths(labels: &BTreeMap<String, String>) -> Vec<String> {
    labels.keys().map(|key| format!("labels.{key}")).collect()
}

/// A name that no other process makes: `<prefix>-<nanoseconds>-<pid>`.
pub(crate) fn unique(prefix: &str) -> String {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{prefix}-{}-{}", now.as_nanos(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalised() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let cases = [
            ("short", "nginx:1.21.6", "docker.io/library/nginx:1.21.6".to_owned()),
            ("no tag", "nginx", "docker.io/library/nginx:latest".to_owned()),
            ("organisation", "grafana/loki", "docker.io/grafana/loki:latest".to_owned()),
            ("registry", "quay.io/a/b:c", "quay.io/a/b:c".to_owned()),
            ("port", "127.0.0.1:5000/a", "127.0.0.1:5000/a:latest".to_owned()),
            ("localhost", "localhost/a:b", "localhost/a:b".to_owned()),
            ("old hub", "index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("digest", &format!("nginx@{digest}"), format!("docker.io/library/nginx@{digest}")),
        ];
        for (case, name, want) in cases {
            assert_eq!(normalise(name), want, "{case}");
        }
    }
}
