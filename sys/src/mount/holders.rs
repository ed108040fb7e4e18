//! Who has a directory mounted.
//!
//! A directory can be seen through mounts elsewhere: bind mounts of it, and overlays of which it is the
//! upper directory. The first are in the table of mounts, here in that of this process only; those that
//! only another mount namespace has are not seen. The second the kernel knows by a mark on the directory,
//! whichever mount namespace they are in, and also when they are in none any more.
//!
//! Source: proc(5), `mountinfo`; kernel, `fs/overlayfs/super.c`, `ovl_inuse_trylock`.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen},
};

/// What the table of mounts tells of one.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    id: u64,
    /// The filesystem, as numbers.
    device: String,
    /// What of the filesystem is mounted.
    root: PathBuf,
    /// Where.
    point: PathBuf,
    /// The type of the filesystem.
    kind: String,
}

/// Where something is mounted at `directory` or below it, in the order of the mounts.
///
/// # Errors
///
/// `directory` is not there, or there is no proc(5).
pub fn points_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = directory.canonicalize()?;
    let points = table()?.into_iter().map(|line| line.point);
    Ok(points.filter(|point| point.starts_with(&directory)).collect())
}

/// Where filesystems of one of the `kinds` are mounted, in the order of the mounts.
///
/// # Errors
///
/// There is no proc(5).
pub fn points_of(kinds: &[&str]) -> io::Result<Vec<PathBuf>> {
    let lines = table()?.into_iter().filter(|line| kinds.contains(&line.kind.as_str()));
    Ok(lines.map(|line| line.point).collect())
}

/// Whether `directory`, or something in it, is mounted elsewhere.
///
/// # Errors
///
/// `directory` is not there, or there is no proc(5).
pub fn is_bound(directory: &Path) -> io::Result<bool> {
    let opened = open(directory)?;
    let number = opened.as_raw_fd();
    let path = fs::read_link(format!("/proc/self/fd/{number}"))?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    let lines = table()?;
    let Some(own) = lines.iter().find(|line| Some(line.id) == id) else { return Ok(false) };
    let Ok(below) = path.strip_prefix(&own.point) else { return Ok(false) };
    let in_filesystem = own.root.join(below);
    let shows = |line: &Line| line.device == own.device && line.root.starts_with(&in_filesystem);
    Ok(lines.iter().any(|line| line.id != own.id && shows(line)))
}

/// Whether a mounted overlay has `upper` as its upper directory, of which `work` may be the work directory.
///
/// Otherwise one is made of them, with the empty directory `lower`, and ends at once; so this is for
/// directories that nobody needs.
pub fn is_upper(upper: &Path, work: &Path, lower: &Path) -> bool {
    let attempt = || -> Result<(), Errno> {
        let directories = [("lowerdir", lower), ("upperdir", upper), ("workdir", work)];
        let filesystem = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let mut opened = Vec::new();
        for (option, directory) in directories {
            // A short path, whatever the directory's is.
            let directory = open(directory)?;
            let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
            fsconfig_set_string(&filesystem, option, path.as_str())?;
            opened.push(directory);
        }
        // Else its end would sync all of the filesystem that has the directories.
        fsconfig_set_flag(&filesystem, "ro")?;
        // With an index the kernel refuses directories in use, which it otherwise only warns of.
        fsconfig_set_string(&filesystem, "index", "on")?;
        fsconfig_create(&filesystem)
    };
    attempt() == Err(Errno::BUSY)
}

fn open(directory: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn table() -> io::Result<Vec<Line>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(line).collect())
}

fn line(text: &[u8]) -> Option<Line> {
    let mut fields = text.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let _parent = fields.next()?;
    let device = String::from_utf8_lossy(fields.next()?).into_owned();
    let (root, point) = (path(fields.next()?), path(fields.next()?));
    // Of optional fields there are as many as there happen to be, with a mark after them.
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let kind = String::from_utf8_lossy(kind).into_owned();
    Some(Line { id, device, root, point, kind })
}

/// A path in which some bytes are in octal.
fn path(mut text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        let octal = rest.get(..3).filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                text = &rest[3..];
            }
            None => {
                bytes.push(*first);
                text = rest;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::{Mount, unmount_all};

    #[test]
    fn lines() {
        let want = |root: &str, point: &str| {
            let (root, point, kind) = (root.into(), point.into(), "ext3".to_owned());
            Some(Line { id: 36, device: "98:0".to_owned(), root, point, kind })
        };
        let marked = "36 35 98:0 /mnt1 /mnt2 rw shared:1 master:2 - ext3 /dev/root rw";
        let cases = [
            ("usual", "36 35 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw", want("/mnt1", "/mnt2")),
            ("optional fields", marked, want("/mnt1", "/mnt2")),
            ("escapes", r"36 35 98:0 / /a\040b\134\9 rw - ext3 x rw", want("/", "/a b\\\\9")),
            ("no type", "36 35 98:0 /mnt1 /mnt2 rw -", None),
            ("cut off", "36 35 98:0 /", None),
            ("empty", "", None),
        ];
        for (case, text, want) in cases {
            assert_eq!(line(text.as_bytes()), want, "{case}");
        }
    }

    #[test]
    fn mounts_of_a_directory() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = |name: &str| scratch.path().join(name);
        for name in ["up per", "up per/in it", "work", "lower", "at", "up pers"] {
            fs::create_dir(path(name)).expect("made");
        }
        let (upper, at) = (path("up per"), path("at"));
        let text = |name: &str| path(name).display().to_string();
        let bind = |name: &str| Mount {
            kind: "bind".to_owned(),
            source: text(name),
            options: vec!["rbind".to_owned()],
            ..Mount::default()
        };
        let overlay = Mount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![
                format!("lowerdir={}", text("lower")),
                format!("upperdir={}", text("up per")),
                format!("workdir={}", text("work")),
            ],
            ..Mount::default()
        };
        let cases = [
            ("nothing", None, (false, false)),
            ("another directory", Some(bind("up pers")), (false, false)),
            ("the directory", Some(bind("up per")), (true, false)),
            ("one in it", Some(bind("up per/in it")), (true, false)),
            ("an overlay", Some(overlay), (false, true)),
        ];
        for (case, mount, want) in cases {
            if let Some(mount) = &mount {
                mount.mount(&at).expect("mounts");
            }
            let points = points_below(scratch.path()).expect("lists");
            let renamed = path("renamed");
            fs::rename(&upper, &renamed).expect("renames");
            let got = is_bound(&renamed);
            let got = (got.expect("looks"), is_upper(&renamed, &path("work"), &path("lower")));
            fs::rename(&renamed, &upper).expect("renames");
            unmount_all(&at).expect("unmounts");
            assert_eq!(got, want, "{case}");
            assert_eq!(points.len(), usize::from(mount.is_some()), "{case}: {points:?}");
        }
    }

    /// To look for overlays does not take the time that it takes to write all that is in memory.
    #[test]
    fn nothing_is_synced() {
        let scratch = tempfile::tempdir().expect("scratch");
        let (image, at) = (scratch.path().join("image"), scratch.path().join("at"));
        fs::create_dir(&at).expect("made");
        fs::File::create(&image).expect("created").set_len(16 << 20).expect("sized");
        let made = std::process::Command::new("mkfs.ext4").arg("-q").arg(&image).output();
        assert!(made.expect("mkfs.ext4").status.success());
        let ext4 = Mount {
            kind: "ext4".to_owned(),
            source: image.display().to_string(),
            options: vec!["loop".to_owned()],
            ..Mount::default()
        };
        ext4.mount(&at).expect("mounts");
        let path = |name: &str| at.join(name);
        for name in ["upper", "work", "lower"] {
            fs::create_dir(path(name)).expect("made");
        }
        let attempt = |number: usize| {
            let text = format!("{number}: only in memory");
            fs::write(path("file"), &text).expect("written");
            assert!(!is_upper(&path("upper"), &path("work"), &path("lower")), "nobody has it");
            let disk = fs::read(&image).expect("reads");
            !disk.windows(text.len()).any(|part| part == text.as_bytes())
        };
        // The kernel may write it at any time by itself.
        let stays = (0..5).any(attempt);
        unmount_all(&at).expect("unmounts");
        assert!(stays, "what was just written is on the disk");
    }

    /// An overlay that a process works in, though it is in no table of mounts.
    #[test]
    fn an_overlay_without_a_place() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = |name: &str| scratch.path().join(name);
        for name in ["upper", "work", "lower", "at"] {
            fs::create_dir(path(name)).expect("made");
        }
        let option = |name: &str, at: &str| format!("{name}={}", path(at).display());
        let overlay = Mount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: [("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")]
                .map(|(name, at)| option(name, at))
                .to_vec(),
            ..Mount::default()
        };
        overlay.mount(&path("at")).expect("mounts");
        let within = fs::File::open(path("at")).expect("opens");
        unmount_all(&path("at")).expect("unmounts");
        let is_upper = || is_upper(&path("upper"), &path("work"), &path("lower"));
        assert!(is_upper(), "by the open directory");
        drop(within);
        assert!(!is_upper(), "nobody has it");
    }
}
