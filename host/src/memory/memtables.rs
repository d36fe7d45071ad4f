//! The memory budgets that the pipelines of a host share: for memtables, and for batches read ahead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::read_ahead::ReadAhead;

/// How much must be freed before the allocator is asked to return memory, in bytes.
const MUCH: u64 = 16 << 20;

/// The memory budget that all memtables of a host share.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    limit: u64,
    /// Running pipelines.
    shares: AtomicU64,
    read_ahead: ReadAhead,
    /// Bytes released so far.
    freed: AtomicU64,
    /// That number at the last check, and at the last time the allocator returned memory.
    seen: Mutex<(u64, u64)>,
}

impl Budget {
    /// A budget of this many bytes for memtables, and of as many for batches read ahead.
    pub fn new(limit: u64) -> Self {
        Self::of(limit, limit)
    }

    /// A budget of this many bytes for memtables, and of this many for batches read ahead.
    pub fn of(limit: u64, read_ahead: u64) -> Self {
        let read_ahead = ReadAhead::new(read_ahead);
        Self {
            used: AtomicU64::new(0),
            limit,
            shares: AtomicU64::new(0),
            read_ahead,
            freed: AtomicU64::new(0),
            seen: Mutex::default(),
        }
    }

    /// Whether much was freed since this was last true, and nothing more since the last check: for example, a replay
    /// has ended, and the memory that the allocator keeps of it is not needed again soon.
    pub fn has_calmed_down(&self) -> bool {
        let freed = self.freed.load(Ordering::Relaxed);
        let mut seen = self.seen.lock();
        let is_calm = std::mem::replace(&mut seen.0, freed) == freed;
        if !is_calm || freed - seen.1 < MUCH {
            return false;
        }
        seen.1 = freed;
        true
    }

    pub(crate) fn read_ahead(&self) -> &ReadAhead {
        &self.read_ahead
    }
}

/// One pipeline's part of the budget; dropping it releases the part.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    held: u64,
}

impl Share {
    pub(crate) fn of(budget: &Arc<Budget>) -> Self {
        budget.shares.fetch_add(1, Ordering::Relaxed);
        Self { budget: Arc::clone(budget), held: 0 }
    }

    /// Whether the budget is exceeded and this holder has enough of it that it must release some. Some pipeline always
    /// has enough. The threshold is half a fair share, so that active pipelines commit before waiting for idle ones
    /// that hold more.
    pub(crate) fn must_yield(&self, bytes: u64) -> bool {
        let Budget { used, limit, shares, .. } = &*self.budget;
        used.load(Ordering::Relaxed) > *limit && bytes > limit / (2 * shares.load(Ordering::Relaxed).max(1))
    }

    pub(crate) fn set(&mut self, bytes: u64) {
        self.budget.freed.fetch_add(self.held.saturating_sub(bytes), Ordering::Relaxed);
        self.budget.used.fetch_add(bytes.wrapping_sub(self.held), Ordering::Relaxed);
        self.held = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        self.budget.shares.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_half_a_fair_part_yields_once_the_budget_is_exceeded() {
        let budget = Arc::new(Budget::new(1_000));
        let mut shares: Vec<Share> = (0..10).map(|_| Share::of(&budget)).collect();
        shares.iter_mut().for_each(|share| share.set(100));
        assert!(!shares[0].must_yield(100), "all of it may be used");
        shares[1].set(101);
        assert!(shares[0].must_yield(100) && shares[0].must_yield(51) && !shares[0].must_yield(50));
        shares.truncate(2);
        assert!(!shares[0].must_yield(100), "those that ended gave theirs back");
    }

    #[test]
    fn what_is_freed_goes_back_once_nothing_more_is() {
        let budget = Arc::new(Budget::new(1 << 30));
        let mut share = Share::of(&budget);
        share.set(MUCH / 2);
        share.set(0);
        assert!(!budget.has_calmed_down() && !budget.has_calmed_down(), "not for so little");
        share.set(MUCH);
        share.set(1);
        assert!(!budget.has_calmed_down(), "more was freed since the last look");
        assert!(budget.has_calmed_down());
        assert!(!budget.has_calmed_down(), "once is enough");
    }

    #[test]
    fn many_small_holders_keep_within_the_budget_and_a_little() {
        let budget = Arc::new(Budget::new(1 << 20));
        let mut shares: Vec<(Share, u64)> = (0..64).map(|_| (Share::of(&budget), 0)).collect();
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let count = shares.len();
            let (share, held) = &mut shares[random.usize(..count)];
            *held += random.u64(..2_000);
            share.set(*held);
            if share.must_yield(*held) {
                *held = 0;
                share.set(0);
            }
            let used = budget.used.load(Ordering::Relaxed);
            assert!(used < (1 << 20) + (1 << 19) + 64 * 2_000, "{used} bytes");
        }
    }
}
