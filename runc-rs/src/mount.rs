//! Mounts of the container's filesystem: what the configuration asks for, decided ([`plan`]) apart
//! from how it is done ([`attach`]).
//!
//! # Invariants
//!
//! Whatever a container can influence is reached through descriptors that were resolved inside its
//! root: targets by openat2(2) with `RESOLVE_IN_ROOT`, mounts as detached trees that
//! move_mount(2) puts on a target's descriptor. No path below the root is given to the kernel
//! twice, so a container that shares a volume cannot swap a directory for a symlink between check
//! and use.
//!
//! Sources: mount_setattr(2), runtime-spec `config.md` "Mounts" and `config-linux.md`.

pub(crate) mod attach;
mod bind;
pub(crate) mod cgroupfs;
mod copy_up;
pub(crate) mod left;
pub(crate) mod options;
pub(crate) mod target;

use crate::spec;

pub(crate) use self::options::Options;

/// A mount, its options understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountPlan {
    /// Where to, relative to the root, without `.`, `..` or empty components.
    pub(crate) destination: String,
    pub(crate) source: Source,
    pub(crate) options: Options,
}

impl MountPlan {
    /// The same, its destination taken from `rootfs` on where it is the host's path of something
    /// in there: some configurations have it so.
    pub(crate) fn below(mut self, rootfs: &std::path::Path) -> Self {
        let inside = std::path::Path::new("/").join(&self.destination);
        if let Ok(inside) = inside.strip_prefix(rootfs)
            && !inside.as_os_str().is_empty()
        {
            self.destination = inside.to_string_lossy().into_owned();
        }
        self
    }
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A part of the runtime's own tree, in bundle-relative or absolute form.
    Bind { path: String, recursive: bool, idmap: Option<IdMap> },
    /// The cgroup hierarchies of the host, as many as there are.
    Cgroup,
    /// A new filesystem.
    Filesystem { kind: String, name: String },
}

/// The mapping of an idmapped mount; without ranges the container's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMap {
    pub(crate) recursive: bool,
    pub(crate) uids: Vec<spec::IdMapping>,
    pub(crate) gids: Vec<spec::IdMapping>,
}

/// Why a mount's description makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("mount destination is the root filesystem itself")]
    OnRoot,
    #[error("id-mapped mounts are only supported for bind-mounts")]
    IdMapOfFilesystem,
    #[error("id-mapped mounts must have both uid and gid mappings specified")]
    HalfMapping,
    #[error("bind mounts cannot have any filesystem-specific options applied")]
    BindData,
}

/// Gives a mount's description a meaning.
pub(crate) fn plan(mount: &spec::Mount) -> Result<MountPlan, PlanError> {
    let options = options::parse(&mount.options);
    let destination = target::clean(&mount.destination);
    if destination.is_empty() {
        return Err(PlanError::OnRoot);
    }
    let mapped = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
    if mapped && (mount.uid_mappings.is_empty() || mount.gid_mappings.is_empty()) {
        return Err(PlanError::HalfMapping);
    }
    let idmap = (mapped || options.idmap.is_some()).then(|| IdMap {
        recursive: options.idmap == Some(options::IdMapKind::Recursive),
        uids: mount.uid_mappings.clone(),
        gids: mount.gid_mappings.clone(),
    });
    // Docker and podman always say "bind" or "rbind"; others rely on the type.
    let bind = options.bind.or((mount.kind == "bind").then_some(options::Bind::One));
    let source = match bind {
        Some(bind) => {
            if !options.data.is_empty() {
                return Err(PlanError::BindData);
            }
            let recursive = bind == options::Bind::Recursive;
            Source::Bind { path: mount.source.clone(), recursive, idmap }
        }
        None if idmap.is_some() => return Err(PlanError::IdMapOfFilesystem),
        None if mount.kind == "cgroup" || mount.kind == "cgroup2" => Source::Cgroup,
        None => Source::Filesystem { kind: mount.kind.clone(), name: mount.source.clone() },
    };
    Ok(MountPlan { destination, source, options })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(kind: &str, source: &str, options: &[&str]) -> spec::Mount {
        spec::Mount {
            destination: "/a//b/../c".to_owned(),
            kind: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..spec::Mount::default()
        }
    }

    #[test]
    fn destinations_on_the_host() {
        let cases = [
            ("a path of the container's", "/bundle", "a/c"),
            ("a path in the rootfs", "/a", "c"),
            ("a path that begins like it", "/a/", "c"),
            ("the rootfs itself", "/a/c", "a/c"),
            ("a longer name", "/a/cc", "a/c"),
        ];
        for (case, rootfs, want) in cases {
            let planned = plan(&described("proc", "", &[])).expect(case);
            assert_eq!(planned.below(std::path::Path::new(rootfs)).destination, want, "{case}");
        }
    }

    #[test]
    fn sources() {
        let bind = |recursive| Ok(Source::Bind { path: "/x".to_owned(), recursive, idmap: None });
        let proc = Ok(Source::Filesystem { kind: "proc".to_owned(), name: "/x".to_owned() });
        let cases = [
            ("bind", described("none", "/x", &["bind"]), bind(false)),
            ("rbind", described("none", "/x", &["ro", "rbind"]), bind(true)),
            ("type bind alone", described("bind", "/x", &[]), bind(false)),
            ("proc", described("proc", "/x", &["nosuid"]), proc),
            ("cgroup", described("cgroup", "cgroup", &["ro"]), Ok(Source::Cgroup)),
            ("idmapped proc", described("proc", "", &["idmap"]), Err(PlanError::IdMapOfFilesystem)),
            ("data", described("bind", "/x", &["bind", "size=1"]), Err(PlanError::BindData)),
        ];
        for (case, mount, want) in cases {
            assert_eq!(plan(&mount).map(|plan| plan.source), want, "{case}");
        }
    }
}
