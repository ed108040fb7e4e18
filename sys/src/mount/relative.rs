//! An overlay of more layers than one page of options has room for, on kernels without `lowerdir+`.
//!
//! Layers lie side by side, so the path that they share is most of the text. A thread of its own
//! works in that directory, and the kernel gets paths from there; the working directory of the
//! program is as it was. Source: containerd, `core/mount/mount_linux.go`.

#![expect(unsafe_code, reason = "a thread gets a working directory of its own")]

use std::{
    ffi::CString,
    io,
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
    process::chdir,
    thread::{UnshareFlags, unshare_unsafe},
};

use super::Mount;

/// Options whose values are directories.
const DIRECTORIES: [&str; 3] = ["lowerdir", "upperdir", "workdir"];

/// The directory that has all of an overlay's, and the text of its options with paths from there.
/// `None`: there is none but `/`, or a path has an escape.
pub(super) fn shorten(options: &[String]) -> Option<(PathBuf, String)> {
    let split = |option: &str| {
        let (name, value) = option.split_once('=')?;
        DIRECTORIES.contains(&name).then(|| (name.to_owned(), value.to_owned()))
    };
    let values: Vec<_> = options.iter().filter_map(|option| split(option)).collect();
    if values.iter().any(|(_, value)| value.contains('\\')) {
        return None;
    }
    let mut paths = values.iter().flat_map(|(_, value)| value.split(':'));
    let mut shared = Path::new(paths.next()?).parent()?.to_owned();
    for path in paths {
        while !Path::new(path).parent().is_some_and(|parent| parent.starts_with(&shared)) {
            shared = shared.parent()?.to_owned();
        }
    }
    if !shared.is_absolute() || shared == Path::new("/") {
        return None;
    }
    let shorter = |path: &str| {
        let rest = Path::new(path).strip_prefix(&shared).unwrap_or(Path::new(path));
        rest.display().to_string()
    };
    let options = options.iter().map(|option| match split(option) {
        None => option.clone(),
        Some((name, value)) => {
            let paths: Vec<_> = value.split(':').map(shorter).collect();
            format!("{name}={}", paths.join(":"))
        }
    });
    let text = options.collect::<Vec<_>>().join(",");
    Some((shared, text))
}

/// Mounts an overlay with paths from the directory `below`.
pub(super) fn mount_from(
    below: &Path,
    one: &Mount,
    target: &Path,
    flags: MountFlags,
    options: &str,
) -> io::Result<()> {
    let options = CString::new(options)?;
    // The target is a path of the program's.
    let target = std::path::absolute(target)?;
    let work = || -> Result<(), Errno> {
        // SAFETY: of what threads share only the working directory is split off, and nothing that
        // this thread calls relies on its being shared.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        chdir(below)?;
        mount(one.source.as_str(), &target, one.kind.as_str(), flags, options.as_c_str())
    };
    let done = thread::scope(|scope| {
        Ok::<_, io::Error>(thread::Builder::new().spawn_scoped(scope, work)?.join())
    })?;
    done.map_err(|_panic| io::Error::other("the thread that mounts has panicked"))??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortening() {
        let cases = [
            (
                "layers side by side",
                &[
                    "index=off",
                    "workdir=/r/s/9/work",
                    "upperdir=/r/s/9/fs",
                    "lowerdir=/r/s/1/fs:/r/s/12/fs",
                ][..],
                Some(("/r/s", "index=off,workdir=9/work,upperdir=9/fs,lowerdir=1/fs:12/fs")),
            ),
            (
                "names with the same start",
                &["lowerdir=/r/s1/fs:/r/s2/fs"],
                Some(("/r", "lowerdir=s1/fs:s2/fs")),
            ),
            ("one in another", &["lowerdir=/r/a:/r/a/b"], Some(("/r", "lowerdir=a:a/b"))),
            ("nothing shared", &["lowerdir=/a/1:/b/1"], None),
            ("an escape", &["lowerdir=/a/1\\:2:/a/2"], None),
            ("relative", &["lowerdir=a/1:a/2"], None),
            ("no directories", &["ro"], None),
        ];
        for (case, options, want) in cases {
            let options: Vec<_> = options.iter().map(|it| it.to_string()).collect();
            let got = shorten(&options);
            let want = want.map(|(below, text)| (PathBuf::from(below), text.to_owned()));
            assert_eq!(got, want, "{case}");
        }
    }
}
