//! Scheduling attributes, I/O priority and execution domain of this process.

#![expect(unsafe_code, reason = "these calls have no safe wrapper in rustix")]

use std::io;

/// What sched_setattr(2) sets; the fields are those of `struct sched_attr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the normal policies.
    pub nice: i32,
    /// For the realtime policies.
    pub priority: u32,
    /// For the deadline policy, in nanoseconds.
    pub runtime: u64,
    /// For the deadline policy, in nanoseconds.
    pub deadline: u64,
    /// For the deadline policy, in nanoseconds.
    pub period: u64,
}

#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets this process's scheduling policy.
///
/// # Errors
///
/// `EPERM` when the policy is not allowed, `EINVAL` when the fields do not fit it.
pub fn set_attributes(attributes: &Attributes) -> io::Result<()> {
    let argument = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: attributes.policy,
        flags: attributes.flags,
        nice: attributes.nice,
        priority: attributes.priority,
        runtime: attributes.runtime,
        deadline: attributes.deadline,
        period: attributes.period,
    };
    // SAFETY: the kernel reads `size` bytes of the structure, which is its own length.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const argument, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets this process's I/O scheduling class and priority, ioprio_set(2).
///
/// # Errors
///
/// `EPERM` for the realtime class without CAP_SYS_ADMIN or CAP_SYS_NICE.
pub fn set_io_priority(class: u16, priority: u16) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_SHIFT: u16 = 13;
    let value = libc::c_int::from(class) << IOPRIO_CLASS_SHIFT | libc::c_int::from(priority);
    // SAFETY: the kernel takes three numbers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives this thread, and what it starts from now on, a core scheduling cookie of its own: they
/// share a core's hardware threads with nobody else (prctl(2), `PR_SCHED_CORE`).
///
/// # Errors
///
/// `EINVAL` when the kernel cannot do it, `ENODEV` when cores have one thread.
pub fn make_core_cookie() -> io::Result<()> {
    const PR_SCHED_CORE: libc::c_int = 62;
    const PR_SCHED_CORE_CREATE: libc::c_ulong = 1;
    const PIDTYPE_PID: libc::c_ulong = 0;
    let (this, unused): (libc::c_ulong, libc::c_ulong) = (0, 0);
    // SAFETY: the kernel takes numbers, of which the last is unused for this command.
    let result =
        unsafe { libc::prctl(PR_SCHED_CORE, PR_SCHED_CORE_CREATE, this, PIDTYPE_PID, unused) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets this process's execution domain, personality(2).
///
/// # Errors
///
/// `EINVAL` for a domain that the kernel does not know.
pub fn set_personality(domain: u32) -> io::Result<()> {
    // SAFETY: the kernel takes a number.
    let result = unsafe { libc::personality(libc::c_ulong::from(domain)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
