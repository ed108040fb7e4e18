//! What criu is told to restore a container.

use std::path::Path;

use super::Options;
use crate::{
    checkpoint::external,
    criu::{
        Version,
        message::{self, ExternalMount, Inherit},
    },
    error::Error,
    spec::{Namespace, NamespaceKind, Spec},
    state::record,
};

/// What the plan depends on, besides options.
pub(super) struct Facts<'a> {
    pub(super) spec: &'a Spec,
    pub(super) rootfs: &'a Path,
    /// What the standard streams were.
    pub(super) streams: &'a [String],
    /// Descriptors that criu has of namespaces.
    pub(super) namespaces: Vec<(NamespaceKind, i32)>,
    /// criu's `/proc/<pid>/cgroup`.
    pub(super) cgroups: String,
    pub(super) external_mounts: Vec<ExternalMount>,
}

/// The options of a restore.
pub(super) fn restore(
    base: message::Options,
    options: &Options,
    facts: Facts<'_>,
) -> message::Options {
    let namespaces = facts
        .namespaces
        .iter()
        .map(|&(kind, fd)| Inherit { key: external::namespace_key(kind).to_owned(), fd });
    // What were pipes are criu's own standard streams, which are the new container's.
    let streams = (0..).zip(facts.streams).filter(|(_, name)| name.contains("pipe:"));
    let streams = streams.map(|(fd, name)| Inherit { key: name.clone(), fd });
    message::Options {
        root: facts.rootfs.display().to_string(),
        evasive_devices: Some(true),
        restore_as_sibling: Some(true),
        lsm_profile: options.lsm_profile.clone(),
        lsm_mount_context: options.lsm_mount_context.clone(),
        inherit: namespaces.chain(streams).collect(),
        join_namespaces: joined(facts.spec),
        cgroup_roots: cgroup_roots(&facts.cgroups),
        external_mounts: facts.external_mounts,
        ..base
    }
}

/// The namespaces that criu joins by path.
fn joined(spec: &Spec) -> Vec<(String, String)> {
    let paths = spec.linux.namespaces.iter().filter(|namespace| !namespace.path.is_empty());
    let by_path = paths
        .filter(|namespace| !matches!(namespace.kind, NamespaceKind::Net | NamespaceKind::Pid));
    by_path.map(|own| (own.kind.name().to_owned(), own.path.clone())).collect()
}

/// The namespaces that criu is given by descriptor, under the name that they have in the images.
pub(super) fn external_namespaces(spec: &Spec, version: Version) -> Result<Vec<&Namespace>, Error> {
    let mut found = Vec::new();
    for namespace in spec.linux.namespaces.iter().filter(|own| !own.path.is_empty()) {
        match namespace.kind {
            NamespaceKind::Net | NamespaceKind::Pid => found.push(namespace),
            NamespaceKind::Cgroup => {
                let name = namespace.kind.state_name();
                let text = format!("Do not know how to handle namespace {name}");
                return Err(Error::Criu(text));
            }
            _ => continue,
        }
        if !external::is_supported(namespace.kind, version) {
            return Err(Error::Criu(format!(
                "criu lacks support for external {} namespace during the restoration process (old \
                 criu version?)",
                namespace.kind.name()
            )));
        }
    }
    Ok(found)
}

/// Checks that criu can give the container another LSM profile than it had.
pub(super) fn check_lsm(options: &Options, version: Version) -> Result<(), Error> {
    let flags = [
        ("--lsm-profile", &options.lsm_profile),
        ("--lsm-mount-context", &options.lsm_mount_context),
    ];
    match flags.iter().find(|(_, value)| value.is_some() && version < Version::LSM_PROFILE) {
        Some((name, _)) => Err(Error::Criu(format!("{name} requires at least CRIU 3.16"))),
        None => Ok(()),
    }
}

/// Each controller and its cgroup, of the lines of a `/proc/<pid>/cgroup`.
fn cgroup_roots(text: &str) -> Vec<(String, String)> {
    let mut roots = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        roots.extend(controllers.split(',').map(|one| (one.to_owned(), path.to_owned())));
    }
    roots
}

/// Records that the container has a time namespace, into which criu restores.
pub(super) fn add_time_namespace(namespaces: &mut Vec<record::Namespace>, version: Version) {
    let time = NamespaceKind::Time.state_name();
    let there = namespaces.iter().any(|namespace| namespace.kind == time);
    if !there && version >= Version::FREEZER_V2 && Path::new("/proc/self/ns/time").exists() {
        namespaces.push(record::Namespace { kind: time.to_owned(), path: String::new() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &str) -> Spec {
        let text = format!(r#"{{"linux": {{"namespaces": {namespaces}}}}}"#);
        serde_json::from_str(&text).expect("a configuration")
    }

    /// What the plan of a row depends on, and what is in it.
    struct Row {
        options: Options,
        spec: Spec,
        streams: &'static [&'static str],
        namespaces: Vec<(NamespaceKind, i32)>,
        cgroups: &'static str,
        external_mounts: Vec<ExternalMount>,
        want: message::Options,
    }

    fn plain() -> Row {
        Row {
            options: Options::default(),
            spec: Spec::default(),
            streams: &[],
            namespaces: Vec::new(),
            cgroups: "",
            external_mounts: Vec::new(),
            want: wanted(),
        }
    }

    fn wanted() -> message::Options {
        message::Options {
            root: "/b/rootfs".to_owned(),
            evasive_devices: Some(true),
            restore_as_sibling: Some(true),
            ..message::Options::default()
        }
    }

    fn check(case: &str, row: Row) {
        let streams: Vec<_> = row.streams.iter().map(|&stream| stream.to_owned()).collect();
        let facts = Facts {
            spec: &row.spec,
            rootfs: Path::new("/b/rootfs"),
            streams: &streams,
            namespaces: row.namespaces,
            cgroups: row.cgroups.to_owned(),
            external_mounts: row.external_mounts,
        };
        assert_eq!(restore(message::Options::default(), &row.options, facts), row.want, "{case}");
    }

    fn inherit(key: &str, fd: i32) -> Inherit {
        Inherit { key: key.to_owned(), fd }
    }

    fn pair(one: &str, other: &str) -> (String, String) {
        (one.to_owned(), other.to_owned())
    }

    #[test]
    fn restores() {
        check("plain", plain());
        check(
            "streams",
            Row {
                streams: &["/dev/null", "pipe:[7]", "pipe:[8]"],
                want: message::Options {
                    inherit: vec![inherit("pipe:[7]", 1), inherit("pipe:[8]", 2)],
                    ..wanted()
                },
                ..plain()
            },
        );
        let joins = r#"[{"type": "pid"}, {"type": "ipc", "path": "/i"},
            {"type": "network", "path": "/n"}]"#;
        check(
            "namespaces",
            Row {
                spec: spec(joins),
                namespaces: vec![(NamespaceKind::Net, 9)],
                want: message::Options {
                    inherit: vec![inherit("extRootNetNS", 9)],
                    join_namespaces: vec![pair("ipc", "/i")],
                    ..wanted()
                },
                ..plain()
            },
        );
    }

    #[test]
    fn restores_in_cgroups_with_mounts_and_profiles() {
        let mount = ExternalMount { key: "/a".to_owned(), value: "/b".to_owned() };
        check(
            "cgroups and mounts",
            Row {
                cgroups: "3:cpu,cpuacct:/a:b\n2:name=systemd:/\n0::/c\n",
                external_mounts: vec![mount.clone()],
                want: message::Options {
                    cgroup_roots: vec![
                        pair("cpu", "/a:b"),
                        pair("cpuacct", "/a:b"),
                        pair("name=systemd", "/"),
                        pair("", "/c"),
                    ],
                    external_mounts: vec![mount],
                    ..wanted()
                },
                ..plain()
            },
        );
        let profile = Some("selinux:x".to_owned());
        let context = Some("y".to_owned());
        check(
            "profiles",
            Row {
                options: Options {
                    lsm_profile: profile.clone(),
                    lsm_mount_context: context.clone(),
                    ..Options::default()
                },
                want: message::Options {
                    lsm_profile: profile,
                    lsm_mount_context: context,
                    ..wanted()
                },
                ..plain()
            },
        );
    }

    #[test]
    fn namespaces_by_descriptor() {
        let cases = [
            ("none", "[]", 40_000, Ok(0)),
            ("new ones", r#"[{"type": "pid"}, {"type": "network"}]"#, 40_000, Ok(0)),
            ("net", r#"[{"type": "network", "path": "/n"}]"#, 31_100, Ok(1)),
            (
                "net, old criu",
                r#"[{"type": "network", "path": "/n"}]"#,
                31_000,
                Err(
                    "criu lacks support for external net namespace during the restoration process (old criu version?)",
                ),
            ),
            ("by path", r#"[{"type": "uts", "path": "/u"}]"#, 31_000, Ok(0)),
            (
                "cgroup",
                r#"[{"type": "cgroup", "path": "/c"}]"#,
                40_000,
                Err("Do not know how to handle namespace NEWCGROUP"),
            ),
        ];
        for (case, namespaces, version, want) in cases {
            let spec = spec(namespaces);
            let got = external_namespaces(&spec, Version(version));
            let got = got.map(|found| found.len()).map_err(|error| error.to_string());
            assert_eq!(got, want.map_err(str::to_owned), "{case}");
        }
    }

    #[test]
    fn lsm_needs_a_newer_criu() {
        let options = Options { lsm_profile: Some("x".to_owned()), ..Options::default() };
        assert!(check_lsm(&options, Version(31_600)).is_ok());
        let error = check_lsm(&options, Version(31_599)).expect_err("too old");
        assert_eq!(error.to_string(), "--lsm-profile requires at least CRIU 3.16");
        assert!(check_lsm(&Options::default(), Version(30_000)).is_ok(), "not asked for");
    }

    #[test]
    fn time_namespace() {
        let mut namespaces = Vec::new();
        add_time_namespace(&mut namespaces, Version(31_399));
        assert_eq!(namespaces, [], "older criu");
        add_time_namespace(&mut namespaces, Version(31_400));
        add_time_namespace(&mut namespaces, Version(31_400));
        let kinds: Vec<_> = namespaces.iter().map(|namespace| namespace.kind.as_str()).collect();
        assert_eq!(kinds, ["NEWTIME"], "once");
    }
}
