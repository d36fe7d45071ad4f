//! The message ids of the duplicate window, in memory.
//!
//! The events themselves carry their ids, so the window is rebuilt from the
//! last chunks when the log is opened, and costs no writes of its own. Only if
//! retention removes an event within the window, its id is written separately
//! (`removed_ids.rs`).
//!
//! Ids age by the time that passes, so a step of the clock makes the window
//! neither shorter nor longer.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::encode::IdKey;

/// Most ids to remember, about 350 MB: a window of 120 s at 35,000 events with ids per second.
/// Beyond it the oldest are forgotten early, and the source says so.
pub(super) const IDS_MAX: usize = 4 << 20;

/// Ids appended within the window, with the sequences of their events.
#[derive(Debug)]
pub(super) struct Ids {
    window_ns: u64,
    capacity: usize,
    /// The time of the clock when the log was opened, and that moment: from then on, what counts
    /// is how much time has passed.
    opened: (u64, Instant),
    sequences: HashMap<IdKey, u64>,
    order: VecDeque<Remembered>,
    shortened_ns: Option<u64>,
}

/// An id in the window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remembered {
    /// When it was appended, by [`Ids::now_ns`].
    pub appended_ns: u64,
    /// The sequence of its event.
    pub sequence: u64,
    pub id: IdKey,
}

impl Ids {
    /// An empty window. A window of length zero remembers nothing. `now_ns` is the time of the
    /// clock.
    pub(super) fn new(window: Duration, capacity: usize, now_ns: u64) -> Self {
        let window_ns = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        Self {
            window_ns,
            capacity,
            opened: (now_ns, Instant::now()),
            sequences: HashMap::new(),
            order: VecDeque::new(),
            shortened_ns: None,
        }
    }

    /// Whether ids are remembered at all.
    pub(super) fn has_window(&self) -> bool {
        self.window_ns > 0
    }

    /// The time by which ids age, in nanoseconds: that of the clock when the log was opened, and
    /// what has passed since.
    pub(super) fn now_ns(&self) -> u64 {
        let (opened_ns, opened) = self.opened;
        let passed_ns = u64::try_from(opened.elapsed().as_nanos()).unwrap_or(u64::MAX);
        opened_ns.saturating_add(passed_ns)
    }

    /// The sequence of the event with this id, if it was appended within the window.
    pub(super) fn get(&self, id: &IdKey) -> Option<u64> {
        self.sequences.get(id).copied()
    }

    /// The earliest time of an append that still counts.
    pub(super) fn horizon_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.window_ns)
    }

    /// Remembers an id, appended at a time by [`Ids::now_ns`]. Appends arrive in the order of their
    /// sequences.
    pub(super) fn insert(&mut self, id: IdKey, sequence: u64, appended_ns: u64) {
        if !self.has_window() {
            return;
        }
        // The oldest makes room: a window that is too short is reported.
        if self.order.len() == self.capacity
            && let Some(oldest) = self.forget_oldest()
        {
            self.shortened_ns = Some(appended_ns.saturating_sub(oldest.appended_ns));
        }
        self.sequences.insert(id, sequence);
        self.order.push_back(Remembered {
            // Never earlier than that of the one before, because they leave in this order: times
            // in a file may go back.
            appended_ns: self
                .order
                .back()
                .map_or(appended_ns, |before| before.appended_ns.max(appended_ns)),
            sequence,
            id,
        });
    }

    /// Forgets ids older than the window.
    pub(super) fn expire(&mut self, now_ns: u64) {
        let horizon = self.horizon_ns(now_ns);
        // Only from the front, because they are in the order of their times.
        while self
            .order
            .front()
            .is_some_and(|oldest| oldest.appended_ns < horizon)
        {
            self.forget_oldest();
        }
        // Only once there is room again, so that the warning does not come and go.
        if self.order.len() < self.capacity / 2 {
            self.shortened_ns = None;
        }
    }

    fn forget_oldest(&mut self) -> Option<Remembered> {
        let oldest = self.order.pop_front()?;
        // A file may have an id twice, from when the window was shorter: the later one counts.
        if self.get(&oldest.id) == Some(oldest.sequence) {
            self.sequences.remove(&oldest.id);
        }
        Some(oldest)
    }

    /// The sequence of the oldest event whose id is remembered.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.order.front().map(|oldest| oldest.sequence)
    }

    /// The remembered ids of the events with these sequences.
    pub(super) fn of(&self, sequences: Range<u64>) -> impl Iterator<Item = &Remembered> {
        // Searched for, because ids of events that were removed earlier come first.
        let start = self
            .order
            .partition_point(|known| known.sequence < sequences.start);
        self.order
            .range(start..)
            .take_while(move |known| known.sequence < sequences.end)
    }

    /// How long ids are currently remembered, if that is less than the window.
    pub(super) fn shortened(&self) -> Option<Duration> {
        self.shortened_ns.map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_forgotten_behind_the_window() {
        let mut ids = Ids::new(Duration::from_nanos(10), 100, 0);
        ids.insert([1, 0], 1, 5);
        ids.insert([2, 0], 2, 9);
        ids.expire(15);
        assert_eq!((ids.get(&[1, 0]), ids.get(&[2, 0])), (Some(1), Some(2)));
        ids.expire(16);
        assert_eq!((ids.get(&[1, 0]), ids.get(&[2, 0])), (None, Some(2)));
    }

    #[test]
    fn full_window_forgets_the_oldest_and_says_so() {
        let mut ids = Ids::new(Duration::from_nanos(100), 4, 0);
        for time in 1..=6 {
            ids.insert([time, 0], time, time);
        }
        assert_eq!(ids.get(&[2, 0]), None);
        assert_eq!(ids.get(&[3, 0]), Some(3));
        assert_eq!(ids.shortened(), Some(Duration::from_nanos(4)));
        ids.expire(1_000);
        assert_eq!(ids.shortened(), None);
    }

    #[test]
    fn id_that_a_file_has_twice_is_remembered_for_its_later_event() {
        let mut ids = Ids::new(Duration::from_nanos(10), 100, 0);
        ids.insert([1, 0], 1, 5);
        ids.insert([1, 0], 2, 9);
        ids.expire(16);
        assert_eq!(ids.get(&[1, 0]), Some(2));
        ids.expire(20);
        assert_eq!(ids.get(&[1, 0]), None);
    }

    #[test]
    fn ids_of_a_range_of_events_are_found() {
        let mut ids = Ids::new(Duration::from_nanos(100), 100, 0);
        for sequence in [2, 4, 6, 8] {
            ids.insert([sequence, 0], sequence, sequence);
        }
        let of = |range| {
            ids.of(range)
                .map(|known| known.sequence)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (of(1..5), of(4..8), of(9..9)),
            (vec![2, 4], vec![4, 6], vec![])
        );
        assert_eq!(ids.oldest(), Some(2));
    }
}
