//! Which pages of the program itself are mapped.

#![expect(unsafe_code, reason = "madvise may discard what is in memory")]

use std::io;

/// Unmaps the pages of the program's code and constants that are in memory.
///
/// What runs next is mapped again, piece by piece, from the page cache. A program that has started
/// and now sleeps counts few pages as its own afterwards. Nothing is looked up in `/proc`, which may be
/// somebody else's, and reading which would take more of the program than it is worth.
///
/// At one fault the kernel maps what of the file lies around in the page cache, and that may be large
/// pieces since the page cache has them, but nothing beyond the mapping. So the program's mappings are
/// cut into pieces, of which every second is left out of core dumps, where code that a file has is not
/// put anyway: what differs in nothing would be one mapping again.
///
/// # Errors
///
/// The kernel refuses.
pub fn forget_program() -> io::Result<()> {
    let mut ranges: [Option<(usize, usize)>; SEGMENTS_MAX] = [None; SEGMENTS_MAX];
    let pointer = (&raw mut ranges).cast::<libc::c_void>();
    // SAFETY: `note_segments` takes the pointer for what it is, and nobody else uses it meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(note_segments), pointer) };
    // Of whole pages, which may be larger. Both are powers of two.
    let len = PIECE_LEN.max(rustix::param::page_size());
    for (start, end) in ranges.into_iter().flatten() {
        for (piece, odd) in pieces(start, end, len).zip([false, true].into_iter().cycle()) {
            if odd {
                // What cannot be cut, as when there are too many mappings, is mapped in larger pieces.
                // SAFETY: `note_segments` notes such pages, and this is about core dumps.
                let _ = unsafe { advise(piece, libc::MADV_DONTDUMP) };
            }
        }
        // After all of them are cut, because what runs between is mapped again.
        // SAFETY: `note_segments` notes such pages, so what is discarded can be read again.
        unsafe { advise((start, end), libc::MADV_DONTNEED) }?;
    }
    Ok(())
}

/// How large a piece of the program is, in bytes, where pages are no larger.
const PIECE_LEN: usize = 32 << 10;

/// The pieces of whole pages, each of `len` bytes but the last.
fn pieces(start: usize, end: usize, len: usize) -> impl Iterator<Item = (usize, usize)> {
    (start..end).step_by(len).map(move |start| (start, end.min(start + len)))
}

/// Gives the kernel an advice about whole pages.
///
/// # Safety
///
/// They are of a segment of the program's file that cannot be written, and the advice does no more
/// than discard them.
unsafe fn advise((start, end): (usize, usize), advice: libc::c_int) -> io::Result<()> {
    let address = std::ptr::with_exposed_provenance_mut::<libc::c_void>(start);
    // SAFETY: each of the pages can be read from the file again, and reads the same.
    if unsafe { libc::madvise(address, end - start, advice) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The most segments that are looked at: linkers make one for code and two for constants.
const SEGMENTS_MAX: usize = 8;

/// Notes the pages of those segments of the first object, which is the program, that are loaded and
/// cannot be written.
unsafe extern "C" fn note_segments(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    ranges: *mut libc::c_void,
) -> libc::c_int {
    let page = rustix::param::page_size();
    // SAFETY: dl_iterate_phdr passes a valid object, which it does not change during the call.
    let object = unsafe { &*object };
    // SAFETY: `forget_program` passes its array, and does not touch it during the call.
    let ranges = unsafe { &mut *ranges.cast::<[Option<(usize, usize)>; SEGMENTS_MAX]>() };
    // SAFETY: the object has that many program headers, which stay where they are.
    let headers =
        unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    let constant = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    for (range, header) in ranges.iter_mut().zip(constant) {
        *range = whole_pages(object.dlpi_addr, header.p_vaddr, header.p_filesz, page);
    }
    // Not zero: the other objects are not asked for.
    1
}

/// The pages that a segment has for itself.
fn whole_pages(base: u64, offset: u64, size: u64, page: usize) -> Option<(usize, usize)> {
    let start = usize::try_from(base.checked_add(offset)?).ok()?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    let (start, end) = (start.checked_next_multiple_of(page)?, end / page * page);
    (start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_segments() {
        let cases = [
            ("whole", 0x40_0000, 0x1000, 0x2000, Some((0x40_1000, 0x40_3000))),
            ("parts at both ends", 0, 0x1234, 0x3000, Some((0x2000, 0x4000))),
            ("none", 0, 0x1234, 0x1000, None),
            ("nothing", 0, 0x1000, 0, None),
            ("out of reach", u64::MAX, 0x1000, 0x1000, None),
        ];
        for (case, base, offset, size, want) in cases {
            assert_eq!(whole_pages(base, offset, size, 0x1000), want, "{case}");
        }
    }

    #[test]
    fn pieces_of_pages() {
        const LEN: usize = PIECE_LEN;
        type Pieces = &'static [(usize, usize)];
        let cases: [(&str, usize, usize, Pieces); 4] = [
            ("none", 0, 0, &[]),
            ("less than one", LEN, LEN + 4096, &[(LEN, LEN + 4096)]),
            ("one", 4096, 4096 + LEN, &[(4096, 4096 + LEN)]),
            ("two and a rest", 0, 2 * LEN + 1, &[(0, LEN), (LEN, 2 * LEN), (2 * LEN, 2 * LEN + 1)]),
        ];
        for (case, start, end, want) in cases {
            assert_eq!(pieces(start, end, LEN).collect::<Vec<_>>(), want, "{case}");
        }
    }

    /// The kernel's count of this process's pages of files.
    fn file_kib() -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("read smaps_rollup");
        let line = text.lines().find_map(|line| line.strip_prefix("Pss_File:"));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).expect("a number")
    }

    #[test]
    fn goes_on() {
        forget_program().expect("madvise");
        pages_of_segments();
    }

    #[test]
    fn becomes_small() {
        let before = file_kib();
        forget_program().expect("madvise");
        let after = file_kib();
        assert!(after < before, "{after} of {before} KiB");
    }
}
