//! Keeps the runtime's own program out of a container's reach.
//!
//! Between its creation and its program, a container's process runs this one. A container could
//! read and change it through `/proc/<pid>`, and the file it was started from through
//! `/proc/<pid>/exe`, which it can even have run by naming `/proc/self/exe` as its own program
//! (CVE-2019-5736). Two things stand against it:
//!
//! - the process is not dumpable, which closes its /proc to all who may not trace it;
//! - its program is on a read-only mount that is nowhere in any tree, so that nobody can open the
//!   file for writing, nor make the mount writable.
//!
//! The second one takes another execve, of a tenth of a millisecond or two, and no copy. It is left
//! out where the program already is on a read-only mount; a caller that starts many can make one.
//!
//! Without root's rights there is no such mount, and mostly no need: a container has no more rights
//! than its maker, who cannot write to an installed program. Where he can, because it is his own, the
//! program is run from a sealed copy in memory, which is what costs milliseconds elsewhere.

use std::{
    ffi::CString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::ffi::OsStringExt as _,
};

use rustix::{
    fs::{
        Access, AtFlags, CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, accessat,
        fcntl_add_seals, fcntl_get_seals, memfd_create, openat, sendfile, statvfs,
    },
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
    process::{DumpableBehavior, set_dumpable_behavior},
};
use sys::{
    execute::{Strings, execveat},
    mount_attributes::{Attributes, set_attributes},
};

use crate::{error::Error, log};

const OWN: &str = "/proc/self/exe";

/// Seals this process, before it makes others; starts the program again where that is needed.
///
/// # Errors
///
/// [`Error::System`] when the kernel refuses.
pub fn seal() -> Result<(), Error> {
    let fail = |error| Error::file("seal", OWN, error);
    if !rustix::process::geteuid().is_root() {
        return copy_if_writable().map_err(fail);
    }
    let flags = statvfs(OWN).map_err(fail)?.f_flag;
    if !flags.contains(StatVfsMountFlags::RDONLY) {
        match readonly_mount() {
            Ok(own) => return start_again(own.as_fd()),
            // Root of a user namespace, in a mount namespace that is not its own.
            Err(Errno::PERM) => copy_if_writable().map_err(fail)?,
            Err(error) => return Err(fail(error)),
        }
    }
    log::debug("runc exeseal: using /proc/self/exe clone");
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(fail)
}

/// The program, on a mount of its own that is nowhere.
fn readonly_mount() -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let own = open_tree(CWD, OWN, flags)?;
    let readonly = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
    set_attributes(own.as_fd(), false, &readonly)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(own)
}

/// Starts again from a copy that nobody can write to, where the user could write to the program.
fn copy_if_writable() -> Result<(), Errno> {
    const CHUNK: usize = 1 << 20;
    if accessat(CWD, OWN, Access::WRITE_OK, AtFlags::EACCESS).is_err() {
        return Ok(());
    }
    let own = openat(CWD, OWN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // Only files in memory can be sealed at all.
    if fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SealFlags::WRITE)) {
        return Ok(());
    }
    let copy = memfd_create("runc-rs", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    while sendfile(&copy, &own, None, CHUNK)? > 0 {}
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&copy, seals)?;
    start_again(copy.as_fd()).map_err(|_| Errno::NOEXEC)
}

fn start_again(program: BorrowedFd<'_>) -> Result<(), Error> {
    let arguments = std::env::args_os().map(std::ffi::OsString::into_vec);
    let environment = std::env::vars_os().map(|(name, value)| {
        let mut variable = name.into_vec();
        variable.push(b'=');
        variable.extend(value.into_vec());
        variable
    });
    // They came through execve, so no string has a null byte in it.
    let strings = |all: Vec<Vec<u8>>| {
        Strings::new(all.into_iter().filter_map(|one| CString::new(one).ok()).collect())
    };
    let error = execveat(program, &strings(arguments.collect()), &strings(environment.collect()));
    Err(Error::file("execute", OWN, error))
}
