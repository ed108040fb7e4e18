//! Leaving Linux namespaces for new ones.

#![expect(unsafe_code, reason = "rustix calls unshare unsafe, because of CLONE_FILES")]

use rustix::thread::UnshareFlags;

/// Moves this thread, and a process that has no other, to new namespaces of the kinds in `kinds`.
///
/// # Errors
///
/// `EPERM` without CAP_SYS_ADMIN, unless a user namespace is among them.
pub fn unshare(kinds: UnshareFlags) -> rustix::io::Result<()> {
    assert!(!kinds.contains(UnshareFlags::FILES), "descriptor tables are not namespaces");
    // SAFETY: only CLONE_FILES breaks the rules of descriptor ownership, and it is excluded.
    unsafe { rustix::thread::unshare_unsafe(kinds) }
}
