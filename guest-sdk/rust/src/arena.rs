//! Memory for what the host passes in: one block that is filled from front to
//! back and emptied at once.
//!
//! The host asks for memory for each string of each event, through
//! `cabi_realloc`. A general allocator would spend more time on that, and on
//! freeing it all again, than the rest of the transfer takes.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::ptr;

/// Size of the first block, in bytes.
const BLOCK_BYTES: usize = 64 << 10;

/// Largest block that is kept from batch to batch, in bytes.
const KEPT_BYTES_MAX: usize = 8 << 20;

/// Alignment of blocks; no type of the contract asks for more.
const ALIGNMENT: usize = 16;

/// Memory that is allocated from front to back.
pub(crate) struct Arena {
    next: Cell<usize>,
    end: Cell<usize>,
    /// The block that is being filled.
    block: Cell<*mut Block>,
}

/// The front of a block.
#[repr(C, align(16))]
struct Block {
    previous: *mut Block,
    bytes: usize,
}

/// A fill level to return to.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    next: usize,
    end: usize,
    block: *mut Block,
}

impl Arena {
    pub(crate) const fn new() -> Self {
        Self {
            next: Cell::new(0),
            end: Cell::new(0),
            block: Cell::new(ptr::null_mut()),
        }
    }

    /// Allocates `size` bytes at an address that is a multiple of `alignment`.
    #[inline]
    pub(crate) fn take(&self, size: usize, alignment: usize) -> *mut u8 {
        debug_assert!(alignment.is_power_of_two() && alignment <= ALIGNMENT);
        let start = (self.next.get() + alignment - 1) & !(alignment - 1);
        // Both are addresses, so the sum overflows only for sizes that no memory has.
        if size <= self.end.get().wrapping_sub(start) && start <= self.end.get() && start != 0 {
            self.next.set(start + size);
            return ptr::with_exposed_provenance_mut(start);
        }
        // The rest of the old block stays unused: blocks double, so that is never much of the
        // whole.
        self.add_block(size);
        self.take(size, alignment)
    }

    #[cold]
    #[inline(never)]
    fn add_block(&self, size: usize) {
        let previous = self.block.get();
        let last = if previous.is_null() {
            0
        } else {
            // SAFETY: a block that is not null was written by `add_block` and not freed yet.
            unsafe { (*previous).bytes }
        };
        // Room for the front of the block, and for the alignment of the first thing in it.
        let least = size.saturating_add(size_of::<Block>() + ALIGNMENT);
        let bytes = least
            .max(BLOCK_BYTES)
            .max(last.saturating_mul(2).min(KEPT_BYTES_MAX));
        self.push_block(bytes);
    }

    fn push_block(&self, bytes: usize) {
        let layout = layout(bytes);
        // SAFETY: the layout has at least the size of `Block`, so it is not empty.
        let block = unsafe { alloc(layout) }.cast::<Block>();
        if block.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: just allocated, with size and alignment of at least a `Block`.
        unsafe {
            block.write(Block {
                previous: self.block.get(),
                bytes,
            });
        };
        self.block.set(block);
        // Blocks are used as addresses, because the host writes to them by address.
        let start = block.expose_provenance();
        self.next.set(start + size_of::<Block>());
        self.end.set(start + bytes);
    }

    /// The current fill level.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            next: self.next.get(),
            end: self.end.get(),
            block: self.block.get(),
        }
    }

    /// Frees everything allocated since the mark.
    ///
    /// # Safety
    ///
    /// Nobody may use that memory any more, and nothing may have been released to an earlier mark.
    pub(crate) unsafe fn release(&self, mark: Mark) {
        // SAFETY: by the caller, the blocks above the mark are unused, and the mark's block is
        // still there.
        unsafe { self.free_above(mark.block) };
        self.next.set(mark.next);
        self.end.set(mark.end);
    }

    /// Frees everything, and has one block ready for the same amount.
    ///
    /// # Safety
    ///
    /// Nobody may use any memory that was given out.
    pub(crate) unsafe fn clear(&self) {
        let block = self.block.get();
        if block.is_null() {
            return;
        }
        // SAFETY: a block that is not null was written by `add_block` and not freed yet.
        if unsafe { (*block).previous.is_null() } {
            self.next
                .set(block.expose_provenance() + size_of::<Block>());
            return;
        }
        // SAFETY: by the caller, nothing in any block is used.
        let bytes = unsafe { self.free_above(ptr::null_mut()) };
        // One block as large as all of them: the next batch of this size finds room in it.
        self.push_block(bytes.min(KEPT_BYTES_MAX));
    }

    /// Frees the blocks above another, and returns their size.
    ///
    /// # Safety
    ///
    /// They may not be used any more; the other is below them, or null.
    unsafe fn free_above(&self, below: *mut Block) -> usize {
        let mut freed = 0;
        while self.block.get() != below {
            let block = self.block.get();
            // SAFETY: blocks form a list that ends with null, and `below` is in it; each was
            // allocated with this layout.
            unsafe {
                let Block { previous, bytes } = block.read();
                self.block.set(previous);
                dealloc(block.cast(), layout(bytes));
                freed += bytes;
            }
        }
        freed
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, ALIGNMENT).expect("a block fits into memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes pieces of the given sizes, fills each with its own octet, and checks that none was
    /// overwritten.
    fn fill(arena: &Arena, sizes: &[usize]) {
        let pieces: Vec<_> = sizes
            .iter()
            .map(|size| (arena.take(*size, 8), *size))
            .collect();
        for (number, (start, size)) in pieces.iter().enumerate() {
            assert_eq!(start.addr() % 8, 0);
            // SAFETY: `take` gave out `size` bytes at `start`.
            unsafe { start.write_bytes(number as u8, *size) };
        }
        for (number, (start, size)) in pieces.iter().enumerate() {
            // SAFETY: as above, and all of it was written.
            let octets = unsafe { std::slice::from_raw_parts(*start, *size) };
            assert!(octets.iter().all(|octet| *octet == number as u8));
        }
    }

    #[test]
    fn pieces_do_not_overlap_whatever_their_sizes() {
        let arena = Arena::new();
        for round in 1..20_usize {
            let sizes: Vec<_> = (0..200)
                .map(|number| (number * 7_919 * round) % 3_000)
                .collect();
            fill(&arena, &sizes);
            // SAFETY: `fill` keeps nothing.
            unsafe { arena.clear() };
        }
        fill(&arena, &[0, 1, 10 << 20, 0, 5]);
        // SAFETY: `fill` keeps nothing.
        unsafe { arena.clear() };
        // SAFETY: nothing was given out since.
        assert!(unsafe { (*arena.block.get()).bytes } <= KEPT_BYTES_MAX);
    }

    #[test]
    fn releasing_to_a_mark_keeps_what_was_given_out_before_it() {
        let arena = Arena::new();
        let kept = arena.take(100, 8);
        // SAFETY: 100 bytes were given out.
        unsafe { kept.write_bytes(7, 100) };
        for _ in 0..10 {
            let mark = arena.mark();
            fill(&arena, &[1_000, 200_000, 70_000, 5]);
            // SAFETY: `fill` keeps nothing.
            unsafe { arena.release(mark) };
        }
        // SAFETY: given out before the marks, and written above.
        let kept = unsafe { std::slice::from_raw_parts(kept, 100) };
        assert!(kept.iter().all(|octet| *octet == 7));
    }
}
