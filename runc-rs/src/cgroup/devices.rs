//! Which devices a group may use.
//!
//! A list of rules, each of which overrides those before it, is reduced to a [`DeviceSet`]: a
//! default and exceptions from it, as cgroup v1 keeps them in the kernel. v1 gets the set as
//! lines for `devices.allow` and `devices.deny`, v2 as a [`program`].
//!
//! A rule that would cut a hole into a wildcard exception is an error: v1 ignores it silently,
//! and whoever wrote it would believe in a protection that is not there. Source: runc, the
//! `devices` package of opencontainers/cgroups.

pub(super) mod interpret;
pub(super) mod program;

use std::{collections::BTreeMap, fmt};

use crate::spec::resources::LinuxDeviceCgroup;

/// The uses of a device that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access(u8);

impl Access {
    const MKNOD: Self = Self(1);
    const READ: Self = Self(2);
    const WRITE: Self = Self(4);
    pub(super) const ALL: Self = Self(7);
    const NONE: Self = Self(0);

    fn parse(text: &str) -> Option<Self> {
        let mut bits = 0;
        for letter in text.bytes() {
            bits |= match letter {
                b'm' => Self::MKNOD.0,
                b'r' => Self::READ.0,
                b'w' => Self::WRITE.0,
                // No use of a device, but one that runc's clients write.
                b'a' => 0,
                _ => return None,
            };
        }
        (bits != 0).then_some(Self(bits))
    }

    /// The bits as `BPF_DEVCG_ACC_*` has them.
    fn bits(self) -> i32 {
        i32::from(self.0)
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::MKNOD, "m")] {
            if self.and(bit) != Self::NONE {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// Block or character device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Block,
    Character,
}

/// The devices of a rule; a missing number stands for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Devices {
    major: Option<u32>,
    minor: Option<u32>,
    kind: Kind,
}

impl Devices {
    /// The wildcards, other than itself, of which these devices are a part.
    fn wildcards(self) -> impl Iterator<Item = Self> {
        let all = [
            Self { major: None, ..self },
            Self { minor: None, ..self },
            Self { major: None, minor: None, ..self },
        ];
        all.into_iter().filter(move |wildcard| *wildcard != self)
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Block => 'b',
            Kind::Character => 'c',
        };
        write!(f, "{kind} ")?;
        let number = |f: &mut fmt::Formatter<'_>, number: Option<u32>| match number {
            Some(number) => write!(f, "{number}"),
            None => f.write_str("*"),
        };
        number(f, self.major)?;
        f.write_str(":")?;
        number(f, self.minor)
    }
}

/// A default and the exceptions from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DeviceSet {
    /// Whether devices are allowed that are no exception.
    default_allow: bool,
    exceptions: BTreeMap<Devices, Access>,
}

/// What every container may use: making nodes of any device, and the devices of a plain `/dev`.
///
/// Source: runc, `specconv.AllowedDevices`; 10:200 is `/dev/net/tun`, kept there for
/// compatibility.
const DEFAULTS: [(Option<u32>, Option<u32>, Kind, Access); 11] = [
    (None, None, Kind::Character, Access::MKNOD),
    (None, None, Kind::Block, Access::MKNOD),
    (Some(1), Some(3), Kind::Character, Access::ALL),
    (Some(1), Some(8), Kind::Character, Access::ALL),
    (Some(1), Some(7), Kind::Character, Access::ALL),
    (Some(5), Some(0), Kind::Character, Access::ALL),
    (Some(1), Some(5), Kind::Character, Access::ALL),
    (Some(1), Some(9), Kind::Character, Access::ALL),
    (Some(136), None, Kind::Character, Access::ALL),
    (Some(5), Some(2), Kind::Character, Access::ALL),
    (Some(10), Some(200), Kind::Character, Access::ALL),
];

impl DeviceSet {
    /// What a container with these rules may use, including what every container may.
    pub(super) fn of_container(rules: &[LinuxDeviceCgroup]) -> Result<Self, DeviceError> {
        let mut set = Self::default();
        for (index, rule) in rules.iter().enumerate() {
            set.apply(index, rule)?;
        }
        for (major, minor, kind, access) in DEFAULTS {
            set.allow(Devices { major, minor, kind }, access)?;
        }
        Ok(set)
    }

    /// The exceptions from "nothing", as systemd has them in `DeviceAllow`; nothing if they are
    /// exceptions from "everything".
    ///
    /// A rule for one minor number of every major one is left out: systemd has no form for it.
    pub(super) fn allowed(&self) -> Option<Vec<(String, String)>> {
        if self.default_allow {
            return None;
        }
        let entry = |(devices, access): (&Devices, &Access)| {
            let (group, directory) = match devices.kind {
                Kind::Block => ("block", "/dev/block"),
                Kind::Character => ("char", "/dev/char"),
            };
            let path = match (devices.major, devices.minor) {
                (None, None) => format!("{group}-*"),
                (None, Some(_)) => return None,
                (Some(major), None) => format!("{group}-{major}"),
                (Some(major), Some(minor)) => format!("{directory}/{major}:{minor}"),
            };
            Some((path, access.to_string()))
        };
        Some(self.exceptions.iter().filter_map(entry).collect())
    }

    /// Whether a kernel that cannot filter devices does no harm: nothing is forbidden by rules.
    pub(super) fn may_be_skipped(rules: &[LinuxDeviceCgroup]) -> bool {
        rules.iter().all(|rule| rule.allow && Access::parse(&rule.access) == Some(Access::ALL))
    }

    /// Reads `devices.list`. Exceptions from "all are allowed" do not show there.
    pub(super) fn parse(list: &str) -> Option<Self> {
        let mut set = Self::default();
        for line in list.lines() {
            let (kind, rest) = line.split_once(' ')?;
            let kind = match kind {
                "a" => return Some(Self { default_allow: true, exceptions: BTreeMap::new() }),
                "b" => Kind::Block,
                "c" => Kind::Character,
                _ => return None,
            };
            let (numbers, access) = rest.split_once(' ')?;
            let (major, minor) = numbers.split_once(':')?;
            let number = |text: &str| match text {
                "*" => Some(None),
                _ => text.parse().ok().map(Some),
            };
            let devices = Devices { major: number(major)?, minor: number(minor)?, kind };
            set.exceptions.insert(devices, Access::parse(access)?);
        }
        Some(set)
    }

    fn apply(&mut self, index: usize, rule: &LinuxDeviceCgroup) -> Result<(), DeviceError> {
        let access = match rule.access.as_str() {
            "" => return Err(DeviceError::NoAccess { index }),
            // Some write an `a` as well, which says nothing here.
            text => Some(text.replace('a', ""))
                .filter(|letters| !letters.is_empty())
                .and_then(|letters| Access::parse(&letters))
                .ok_or_else(|| DeviceError::Access { index, access: text.to_owned() })?,
        };
        let kind = match rule.kind.as_str() {
            "" | "a" => {
                *self = Self { default_allow: rule.allow, exceptions: BTreeMap::new() };
                return Ok(());
            }
            "b" => Kind::Block,
            "c" => Kind::Character,
            other => return Err(DeviceError::Kind(other.to_owned())),
        };
        let number = |number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => {
                u32::try_from(number).map(Some).map_err(|_| DeviceError::Number { index, number })
            }
        };
        let devices = Devices { major: number(rule.major)?, minor: number(rule.minor)?, kind };
        if rule.allow { self.allow(devices, access) } else { self.deny(devices, access) }
    }

    fn allow(&mut self, devices: Devices, access: Access) -> Result<(), DeviceError> {
        if self.default_allow {
            self.remove(devices, access)
        } else {
            self.add(devices, access);
            Ok(())
        }
    }

    fn deny(&mut self, devices: Devices, access: Access) -> Result<(), DeviceError> {
        if self.default_allow {
            self.add(devices, access);
            Ok(())
        } else {
            self.remove(devices, access)
        }
    }

    fn add(&mut self, devices: Devices, access: Access) {
        let known = self.exceptions.entry(devices).or_insert(Access::NONE);
        *known = known.or(access);
    }

    fn remove(&mut self, devices: Devices, access: Access) -> Result<(), DeviceError> {
        for wildcard in devices.wildcards() {
            let known = self.exceptions.get(&wildcard).copied().unwrap_or(Access::NONE);
            if known.and(access) != Access::NONE {
                let rule = format!("{devices} {access}");
                return Err(DeviceError::Hole { rule, wildcard: format!("{wildcard} {known}") });
            }
        }
        if let Some(known) = self.exceptions.get_mut(&devices) {
            *known = known.without(access);
            if *known == Access::NONE {
                self.exceptions.remove(&devices);
            }
        }
        Ok(())
    }

    /// The lines that make a v1 group of this set, coming from `current`; a group that nothing
    /// is known of is first emptied.
    pub(super) fn lines(&self, current: Option<&Self>) -> Vec<Line> {
        let file = |allow: bool| if allow { "devices.allow" } else { "devices.deny" };
        let mut lines = Vec::with_capacity(self.exceptions.len() + 1);
        let mut line = |allow: bool, devices: &Devices, access: Access| {
            lines.push(Line { file: file(allow), text: format!("{devices} {access}") });
        };
        // A group that allows by default does not show its exceptions, so it is emptied, too.
        let nothing = BTreeMap::new();
        let known = current
            .filter(|current| !current.default_allow && !self.default_allow)
            .map(|current| &current.exceptions);
        for (devices, access) in known.unwrap_or(&nothing) {
            let wanted = self.exceptions.get(devices).copied().unwrap_or(Access::NONE);
            if access.without(wanted) != Access::NONE {
                line(false, devices, access.without(wanted));
            }
        }
        for (devices, access) in &self.exceptions {
            let known = known.and_then(|known| known.get(devices).copied());
            let missing = access.without(known.unwrap_or(Access::NONE));
            if missing != Access::NONE {
                line(!self.default_allow, devices, missing);
            }
        }
        if known.is_none() {
            let first = Line { file: file(self.default_allow), text: "a *:* rwm".to_owned() };
            lines.insert(0, first);
        }
        lines
    }
}

/// A line to write to a v1 file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) file: &'static str,
    pub(super) text: String,
}

/// Why device rules cannot be enforced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum DeviceError {
    /// A rule says nothing.
    #[error("device access at {index} field cannot be empty")]
    NoAccess { index: usize },
    /// A rule is about something else than reading, writing and mknod.
    #[error("device access at {index} is {access:?}, not of the letters r, w and m")]
    Access { index: usize, access: String },
    /// A rule is about something else than devices.
    #[error("invalid cgroup device type {0:?}")]
    Kind(String),
    /// A device number is out of range.
    #[error("device number at {index} is {number}")]
    Number { index: usize, number: i64 },
    /// A rule takes a part out of another one that names all devices.
    #[error(
        "requested rule [{rule}] not supported by devices cgroupv1 (cannot punch hole in \
         existing wildcard rule [{wildcard}])"
    )]
    Hole { rule: String, wildcard: String },
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A rule from `allow c 1:3 rwm` and the like.
    pub(in crate::cgroup) fn rule(text: &str) -> LinuxDeviceCgroup {
        let [verb, kind, numbers, access] =
            text.split(' ').collect::<Vec<_>>().try_into().expect("four words");
        let (major, minor) = numbers.split_once(':').expect("two numbers");
        LinuxDeviceCgroup {
            allow: verb == "allow",
            kind: kind.to_owned(),
            major: major.parse().ok(),
            minor: minor.parse().ok(),
            access: access.to_owned(),
        }
    }

    fn set(rules: &[&str]) -> Result<DeviceSet, DeviceError> {
        let mut set = DeviceSet::default();
        for (index, text) in rules.iter().enumerate() {
            set.apply(index, &rule(text))?;
        }
        Ok(set)
    }

    #[test]
    fn rules_to_lines() {
        /// Name, rules, `devices.list`, and what is written.
        type Case<'a> = (&'a str, &'a [&'a str], Option<&'a str>, &'a [&'a str]);
        let cases: [Case<'_>; 8] = [
            ("nothing", &[], None, &["deny a *:* rwm"]),
            ("everything", &["allow a *:* rwm"], None, &["allow a *:* rwm"]),
            (
                "the last word counts",
                &["allow c 1:3 rwm", "deny a *:* rwm", "allow c 1:5 r", "allow c 1:5 w"],
                None,
                &["deny a *:* rwm", "allow c 1:5 rw"],
            ),
            (
                "taken back",
                &["allow b 8:* rwm", "deny b 8:* w", "allow c 1:3 r", "deny c 1:3 rwm"],
                None,
                &["deny a *:* rwm", "allow b 8:* rm"],
            ),
            (
                "all but one",
                &["allow a *:* rwm", "deny c 1:3 w"],
                None,
                &["allow a *:* rwm", "deny c 1:3 w"],
            ),
            (
                "a change",
                &["allow c 1:3 rw", "allow c 1:9 r"],
                Some("c 1:3 rwm\nc 1:5 r\n"),
                &["deny c 1:3 m", "deny c 1:5 r", "allow c 1:9 r"],
            ),
            ("no change", &["allow c 1:3 rwm"], Some("c 1:3 rwm\n"), &[]),
            (
                "from what does not show",
                &["allow c 1:3 rwm"],
                Some("a *:* rwm\n"),
                &["deny a *:* rwm", "allow c 1:3 rwm"],
            ),
        ];
        for (case, rules, current, want) in cases {
            let current = current.map(|text| DeviceSet::parse(text).expect(case));
            let lines = set(rules).expect(case).lines(current.as_ref());
            let got: Vec<String> = lines
                .iter()
                .map(|line| format!("{} {}", line.file.trim_start_matches("devices."), line.text))
                .collect();
            assert_eq!(got, want, "{case}");
        }
    }

    #[test]
    fn refuses() {
        let hole = |rule: &str, wildcard: &str| DeviceError::Hole {
            rule: rule.to_owned(),
            wildcard: wildcard.to_owned(),
        };
        let access = |access: &str| DeviceError::Access { index: 0, access: access.to_owned() };
        let cases: [(&[&str], DeviceError); 5] = [
            (&["allow c 1:* rwm", "deny c 1:3 w"], hole("c 1:3 w", "c 1:* rwm")),
            (&["allow a *:* rwm", "deny b *:1 r", "allow b 8:1 r"], hole("b 8:1 r", "b *:1 r")),
            (&["allow c 1:3 rx"], access("rx")),
            (&["allow p 1:3 r"], DeviceError::Kind("p".to_owned())),
            (&["allow c -7:3 r"], DeviceError::Number { index: 0, number: -7 }),
        ];
        for (rules, want) in cases {
            assert_eq!(set(rules), Err(want), "{rules:?}");
        }
    }

    #[test]
    fn no_list_is_a_panic() {
        for text in ["x", "c", "c 1", "c 1:2", "c 1:2 q", "c 99999999999:1 r", "c a:1 r", " "] {
            assert_eq!(DeviceSet::parse(text), None, "{text:?}");
        }
    }
}
