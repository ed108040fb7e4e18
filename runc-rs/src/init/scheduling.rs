//! CPU and I/O scheduling, and the execution domain.

use sys::scheduling::{Attributes, set_attributes, set_io_priority, set_personality};

use crate::{error::Error, spec};

const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

const FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

const IO_CLASSES: [(&str, u16); 3] =
    [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];

const PERSONALITIES: [(&str, u32); 2] = [("LINUX", 0), ("LINUX32", 8)];

fn find<T: Copy>(table: &[(&str, T)], field: &str, name: &str) -> Result<T, Error> {
    table
        .iter()
        .find(|(known, _)| *known == name)
        .map(|&(_, value)| value)
        .ok_or_else(|| Error::Process(format!("invalid {field} {name:?}")))
}

/// Applies what the configuration asks for.
pub(super) fn apply(
    process: &spec::Process,
    personality: Option<&spec::Personality>,
) -> Result<(), Error> {
    if let Some(scheduler) = &process.scheduler {
        let mut flags = 0;
        for flag in &scheduler.flags {
            flags |= find(&FLAGS, "scheduler flag", flag)?;
        }
        let attributes = Attributes {
            policy: find(&POLICIES, "scheduler policy", &scheduler.policy)?,
            flags,
            nice: scheduler.nice,
            priority: u32::try_from(scheduler.priority)
                .map_err(|_| Error::Process("invalid scheduler priority".to_owned()))?,
            runtime: scheduler.runtime,
            deadline: scheduler.deadline,
            period: scheduler.period,
        };
        set_attributes(&attributes)
            .map_err(|error| Error::system("error setting", "scheduler", error))?;
    }
    if let Some(io) = &process.io_priority {
        let class = find(&IO_CLASSES, "ioPriority.Class", &io.class)?;
        let priority =
            u16::try_from(io.priority).ok().filter(|priority| *priority <= 7).ok_or_else(|| {
                Error::Process(format!("invalid ioPriority.Priority: {}", io.priority))
            })?;
        set_io_priority(class, priority)
            .map_err(|error| Error::system("failed to set", "io priority", error))?;
    }
    match personality {
        None => Ok(()),
        Some(personality) => {
            let domain = find(&PERSONALITIES, "personality domain", &personality.domain)?;
            set_personality(domain)
                .map_err(|error| Error::system("failed to set", "the personality", error))
        }
    }
}
