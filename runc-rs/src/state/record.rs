//! What of a configuration is recorded for a checkpoint: which parts of the container are not its
//! own, and so stay where they are when its processes are taken apart.

use serde::{Deserialize, Serialize};

use crate::{
    mount::{self, Source},
    spec::{NamespaceKind, Spec},
};

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are runc's")]
pub struct Mount {
    pub source: String,
    pub destination: String,
    /// `bind`, `cgroup` or a kind of filesystem.
    pub device: String,
}

/// A Linux namespace that the container does not share with the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// As `NEWNET`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of one that was joined; of a new one empty.
    pub path: String,
}

/// A device node that is a mount of the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are runc's")]
pub struct Device {
    pub path: String,
}

/// The mounts that `spec` asks for.
pub fn mounts(spec: &Spec) -> Vec<Mount> {
    let of = |mount: &crate::spec::Mount| {
        // Those that make no sense were refused when the configuration was read.
        let (source, device) = match mount::plan(mount).ok()?.source {
            Source::Bind { path, .. } => (path, "bind".to_owned()),
            Source::Cgroup => (mount.source.clone(), "cgroup".to_owned()),
            Source::Filesystem { kind, name } => (name, kind),
        };
        Some(Mount { source, destination: mount.destination.clone(), device })
    };
    spec.mounts.iter().filter_map(of).collect()
}

/// The namespaces that `spec` asks for.
pub fn namespaces(spec: &Spec) -> Vec<Namespace> {
    let namespaces = spec.linux.namespaces.iter();
    namespaces
        .map(|namespace| Namespace {
            kind: namespace.kind.state_name().to_owned(),
            path: namespace.path.clone(),
        })
        .collect()
}

/// The device nodes that are mounts: all, where the container may not make nodes.
pub fn devices(spec: &Spec) -> Vec<Device> {
    if spec.linux.namespace(NamespaceKind::User).is_none() {
        return Vec::new();
    }
    let nodes = crate::init::devices::plan(&spec.linux.devices);
    nodes.iter().map(|node| Device { path: format!("/{}", node.path()) }).collect()
}

/// What the standard streams of this process refer to, which a process that it starts inherits:
/// `pipe:[1234]` or a path.
pub fn streams() -> Vec<String> {
    let of = |number: i32| {
        let link = rustix::fs::readlink(format!("/proc/self/fd/{number}"), Vec::new());
        link.map(|link| link.to_string_lossy().into_owned()).unwrap_or_default()
    };
    (0..3).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &str) -> Spec {
        let text = format!(
            r#"{{"mounts": [
                {{"destination": "/proc", "type": "proc", "source": "proc"}},
                {{"destination": "/etc/hosts", "source": "hosts", "options": ["rbind", "ro"]}},
                {{"destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup"}}],
                "linux": {{"namespaces": {namespaces}}}}}"#
        );
        serde_json::from_str(&text).expect("a configuration")
    }

    #[test]
    fn of_a_configuration() {
        let spec = spec(r#"[{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}]"#);
        let mount = |source: &str, destination: &str, device: &str| Mount {
            source: source.to_owned(),
            destination: destination.to_owned(),
            device: device.to_owned(),
        };
        let mounts_wanted = [
            mount("proc", "/proc", "proc"),
            mount("hosts", "/etc/hosts", "bind"),
            mount("cgroup", "/sys/fs/cgroup", "cgroup"),
        ];
        assert_eq!(mounts(&spec), mounts_wanted);
        let namespace =
            |kind: &str, path: &str| Namespace { kind: kind.to_owned(), path: path.to_owned() };
        assert_eq!(
            namespaces(&spec),
            [namespace("NEWPID", ""), namespace("NEWNET", "/run/netns/a")]
        );
        assert_eq!(devices(&spec), []);
    }

    #[test]
    fn devices_in_a_user_namespace() {
        let paths: Vec<String> =
            devices(&spec(r#"[{"type": "user"}]"#)).into_iter().map(|device| device.path).collect();
        assert!(paths.contains(&"/dev/null".to_owned()), "{paths:?}");
    }
}
