//! Compiles the system call profile of a container to a filter that the kernel runs.
//!
//! # Why our own compiler
//!
//! libseccomp takes 13 to 18 ms for docker's profile, which is several times what the rest of a
//! start takes; this one takes about 0.2 ms, needs no cache, and its programs are shorter and
//! decide faster. It must decide the same, which `tests` checks on every system call.
//!
//! # Steps
//!
//! ```text
//!  LinuxSeccomp ──profile──> checked rules ──table──> ranges of numbers ──emit──> instructions
//!     (text)                 (actions, ops)           for each architecture       (BPF)
//! ```
//!
//! # What a profile means
//!
//! - A call that no rule names gets the default action. A rule whose action is the default
//!   action is void. Names that no architecture has are ignored: profiles name the calls of
//!   future kernels.
//! - If any rule for a call is without conditions, the first such rule decides. Otherwise rules
//!   are tried in the order of the profile. (libseccomp tries them in an order of its own, or
//!   refuses the profile, when rules with different actions overlap.)
//! - The conditions of a rule must all hold. If two of them are about the same argument, each
//!   condition is a rule of its own: runc does so because docker's old profiles mean it.
//! - Below the default action hides a second one: calls with a number above all that the
//!   profile names are answered with `ENOSYS`, unless the default lets calls pass, because C
//!   libraries probe for new calls and take `EPERM` for a final answer. Source: runc,
//!   `libcontainer/seccomp/patchbpf`.
//! - Calls of an architecture that the profile does not list kill the thread.
//!
//! Sources: seccomp(2); runc `libcontainer/seccomp`; libseccomp `src/db.c` and `src/gen_bpf.c`.

mod architecture;
mod emit;
pub(crate) mod fuzz;
mod interpret;
mod numbers;
mod profile;
mod table;
#[cfg(test)]
mod tests;

pub use architecture::NAMES as ARCHITECTURES;
pub use profile::{ACTIONS, FLAGS, OPERATORS, supported_flags};

use std::path::PathBuf;

use sys::seccomp::{FLAG_NEW_LISTENER, Instruction};

use crate::spec::seccomp::LinuxSeccomp;
use profile::Profile;

/// The most instructions that the kernel loads (`BPF_MAXINSNS`).
const INSTRUCTIONS_MAX: usize = 4096;

/// A filter, ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// What the kernel runs for every system call.
    pub instructions: Vec<Instruction>,
    /// Flags for [`sys::seccomp::load`].
    pub flags: u32,
    /// Where the listener goes; present if the profile has a "notify" action.
    pub listener: Option<Listener>,
}

/// Where the listener of "notify" actions is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// A unix socket.
    pub path: PathBuf,
    /// Data for its owner.
    pub metadata: String,
}

/// Compiles `seccomp`.
///
/// A profile that [is unset](LinuxSeccomp::is_unset) means "no filter" and is not for this
/// function.
///
/// # Errors
///
/// See [`Error`]; all of them are mistakes in the profile.
pub fn compile(seccomp: &LinuxSeccomp) -> Result<Program, Error> {
    let profile = Profile::check(seccomp)?;
    let instructions = emit::program(&profile, &table::tables(&profile));
    if instructions.len() > INSTRUCTIONS_MAX {
        return Err(Error::TooLong { len: instructions.len() });
    }
    let mut flags = profile.flags;
    let listener = profile.notifies.then(|| Listener {
        path: PathBuf::from(&seccomp.listener_path),
        metadata: seccomp.listener_metadata.clone(),
    });
    if listener.is_some() {
        flags |= FLAG_NEW_LISTENER;
    }
    Ok(Program { instructions, flags, listener })
}

/// Why a profile cannot be compiled.
///
/// The first four texts are runc's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum Error {
    /// An action is not one of [`ACTIONS`].
    #[error("string {0} is not a valid action for seccomp")]
    Action(String),
    /// An operator is not one of [`OPERATORS`].
    #[error("string {0} is not a valid operator for seccomp")]
    Operator(String),
    /// An architecture is not one of [`ARCHITECTURES`].
    #[error("string {0} is not a valid arch for seccomp")]
    Architecture(String),
    /// A flag is not one of [`FLAGS`].
    #[error("seccomp flag {0} is not known to runc")]
    Flag(String),
    /// A rule names the empty string.
    #[error("empty string is not a valid syscall")]
    EmptyName,
    /// System calls have six arguments.
    #[error("seccomp rule for {name} has a condition on argument {index}")]
    Argument { name: String, index: u32 },
    /// The kernel's error numbers end at 4095.
    #[error("seccomp errnoRet {0} is out of range")]
    ErrorNumber(u32),
    /// Every call would wait for a supervisor that cannot be told of the listener.
    #[error("SCMP_ACT_NOTIFY cannot be used as default action")]
    NotifyByDefault,
    /// The runtime must write to hand the listener over.
    #[error("SCMP_ACT_NOTIFY cannot be used for the write syscall")]
    NotifyWrite,
    /// There is a "notify" action and nobody to tell.
    #[error("seccomp listenerPath is not set")]
    NoListener,
    /// The program is longer than the kernel accepts.
    #[error("seccomp profile needs {len} instructions, more than {INSTRUCTIONS_MAX}")]
    TooLong { len: usize },
}
