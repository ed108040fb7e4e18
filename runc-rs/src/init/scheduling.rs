//! CPU and I/O scheduling, CPU affinity, memory policy, and the execution domain.
//!
//! What a configuration says in words is read by the functions that [validation](crate::spec) calls
//! first, so that a wrong word is found before anything is made.

use sys::{
    affinity::{self, Mask},
    scheduling::{Attributes, set_attributes, set_io_priority, set_personality},
};

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

/// The modes of memory policies, sorted, with the number of nodes that they take.
const MEMORY_MODES: [(&str, i32, Nodes); 7] = [
    ("MPOL_BIND", 2, Nodes::Some),
    ("MPOL_DEFAULT", 0, Nodes::None),
    ("MPOL_INTERLEAVE", 3, Nodes::Some),
    ("MPOL_LOCAL", 4, Nodes::None),
    ("MPOL_PREFERRED", 1, Nodes::Any),
    ("MPOL_PREFERRED_MANY", 5, Nodes::Some),
    ("MPOL_WEIGHTED_INTERLEAVE", 6, Nodes::Some),
];

const MEMORY_FLAGS: [(&str, i32); 3] = [
    ("MPOL_F_NUMA_BALANCING", 1 << 13),
    ("MPOL_F_RELATIVE_NODES", 1 << 14),
    ("MPOL_F_STATIC_NODES", 1 << 15),
];

/// The names of all modes of memory policies.
pub(crate) const MEMORY_MODE_NAMES: [&str; MEMORY_MODES.len()] = {
    let mut names = [""; MEMORY_MODES.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = MEMORY_MODES[at].0;
        at += 1;
    }
    names
};

/// The names of all flags of memory policies.
pub(crate) const MEMORY_FLAG_NAMES: [&str; MEMORY_FLAGS.len()] = {
    let mut names = [""; MEMORY_FLAGS.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = MEMORY_FLAGS[at].0;
        at += 1;
    }
    names
};

/// The highest number of a CPU or node that a list may have, as runc has it.
const NUMBER_MAX: usize = 64 << 10;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nodes {
    None,
    Some,
    Any,
}

fn find<T: Copy>(table: &[(&str, T)], what: &str, name: &str) -> Result<T, String> {
    table
        .iter()
        .find(|(known, _)| *known == name)
        .map(|&(_, value)| value)
        .ok_or_else(|| format!("invalid {what}: {name:?}"))
}

/// Reads a scheduling policy.
pub(crate) fn attributes(scheduler: &spec::Scheduler) -> Result<Attributes, String> {
    let name = scheduler.policy.as_str();
    if name.is_empty() {
        return Err("scheduler policy is required".to_owned());
    }
    let policy = find(&POLICIES, "scheduler policy", name)?;
    let nice = scheduler.nice;
    if matches!(name, "SCHED_OTHER" | "SCHED_BATCH") && !(-20..=19).contains(&nice) {
        return Err(format!("invalid scheduler.nice: {nice} when scheduler.policy is {name}"));
    }
    if scheduler.priority != 0 && !matches!(name, "SCHED_FIFO" | "SCHED_RR") {
        let text = "scheduler.priority can only be specified for SchedFIFO or SchedRR policy";
        return Err(text.to_owned());
    }
    let times = (scheduler.runtime, scheduler.deadline, scheduler.period);
    if times != (0, 0, 0) && name != "SCHED_DEADLINE" {
        let text =
            "scheduler runtime/deadline/period can only be specified for SchedDeadline policy";
        return Err(text.to_owned());
    }
    let mut flags = 0;
    for flag in &scheduler.flags {
        flags |= find(&FLAGS, "scheduler flag", flag)?;
    }
    let priority = u32::try_from(scheduler.priority)
        .map_err(|_| format!("invalid scheduler.priority: {}", scheduler.priority))?;
    let (runtime, deadline, period) = times;
    Ok(Attributes { policy, flags, nice, priority, runtime, deadline, period })
}

/// Reads an I/O priority: its class and the priority in it.
pub(crate) fn io_priority(described: &spec::IoPriority) -> Result<(u16, u16), String> {
    let priority = u16::try_from(described.priority).ok().filter(|priority| *priority <= 7);
    let priority =
        priority.ok_or_else(|| format!("invalid ioPriority.Priority: {}", described.priority))?;
    Ok((find(&IO_CLASSES, "ioPriority.Class", &described.class)?, priority))
}

/// Reads an execution domain.
pub(crate) fn domain(personality: &spec::Personality) -> Result<u32, String> {
    find(&PERSONALITIES, "personality domain", &personality.domain)
}

/// Reads a memory policy: the mode with its flags, and the nodes.
pub(crate) fn memory_policy(policy: &spec::MemoryPolicy) -> Result<(i32, Mask), String> {
    let known = MEMORY_MODES.iter().find(|(name, ..)| *name == policy.mode);
    let &(_, mut mode, takes) =
        known.ok_or_else(|| format!("invalid memory policy mode {:?}", policy.mode))?;
    let nodes = number_list(&policy.nodes)
        .map_err(|reason| format!("invalid memory policy nodes {:?}: {reason}", policy.nodes))?
        .unwrap_or_default();
    for flag in &policy.flags {
        let known = MEMORY_FLAGS.iter().find(|(name, _)| name == flag);
        mode |= known.ok_or_else(|| format!("invalid memory policy flag {flag:?}"))?.1;
    }
    match takes {
        Nodes::None if !nodes.is_empty() => {
            Err(format!("memory policy mode requires 0 nodes but got {}", nodes.len()))
        }
        Nodes::Some if nodes.is_empty() => {
            Err("memory policy mode requires at least one node but got 0".to_owned())
        }
        _ => Ok((mode, nodes)),
    }
}

/// The CPUs on which an exec runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Affinity {
    /// Until it is in the container's cgroup.
    initial: Option<Mask>,
    /// From then on.
    last: Option<Mask>,
}

impl Affinity {
    /// Reads what a configuration says.
    pub(crate) fn parse(described: Option<&spec::CpuAffinity>) -> Result<Self, String> {
        let Some(described) = described else { return Ok(Self::default()) };
        let read = |name: &str, text: &str| {
            number_list(text).map_err(|reason| format!("bad CPUAffinity.{name}: {reason}"))
        };
        Ok(Self {
            initial: read("Initial", &described.initial)?,
            last: read("Final", &described.r#final)?,
        })
    }

    /// The first CPUs of those it begins with, a bit for each.
    pub(crate) fn initial_bits(&self) -> Option<u64> {
        self.initial.as_ref().map(Mask::first_word)
    }

    /// Before the process is in the container's cgroup.
    pub(super) fn apply_initial(&self) -> Result<(), Error> {
        let Some(cpus) = &self.initial else { return Ok(()) };
        affinity::set_cpus(cpus)
            .map_err(|error| Error::system("error setting", "initial CPU affinity", error))
    }

    /// Once it is there. With nothing asked for it may run wherever its cgroup allows, not only
    /// where the runtime did.
    pub(super) fn apply_final(&self) -> Result<(), Error> {
        match (&self.initial, &self.last) {
            (_, Some(cpus)) => affinity::set_cpus(cpus)
                .map_err(|error| Error::system("error setting", "final CPU affinity", error)),
            (Some(_), None) => Ok(()),
            (None, None) => {
                reset_affinity();
                Ok(())
            }
        }
    }
}

/// Lets this process run wherever its cgroup allows. Some sandboxes do not let it, and then it runs
/// where the runtime does.
pub(super) fn reset_affinity() {
    let _ = affinity::set_cpus(&Mask::all());
}

/// Reads a list of numbers and ranges, such as `0-3,7`; an empty text is no list.
fn number_list(text: &str) -> Result<Option<Mask>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = |text: &str| {
        let number: u32 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
        let fits = usize::try_from(number).ok().filter(|number| *number <= NUMBER_MAX);
        fits.ok_or_else(|| format!("values larger than {NUMBER_MAX} are not supported"))
    };
    let mut mask = Mask::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(format!("invalid range: {part}"));
        }
        (first..=last).for_each(|number| mask.insert(number));
    }
    if mask.is_empty() { Err(format!("no members found in set {text:?}")) } else { Ok(Some(mask)) }
}

/// Applies what the configuration asks for.
pub(super) fn apply(
    process: &spec::Process,
    personality: Option<&spec::Personality>,
    memory: Option<&spec::MemoryPolicy>,
) -> Result<(), Error> {
    if let Some(scheduler) = &process.scheduler {
        let attributes = attributes(scheduler).map_err(Error::Process)?;
        set_attributes(&attributes)
            .map_err(|error| Error::system("error setting", object_of(&error), error))?;
    }
    if let Some(described) = &process.io_priority {
        let (class, priority) = io_priority(described).map_err(Error::Process)?;
        set_io_priority(class, priority)
            .map_err(|error| Error::system("failed to set", "io priority", error))?;
    }
    if let Some(personality) = personality {
        let domain = domain(personality).map_err(Error::Process)?;
        set_personality(domain)
            .map_err(|error| Error::system("failed to set", "the personality", error))?;
    }
    if let Some(policy) = memory {
        let (mode, nodes) = memory_policy(policy).map_err(Error::Process)?;
        affinity::set_memory_policy(mode, &nodes)
            .map_err(|error| Error::system("set_mempolicy", &policy.mode, error))?;
    }
    Ok(())
}

/// What could not be set, with why that may be: the kernel has one answer for several reasons.
fn object_of(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "scheduler: process scheduler can't be used together with AllowedCPUs, nor without \
             CAP_SYS_NICE"
        }
        _ => "scheduler",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers() {
        let mask = |numbers: &[usize]| Ok(Some(numbers.iter().copied().collect()));
        let cases: [(&str, Result<Option<Mask>, &str>); 15] = [
            ("", Ok(None)),
            ("0", mask(&[0])),
            ("0-2", mask(&[0, 1, 2])),
            ("0,2", mask(&[0, 2])),
            (" 1 , 3-3 ,", mask(&[1, 3])),
            ("1023", mask(&[1023])),
            ("1023-1025,8191", mask(&[1023, 1024, 1025, 8191])),
            ("65536", mask(&[65_536])),
            ("65537", Err("values larger than 65536 are not supported")),
            ("2-1", Err("invalid range: 2-1")),
            (",", Err("no members found in set \",\"")),
            ("a", Err("\"a\" is not a number")),
            ("-1", Err("\"\" is not a number")),
            ("1-", Err("\"\" is not a number")),
            ("99999999999", Err("\"99999999999\" is not a number")),
        ];
        for (text, want) in cases {
            assert_eq!(number_list(text), want.map_err(str::to_owned), "{text:?}");
        }
    }

    type PolicyCase = (&'static str, &'static str, &'static [&'static str], Policy);
    type Policy = Result<(i32, Mask), &'static str>;

    #[test]
    fn memory_policies() {
        let mask = |numbers: &[usize]| numbers.iter().copied().collect::<Mask>();
        let cases: [PolicyCase; 8] = [
            ("MPOL_DEFAULT", "", &[], Ok((0, mask(&[])))),
            ("MPOL_BIND", "0-1", &["MPOL_F_STATIC_NODES"], Ok((0x8002, mask(&[0, 1])))),
            ("MPOL_PREFERRED", "", &[], Ok((1, mask(&[])))),
            ("MPOL_LOCAL", "0", &[], Err("memory policy mode requires 0 nodes but got 1")),
            ("MPOL_BIND", "", &[], Err("memory policy mode requires at least one node but got 0")),
            ("BIND", "0", &[], Err("invalid memory policy mode \"BIND\"")),
            (
                "MPOL_BIND",
                "x",
                &[],
                Err("invalid memory policy nodes \"x\": \"x\" is not a number"),
            ),
            ("MPOL_BIND", "0", &["F"], Err("invalid memory policy flag \"F\"")),
        ];
        for (mode, nodes, flags, want) in cases {
            let policy = spec::MemoryPolicy {
                mode: mode.to_owned(),
                nodes: nodes.to_owned(),
                flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            };
            let got = memory_policy(&policy);
            assert_eq!(got, want.map_err(str::to_owned), "{mode} {nodes} {flags:?}");
        }
    }
}
