//! Memory for programs that end soon.
//!
//! musl's allocator maps and unmaps pages for almost every group of blocks, which is a tenth of the
//! system calls of a program that lives for milliseconds. Here blocks come, one after the other,
//! from a region that is part of the program, and a block that is freed is used again only when it
//! was the last one. What does not fit any more comes from the system's allocator, so that a program
//! that lives on after all grows by no more than the region.

#![expect(unsafe_code, reason = "an allocator hands out raw memory")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::UnsafeCell,
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire},
};

/// The region's size: more than reading a configuration with a seccomp profile takes. Pages that
/// are not used cost nothing.
const SIZE: usize = 512 << 10;

/// Blocks above this size are the system's.
const BLOCK_MAX: usize = SIZE / 8;

/// An allocator, for `#[global_allocator]`.
pub struct Heap {
    /// How much of the region is in use; whoever moves it owns what it was moved over.
    used: AtomicUsize,
    region: Region,
}

#[repr(align(4096))]
struct Region(UnsafeCell<[MaybeUninit<u8>; SIZE]>);

// SAFETY: a byte of the region is accessed only by the owner of the block that it is in, and
// `Heap::used` gives each byte to one block at a time.
unsafe impl Sync for Region {}

impl std::fmt::Debug for Heap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heap").field("used", &self.used).finish_non_exhaustive()
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

impl Heap {
    /// An allocator with an unused region.
    pub const fn new() -> Self {
        let region = Region(UnsafeCell::new([MaybeUninit::uninit(); SIZE]));
        Self { used: AtomicUsize::new(0), region }
    }

    fn start(&self) -> *mut u8 {
        self.region.0.get().cast()
    }

    /// Where in the region a block starts; `None` for the system's.
    fn offset(&self, block: *mut u8) -> Option<usize> {
        block.addr().checked_sub(self.start().addr()).filter(|offset| *offset < SIZE)
    }

    /// Takes a block of the region.
    fn take(&self, layout: Layout) -> Option<*mut u8> {
        if layout.size() > BLOCK_MAX {
            return None;
        }
        let start = self.start();
        let mut used = self.used.load(Acquire);
        loop {
            let at = (start.addr() + used).checked_next_multiple_of(layout.align())? - start.addr();
            let end = at.checked_add(layout.size()).filter(|end| *end <= SIZE)?;
            match self.used.compare_exchange_weak(used, end, AcqRel, Acquire) {
                // SAFETY: `at` is at most `SIZE`, which is the region's length.
                Ok(_) => return Some(unsafe { start.add(at) }),
                Err(now) => used = now,
            }
        }
    }

    /// Makes the block at `offset` larger or smaller where it is; only the last one can be.
    fn resize(&self, offset: usize, from: usize, to: usize) -> bool {
        let Some(end) = offset.checked_add(to).filter(|end| *end <= SIZE) else { return false };
        self.used.compare_exchange(offset + from, end, AcqRel, Acquire).is_ok()
    }
}

// SAFETY: a block of the region is as large and aligned as asked for, and nobody else's until it is
// freed (`take`, `resize`); all others are `System`'s, which keeps the contract itself. Nothing here
// unwinds.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some(block) => block,
            // SAFETY: the caller's layout, which has a size, is handed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match self.offset(block) {
            Some(offset) => drop(self.resize(offset, layout.size(), 0)),
            // SAFETY: a block that is not of the region is `System`'s, with this layout.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(block) else {
            // SAFETY: a block that is not of the region is `System`'s; the rest is the caller's.
            return unsafe { System.realloc(block, layout, size) };
        };
        if size <= BLOCK_MAX && self.resize(offset, layout.size(), size) {
            return block;
        }
        if size <= layout.size() {
            return block;
        }
        // SAFETY: the caller promises that `size`, rounded up to the alignment, is no overflow.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: `size` is more than the old block's, so it is not zero.
        let new = unsafe { self.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: both blocks have at least the old one's size, and they are apart.
            unsafe { ptr::copy_nonoverlapping(block, new, layout.size()) };
            // SAFETY: the block came from here with this layout, and is not used any more.
            unsafe { self.dealloc(block, layout) };
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).expect("a layout")
    }

    /// Where the next block of the region starts; `None` when it has to be the system's.
    fn take(heap: &Heap, size: usize, align: usize) -> Option<usize> {
        heap.take(layout(size, align)).and_then(|block| heap.offset(block))
    }

    #[test]
    fn blocks() {
        static HEAP: Heap = Heap::new();
        let heap = &HEAP;
        assert_eq!(take(heap, 10, 1), Some(0));
        assert_eq!(take(heap, 8, 8), Some(16), "aligned");
        assert!(heap.resize(16, 8, 100), "the last one grows");
        assert!(!heap.resize(0, 10, 12), "not the first");
        assert_eq!(take(heap, 1, 1), Some(116), "behind what has grown");
        assert!(heap.resize(116, 1, 0), "the last one is freed");
        assert!(!heap.resize(0, 10, 0), "the first one stays");
        assert_eq!(take(heap, 1, 1), Some(116), "the last one's place is used again");
        assert_eq!(take(heap, BLOCK_MAX + 1, 1), None, "too large");
        for _ in 0..SIZE / BLOCK_MAX - 1 {
            assert!(take(heap, BLOCK_MAX, 1).is_some(), "there is room");
        }
        assert_eq!(take(heap, BLOCK_MAX, 1), None, "the region is full");
    }

    #[test]
    fn contents_survive() {
        static HEAP: Heap = Heap::new();
        let heap = &HEAP;
        let mut blocks = Vec::new();
        for number in 0..200_u8 {
            let size = usize::from(number) * 50 + 1;
            // SAFETY: the layout has a size.
            let block = unsafe { heap.alloc(layout(size, 4)) };
            assert!(!block.is_null() && block.addr().is_multiple_of(4), "{number}");
            // SAFETY: the block has `size` bytes.
            unsafe { block.write_bytes(number, size) };
            blocks.push((number, size, block));
        }
        for (number, size, block) in &mut blocks {
            // SAFETY: the block came from this heap with this layout; the new size is not zero.
            *block = unsafe { heap.realloc(*block, layout(*size, 4), *size * 2) };
            // SAFETY: realloc keeps the first `size` bytes, and makes no fewer.
            let kept = unsafe { std::slice::from_raw_parts(*block, *size) };
            assert!(kept.iter().all(|byte| byte == number), "{number}");
        }
        for (_, size, block) in blocks {
            // SAFETY: the block came from this heap with this layout.
            unsafe { heap.dealloc(block, layout(size * 2, 4)) };
        }
    }
}
