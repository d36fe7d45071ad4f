//! Places for instances: how many may exist at once, and which are reserved.
//!
//! The pool of linear memories has one slot per place, so a module whose instances need several
//! memories takes several places. Queries and folds cannot take all places from each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::memory::{Memory, Releases};

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
    releases: Releases,
    /// Through it idle folds are asked to release their places.
    memory: Memory,
}

/// All places that a purpose may have are taken.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "no instance is free: all {} places are taken; delete deployments that are no longer needed, or \
     raise modules.instances_max",
    places.total
)]
pub struct NoFreePlace {
    places: Arc<Places>,
    purpose: Purpose,
    count: u32,
}

impl NoFreePlace {
    /// Whether there are places by now.
    pub(crate) fn is_over(&self) -> bool {
        self.places.has(self.purpose, self.count)
    }

    /// Waits until there are places. Cancel-safe: it only observes.
    pub(crate) async fn over(&self) {
        let is_over = || {
            let is_over = self.is_over();
            if !is_over {
                // Each time: who took what was released may be idle by now.
                self.places.memory.want();
            }
            is_over
        };
        self.places.releases.until(is_over).await;
    }
}

/// Occupied places; dropping it releases them.
#[derive(Debug)]
pub(super) struct Permit {
    places: Arc<Places>,
    purpose: Purpose,
    count: u32,
}

impl Places {
    pub(super) fn new(total: u32, memory: Memory) -> Self {
        let (taken, by_queries) = (AtomicU32::new(0), AtomicU32::new(0));
        Self {
            total: total.max(1),
            taken,
            by_queries,
            releases: Releases::default(),
            memory,
        }
    }

    /// How many places may be taken once a purpose has this many more, and how many by queries.
    fn limits(&self, purpose: Purpose, count: u32) -> (u32, u32) {
        match purpose {
            // Folds can wait for a place and queries cannot, so some are never given to folds.
            Purpose::Fold => (
                (self.total - self.total / KEPT_FOR_QUERIES).max(count),
                u32::MAX,
            ),
            // Both counts: the share of queries, and what all together have.
            Purpose::Query => (self.total, (self.total / KEPT_FOR_FOLDS).max(count)),
        }
    }

    /// Whether there are places.
    fn has(&self, purpose: Purpose, count: u32) -> bool {
        let (most, share) = self.limits(purpose, count);
        let fits = |taken: &AtomicU32, most: u32| {
            let sum = taken.load(Ordering::Acquire).checked_add(count);
            sum.is_some_and(|sum| sum <= most)
        };
        fits(&self.taken, most) && (purpose == Purpose::Fold || fits(&self.by_queries, share))
    }

    /// Takes places, unless too few are free.
    pub(super) fn take(
        self: &Arc<Self>,
        purpose: Purpose,
        count: u32,
    ) -> Result<Permit, NoFreePlace> {
        // A module that needs more places than exist can still run alone.
        let count = count.clamp(1, self.total);
        let (most, share) = self.limits(purpose, count);
        let is_query = purpose == Purpose::Query;
        let refused = || NoFreePlace {
            places: Arc::clone(self),
            purpose,
            count,
        };
        if is_query && !add(&self.by_queries, count, share) {
            return Err(refused());
        }
        if add(&self.taken, count, most) {
            return Ok(Permit {
                places: Arc::clone(self),
                purpose,
                count,
            });
        }
        // Their share was counted before it was known whether there is a place. No fold is refused
        // because of it, and queries do not wait.
        if is_query {
            self.by_queries.fetch_sub(count, Ordering::AcqRel);
        }
        // Also for a query: an idle fold's place serves it as well.
        self.memory.want();
        Err(refused())
    }
}

/// Adds to a counter, unless it would exceed `most`; returns whether it did.
fn add(counter: &AtomicU32, count: u32, most: u32) -> bool {
    let sum = |before: u32| before.checked_add(count).filter(|sum| *sum <= most);
    counter
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, sum)
        .is_ok()
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.places.taken.fetch_sub(self.count, Ordering::AcqRel);
        if self.purpose == Purpose::Query {
            self.places
                .by_queries
                .fetch_sub(self.count, Ordering::AcqRel);
        }
        self.places.releases.announce();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(places: &Arc<Places>, purpose: Purpose, count: u32) -> Vec<Permit> {
        std::iter::from_fn(|| places.take(purpose, count).ok()).collect()
    }

    #[test]
    fn queries_and_folds_leave_places_to_each_other() {
        let places = Arc::new(Places::new(32, Memory::unlimited()));
        let queries = take_all(&places, Purpose::Query, 1);
        assert_eq!(queries.len(), 16);
        let folds = take_all(&places, Purpose::Fold, 1);
        assert_eq!(folds.len(), 14, "one of sixteen places is kept for queries");
        drop(queries);
        assert_eq!(take_all(&places, Purpose::Fold, 1).len(), 16);
        drop(folds);
    }

    #[test]
    fn a_place_that_is_released_reaches_those_who_wait() {
        let places = Arc::new(Places::new(1, Memory::unlimited()));
        let taken = places.take(Purpose::Fold, 1).expect("it is free");
        let none = places.take(Purpose::Fold, 1).expect_err("it is taken");
        let mut waiting = std::pin::pin!(none.over());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        let wanted = places.memory.wanted();
        drop(taken);
        // Another one is faster, and is asked for the place once it is idle.
        let taken = places.take(Purpose::Fold, 1).expect("it was released");
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert!(wanted.has_changed().expect("the budget is there"));
        let releasing = std::thread::spawn(move || drop(taken));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            tokio::time::timeout(std::time::Duration::from_secs(20), waiting)
                .await
                .expect("the release is announced");
        });
        releasing.join().expect("no panic");
        assert!(none.is_over());
    }

    #[test]
    fn what_needs_several_memories_takes_several_places() {
        let places = Arc::new(Places::new(16, Memory::unlimited()));
        assert_eq!(take_all(&places, Purpose::Fold, 4).len(), 3);
        assert_eq!(places.taken.load(Ordering::Relaxed), 0, "places come back");
        let only = Arc::new(Places::new(1, Memory::unlimited()));
        let wanted = only.memory.wanted();
        let heavy = only.take(Purpose::Fold, 4).expect("it can run alone");
        assert!(only.take(Purpose::Query, 1).is_err() && only.take(Purpose::Fold, 1).is_err());
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
        assert!(only.take(Purpose::Query, 4).is_ok());
    }
}
