//! The memory that the memtables of a host share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The memory that all memtables of a host share.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    limit: u64,
    /// Pipelines that run.
    shares: AtomicU64,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit, shares: AtomicU64::new(0) }
    }
}

/// One pipeline's part of the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    held: u64,
}

impl Share {
    pub(super) fn of(budget: &Arc<Budget>) -> Self {
        budget.shares.fetch_add(1, Ordering::Relaxed);
        Self { budget: Arc::clone(budget), held: 0 }
    }

    /// Whether the budget is exceeded, and so many bytes are enough of it that their holder has to give them back. Some
    /// pipeline always holds as much; half a fair part is asked for, so that those who go on give way before those who
    /// are idle, and hold more, are waited for.
    pub(super) fn must_yield(&self, bytes: u64) -> bool {
        let Budget { used, limit, shares } = &*self.budget;
        used.load(Ordering::Relaxed) > *limit && bytes > limit / (2 * shares.load(Ordering::Relaxed).max(1))
    }

    pub(super) fn set(&mut self, bytes: u64) {
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
