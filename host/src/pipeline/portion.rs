//! How many events to apply at once, after a whole batch turned out to be too much.

use std::time::Duration;

/// Most full portions to apply before trying a larger one.
const PATIENCE_MAX: u32 = 1_024;

/// How many events are applied at once.
///
/// It tracks two things separately. The search for a failing event halves the portion, which grows
/// back quickly. The number of events that a module can apply within its limits is remembered;
/// otherwise each batch would find it out again at the cost of a whole deadline.
#[derive(Debug)]
pub(super) struct Portion {
    /// During the search for a failing event.
    search: usize,
    /// The most that the module can apply, as far as known.
    most: usize,
    /// The largest portion that succeeded since the first failure.
    managed: usize,
    /// How long a call may take, once one took longer.
    deadline: Option<Duration>,
    /// Full portions until a larger one is tried, and their number the last time.
    patience: (u32, u32),
}

impl Default for Portion {
    fn default() -> Self {
        Self {
            search: usize::MAX,
            most: usize::MAX,
            managed: 0,
            deadline: None,
            patience: (1, 1),
        }
    }
}

impl Portion {
    /// How many events to try next.
    pub(super) fn next(&self) -> usize {
        self.search.min(self.most)
    }

    /// Events were applied in this time.
    pub(super) fn applied(&mut self, count: usize, took: Duration) {
        // It grows back quickly: a search is over with its event.
        self.search = self.search.saturating_mul(2);
        // A smaller batch proves nothing about a larger one.
        if count < self.most {
            return;
        }
        self.managed = self.most;
        // A portion that takes more than half of the time could take all of it on a busy day.
        if self.deadline.is_some_and(|deadline| took > deadline / 2) {
            return;
        }
        self.patience.0 = self.patience.0.saturating_sub(1);
        if self.patience.0 == 0 {
            // By a sixteenth, so that a portion that is too large costs a deadline only now and
            // then.
            self.most = self.most.saturating_add((self.most / 16).max(1));
            self.patience.0 = self.patience.1;
        }
    }

    /// Events were not applied; returns how many to try next.
    pub(super) fn failed(&mut self, next: usize) {
        self.search = next;
    }

    /// Several events were too many at once, for their deadline or for another limit.
    pub(super) fn too_many(&mut self, count: usize, deadline: Option<Duration>) {
        // Kept from the last deadline that was missed, even if another limit was hit now.
        self.deadline = deadline.or(self.deadline);
        // What succeeded before is a better guess than half of what failed.
        let managed = Some(self.managed).filter(|managed| *managed < count);
        self.most = managed.unwrap_or(0).max(count / 2).max(1);
        if managed.is_some_and(|managed| managed > 0) {
            // The larger portion was tried too early.
            self.patience.1 = (self.patience.1 * 2).min(PATIENCE_MAX);
        }
        self.managed = self.managed.min(self.most);
        self.patience.0 = self.patience.1;
    }

    /// A single event fails: the number of events was not the cause.
    pub(super) fn one_fails(&mut self) {
        // Only the search continues.
        *self = Self {
            search: self.search,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    /// Applies this many events in batches of 2,048, each of which takes this long. Returns how
    /// many calls met their deadline.
    fn wasted(portion: &mut Portion, events: usize, each: Duration) -> usize {
        let (mut left, mut wasted) = (events, 0);
        while left > 0 {
            let count = portion.next().min(left).min(2_048);
            let took = each * u32::try_from(count).expect("is small");
            if took > DEADLINE {
                wasted += 1;
                portion.too_many(count, Some(DEADLINE));
                portion.failed(count / 2);
            } else {
                portion.applied(count, took);
                left -= count;
            }
        }
        wasted
    }

    #[test]
    fn a_slow_module_finds_its_size_once() {
        for each in [3, 5, 20, 100, 2_000].map(Duration::from_millis) {
            let mut portion = Portion::default();
            wasted(&mut portion, 2_048, each);
            assert_eq!(wasted(&mut portion, 50_000, each), 0, "{each:?}");
        }
    }

    #[test]
    fn a_module_that_gets_faster_gets_larger_portions_again() {
        let mut portion = Portion::default();
        wasted(&mut portion, 2_048, Duration::from_millis(100));
        assert!(portion.next() < 50);
        wasted(&mut portion, 200_000, Duration::from_micros(1));
        assert!(portion.next() >= 2_048);
    }

    #[test]
    fn a_limit_that_has_no_time_is_tried_again_more_and_more_rarely() {
        let mut portion = Portion::default();
        let mut refused = 0;
        for _ in 0..1_000 {
            let count = portion.next().min(2_048);
            if count > 100 {
                refused += 1;
                portion.too_many(count, None);
                portion.failed(count / 2);
            } else {
                portion.applied(count, Duration::ZERO);
            }
        }
        assert!(refused < 20, "{refused} of 1,000 calls");
        assert!(portion.next() >= 90, "{}", portion.next());
    }
}
