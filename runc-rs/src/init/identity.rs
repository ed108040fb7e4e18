//! User, groups and working directory of the process.

use rustix::{
    fs::{CWD, FileType, Mode, fchown, fstat, major},
    io::Errno,
    process::{Gid, Uid, chdir, getcwd, umask},
    thread::{set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::capability::Sets;
use crate::{error::Error, proc, spec};

/// The umask of a process for which the configuration names none.
const UMASK_DEFAULT: u32 = 0o022;

/// Becomes the user, in the working directory, with the capabilities. The order matters: the
/// directory may be open only to one of the two users, the bounding set needs a capability, and
/// changing the user drops what `keep_capabilities` does not save.
pub(super) fn assume(process: &spec::Process, sets: Sets) -> Result<(), Error> {
    let user = &process.user;
    let entered = enter(&process.cwd)?;
    sets.apply_bounding()?;
    let fail = |error| Error::system("unable to setup", "user", error);
    set_keep_capabilities(true).map_err(fail)?;
    own_standard_streams(user.uid)?;
    set_groups(&user.additional_gids).map_err(fail)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).map_err(fail)?;
    set_thread_res_uid(uid, uid, uid).map_err(fail)?;
    umask(Mode::from_raw_mode(user.umask.unwrap_or(UMASK_DEFAULT)));
    if !entered && !enter(&process.cwd)? {
        return Err(chdir_error(&process.cwd, Errno::ACCESS));
    }
    // A directory that was opened before the root changed is outside, and getcwd says so
    // (CVE-2024-21626).
    match getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => {}
        _ => {
            return Err(Error::Process(
                "current working directory is outside of container mount namespace root -- \
                 possible container breakout detected"
                    .to_owned(),
            ));
        }
    }
    set_keep_capabilities(false).map_err(fail)?;
    sets.apply()
}

/// Goes to the directory; `false` when this user may not.
fn enter(directory: &str) -> Result<bool, Error> {
    match chdir(directory) {
        Ok(()) => Ok(true),
        Err(Errno::ACCESS | Errno::PERM) => Ok(false),
        Err(error) => Err(chdir_error(directory, error)),
    }
}

fn chdir_error(directory: &str, error: Errno) -> Error {
    Error::system("chdir to cwd", format!("({directory:?}) set in config.json failed"), error)
}

/// Sets the supplementary groups; in a user namespace whose creator may not, there are none to set.
fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    let groups: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    match set_thread_groups(&groups) {
        Err(Errno::PERM) if setgroups_is_denied() && groups.is_empty() => Ok(()),
        result => result,
    }
}

fn setgroups_is_denied() -> bool {
    proc::read(CWD, "/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

/// The major number of the memory devices: /dev/null, /dev/zero, /dev/full and their like.
const MEMORY: u32 = 1;

/// Gives the standard streams to the user, so that it can open them again through /dev/stdout; not
/// the host's /dev/null and its kin, which are everybody's. What the container calls /dev/null does
/// not matter for that.
fn own_standard_streams(uid: u32) -> Result<(), Error> {
    for number in 0..=2 {
        let Some(stream) = sys::descriptors::standard(number) else { continue };
        let fail = |error| Error::system("fchown", format!("standard stream {number}"), error);
        let found = fstat(stream).map_err(fail)?;
        let is_device = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
        if found.st_uid == uid || (is_device && major(found.st_rdev) == MEMORY) {
            continue;
        }
        match fchown(stream, Some(Uid::from_raw(uid)), None) {
            // An unmapped owner, a read-only or foreign file: the user has to do without.
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(())
}
