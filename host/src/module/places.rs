//! Places for instances: how many may exist at once, and which are reserved.
//!
//! The pool of linear memories has one slot per place, so a module whose instances need several
//! memories takes several places. Queries and folds cannot take all places from each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::watch;

/// Folds leave one of this many places for queries.
const KEPT_FOR_QUERIES: u32 = 16;
/// Queries leave one of this many places for folds.
const KEPT_FOR_FOLDS: u32 = 2;

/// The purpose of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It applies or migrates, and can wait for a place.
    Fold,
    /// It answers one query.
    Query,
}

/// The places of one engine.
#[derive(Debug)]
pub(super) struct Places {
    total: u32,
    taken: AtomicU32,
    by_queries: AtomicU32,
    /// Raised whenever a request finds no place: idle folds then release theirs.
    wanted: watch::Sender<u64>,
}

/// Occupied places; dropping it releases them.
#[derive(Debug)]
pub(super) struct Permit {
    places: Arc<Places>,
    purpose: Purpose,
    count: u32,
}

impl Places {
    pub(super) fn new(total: u32) -> Self {
        let (taken, by_queries) = (AtomicU32::new(0), AtomicU32::new(0));
        Self {
            total: total.max(1),
            taken,
            by_queries,
            wanted: watch::Sender::new(0),
        }
    }

    /// The number of places.
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// Takes places, unless too few are free.
    pub(super) fn take(self: &Arc<Self>, purpose: Purpose, count: u32) -> Option<Permit> {
        // A module that needs more places than exist can still run alone.
        let count = count.clamp(1, self.total);
        let most = match purpose {
            // Folds can wait for a place and queries cannot, so some are never given to folds.
            Purpose::Fold => (self.total - self.total / KEPT_FOR_QUERIES).max(count),
            Purpose::Query => {
                // Both counts: the share of queries, and what all together have.
                let share = (self.total / KEPT_FOR_FOLDS).max(count);
                add(&self.by_queries, count, share).then_some(self.total)?
            }
        };
        if add(&self.taken, count, most) {
            return Some(Permit {
                places: Arc::clone(self),
                purpose,
                count,
            });
        }
        // Their share was counted before it was known whether there is a place.
        if purpose == Purpose::Query {
            self.by_queries.fetch_sub(count, Ordering::AcqRel);
        }
        // Also for a query: an idle fold's place serves it as well.
        self.wanted.send_modify(|times| *times += 1);
        None
    }

    /// Changes whenever a request finds no place.
    pub(super) fn wanted(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }
}

/// Adds to a counter, unless it would exceed `most`; returns whether it did.
fn add(counter: &AtomicU32, count: u32, most: u32) -> bool {
    let sum = |before: u32| before.checked_add(count).filter(|sum| *sum <= most);
    counter
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, sum)
        .is_ok()
}

impl Permit {
    /// Asks idle folds to release their places.
    pub(super) fn want(&self) {
        self.places.wanted.send_modify(|times| *times += 1);
    }

    /// Changes whenever a request found no place, or an instance no memory.
    pub(super) fn wanted(&self) -> watch::Receiver<u64> {
        self.places.wanted()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.places.taken.fetch_sub(self.count, Ordering::AcqRel);
        if self.purpose == Purpose::Query {
            self.places
                .by_queries
                .fetch_sub(self.count, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(places: &Arc<Places>, purpose: Purpose, count: u32) -> Vec<Permit> {
        std::iter::from_fn(|| places.take(purpose, count)).collect()
    }

    #[test]
    fn queries_and_folds_leave_places_to_each_other() {
        let places = Arc::new(Places::new(32));
        let queries = take_all(&places, Purpose::Query, 1);
        assert_eq!(queries.len(), 16);
        let folds = take_all(&places, Purpose::Fold, 1);
        assert_eq!(folds.len(), 14, "one of sixteen places is kept for queries");
        drop(queries);
        assert_eq!(take_all(&places, Purpose::Fold, 1).len(), 16);
        drop(folds);
    }

    #[test]
    fn what_needs_several_memories_takes_several_places() {
        let places = Arc::new(Places::new(16));
        assert_eq!(take_all(&places, Purpose::Fold, 4).len(), 3);
        assert_eq!(places.taken.load(Ordering::Relaxed), 0, "places come back");
        let only = Arc::new(Places::new(1));
        let wanted = only.wanted();
        let heavy = only.take(Purpose::Fold, 4).expect("it can run alone");
        assert!(only.take(Purpose::Query, 1).is_none() && only.take(Purpose::Fold, 1).is_none());
        assert_eq!(
            only.by_queries.load(Ordering::Relaxed),
            0,
            "a refused query gives its place back"
        );
        assert!(
            wanted.has_changed().expect("it is there"),
            "those without work are told"
        );
        drop(heavy);
        assert!(only.take(Purpose::Query, 4).is_some());
    }
}
