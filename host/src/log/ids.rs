//! The message ids of the duplicate window, in memory.
//!
//! The events themselves carry their ids, so the window is rebuilt from the
//! last chunks when the log is opened, and costs no writes of its own. Ids of
//! events that retention removed are forgotten with the process.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::encode::IdKey;

/// Most ids to remember, about 300 MB: a window of 120 s at 35,000 events with ids per second.
/// Beyond it the oldest are forgotten early, and the source says so.
pub(super) const IDS_MAX: usize = 4 << 20;

/// Ids appended within the window, with the sequences of their events.
#[derive(Debug)]
pub(super) struct Ids {
    window_ns: u64,
    capacity: usize,
    sequences: HashMap<IdKey, u64>,
    order: VecDeque<(u64, IdKey)>,
    shortened_ns: Option<u64>,
}

impl Ids {
    /// An empty window. A window of length zero remembers nothing.
    pub(super) fn new(window: Duration, capacity: usize) -> Self {
        let window_ns = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        Self {
            window_ns,
            capacity,
            sequences: HashMap::new(),
            order: VecDeque::new(),
            shortened_ns: None,
        }
    }

    /// Whether ids are remembered at all.
    pub(super) fn has_window(&self) -> bool {
        self.window_ns > 0
    }

    /// The sequence of the event with this id, if it was appended within the window.
    pub(super) fn get(&self, id: &IdKey) -> Option<u64> {
        self.sequences.get(id).copied()
    }

    /// The earliest time of an append that still counts.
    pub(super) fn horizon_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.window_ns)
    }

    /// Remembers an id. Appends arrive in the order of their times.
    pub(super) fn insert(&mut self, id: IdKey, sequence: u64, appended_ns: u64) {
        if !self.has_window() {
            return;
        }
        // The oldest makes room: a window that is too short is reported.
        if self.order.len() == self.capacity
            && let Some((oldest_ns, oldest)) = self.order.pop_front()
        {
            self.sequences.remove(&oldest);
            self.shortened_ns = Some(appended_ns.saturating_sub(oldest_ns));
        }
        self.sequences.insert(id, sequence);
        self.order.push_back((appended_ns, id));
    }

    /// Forgets ids older than the window.
    pub(super) fn expire(&mut self, now_ns: u64) {
        let horizon = self.horizon_ns(now_ns);
        // Only from the front, because they are in the order of their times.
        while self
            .order
            .front()
            .is_some_and(|(appended_ns, _)| *appended_ns < horizon)
        {
            let (_, id) = self.order.pop_front().expect("front was there");
            self.sequences.remove(&id);
        }
        // Only once there is room again, so that the warning does not come and go.
        if self.order.len() < self.capacity / 2 {
            self.shortened_ns = None;
        }
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
        let mut ids = Ids::new(Duration::from_nanos(10), 100);
        ids.insert([1, 0], 1, 5);
        ids.insert([2, 0], 2, 9);
        ids.expire(15);
        assert_eq!((ids.get(&[1, 0]), ids.get(&[2, 0])), (Some(1), Some(2)));
        ids.expire(16);
        assert_eq!((ids.get(&[1, 0]), ids.get(&[2, 0])), (None, Some(2)));
    }

    #[test]
    fn full_window_forgets_the_oldest_and_says_so() {
        let mut ids = Ids::new(Duration::from_nanos(100), 4);
        for time in 1..=6 {
            ids.insert([time, 0], time, time);
        }
        assert_eq!(ids.get(&[2, 0]), None);
        assert_eq!(ids.get(&[3, 0]), Some(3));
        assert_eq!(ids.shortened(), Some(Duration::from_nanos(4)));
        ids.expire(1_000);
        assert_eq!(ids.shortened(), None);
    }
}
