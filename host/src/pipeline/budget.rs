//! The memory that the memtables of a host share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The memory that all memtables of a host share.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    limit: u64,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit }
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
        Self { budget: Arc::clone(budget), held: 0 }
    }

    pub(super) fn is_budget_exceeded(&self) -> bool {
        self.budget.used.load(Ordering::Relaxed) > self.budget.limit
    }

    pub(super) fn set(&mut self, bytes: u64) {
        self.budget.used.fetch_add(bytes.wrapping_sub(self.held), Ordering::Relaxed);
        self.held = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}
