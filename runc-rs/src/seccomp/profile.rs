//! Checks a profile and turns its texts into numbers.

use sys::seccomp::{FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_WAIT_KILLABLE_RECV, knows_flag};

use super::{Error, architecture::Architecture};
use crate::spec::seccomp::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};

/// The names of all actions, sorted.
pub const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

/// The names of all operators, sorted.
pub const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// The names of all flags.
pub const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// The highest error number that the kernel can return.
const ERRNO_MAX: u32 = 4095;

/// A filter's verdict on a call, as the kernel encodes it (`SECCOMP_RET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Action(pub(super) u32);

impl Action {
    pub(super) const KILL_THREAD: Self = Self(0);
    pub(super) const NO_SUCH_CALL: Self = Self(0x0005_0000 | libc::ENOSYS.cast_unsigned());
    const KILL_PROCESS: Self = Self(0x8000_0000);
    const TRAP: Self = Self(0x0003_0000);
    const ERRNO: Self = Self(0x0005_0000);
    const NOTIFY: Self = Self(0x7fc0_0000);
    const TRACE: Self = Self(0x7ff0_0000);
    const LOG: Self = Self(0x7ffc_0000);
    const ALLOW: Self = Self(0x7fff_0000);

    fn parse(name: &str, errno: Option<u32>) -> Result<Self, Error> {
        let errno = errno.unwrap_or(libc::EPERM.cast_unsigned());
        Ok(match name {
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Self::KILL_THREAD,
            "SCMP_ACT_KILL_PROCESS" => Self::KILL_PROCESS,
            "SCMP_ACT_TRAP" => Self::TRAP,
            "SCMP_ACT_ERRNO" if errno > ERRNO_MAX => return Err(Error::ErrorNumber(errno)),
            "SCMP_ACT_ERRNO" => Self(Self::ERRNO.0 | errno),
            "SCMP_ACT_TRACE" if errno > 0xffff => return Err(Error::ErrorNumber(errno)),
            "SCMP_ACT_TRACE" => Self(Self::TRACE.0 | errno),
            "SCMP_ACT_ALLOW" => Self::ALLOW,
            "SCMP_ACT_LOG" => Self::LOG,
            "SCMP_ACT_NOTIFY" => Self::NOTIFY,
            _ => return Err(Error::Action(name.to_owned())),
        })
    }

    /// Whether the call is made, or made by proxy: a tracer answers for new calls itself.
    pub(super) fn passes(self) -> bool {
        matches!(Self(self.0 & 0xffff_0000), Self::ALLOW | Self::LOG | Self::TRACE)
    }
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Only the bits of this mask are compared, for equality.
    MaskedEqual(u64),
}

/// A condition on one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// Which argument, below 6.
    pub(super) argument: u8,
    pub(super) operator: Operator,
    pub(super) value: u64,
}

impl Condition {
    fn check(arg: &LinuxSeccompArg, rule: &LinuxSyscall) -> Result<Self, Error> {
        let argument = match u8::try_from(arg.index) {
            Ok(index) if index < 6 => index,
            _ => {
                let name = rule.names.first().cloned().unwrap_or_default();
                return Err(Error::Argument { name, index: arg.index });
            }
        };
        let (operator, value) = match arg.op.as_str() {
            "SCMP_CMP_EQ" => (Operator::Equal, arg.value),
            "SCMP_CMP_NE" => (Operator::NotEqual, arg.value),
            "SCMP_CMP_LT" => (Operator::Less, arg.value),
            "SCMP_CMP_LE" => (Operator::LessOrEqual, arg.value),
            "SCMP_CMP_GT" => (Operator::Greater, arg.value),
            "SCMP_CMP_GE" => (Operator::GreaterOrEqual, arg.value),
            "SCMP_CMP_MASKED_EQ" => (Operator::MaskedEqual(arg.value), arg.value & arg.value_two),
            _ => return Err(Error::Operator(arg.op.clone())),
        };
        Ok(Self { argument, operator, value })
    }
}

/// A checked rule for a list of calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule<'a> {
    pub(super) names: &'a [String],
    pub(super) action: Action,
    /// Any of these lists must hold as a whole. One empty list: there is no condition.
    pub(super) alternatives: Vec<Vec<Condition>>,
}

impl<'a> Rule<'a> {
    fn check(rule: &'a LinuxSyscall) -> Result<Self, Error> {
        let action = Action::parse(&rule.action, rule.errno_ret)?;
        if rule.names.iter().any(String::is_empty) {
            return Err(Error::EmptyName);
        }
        if action == Action::NOTIFY && rule.names.iter().any(|name| name == "write") {
            return Err(Error::NotifyWrite);
        }
        let conditions = rule
            .args
            .iter()
            .map(|arg| Condition::check(arg, rule))
            .collect::<Result<Vec<_>, _>>()?;
        let mut seen = [false; 6];
        let repeats = conditions
            .iter()
            .any(|condition| std::mem::replace(&mut seen[usize::from(condition.argument)], true));
        let alternatives = if repeats {
            conditions.into_iter().map(|condition| vec![condition]).collect()
        } else {
            vec![conditions]
        };
        Ok(Self { names: &rule.names, action, alternatives })
    }
}

/// A profile whose texts have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Profile<'a> {
    pub(super) default: Action,
    /// The native architecture comes first; none comes twice.
    pub(super) architectures: Vec<Architecture>,
    pub(super) flags: u32,
    pub(super) rules: Vec<Rule<'a>>,
    /// Whether a rule asks a supervisor.
    pub(super) notifies: bool,
}

impl<'a> Profile<'a> {
    /// Checks `seccomp`.
    pub(super) fn check(seccomp: &'a LinuxSeccomp) -> Result<Self, Error> {
        let flags = match &seccomp.flags {
            Some(names) => flags(names)?,
            None => FLAG_SPEC_ALLOW,
        };
        let architectures = architectures(&seccomp.architectures)?;
        let default = Action::parse(&seccomp.default_action, seccomp.default_errno_ret)?;
        if default == Action::NOTIFY {
            return Err(Error::NotifyByDefault);
        }
        let rules = seccomp.syscalls.iter().map(Rule::check).collect::<Result<Vec<_>, _>>()?;
        let notifies = rules.iter().any(|rule| rule.action == Action::NOTIFY);
        if notifies && seccomp.listener_path.is_empty() {
            return Err(Error::NoListener);
        }
        Ok(Self { default, architectures, flags, rules, notifies })
    }
}

fn flags(names: &[String]) -> Result<u32, Error> {
    let mut flags = 0;
    for name in names {
        flags |= flag(name).ok_or_else(|| Error::Flag(name.clone()))?;
    }
    Ok(flags)
}

fn architectures(names: &[String]) -> Result<Vec<Architecture>, Error> {
    let mut architectures = vec![Architecture::native()];
    for name in names {
        let architecture =
            Architecture::named(name).ok_or_else(|| Error::Architecture(name.clone()))?;
        if !architectures.contains(&architecture) {
            architectures.push(architecture);
        }
    }
    Ok(architectures)
}

/// The kernel's bit for a flag. "TSYNC" has none here: the filter is loaded by a process of one
/// thread.
fn flag(name: &str) -> Option<u32> {
    Some(match name {
        "SECCOMP_FILTER_FLAG_TSYNC" => 0,
        "SECCOMP_FILTER_FLAG_LOG" => FLAG_LOG,
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => FLAG_SPEC_ALLOW,
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => FLAG_WAIT_KILLABLE_RECV,
        _ => return None,
    })
}

/// Those of [`FLAGS`] that this kernel has.
pub fn supported_flags() -> Vec<&'static str> {
    let supported = |name: &&str| flag(name).is_some_and(|bit| bit == 0 || knows_flag(bit));
    FLAGS.into_iter().filter(supported).collect()
}
