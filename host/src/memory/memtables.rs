//! The memory budgets that the pipelines of a host share: for memtables, and for batches read
//! ahead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::freed::Freed;
use super::read_ahead::ReadAhead;

/// The memory budget that all memtables of a host share.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    limit: u64,
    /// Running pipelines.
    shares: AtomicU64,
    read_ahead: ReadAhead,
    freed: Freed,
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
            freed: Freed::default(),
        }
    }

    /// Whether much was freed, and nothing more is.
    pub fn has_calmed_down(&self) -> bool {
        // Both are asked, whatever the first one says: each remembers what it has seen.
        let (written, read) = (
            self.freed.has_calmed_down(),
            self.read_ahead.has_calmed_down(),
        );
        written || read
    }

    /// Bytes of memtables, and of batches read ahead.
    pub fn used(&self) -> (u64, u64) {
        (self.used.load(Ordering::Relaxed), self.read_ahead.used())
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
        // All orderings here are relaxed: pipelines act on these numbers a batch sooner or later,
        // and no other memory is read on the strength of them.
        budget.shares.fetch_add(1, Ordering::Relaxed);
        Self {
            budget: Arc::clone(budget),
            held: 0,
        }
    }

    /// Whether the budget is exceeded and this holder has enough of it that it must release some.
    /// Some pipeline always has enough. The threshold is half a fair share, so that active
    /// pipelines commit before waiting for idle ones that hold more.
    pub(crate) fn must_yield(&self, bytes: u64) -> bool {
        let Budget {
            used,
            limit,
            shares,
            ..
        } = &*self.budget;
        // If all shares were below half of the fair part, their sum would be below half of the
        // limit.
        used.load(Ordering::Relaxed) > *limit
            && bytes > limit / (2 * shares.load(Ordering::Relaxed).max(1))
    }

    /// Why to apply nothing more while readers hold this many bytes of committed state, if so: all
    /// memtables together take twice their limit, a commit would free nothing, and these take more
    /// than a fair share.
    pub(crate) fn pinned(&self, bytes: u64) -> Option<String> {
        let Budget {
            used,
            limit,
            shares,
            ..
        } = &*self.budget;
        let fair = limit / shares.load(Ordering::Relaxed).max(1);
        let used = used.load(Ordering::Relaxed);
        (used > limit.saturating_mul(2) && bytes > fair).then(|| {
            format!(
                "host-memory: readers of older states hold {bytes} bytes of this one, and all \
                 memtables take {used} of {limit}; it continues on its own when running queries \
                 and watches end; if this lasts, raise limits.memory_bytes or \
                 state.memtable_bytes_total"
            )
        })
    }

    pub(crate) fn set(&mut self, bytes: u64) {
        // Only what shrinks counts as freed.
        self.budget.freed.add(self.held.saturating_sub(bytes));
        self.budget
            .used
            // Wraps around if it shrinks: adding the difference modulo 2^64 subtracts.
            .fetch_add(bytes.wrapping_sub(self.held), Ordering::Relaxed);
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
    use super::super::freed::MUCH;
    use super::*;

    #[test]
    fn a_holder_of_half_a_fair_part_yields_once_the_budget_is_exceeded() {
        let budget = Arc::new(Budget::new(1_000));
        let mut shares: Vec<Share> = (0..10).map(|_| Share::of(&budget)).collect();
        shares.iter_mut().for_each(|share| share.set(100));
        assert!(!shares[0].must_yield(100), "all of it may be used");
        shares[1].set(101);
        assert!(shares[0].must_yield(100) && shares[0].must_yield(51) && !shares[0].must_yield(50));
        shares.truncate(2);
        assert!(
            !shares[0].must_yield(100),
            "those that ended gave theirs back"
        );
    }

    #[test]
    fn only_the_one_whose_readers_hold_much_waits_for_them() {
        let budget = Arc::new(Budget::new(1_000));
        let mut shares: Vec<Share> = (0..10).map(|_| Share::of(&budget)).collect();
        shares[0].set(2_000);
        assert_eq!(shares[0].pinned(2_000), None, "twice as much is a burst");
        shares[1].set(1);
        assert!(
            shares[0]
                .pinned(2_000)
                .is_some_and(|text| text.starts_with("host-memory: readers"))
        );
        assert_eq!(shares[1].pinned(0), None, "a neighbour does not wait");
        assert_eq!(budget.used(), (2_001, 0));
        shares[0].set(0);
        assert_eq!(shares[0].pinned(2_000), None);
    }

    #[test]
    fn what_is_freed_goes_back_once_nothing_more_is() {
        let budget = Arc::new(Budget::new(1 << 30));
        let mut share = Share::of(&budget);
        share.set(MUCH + 1);
        share.set(1);
        assert!(
            !budget.has_calmed_down(),
            "more was freed since the last check"
        );
        assert!(budget.has_calmed_down());
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
