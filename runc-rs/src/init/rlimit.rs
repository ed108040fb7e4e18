//! Resource limits, setrlimit(2).

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

use crate::{error::Error, spec};

const RESOURCES: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_STACK", Resource::Stack),
];

/// The resource that the runtime-spec calls `name`.
pub(crate) fn resource(name: &str) -> Option<Resource> {
    RESOURCES.iter().find(|(known, _)| *known == name).map(|&(_, resource)| resource)
}

/// Raises the hard limits of a process that is about to lower all limits itself, but not able to
/// raise any: in a user namespace nobody is.
pub(crate) fn raise(pid: i32, limits: &[spec::Rlimit]) -> Result<(), Error> {
    let infinity = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    for limit in limits {
        let Some(resource) = resource(&limit.kind) else { continue };
        let now = getrlimit(resource);
        if limit.hard <= infinity(now.maximum) {
            continue;
        }
        let maximum = (limit.hard != u64::MAX).then_some(limit.hard);
        let new = Rlimit { current: now.current, maximum };
        prlimit(Pid::from_raw(pid), resource, new)
            .map_err(|error| Error::system("error setting rlimit", &limit.kind, error))?;
    }
    Ok(())
}

/// Sets the limits of this process.
pub(super) fn apply(limits: &[spec::Rlimit]) -> Result<(), Error> {
    // The largest number means no limit, in the kernel and in the configuration.
    let value = |limit: u64| (limit != u64::MAX).then_some(limit);
    for limit in limits {
        let Some(resource) = resource(&limit.kind) else { continue };
        let new = Rlimit { current: value(limit.soft), maximum: value(limit.hard) };
        setrlimit(resource, new)
            .map_err(|error| Error::system("set rlimit", &limit.kind, error))?;
    }
    Ok(())
}
