//! Places inside the container's root, found and made without ever leaving it.

use std::{
    ffi::OsString,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat2},
    io::Errno,
};

use crate::error::Error;

/// The most path components that are made for a mount: more than any real path has.
const DEPTH_MAX: usize = 128;

/// The most links that lead to what does not exist on one path, path_resolution(7).
const LINKS_MAX: usize = 40;

/// Drops empty components and `.`, and resolves `..` by text, as clients expect of a destination;
/// the result is relative to the root.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Opens `path` (relative, clean) below `root`, following symlinks as the container would.
pub(crate) fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    resolve(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens `path` below `root`, and fails with `ELOOP` when a symlink is on the way.
pub(crate) fn open_plain(
    root: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    resolve(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
}

fn resolve(
    root: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { "." } else { path };
    // openat2 answers EAGAIN when something else was renamed meanwhile.
    for _ in 0..DEPTH_MAX {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens the directory `path` below `root`, and makes what is missing of it with mode 0755.
pub(crate) fn make_directory(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Error> {
    match open(root, path, OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOENT) => make_missing(root, path),
        result => result.map_err(|error| mkdir_error(path, error)),
    }
}

/// Makes the directory `path` below `root`, which was not there a moment ago, and what else is
/// missing on the way to it, with mode 0755.
pub(crate) fn make_missing(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Error> {
    if path.split('/').count() > DEPTH_MAX {
        return Err(mkdir_error(path, Errno::NAMETOOLONG));
    }
    match make_plain(root, path) {
        Err(Errno::LOOP) => make_behind_links(root, path),
        result => result,
    }
    .map_err(|error| mkdir_error(path, error))
}

fn mkdir_error(path: &str, error: Errno) -> Error {
    Error::file("mkdir", format!("/{path}"), error)
}

/// Makes a directory, and fails with `ELOOP`, before anything is made, when the first part that is
/// missing is a link that leads nowhere.
fn make_plain(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    // What is there of the path is mostly all but the last name, so it is looked for from the end.
    let mut there = path.len();
    let mut directory = loop {
        there = path[..there].rfind('/').unwrap_or(0);
        match open(root, &path[..there], flags) {
            Err(Errno::NOENT) if there > 0 => {}
            result => break result?,
        }
    };
    for part in path[there..].split('/').filter(|part| !part.is_empty()) {
        directory = make_part(&directory, part)?;
    }
    Ok(directory)
}

/// Makes a directory where links that lead nowhere are on the way, by way of what they name.
fn make_behind_links(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let missing = through_links(root, path)?;
    if missing.split('/').count() > DEPTH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let mut directory = open(root, "", flags)?;
    let mut done = String::with_capacity(missing.len());
    for part in missing.split('/').filter(|part| !part.is_empty()) {
        if !done.is_empty() {
            done.push('/');
        }
        done.push_str(part);
        directory = match open(root, &done, flags) {
            Err(Errno::NOENT) => make_part(&directory, part)?,
            result => result?,
        };
    }
    Ok(directory)
}

fn make_part(directory: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    match mkdirat(directory, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    // What was just made must be a directory, not a link that came in between.
    open_plain(directory.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)
}

/// Opens `path` below `root`, making an empty file where there is nothing.
pub(crate) fn make_file(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Error> {
    let fail = |error| Error::file("create", format!("/{path}"), error);
    match open(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        result => return result.map_err(fail),
    }
    let path = through_links(root, path).map_err(fail)?;
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
    let parent = make_directory(root, parent)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(error) => return Err(fail(error)),
    }
    open_plain(parent.as_fd(), name, OFlags::PATH).map_err(fail)
}

/// The path to make instead of `path`, on which there are links to what does not exist: what they
/// lead to is made, as when somebody in the container wrote there.
fn through_links(root: BorrowedFd<'_>, path: &str) -> Result<String, Errno> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match behind_first_link(root, &path)? {
            Some(next) => path = next,
            None => return Ok(path),
        }
    }
    Err(Errno::LOOP)
}

/// `path` with the first link that leads nowhere replaced by its text; `None` when there is none.
fn behind_first_link(root: BorrowedFd<'_>, path: &str) -> Result<Option<String>, Errno> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    for end in ends {
        let (before, rest) = path.split_at(end);
        match open(root, before, OFlags::PATH) {
            Ok(_) => continue,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        let link = match open(root, before, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(link) => link,
            // Nothing at all, so nothing can be behind it.
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = rustix::fs::readlinkat(&link, "", Vec::new())?;
        let text = text.to_str().map_err(|_| Errno::ILSEQ)?;
        let parent = before.rsplit_once('/').map_or("", |(parent, _)| parent);
        let parent = if text.starts_with('/') { "" } else { parent };
        return Ok(Some(format!("{parent}/{text}{rest}")));
    }
    Ok(None)
}

/// Where below `root` the file of a descriptor is.
pub(crate) fn path_below(root: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<PathBuf, Errno> {
    let of = |fd: BorrowedFd<'_>| {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let text = rustix::fs::readlink(link, Vec::new())?.into_bytes();
        Ok::<_, Errno>(PathBuf::from(OsString::from_vec(text)))
    };
    let (root, path) = (of(root)?, of(fd)?);
    path.strip_prefix(root).map(Path::to_owned).map_err(|_| Errno::XDEV)
}

/// Says whether both descriptors refer to the same file in the same mount.
pub(crate) fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool, Errno> {
    let identity = |fd| {
        let wanted = rustix::fs::StatxFlags::INO | rustix::fs::StatxFlags::MNT_ID;
        let found = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, wanted)?;
        Ok::<_, Errno>((found.stx_dev_major, found.stx_dev_minor, found.stx_ino, found.stx_mnt_id))
    };
    Ok(identity(one)? == identity(other)?)
}

/// Says whether what the descriptor refers to is a directory.
pub(crate) fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mode = rustix::fs::fstat(fd)?.st_mode;
    Ok(rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_paths() {
        let cases = [
            ("/", ""),
            ("", ""),
            ("/proc", "proc"),
            ("//a/./b//", "a/b"),
            ("/a/../b", "b"),
            ("../../etc", "etc"),
            ("/..", ""),
        ];
        for (path, want) in cases {
            assert_eq!(clean(path), want, "{path:?}");
        }
    }

    #[test]
    fn what_links_lead_to_is_made() {
        let cases = [
            ("absolute", vec![("/far/away", "link")], "link/x", Some("far/away/x")),
            ("relative", vec![("near", "link")], "link/x", Some("near/x")),
            ("last", vec![("/far/away", "link")], "link", Some("far/away")),
            ("chain", vec![("/two/x", "one"), ("three", "two")], "one/y", Some("three/x/y")),
            ("upwards", vec![("../../up", "link")], "link/x", Some("up/x")),
            ("itself", vec![("link", "link")], "link", None),
            ("around", vec![("/two", "one"), ("/one", "two")], "one/x", None),
        ];
        for (case, links, path, want) in cases {
            let top = tempfile::tempdir().expect("temporary directory");
            for (text, link) in links {
                std::os::unix::fs::symlink(text, top.path().join(link)).expect("make link");
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(top.path(), flags, Mode::empty()).expect("open root");
            let made = make_file(root.as_fd(), path);
            assert_eq!(made.is_ok(), want.is_some(), "{case}: {made:?}");
            if let Some(want) = want {
                assert!(top.path().join(want).is_file(), "{case}");
            }
        }
    }

    #[test]
    fn stays_below_the_root() {
        let top = tempfile::tempdir().expect("temporary directory");
        let inside = top.path().join("root");
        std::fs::create_dir(&inside).expect("make root");
        std::os::unix::fs::symlink("/../../escape", inside.join("link")).expect("make link");
        std::fs::create_dir(inside.join("escape")).expect("make target");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&inside, flags, Mode::empty()).expect("open root");

        make_directory(root.as_fd(), "link/made/deep").expect("make through link");
        assert!(inside.join("escape/made/deep").is_dir(), "the link ends inside the root");
        assert!(!top.path().join("escape").exists(), "nothing was made outside");

        make_file(root.as_fd(), "new/file").expect("make file");
        assert!(inside.join("new/file").is_file(), "parents are made");
        let error = make_directory(root.as_fd(), "new/file/below").expect_err("file on the way");
        let text = sys::error::Chain(&error).to_string();
        assert_eq!(text, "mkdir /new/file/below: not a directory");
        let deep = vec!["d"; DEPTH_MAX + 1].join("/");
        let error = make_directory(root.as_fd(), &deep).expect_err("too deep");
        assert!(sys::error::Chain(&error).to_string().ends_with("name too long"), "{error}");
        assert!(!inside.join("d").exists(), "nothing of it was made");
        let plain = open_plain(root.as_fd(), "link", OFlags::PATH).expect_err("link on the way");
        assert_eq!(plain, Errno::LOOP);
    }
}
