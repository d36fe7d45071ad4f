//! Which keys changed recently, so that a watch can continue.
//!
//! The history is a list of immutable batches. A reader takes the relevant
//! batches under the lock, and searches them without it. The first reader of a
//! batch sorts it, so that each of a thousand watchers finds its prefix by
//! binary search. Its memory is charged to the host: if there is none, older
//! batches are forgotten, and their watchers read everything again.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, OnceLock};

use super::Key;
use crate::memory::Reservation;

/// Most memory of the history while somebody uses it, in bytes; beyond it the oldest batches are
/// dropped.
const BYTES_MAX: usize = 8 << 20;
/// The same while nobody uses it: enough for a watch that reconnects.
const BYTES_MAX_UNASKED: usize = 256 << 10;
/// Memory is taken of the host in pieces of this size, in bytes.
const PIECE: usize = 64 << 10;
/// Batches for which memory is kept.
const CAPACITY_KEPT: usize = 1_024;
/// Overhead of a batch in addition to its keys, in bytes.
const BATCH_OVERHEAD: usize = 128;
/// Overhead of a key in addition to its text, in bytes, including its place in the order.
const KEY_OVERHEAD: usize = 64;

/// The keys of one batch.
#[derive(Debug)]
pub(super) struct Batch {
    position: u64,
    keys: Box<[Key]>,
    /// Indexes into `keys`, in the order of the keys.
    sorted: OnceLock<Box<[u32]>>,
}

impl Batch {
    /// Its approximate memory, in bytes.
    fn bytes(&self) -> usize {
        BATCH_OVERHEAD
            + self
                .keys
                .iter()
                .map(|key| key.len() + KEY_OVERHEAD)
                .sum::<usize>()
    }

    /// Its keys under a prefix.
    fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Key> {
        let key_at = |place: u32| &self.keys[place as usize];
        let sorted = self.sorted.get_or_init(|| {
            let mut places: Box<[u32]> = (0..self.keys.len() as u32).collect();
            places.sort_unstable_by_key(|place| key_at(*place));
            places
        });
        // Keys are in order, so those under a prefix are next to each other.
        let begin = sorted.partition_point(|place| &**key_at(*place) < prefix);
        sorted[begin..]
            .iter()
            .map(move |place| key_at(*place))
            .take_while(move |key| key.starts_with(prefix))
    }
}

/// Keys of batches under a prefix, in order of their last change, without duplicates.
pub(super) fn under(batches: &[Arc<Batch>], prefix: &str) -> Vec<Key> {
    let mut seen = HashSet::new();
    // Newest first, so that each key is kept at its last change.
    let newest_first = batches.iter().rev().flat_map(|batch| batch.under(prefix));
    let mut keys: Vec<Key> = newest_first
        .filter(|key| seen.insert(Key::clone(key)))
        .cloned()
        .collect();
    keys.reverse();
    keys
}

/// A bounded history of changed keys, batch by batch. There is no registration: a watch asks for
/// changes before more has changed than is remembered.
#[derive(Debug)]
pub(super) struct Changes {
    batches: VecDeque<Arc<Batch>>,
    /// Approximate memory in use, in bytes.
    bytes: usize,
    /// Bytes recorded since somebody asked.
    unasked: usize,
    /// All changes after this position are known.
    floor: u64,
    memory: Reservation,
}

impl Changes {
    /// A history that starts at a position.
    pub(super) fn new(floor: u64, memory: Reservation) -> Self {
        Self {
            batches: VecDeque::new(),
            bytes: 0,
            unasked: usize::MAX,
            floor,
            memory,
        }
    }

    /// Records the keys of a batch that moves the state to `position`.
    pub(super) fn push(&mut self, position: u64, keys: Box<[Key]>) {
        let batch = Batch {
            position,
            keys,
            sorted: OnceLock::new(),
        };
        let bytes = batch.bytes();
        self.unasked = self.unasked.saturating_add(bytes);
        self.bytes += bytes;
        self.batches.push_back(Arc::new(batch));
        // Nobody has asked since more was recorded than a watch may miss: little is kept.
        let bytes_max = if self.unasked > BYTES_MAX {
            BYTES_MAX_UNASKED
        } else {
            BYTES_MAX
        };
        while self.bytes > bytes_max {
            self.forget_oldest();
        }
        let wanted = self.bytes.next_multiple_of(PIECE) as u64;
        self.memory.shrink_to(wanted);
        // In pieces, so that not each batch has to ask the host for memory.
        if self.memory.grow_to(wanted).is_err() {
            // Without memory the history gets shorter, and older watches start again.
            while self.bytes as u64 > self.memory.bytes() {
                self.forget_oldest();
            }
        }
        // A burst of small batches must not keep its capacity for ever.
        if self.batches.capacity() > CAPACITY_KEPT
            && self.batches.len() < self.batches.capacity() / 4
        {
            self.batches.shrink_to_fit();
        }
    }

    fn forget_oldest(&mut self) {
        let forgotten = self
            .batches
            .pop_front()
            .expect("bytes are counted by batch");
        self.bytes -= forgotten.bytes();
        // Changes up to that position are not known any more, so the floor is the position itself.
        self.floor = forgotten.position;
    }

    /// Drops everything up to a position that no longer identifies its state: a client at an
    /// earlier position must read everything again.
    pub(super) fn forget(&mut self, position: u64) {
        self.batches = VecDeque::new();
        self.bytes = 0;
        self.memory.shrink_to(0);
        // One more: what was seen at this very position no longer holds either.
        self.floor = position + 1;
    }

    /// The batches between two positions, oldest first; none if the first position is older than
    /// the history. The call also makes the history remember more from now on.
    pub(super) fn between(&mut self, position: u64, through: u64) -> Option<Vec<Arc<Batch>>> {
        // Somebody watches: from now on more is remembered.
        self.unasked = 0;
        if position < self.floor {
            return None;
        }
        let begin = self
            .batches
            .partition_point(|batch| batch.position <= position);
        let end = self
            .batches
            .partition_point(|batch| batch.position <= through);
        // `through` may lie before `position`, which is an empty range.
        Some(self.batches.range(begin..end.max(begin)).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Memory, Purpose};

    fn history(floor: u64) -> Changes {
        Changes::new(floor, Memory::unlimited().reservation(Purpose::Watch))
    }

    fn keys(names: &[&str]) -> Box<[Key]> {
        names.iter().map(|name| Key::from(*name)).collect()
    }

    #[test]
    fn changes_after_a_position_come_once_and_in_order() {
        let mut changes = history(10);
        changes.push(12, keys(&["a/1", "b/1"]));
        changes.push(15, keys(&["a/2", "a/1"]));
        changes.push(20, keys(&["b/1", "c/1", "b/2", "b"]));
        let mut since = |position, through, prefix: &str| {
            let batches = changes.between(position, through)?;
            let mut found: Vec<_> = under(&batches, prefix)
                .iter()
                .map(|key| key.to_string())
                .collect();
            if batches.len() == 1 {
                found.sort();
            }
            Some(found.join(" "))
        };
        assert_eq!(since(10, 15, "b/"), Some("b/1".to_owned()));
        assert_eq!(since(10, 20, "b/1"), Some("b/1".to_owned()));
        assert_eq!(since(12, 15, ""), Some("a/1 a/2".to_owned()));
        assert_eq!(since(15, u64::MAX, "b"), Some("b b/1 b/2".to_owned()));
        assert_eq!(since(15, u64::MAX, "d"), Some(String::new()));
        assert_eq!(
            since(12, 12, ""),
            Some(String::new()),
            "what comes after is not visible yet"
        );
        assert_eq!(since(20, 15, ""), Some(String::new()));
        assert_eq!(since(9, 20, ""), None);
        let all = since(10, 20, "").expect("it is remembered");
        assert!(
            all.starts_with("a/") && all.split(' ').count() == 6,
            "{all}"
        );
    }

    #[test]
    fn a_batch_is_sorted_once_for_all_watches() {
        let mut changes = Changes::new(0, Memory::unlimited().reservation(Purpose::Watch));
        changes.push(5, keys(&["b/2", "a/1", "b/1"]));
        let mut order = || {
            let batches = changes.between(0, 5).expect("it is remembered");
            assert_eq!(under(&batches, "b/").len(), 2);
            batches[0].sorted.get().map(|sorted| sorted.as_ptr())
        };
        let first = order();
        assert!(first.is_some() && (0..1_000).all(|_| order() == first));
    }

    /// The shortest of some times that this takes: others may run in between.
    fn shortest(mut work: impl FnMut()) -> std::time::Duration {
        let times = (0..5).map(|_| {
            let begun = std::time::Instant::now();
            work();
            begun.elapsed()
        });
        times.min().expect("some")
    }

    #[test]
    fn a_thousand_watches_search_a_large_batch_in_less_time_than_some_walks_through_it() {
        let mut changes = Changes::new(0, Memory::unlimited().reservation(Purpose::Watch));
        assert!(changes.between(0, 5).is_some(), "somebody watches");
        changes.push(5, many(65_536));
        let batches = changes.between(0, 5).expect("it is remembered");
        // The first one sorts it.
        assert!(under(&batches, "nobody").is_empty());
        let walk = shortest(|| {
            let keys = batches[0].keys.iter();
            assert_eq!(keys.filter(|key| key.starts_with("nobody")).count(), 0);
        });
        let searches = shortest(|| {
            for watch in 0..1_000 {
                assert!(under(&batches, &format!("{watch:04}/")).is_empty());
            }
        });
        assert!(searches < 100 * walk, "{searches:?} and {walk:?}");
    }

    #[test]
    fn what_was_forgotten_must_be_read_again() {
        let mut changes = history(0);
        changes.push(5, keys(&["a"]));
        changes.forget(5);
        assert!(changes.between(5, 9).is_none() && changes.between(0, 9).is_none());
        changes.push(7, keys(&["b"]));
        assert_eq!(
            changes
                .between(6, 9)
                .map(|batches| under(&batches, "").len()),
            Some(1)
        );
    }

    fn many(count: usize) -> Box<[Key]> {
        (0..count)
            .map(|index| Key::from(format!("{index:036}")))
            .collect()
    }

    #[test]
    fn history_is_bounded_and_says_so() {
        let mut changes = history(0);
        assert!(changes.between(0, u64::MAX).is_some());
        for position in 1..=3 {
            changes.push(position, many(BYTES_MAX / 250));
            assert!(changes.between(position, u64::MAX).is_some());
        }
        assert!(changes.between(0, u64::MAX).is_none());
        assert!(changes.between(1, u64::MAX).is_some());
        assert!(changes.bytes <= BYTES_MAX);
    }

    #[test]
    fn little_is_kept_while_nobody_asks() {
        let mut changes = history(0);
        for position in 1..=100 {
            changes.push(position, many(1_000));
        }
        assert!(changes.bytes <= BYTES_MAX_UNASKED);
        assert!(changes.between(90, u64::MAX).is_none(), "now somebody asks");
        for position in 101..=150 {
            changes.push(position, many(1_000));
        }
        assert!(
            changes
                .between(100, u64::MAX)
                .is_some_and(|batches| under(&batches, "").len() == 1_000),
            "what came since then is there"
        );
        for position in 151..=400 {
            changes.push(position, many(1_000));
        }
        assert!(
            changes.bytes <= BYTES_MAX_UNASKED,
            "those who asked are gone"
        );
    }

    #[test]
    fn history_for_which_the_host_has_no_memory_is_short_and_says_so() {
        let memory = Memory::new(4 << 20);
        let mut changes = Changes::new(0, memory.reservation(Purpose::Watch));
        for position in 1..=100 {
            assert!(
                changes.between(position - 1, u64::MAX).is_some(),
                "what is new is known to who asks"
            );
            changes.push(position, many(1_000));
            assert!(
                changes.bytes as u64 <= memory.used(),
                "all of it is charged"
            );
        }
        assert!((1..=1 << 20).contains(&memory.used()), "{}", memory.used());
        assert!(changes.between(0, u64::MAX).is_none() && changes.between(97, u64::MAX).is_some());
        assert!(memory.refused_for(Purpose::Watch) > 0);
        drop(changes);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn many_changes_of_one_key_are_bounded_as_well() {
        let mut changes = history(0);
        for position in 1..=100_000 {
            changes.push(position, keys(&["a"]));
        }
        assert!(
            changes.bytes <= BYTES_MAX_UNASKED && changes.batches.capacity() <= 4 * CAPACITY_KEPT
        );
    }
}
