//! Mount options, as the runtime-spec and mount(8) name them.

/// What a mount's options say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Attributes of the mount itself.
    pub(crate) attributes: Change,
    /// Whether there is an option about those, even if it changes none.
    pub(crate) has_attributes: bool,
    /// Attributes of the mount and all below it (`rro` ...).
    pub(crate) recursive: Change,
    /// Flags of the filesystem, for fsconfig(2).
    pub(crate) superblock: Vec<&'static str>,
    /// Options that only the filesystem understands, `key` or `key=value`.
    pub(crate) data: Vec<String>,
    /// Changes of propagation, in order.
    pub(crate) propagation: Vec<Propagation>,
    pub(crate) bind: Option<Bind>,
    /// Change the mount that is there instead of making one.
    pub(crate) remount: bool,
    pub(crate) idmap: Option<IdMapKind>,
    /// Fill the new tmpfs with what it hides.
    pub(crate) copy_up: bool,
}

/// `MOUNT_ATTR_*` bits to set and to clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

impl Change {
    /// Says whether nothing is changed.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Says whether the mount becomes read-only.
    pub(crate) fn is_readonly(self) -> bool {
        self.set & libc::MOUNT_ATTR_RDONLY != 0
    }

    /// Says whether an access time is asked for.
    pub(crate) fn has_access_time(self) -> bool {
        self.clear & libc::MOUNT_ATTR__ATIME != 0 || self.set & libc::MOUNT_ATTR_NODIRATIME != 0
    }

    /// Takes the access time back if it is this one.
    fn forget_access_time(&mut self, value: u64) {
        if self.set & libc::MOUNT_ATTR__ATIME == value {
            self.set &= !libc::MOUNT_ATTR__ATIME;
            self.clear &= !libc::MOUNT_ATTR__ATIME;
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Set(bit) => {
                self.set |= bit;
                self.clear &= !bit;
            }
            Effect::Clear(bit) => {
                self.set &= !bit;
                self.clear |= bit;
            }
            // The access times are one of three values in a field, and setting the field means to
            // clear all of it, see mount_setattr(2).
            Effect::AccessTime(value) => {
                self.set = self.set & !libc::MOUNT_ATTR__ATIME | value;
                self.clear |= libc::MOUNT_ATTR__ATIME;
            }
            Effect::NoAccessTime(value) => {
                self.forget_access_time(value);
                self.clear |= libc::MOUNT_ATTR__ATIME;
            }
        }
    }
}

/// A propagation type (`MS_SHARED` ...) for one mount or all below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Propagation {
    pub(crate) kind: u64,
    pub(crate) recursive: bool,
}

/// Whether a bind mount takes along what is mounted below its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bind {
    One,
    Recursive,
}

/// Whether an idmapped mount maps what is mounted below its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdMapKind {
    One,
    Recursive,
}

#[derive(Clone, Copy)]
enum Effect {
    Set(u64),
    Clear(u64),
    AccessTime(u64),
    /// Takes this access time back, which leaves what there was before; recursively, where no other
    /// one is asked for, it leaves the kernel's own, `relatime`.
    NoAccessTime(u64),
}

/// Options that change attributes; with an `r` before the name they go to all mounts below, too.
const ATTRIBUTES: [(&str, Effect); 18] = [
    ("ro", Effect::Set(libc::MOUNT_ATTR_RDONLY)),
    ("rw", Effect::Clear(libc::MOUNT_ATTR_RDONLY)),
    ("nosuid", Effect::Set(libc::MOUNT_ATTR_NOSUID)),
    ("suid", Effect::Clear(libc::MOUNT_ATTR_NOSUID)),
    ("nodev", Effect::Set(libc::MOUNT_ATTR_NODEV)),
    ("dev", Effect::Clear(libc::MOUNT_ATTR_NODEV)),
    ("noexec", Effect::Set(libc::MOUNT_ATTR_NOEXEC)),
    ("exec", Effect::Clear(libc::MOUNT_ATTR_NOEXEC)),
    ("nodiratime", Effect::Set(libc::MOUNT_ATTR_NODIRATIME)),
    ("diratime", Effect::Clear(libc::MOUNT_ATTR_NODIRATIME)),
    ("nosymfollow", Effect::Set(libc::MOUNT_ATTR_NOSYMFOLLOW)),
    ("symfollow", Effect::Clear(libc::MOUNT_ATTR_NOSYMFOLLOW)),
    ("relatime", Effect::AccessTime(libc::MOUNT_ATTR_RELATIME)),
    ("norelatime", Effect::NoAccessTime(libc::MOUNT_ATTR_RELATIME)),
    ("noatime", Effect::AccessTime(libc::MOUNT_ATTR_NOATIME)),
    ("atime", Effect::NoAccessTime(libc::MOUNT_ATTR_NOATIME)),
    ("strictatime", Effect::AccessTime(libc::MOUNT_ATTR_STRICTATIME)),
    ("nostrictatime", Effect::NoAccessTime(libc::MOUNT_ATTR_STRICTATIME)),
];

/// Options that are flags of the filesystem.
const SUPERBLOCK: [&str; 6] = ["sync", "dirsync", "lazytime", "mand", "iversion", "silent"];

/// Options that only undo one of [`SUPERBLOCK`], or say nothing.
const SUPERBLOCK_OFF: [(&str, &str); 6] = [
    ("async", "sync"),
    ("nolazytime", "lazytime"),
    ("nomand", "mand"),
    ("noiversion", "iversion"),
    ("loud", "silent"),
    ("defaults", ""),
];

const PROPAGATION: [(&str, u64); 4] = [
    ("private", libc::MS_PRIVATE),
    ("slave", libc::MS_SLAVE),
    ("shared", libc::MS_SHARED),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// Gives each option a meaning; those without one are the filesystem's.
pub(crate) fn parse(options: &[String]) -> Options {
    let mut parsed = Options::default();
    for option in options {
        apply(&mut parsed, option);
    }
    parsed
}

fn apply(parsed: &mut Options, option: &str) {
    let attribute =
        |name: &str| ATTRIBUTES.iter().find(|(known, _)| *known == name).map(|&(_, effect)| effect);
    match option {
        "bind" => parsed.bind = Some(Bind::One),
        "rbind" => parsed.bind = Some(Bind::Recursive),
        "idmap" => parsed.idmap = Some(IdMapKind::One),
        "ridmap" => parsed.idmap = Some(IdMapKind::Recursive),
        "tmpcopyup" => parsed.copy_up = true,
        "remount" => parsed.remount = true,
        _ => {
            if let Some(effect) = attribute(option) {
                parsed.has_attributes = true;
                match effect {
                    Effect::NoAccessTime(value) => parsed.attributes.forget_access_time(value),
                    effect => parsed.attributes.apply(effect),
                }
            } else if let Some(propagation) = propagation(option) {
                parsed.propagation.push(propagation);
            } else if let Some(effect) = option.strip_prefix('r').and_then(attribute) {
                parsed.recursive.apply(effect);
            } else if let Some(&flag) = SUPERBLOCK.iter().find(|&&flag| flag == option) {
                parsed.superblock.push(flag);
            } else if let Some((_, undone)) = SUPERBLOCK_OFF.iter().find(|(off, _)| *off == option)
            {
                parsed.superblock.retain(|flag| flag != undone);
            } else {
                // Some clients write several in one string.
                let parts = option.split(',').filter(|part| !part.is_empty());
                parsed.data.extend(parts.map(str::to_owned));
            }
        }
    }
}

fn propagation(option: &str) -> Option<Propagation> {
    let find = |name: &str| PROPAGATION.iter().find(|(known, _)| *known == name);
    if let Some(&(_, kind)) = find(option) {
        return Some(Propagation { kind, recursive: false });
    }
    let &(_, kind) = find(option.strip_prefix('r')?)?;
    Some(Propagation { kind, recursive: true })
}

/// The propagation of the container's root; nothing means that mounts of the host come in and none
/// goes out. `None` when there is no such type.
pub(crate) fn root_propagation(name: &str) -> Option<Propagation> {
    match name {
        "" => Some(Propagation { kind: libc::MS_SLAVE, recursive: true }),
        _ => propagation(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_options() {
        const RO: u64 = libc::MOUNT_ATTR_RDONLY;
        const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
        const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
        let attributes = |set, clear| Options {
            attributes: Change { set, clear },
            has_attributes: true,
            ..Options::default()
        };
        let cases: [(&str, &[&str], Options); 11] = [
            ("none", &[], Options::default()),
            ("set", &["ro", "nosuid"], attributes(RO | NOSUID, 0)),
            ("later wins", &["ro", "rw"], attributes(0, RO)),
            ("noatime", &["relatime", "noatime"], attributes(libc::MOUNT_ATTR_NOATIME, ATIME)),
            ("taken back", &["noatime", "atime"], attributes(0, 0)),
            (
                "another taken back",
                &["noatime", "nostrictatime"],
                attributes(libc::MOUNT_ATTR_NOATIME, ATIME),
            ),
            (
                "recursive",
                &["rbind", "rro"],
                Options {
                    recursive: Change { set: RO, clear: 0 },
                    bind: Some(Bind::Recursive),
                    ..Options::default()
                },
            ),
            (
                "propagation",
                &["rslave", "shared"],
                Options {
                    propagation: vec![
                        Propagation { kind: libc::MS_SLAVE, recursive: true },
                        Propagation { kind: libc::MS_SHARED, recursive: false },
                    ],
                    ..Options::default()
                },
            ),
            (
                "data",
                &["size=64k", "mode=755,uid=1"],
                Options {
                    data: ["size=64k", "mode=755", "uid=1"].map(str::to_owned).to_vec(),
                    ..Options::default()
                },
            ),
            (
                "superblock",
                &["sync", "dirsync", "async", "defaults"],
                Options { superblock: vec!["dirsync"], ..Options::default() },
            ),
            (
                "words of this runtime",
                &["tmpcopyup", "idmap", "remount"],
                Options {
                    remount: true,
                    copy_up: true,
                    idmap: Some(IdMapKind::One),
                    ..Options::default()
                },
            ),
        ];
        for (case, options, want) in cases {
            let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
            assert_eq!(parse(&options), want, "{case}");
        }
    }

    #[test]
    fn recursive_access_times() {
        const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
        let cases: [(&[&str], u64); 8] = [
            (&["rrelatime"], libc::MOUNT_ATTR_RELATIME),
            (&["rnorelatime"], libc::MOUNT_ATTR_RELATIME),
            (&["rnoatime"], libc::MOUNT_ATTR_NOATIME),
            (&["rnoatime", "ratime"], libc::MOUNT_ATTR_RELATIME),
            (&["rstrictatime"], libc::MOUNT_ATTR_STRICTATIME),
            (&["rstrictatime", "rnostrictatime"], libc::MOUNT_ATTR_RELATIME),
            (&["rstrictatime", "rnorelatime"], libc::MOUNT_ATTR_STRICTATIME),
            (&["rstrictatime", "ratime"], libc::MOUNT_ATTR_STRICTATIME),
        ];
        for (options, set) in cases {
            let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
            assert_eq!(parse(&options).recursive, Change { set, clear: ATIME }, "{options:?}");
        }
    }

    #[test]
    fn root() {
        let of = |kind, recursive| Some(Propagation { kind, recursive });
        let cases = [
            ("", of(libc::MS_SLAVE, true)),
            ("shared", of(libc::MS_SHARED, false)),
            ("rprivate", of(libc::MS_PRIVATE, true)),
            ("ro", None),
        ];
        for (name, want) in cases {
            assert_eq!(root_propagation(name), want, "{name:?}");
        }
    }
}
