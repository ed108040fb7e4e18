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
//! Without root's rights neither is needed: a container has no more of them than its maker.

use std::{ffi::CString, os::fd::AsFd as _, os::unix::ffi::OsStringExt as _};

use rustix::{
    fs::{CWD, StatVfsMountFlags, statvfs},
    mount::{OpenTreeFlags, open_tree},
    process::{DumpableBehavior, set_dumpable_behavior},
};
use sys::{
    execute::{Strings, execveat},
    mount_attributes::{Attributes, set_attributes},
};

use crate::error::Error;

const OWN: &str = "/proc/self/exe";

/// Seals this process, before it makes others; starts the program again where that is needed.
///
/// # Errors
///
/// [`Error::System`] when the kernel refuses.
pub fn seal() -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let fail = |error| Error::file("seal", OWN, error);
    let flags = statvfs(OWN).map_err(fail)?.f_flag;
    if !flags.contains(StatVfsMountFlags::RDONLY) {
        return start_again();
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(fail)
}

fn start_again() -> Result<(), Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let own = open_tree(CWD, OWN, flags).map_err(|error| Error::file("clone", OWN, error))?;
    let readonly = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
    set_attributes(own.as_fd(), false, &readonly)
        .map_err(|error| Error::file("seal", OWN, error))?;
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
    let error =
        execveat(own.as_fd(), &strings(arguments.collect()), &strings(environment.collect()));
    Err(Error::file("execute", OWN, error))
}
