//! System call filters: seccomp(2) with classic BPF programs.
//!
//! Only loading is here; what a program says is decided by its author. Everything in this file
//! is safe to use between clone and exec: no allocation, no lock, one system call per function.

#![expect(unsafe_code, reason = "seccomp(2) has no wrapper in rustix")]

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

/// One instruction of a classic BPF program; the kernel's `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation, size and mode, or'ed together.
    pub code: u16,
    /// How many instructions a conditional jump skips when its test holds.
    pub jump_true: u8,
    /// How many instructions a conditional jump skips when its test fails.
    pub jump_false: u8,
    /// The operand.
    pub operand: u32,
}

/// Logs every action of the filter but "allow" (`SECCOMP_FILTER_FLAG_LOG`).
pub const FLAG_LOG: u32 = 1 << 1;
/// Leaves the speculative store bypass mitigation off (`SECCOMP_FILTER_FLAG_SPEC_ALLOW`).
pub const FLAG_SPEC_ALLOW: u32 = 1 << 2;
/// Returns a descriptor on which a supervisor receives notifications
/// (`SECCOMP_FILTER_FLAG_NEW_LISTENER`).
pub const FLAG_NEW_LISTENER: u32 = 1 << 3;
/// Lets only a fatal signal interrupt a call that a supervisor has received
/// (`SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`).
pub const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// `SECCOMP_SET_MODE_FILTER`.
const SET_MODE_FILTER: libc::c_uint = 1;

/// The kernel's `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: u16,
    instructions: *const Instruction,
}

/// Puts the calling thread under the filter `instructions`, for good.
///
/// Returns the listener when `flags` has [`FLAG_NEW_LISTENER`]. It is close-on-exec.
///
/// # Errors
///
/// - `EACCES`: the thread has neither `no_new_privs` nor `CAP_SYS_ADMIN`.
/// - `EINVAL`: the kernel does not know a flag, or takes the program for invalid; it has, for
///   one, more than 4096 instructions.
/// - `EBUSY`: a listener is asked for and a filter above this one has one already.
pub fn load(instructions: &[Instruction], flags: u32) -> io::Result<Option<OwnedFd>> {
    let Ok(len) = u16::try_from(instructions.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let program = Program { len, instructions: instructions.as_ptr() };
    // SAFETY: seccomp(2) reads `len` instructions through the pointer, which is what the slice
    // that `program` was made of has, and keeps no reference to them.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, std::ptr::from_ref(&program))
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let descriptor = i32::try_from(result).expect("descriptors are small numbers");
    // SAFETY: with NEW_LISTENER a result that is not negative is a descriptor that the kernel
    // has just made for the caller.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// Whether the kernel knows the filter flag `flag`.
///
/// It looks at flags before it looks at the program, so that a program it cannot read tells a
/// known flag (`EFAULT`) from an unknown one (`EINVAL`).
pub fn knows_flag(flag: u32) -> bool {
    // The kernel accepts this one beside a listener only.
    let flag = if flag == FLAG_WAIT_KILLABLE_RECV { flag | FLAG_NEW_LISTENER } else { flag };
    let nowhere: *const Program = std::ptr::null();
    // SAFETY: a null program is what makes the call fail with EFAULT; it changes nothing.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flag, nowhere) };
    result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_this_kernel() {
        for flag in [FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_NEW_LISTENER, FLAG_WAIT_KILLABLE_RECV] {
            assert!(knows_flag(flag), "{flag:#x}");
        }
        assert!(!knows_flag(1 << 30));
    }

    #[test]
    fn a_program_that_does_not_end_is_refused() {
        let load_number = Instruction { code: 0x20, jump_true: 0, jump_false: 0, operand: 0 };
        let error = load(&[load_number], 0).expect_err("no return");
        assert!(matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES)), "{error}");
    }
}
