//! What criu is told to dump a container.

use std::path::Path;

use super::{Options, external};
use crate::{
    criu::{
        Version,
        message::{self, CgroupMode, ExternalMount},
    },
    error::{Cause, Error},
    spec::NamespaceKind,
    state::State,
};

/// What the plan depends on, besides options.
pub(super) struct Facts<'a> {
    pub(super) version: Version,
    /// Whether the container's cgroup is one of v2.
    pub(super) unified: bool,
    pub(super) state: &'a State,
    /// Namespaces that are not the container's own, and their inodes.
    pub(super) namespaces: Vec<(NamespaceKind, u64)>,
    /// Mounts that are not.
    pub(super) external_mounts: Vec<ExternalMount>,
    pub(super) status_fd: Option<i32>,
}

/// The options of a dump, or a pre-dump.
pub(super) fn dump(
    base: message::Options,
    options: &Options,
    facts: Facts<'_>,
) -> Result<message::Options, Error> {
    let Facts { version, state, .. } = facts;
    let mut named = Vec::new();
    for (kind, inode) in facts.namespaces {
        if !external::is_supported(kind, version) {
            return Err(Error::Criu(format!(
                "criu lacks support for external {} namespace during checkpointing process (old \
                 criu version?)",
                kind.name()
            )));
        }
        named.push(format!("{}[{inode}]:{}", kind.name(), external::namespace_key(kind)));
    }
    // Without the freezer criu stops the processes one by one.
    let freezer = match facts.unified {
        true => state.cgroup_paths.get("").filter(|_| version >= Version::FREEZER_V2),
        false => state.cgroup_paths.get("freezer"),
    };
    Ok(message::Options {
        pid: Some(state.init_process_pid),
        root: state.config.rootfs.clone(),
        leave_running: Some(options.leave_running),
        tcp_skip_in_flight: Some(options.tcp_skip_in_flight),
        link_remap: Some(options.link_remap),
        external: named,
        freeze_cgroup: freezer.map(|path| path.display().to_string()),
        page_server: options.page_server.clone(),
        parent_image: options.parent_path.clone(),
        track_memory: options.parent_path.is_some().then_some(true),
        // A newer one says so by a notification.
        status_fd: facts.status_fd.filter(|_| version < Version::EXTERNAL_PID),
        external_mounts: facts.external_mounts,
        ..base
    })
}

/// criu's configuration file for this container: what the annotation `org.criu.config` says, which
/// may be none, or one for all containers.
pub(super) fn config_file(labels: &[String]) -> Option<String> {
    let annotated = labels.iter().find_map(|label| label.strip_prefix("org.criu.config="));
    match annotated {
        None => Some("/etc/criu/runc.conf".to_owned()),
        Some("") => None,
        Some(path) => Some(path.to_owned()),
    }
}

pub(super) fn cgroup_mode(name: &str) -> Result<CgroupMode, Error> {
    match name {
        "" => Ok(CgroupMode::Default),
        "soft" => Ok(CgroupMode::Soft),
        "full" => Ok(CgroupMode::Full),
        "strict" => Ok(CgroupMode::Strict),
        "ignore" => Ok(CgroupMode::Ignore),
        _ => Err(Error::Usage("invalid manage-cgroups-mode value".to_owned())),
    }
}

/// The `CLONE_NEW*` bits of namespaces whose content is not kept. The network's is always among
/// them: its devices are not the runtime's.
pub(super) fn empty_namespaces(names: &[String]) -> Result<u32, Error> {
    match names.iter().find(|name| *name != "network") {
        Some(name) => Err(Error::Usage(format!("namespace {name:?} is not supported"))),
        None => Ok(NamespaceKind::Net.flag()),
    }
}

/// Checks the images that a dump is based on: criu would take missing ones for none.
pub(super) fn check_parent(images: &Path, parent: Option<&str>) -> Result<(), Error> {
    let Some(parent) = parent else { return Ok(()) };
    if Path::new(parent).is_absolute() {
        return Err(Error::Usage("--parent-path must be relative".to_owned()));
    }
    let path = images.join(parent);
    let refuse = |error| {
        let cause = Cause(error);
        Err(Error::Usage(format!("invalid --parent-path: stat {}: {cause}", path.display())))
    };
    match path.metadata() {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => refuse(std::io::Error::from_raw_os_error(libc::ENOTDIR)),
        Err(error) => refuse(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use super::*;
    use crate::state::Config;

    fn state(cgroup_paths: &[(&str, &str)]) -> State {
        let path = |&(name, path): &(&str, &str)| (name.to_owned(), PathBuf::from(path));
        State {
            init_process_pid: 42,
            config: Config { rootfs: "/b/rootfs".to_owned(), ..Config::default() },
            cgroup_paths: cgroup_paths.iter().map(path).collect::<BTreeMap<_, _>>(),
            ..State::default()
        }
    }

    fn facts(version: u32, state: &State) -> Facts<'_> {
        Facts {
            version: Version(version),
            unified: state.cgroup_paths.len() == 1,
            state,
            namespaces: Vec::new(),
            external_mounts: Vec::new(),
            status_fd: None,
        }
    }

    fn plain() -> message::Options {
        message::Options {
            pid: Some(42),
            root: "/b/rootfs".to_owned(),
            leave_running: Some(false),
            tcp_skip_in_flight: Some(false),
            link_remap: Some(false),
            ..message::Options::default()
        }
    }

    #[test]
    fn dumps() {
        let v1 = state(&[("freezer", "/f"), ("memory", "/m")]);
        let v2 = state(&[("", "/u")]);
        let none = Options::default();
        let frozen = |path: &str| message::Options { freeze_cgroup: Some(path.into()), ..plain() };
        let every = Options {
            parent_path: Some("../p".to_owned()),
            leave_running: true,
            tcp_skip_in_flight: true,
            link_remap: true,
            page_server: Some(("::1".to_owned(), 9)),
            ..Options::default()
        };
        let mount = ExternalMount { key: "/a".to_owned(), value: "/b".to_owned() };
        let namespaces = vec![(NamespaceKind::Net, 7), (NamespaceKind::Pid, 8)];
        let cases = [
            ("v1", &none, facts(40_000, &v1), frozen("/f")),
            ("v2", &none, facts(31_400, &v2), frozen("/u")),
            ("v2, older", &none, facts(31_399, &v2), plain()),
            (
                "every option",
                &every,
                Facts { external_mounts: vec![mount.clone()], ..facts(40_000, &v1) },
                message::Options {
                    parent_image: Some("../p".to_owned()),
                    track_memory: Some(true),
                    leave_running: Some(true),
                    tcp_skip_in_flight: Some(true),
                    link_remap: Some(true),
                    page_server: Some(("::1".to_owned(), 9)),
                    external_mounts: vec![mount],
                    ..frozen("/f")
                },
            ),
            (
                "external namespaces",
                &none,
                Facts { namespaces, ..facts(40_000, &v1) },
                message::Options {
                    external: vec![
                        "net[7]:extRootNetNS".to_owned(),
                        "pid[8]:extRootPidNS".to_owned(),
                    ],
                    ..frozen("/f")
                },
            ),
            ("status", &none, Facts { status_fd: Some(9), ..facts(31_500, &v1) }, frozen("/f")),
            (
                "status, older",
                &none,
                Facts { status_fd: Some(9), ..facts(31_499, &v1) },
                message::Options { status_fd: Some(9), ..frozen("/f") },
            ),
        ];
        for (case, options, facts, want) in cases {
            let got = dump(message::Options::default(), options, facts);
            assert_eq!(got.map_err(|error| error.to_string()), Ok(want), "{case}");
        }
    }

    #[test]
    fn too_old_for_external_namespaces() {
        let v1 = state(&[("freezer", "/f")]);
        for (kind, version, want) in
            [(NamespaceKind::Net, 31_099, "net"), (NamespaceKind::Pid, 31_499, "pid")]
        {
            let facts = Facts { namespaces: vec![(kind, 1)], ..facts(version, &v1) };
            let got = dump(message::Options::default(), &Options::default(), facts);
            let text = got.expect_err(want).to_string();
            let want = format!("criu lacks support for external {want} namespace");
            assert!(text.starts_with(&want), "{text}");
        }
    }

    #[test]
    fn config_files() {
        let cases = [
            ("none", "a=b", Some("/etc/criu/runc.conf")),
            ("own", "org.criu.config=/x", Some("/x")),
            ("nothing", "org.criu.config=", None),
        ];
        for (case, label, want) in cases {
            assert_eq!(config_file(&[label.to_owned()]).as_deref(), want, "{case}");
        }
    }

    #[test]
    fn cgroup_modes() {
        let cases = [
            ("", Some(CgroupMode::Default)),
            ("soft", Some(CgroupMode::Soft)),
            ("full", Some(CgroupMode::Full)),
            ("strict", Some(CgroupMode::Strict)),
            ("ignore", Some(CgroupMode::Ignore)),
            ("other", None),
        ];
        for (name, want) in cases {
            assert_eq!(cgroup_mode(name).ok(), want, "{name:?}");
        }
    }

    #[test]
    fn empty_namespace_names() {
        let net = NamespaceKind::Net.flag();
        let cases: [(&[&str], Result<u32, &str>); 3] = [
            (&[], Ok(net)),
            (&["network"], Ok(net)),
            (&["network", "pid"], Err("namespace \"pid\" is not supported")),
        ];
        for (names, want) in cases {
            let owned: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            let got = empty_namespaces(&owned).map_err(|error| error.to_string());
            assert_eq!(got, want.map_err(str::to_owned), "{names:?}");
        }
    }

    #[test]
    fn parents() {
        let top = tempfile::tempdir().expect("temporary directory");
        let images = top.path().join("images");
        std::fs::create_dir_all(&images).expect("make images");
        std::fs::create_dir(top.path().join("parent")).expect("make parent");
        std::fs::write(top.path().join("file"), "").expect("make file");
        let cases = [
            ("none", None, None),
            ("there", Some("../parent"), None),
            ("absolute", Some("/x"), Some("--parent-path must be relative")),
            ("missing", Some("../x"), Some("no such file or directory")),
            ("file", Some("../file"), Some("not a directory")),
        ];
        for (case, parent, want) in cases {
            let got = check_parent(&images, parent).err().map(|error| error.to_string());
            let fits = match (&got, want) {
                (Some(got), Some(want)) => {
                    got.contains("--parent-path") && got.ends_with(want) || got == want
                }
                (got, want) => got.is_none() && want.is_none(),
            };
            assert!(fits, "{case}: {got:?}");
        }
    }
}
