//! Work on several threads whose outcomes come in order.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Does this many pieces of work on up to `jobs` threads; returns the outcomes in the order of the
/// pieces. After an outcome that ends it nothing more begins, and what has not begun is left out:
/// all pieces before that outcome have theirs.
pub(crate) fn in_order<T: Send + Sync>(
    count: usize,
    jobs: usize,
    work: impl Fn(usize) -> T + Sync,
    ends: impl Fn(&T) -> bool + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let outcomes: Vec<OnceLock<T>> = (0..count).map(|_| OnceLock::new()).collect();
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(count) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(outcome) = outcomes.get(place) else {
                        return;
                    };
                    let done = work(place);
                    if ends(&done) {
                        next.store(count, Ordering::Relaxed);
                    }
                    // Each place is taken once.
                    let _ = outcome.set(done);
                }
            });
        }
    });
    outcomes
        .into_iter()
        .filter_map(OnceLock::into_inner)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_come_in_order_up_to_one_that_ends_it() {
        for jobs in [1, 3, 100] {
            assert_eq!(
                in_order(50, jobs, |place| place * 2, |_| false),
                (0..50).map(|place| place * 2).collect::<Vec<_>>()
            );
            let ended = in_order(1_000, jobs, |place| place, |place| *place == 10);
            assert!(ended.len() > 10, "{jobs}");
            assert!(ended.iter().enumerate().all(|(place, it)| place == *it));
        }
        assert!(in_order(0, 2, |place| place, |_| false).is_empty());
    }
}
