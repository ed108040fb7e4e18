//! Which pages of the program itself are mapped.

#![expect(unsafe_code, reason = "madvise may discard what is in memory")]

use std::{fs, io, os::unix::fs::MetadataExt};

/// Unmaps the pages of the program's code that are in memory.
///
/// What runs next is mapped again, page by page, from the page cache. A program that has started
/// and now sleeps counts few pages as its own afterwards.
///
/// # Errors
///
/// `/proc` is not there, or the kernel refuses.
pub fn forget_code() -> io::Result<()> {
    let inode = fs::metadata("/proc/self/exe")?.ino();
    for mapping in fs::read_to_string("/proc/self/maps")?.lines() {
        let Some((start, end)) = code(mapping, inode) else { continue };
        let address = std::ptr::with_exposed_provenance_mut::<libc::c_void>(start);
        // SAFETY: the range is a mapping of the program's file without write permission, as
        // `code` makes sure, so every page in it can be read from the file again, and reads the
        // same: a file that is being executed cannot be written (ETXTBSY).
        if unsafe { libc::madvise(address, end - start, libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The range of a line of `/proc/self/maps`, if it maps code of the file `inode`.
fn code(mapping: &str, inode: u64) -> Option<(usize, usize)> {
    let mut fields = mapping.split_ascii_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    let number: u64 = fields.nth(2)?.parse().ok()?;
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    (permissions == "r-xp" && number == inode)
        .then_some((address(start)?, address(end)?))
        .filter(|(start, end)| start < end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings() {
        let cases = [
            ("code", "00401000-00480000 r-xp 00001000 fd:01 77 /bin/x", Some((0x401000, 0x480000))),
            ("data", "00480000-00490000 rw-p 00001000 fd:01 77 /bin/x", None),
            ("constants", "00480000-00490000 r--p 00001000 fd:01 77 /bin/x", None),
            ("a library", "00480000-00490000 r-xp 00001000 fd:01 78 /lib/y", None),
            ("no file", "7ffd000-7ffe000 r-xp 00000000 00:00 0 [vdso]", None),
            ("garbage", "x", None),
        ];
        for (case, line, want) in cases {
            assert_eq!(code(line, 77), want, "{case}");
        }
    }

    #[test]
    fn goes_on() {
        forget_code().expect("madvise");
        mappings();
    }
}
