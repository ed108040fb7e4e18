//! The attributes of a bind mount: its source's, unless options say otherwise.
//!
//! One option about attributes makes all that are not named be cleared, where mount(8) would keep
//! them; only the access times stay unless one is asked for. A source that belongs to a more
//! privileged mount namespace has some locked: these stay, too, but an option that would clear one
//! cannot be obeyed. Source: runc `libcontainer/rootfs_linux.go`, mount_setattr(2).

use rustix::fs::StatVfsMountFlags;
use sys::mount_attributes::Attributes;

use super::options::Options;

/// What may be locked, besides the access times.
const LOCKABLE: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC;

/// What is cleared unless it is asked for.
const ALL: u64 = LOCKABLE | libc::MOUNT_ATTR_NOSYMFOLLOW;

/// All that is about access times.
const TIMES: u64 = libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME;

/// What to change, where nothing is locked; `None` keeps all of the source's.
pub(super) fn exact(options: &Options) -> Option<Attributes<'static>> {
    if !options.has_attributes {
        return None;
    }
    let asked = options.attributes;
    let times = if asked.has_access_time() { TIMES } else { 0 };
    Some(Attributes { set: asked.set, clear: ALL | times, ..Attributes::default() })
}

/// The same where the source has `flags`, and those are locked; `None` when what is asked for cannot
/// be had.
pub(super) fn with_locked(
    options: &Options,
    flags: StatVfsMountFlags,
) -> Option<Attributes<'static>> {
    let source = attributes(flags);
    let asked = options.attributes;
    let cleared = asked.clear & !asked.set & LOCKABLE & source != 0;
    let other_times = asked.has_access_time() && asked.set & TIMES != source & TIMES;
    if cleared || other_times || !options.has_attributes {
        return None;
    }
    let set = asked.set & !TIMES | source & LOCKABLE;
    Some(Attributes { set, clear: ALL & !set, ..Attributes::default() })
}

/// The attributes of a mount whose statvfs(3) flags are `flags`.
fn attributes(flags: StatVfsMountFlags) -> u64 {
    let both = [
        (StatVfsMountFlags::RDONLY, libc::MOUNT_ATTR_RDONLY),
        (StatVfsMountFlags::NOSUID, libc::MOUNT_ATTR_NOSUID),
        (StatVfsMountFlags::NODEV, libc::MOUNT_ATTR_NODEV),
        (StatVfsMountFlags::NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (StatVfsMountFlags::NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
        (StatVfsMountFlags::NOATIME, libc::MOUNT_ATTR_NOATIME),
    ];
    let found = both.iter().filter(|(flag, _)| flags.contains(*flag));
    let bits = found.fold(0, |bits, (_, attribute)| bits | attribute);
    let times = StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME;
    if flags.intersects(times) { bits } else { bits | libc::MOUNT_ATTR_STRICTATIME }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::options;

    const RO: u64 = libc::MOUNT_ATTR_RDONLY;
    const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
    const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;

    fn parsed(words: &[&str]) -> Options {
        let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
        options::parse(&words)
    }

    #[test]
    fn nothing_locked() {
        let cases = [
            ("no option", vec!["bind", "rprivate"], None),
            ("one set", vec!["bind", "ro"], Some((RO, ALL))),
            ("one cleared", vec!["bind", "dev"], Some((0, ALL))),
            ("times as before", vec!["bind", "norelatime"], Some((0, ALL))),
            ("other times", vec!["bind", "noatime"], Some((NOATIME, ALL | TIMES))),
            (
                "other times of directories",
                vec!["bind", "nodiratime"],
                Some((libc::MOUNT_ATTR_NODIRATIME, ALL | TIMES)),
            ),
        ];
        for (case, words, want) in cases {
            let found = exact(&parsed(&words)).map(|found| (found.set, found.clear));
            assert_eq!(found, want, "{case}");
        }
    }

    #[test]
    fn some_locked() {
        let flags = StatVfsMountFlags::NODEV | StatVfsMountFlags::NOATIME;
        let cases = [
            ("one set", vec!["ro"], Some((RO | NODEV, ALL & !(RO | NODEV)))),
            ("locked one cleared", vec!["dev"], None),
            ("other one cleared", vec!["exec"], Some((NODEV, ALL & !NODEV))),
            ("the same times", vec!["noatime"], Some((NODEV, ALL & !NODEV))),
            ("other times", vec!["relatime"], None),
        ];
        for (case, words, want) in cases {
            let found = with_locked(&parsed(&words), flags).map(|found| (found.set, found.clear));
            assert_eq!(found, want, "{case}");
        }
    }
}
