//! Trees for bind mounts that the init could not clone by itself: in a new user namespace it may
//! lack access to the source, and the right to map ids.
//!
//! Most are made before there is an init. A source that mounts of the same container may put into
//! its root, or change there, is what it should be only when the init comes to it, and only in the
//! init's mount namespace: the init asks for such a tree then, and a helper that joins that
//! namespace, with the runtime's rights, clones it.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    io::Errno,
    process::{Pid, WaitOptions, waitpid},
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};
use sys::{
    error::Chain,
    mount_attributes::{Attributes, set_attributes},
};

use super::mapping;
use crate::{
    error::Error,
    init::{Tree, channel::Message, clone::Child},
    mount::{self, IdMap, Source, attach},
    settings::Settings,
    spawn::{Destination, Join, spawn},
    spec::{Linux, NamespaceKind, Spec},
};

/// The mounts of a container with this root.
pub(super) fn plans(spec: &Spec, rootfs: &Path) -> Vec<mount::MountPlan> {
    // Those that make no sense were refused when the configuration was read.
    let plans = spec.mounts.iter().filter_map(|mount| mount::plan(mount).ok());
    plans.map(|plan| plan.below(rootfs)).collect()
}

/// Clones what the init cannot, and says what is left for later; in the order of [`plans`].
pub(super) fn prepare(
    settings: &Settings,
    spec: &Spec,
    (bundle, rootfs): (&Path, &Path),
) -> Result<Vec<Tree>, Error> {
    // Without root's rights it is the other way round: only in the new namespace can it be done.
    let new_user = spec.linux.creates(NamespaceKind::User) && !settings.rootless;
    let mut trees = Vec::new();
    for mount in plans(spec, rootfs) {
        trees.push(match &mount.source {
            Source::Bind { path, recursive, idmap }
                if !mount.options.remount && (new_user || idmap.is_some()) =>
            {
                let source = bundle.join(path);
                if depends_on_mounts(&source, *recursive, rootfs) {
                    Tree::Later
                } else {
                    let tree = attach::clone_tree(&source, *recursive)?;
                    finish(tree.as_fd(), path, idmap.as_ref(), &spec.linux)?;
                    Tree::Ready(tree)
                }
            }
            _ => Tree::Own,
        });
    }
    Ok(trees)
}

/// Whether mounts below the root may change what is at the source, or make it exist at all.
fn depends_on_mounts(source: &Path, recursive: bool, rootfs: &Path) -> bool {
    let Ok(real) = source.canonicalize() else { return true };
    real.starts_with(rootfs) || recursive && rootfs.starts_with(&real)
}

/// Clones the tree for the mount of this number, for which an init asks that has made the mounts
/// before it.
pub(super) fn make_later(
    spec: &Spec,
    (bundle, rootfs): (&Path, &Path),
    number: usize,
    init: &Child,
) -> Result<OwnedFd, Error> {
    let plans = plans(spec, rootfs);
    let Some(Source::Bind { path, recursive, idmap }) = plans.get(number).map(|plan| &plan.source)
    else {
        return Err(Error::Process(format!("init asked for the tree of mount {number}")));
    };
    let tree = clone_in_namespace_of(init.pidfd.as_fd(), &bundle.join(path), *recursive)?;
    finish(tree.as_fd(), path, idmap.as_ref(), &spec.linux)?;
    Ok(tree)
}

/// Has a helper clone the tree at `source` of a process's mount namespace.
fn clone_in_namespace_of(
    process: BorrowedFd<'_>,
    source: &Path,
    recursive: bool,
) -> Result<OwnedFd, Error> {
    let (helper, channel) = spawn(&Join::Nothing, 0, &Destination::default(), |channel| {
        let tree = move_into_thread_name_spaces(process, ThreadNameSpaceType::MOUNT)
            .map_err(|error| Error::system("setns", "of container's init", error))
            .and_then(|()| attach::clone_tree(source, recursive));
        // A runtime that is gone wants no tree.
        let _ = channel.send(&match tree {
            Ok(tree) => Message::Tree(tree),
            Err(error) => Message::Failed(Chain(&error).to_string()),
        });
    })?;
    let fail = |error: Errno| Error::system("clone mount by", "helper", error);
    let answer = channel.receive().map_err(fail)?;
    let helper = Pid::from_raw(helper.pid).ok_or_else(|| fail(Errno::SRCH))?;
    waitpid(Some(helper), WaitOptions::empty()).map_err(fail)?;
    match answer {
        Some(Message::Tree(tree)) => Ok(tree),
        Some(Message::Failed(text)) => Err(Error::Process(text)),
        _ => Err(Error::Process("helper process ended unexpectedly".to_owned())),
    }
}

/// Gives a cloned tree its propagation and its ids.
fn finish(
    tree: BorrowedFd<'_>,
    path: &str,
    idmap: Option<&IdMap>,
    linux: &Linux,
) -> Result<(), Error> {
    let slave = Attributes { propagation: libc::MS_SLAVE, ..Attributes::default() };
    set_attributes(tree, true, &slave)
        .map_err(|error| Error::file("set propagation of", path, error))?;
    idmap.map_or(Ok(()), |idmap| mapping::map_tree(tree, idmap, linux))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn sources_that_depend_on_mounts() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let base = directory.path().canonicalize().expect("resolve");
        for name in ["bundle/rootfs/in", "bundle/rootfs2", "bundle/other"] {
            fs::create_dir_all(base.join(name)).expect("make directories");
        }
        symlink("rootfs/in", base.join("bundle/into")).expect("link");
        let cases = [
            ("elsewhere", "bundle/other", true, false),
            ("a longer name", "bundle/rootfs2", true, false),
            ("the root", "bundle/rootfs", false, true),
            ("in the root", "bundle/rootfs/in", false, true),
            ("in the root by a link", "bundle/into", false, true),
            ("not there yet", "bundle/rootfs/in/missing", false, true),
            ("above the root, alone", "bundle", false, false),
            ("above the root, and below", "bundle", true, true),
        ];
        let rootfs = base.join("bundle/rootfs");
        for (case, source, recursive, want) in cases {
            assert_eq!(depends_on_mounts(&base.join(source), recursive, &rootfs), want, "{case}");
        }
    }
}
