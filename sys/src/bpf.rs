//! Device filters of cgroup v2: bpf(2) with programs of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
//!
//! Since Linux 5.11 the memory of programs is charged to the caller's memory cgroup, so that no
//! resource limit has to be raised first.

#![expect(unsafe_code, reason = "bpf(2) has no wrapper in rustix")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// One instruction of an eBPF program; the kernel's `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Class, operation and operand kind, or'ed together.
    pub code: u8,
    /// The destination register in the lower, the source register in the upper four bits.
    pub registers: u8,
    /// Distance of a jump or of a memory operand.
    pub offset: i16,
    /// The immediate operand.
    pub immediate: i32,
}

/// The most programs of one kind that a cgroup can have (`BPF_CGROUP_MAX_PROGS`).
const PROGRAMS_MAX: usize = 64;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;

/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const TYPE_CGROUP_DEVICE: u32 = 15;
/// `BPF_CGROUP_DEVICE`.
const ATTACH_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: programs of parents and children all have a say.
const ALLOW_MULTI: u32 = 1 << 1;
/// `BPF_F_REPLACE`.
const REPLACE: u32 = 1 << 2;

/// The part of `union bpf_attr` that loading uses.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The part of `union bpf_attr` that attaching and detaching use.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// The part of `union bpf_attr` that queries use.
#[repr(C)]
struct QueryAttributes {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// The part of `union bpf_attr` that looking up by id uses.
#[repr(C)]
struct IdAttributes {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Calls bpf(2).
///
/// # Safety
///
/// `T` is a leading part of the `union bpf_attr` member for `command`, without padding, and the
/// addresses in it are valid for what the command does with them.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    let address = std::ptr::from_mut(attributes);
    // SAFETY: the caller vouches for the attributes; the size is that of what they point to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, address, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(result).expect("bpf(2) returns an int"))
}

fn descriptor(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Loads a device program.
///
/// # Errors
///
/// - `EINVAL`, `EACCES`: the kernel's verifier rejects the program.
/// - `EPERM`: the caller may not load programs.
pub fn load_device_program(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut name = [0; 16];
    name[..7].copy_from_slice(b"devices");
    let mut attributes = LoadAttributes {
        kind: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len())
            .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name,
    };
    // SAFETY: `LoadAttributes` is the beginning of the member for loading; the slice and the
    // license outlive the call and are as long as the kernel reads them.
    let program = unsafe { bpf(PROG_LOAD, &mut attributes) }?;
    // SAFETY: loading returns a descriptor that the kernel has just made for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

/// Puts the devices of `cgroup` under `program`, in the place of `replaced` if there is one.
///
/// The programs of the groups above stay in force.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attributes = AttachAttributes {
        target: descriptor(cgroup),
        program: descriptor(program),
        kind: ATTACH_DEVICE,
        flags: ALLOW_MULTI | if replaced.is_some() { REPLACE } else { 0 },
        replaced: replaced.map_or(0, descriptor),
    };
    // SAFETY: `AttachAttributes` is the beginning of the member for attaching; it has no
    // addresses.
    unsafe { bpf(PROG_ATTACH, &mut attributes) }.map(drop)
}

/// Takes the device program `program` from `cgroup`.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = AttachAttributes {
        target: descriptor(cgroup),
        program: descriptor(program),
        kind: ATTACH_DEVICE,
        flags: 0,
        replaced: 0,
    };
    // SAFETY: `AttachAttributes` is the beginning of the member for detaching; it has no
    // addresses.
    unsafe { bpf(PROG_DETACH, &mut attributes) }.map(drop)
}

/// The device programs that are attached to `cgroup` itself.
///
/// Those that a security module keeps from the caller are left out; they can only restrict.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; PROGRAMS_MAX];
    let mut attributes = QueryAttributes {
        target: descriptor(cgroup),
        kind: ATTACH_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(ids.len()).expect("is small"),
        padding: 0,
    };
    // SAFETY: `QueryAttributes` is the beginning of the member for queries; `ids` has room for
    // `count` numbers and outlives the call.
    unsafe { bpf(PROG_QUERY, &mut attributes) }?;
    let count = usize::try_from(attributes.count).expect("is small").min(PROGRAMS_MAX);
    let mut programs = Vec::with_capacity(count);
    for &id in &ids[..count] {
        match program_by_id(id) {
            Ok(program) => programs.push(program),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            // Detached and gone since the query.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(programs)
}

fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = IdAttributes { id, next_id: 0, open_flags: 0 };
    // SAFETY: `IdAttributes` is the member for looking up by id; it has no addresses.
    let program = unsafe { bpf(PROG_GET_FD_BY_ID, &mut attributes) }?;
    // SAFETY: the command returns a descriptor that the kernel has just made for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}
