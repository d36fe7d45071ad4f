//! How much was freed lately, which decides when the allocator returns memory to the system.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// How much must be freed before the allocator is asked to return memory, in bytes.
pub(super) const MUCH: u64 = 16 << 20;
/// Between two checks, less than this part of that counts as nothing: small requests never end.
const NOTHING_PART: u64 = 16;

/// A count of freed bytes.
#[derive(Debug, Default)]
pub(super) struct Freed {
    /// Bytes released so far.
    bytes: AtomicU64,
    /// That number at the last check, and at the last time the allocator returned memory.
    seen: Mutex<(u64, u64)>,
}

impl Freed {
    pub(super) fn add(&self, bytes: u64) {
        // Only a sum: `seen` orders the checks, and a few bytes more or less decide nothing.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether much was freed since this was last true, and next to nothing since the last check:
    /// for example, a replay has ended, and the memory that the allocator keeps of it is not needed
    /// again soon.
    pub(super) fn has_calmed_down(&self) -> bool {
        let freed = self.bytes.load(Ordering::Relaxed);
        let mut seen = self.seen.lock();
        let before = std::mem::replace(&mut seen.0, freed);
        // Only housekeeping asks, once at a time, so `freed` is never below what was seen.
        if freed - before > MUCH / NOTHING_PART || freed - seen.1 < MUCH {
            return false;
        }
        seen.1 = freed;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_back_once_next_to_nothing_is_freed_any_more() {
        let freed = Freed::default();
        freed.add(MUCH / 2);
        assert!(
            !freed.has_calmed_down() && !freed.has_calmed_down(),
            "not for so little"
        );
        freed.add(MUCH);
        assert!(
            !freed.has_calmed_down(),
            "more was freed since the last check"
        );
        freed.add(MUCH / NOTHING_PART);
        assert!(freed.has_calmed_down(), "a little is always freed");
        assert!(!freed.has_calmed_down(), "once is enough");
    }
}
