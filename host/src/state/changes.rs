//! Which keys changed lately, so that a watcher can go on where it was.

use std::collections::{HashSet, VecDeque};

use super::Key;

/// Most memory that the history takes while somebody asks for it, in bytes; beyond it the oldest batches are forgotten.
const BYTES_MAX: usize = 8 << 20;
/// The same while nobody does: enough for a watcher that connects again.
const BYTES_MAX_UNASKED: usize = 256 << 10;
/// Batches for which memory is kept.
const CAPACITY_KEPT: usize = 1_024;
/// What a key costs beside its text, in bytes.
const KEY_OVERHEAD: usize = 64;

/// A bounded history of changed keys, batch by batch. Nobody says that a watch begins or ends: whoever watches asks before
/// more has changed than is remembered.
#[derive(Debug)]
pub(super) struct Changes {
    batches: VecDeque<(u64, Box<[Key]>)>,
    /// Memory in use, in bytes, approximately.
    bytes: usize,
    /// What was noted since somebody asked, in bytes.
    unasked: usize,
    /// Changes after this position are all known.
    floor: u64,
}

impl Changes {
    /// A history that begins at a position.
    pub(super) fn new(floor: u64) -> Self {
        Self { batches: VecDeque::new(), bytes: 0, unasked: usize::MAX, floor }
    }

    /// Notes the keys of a batch that brought the state to `position`.
    pub(super) fn push(&mut self, position: u64, keys: Box<[Key]>) {
        let bytes = size(&keys);
        self.unasked = self.unasked.saturating_add(bytes);
        self.bytes += bytes;
        self.batches.push_back((position, keys));
        let bytes_max = if self.unasked > BYTES_MAX { BYTES_MAX_UNASKED } else { BYTES_MAX };
        while self.bytes > bytes_max {
            let (position, forgotten) = self.batches.pop_front().expect("bytes are counted by batch");
            self.bytes -= size(&forgotten);
            self.floor = position;
        }
        if self.batches.capacity() > CAPACITY_KEPT && self.batches.len() < self.batches.capacity() / 4 {
            self.batches.shrink_to_fit();
        }
    }

    /// Forgets all up to a position, which no longer tells what its state is: whoever knows of it reads everything again.
    pub(super) fn forget(&mut self, position: u64) {
        self.batches = VecDeque::new();
        self.bytes = 0;
        self.floor = position + 1;
    }

    /// Keys under a prefix that changed after a position, in order of their last change, without
    /// duplicates; none when the position is older than what is remembered.
    pub(super) fn since(&mut self, position: u64, prefix: &str) -> Option<Vec<Key>> {
        self.unasked = 0;
        if position < self.floor {
            return None;
        }
        let mut seen = HashSet::new();
        let newest_first =
            self.batches.iter().rev().take_while(|(at, _)| *at > position).flat_map(|(_, keys)| keys.iter().rev());
        let mut keys: Vec<Key> =
            newest_first.filter(|key| key.starts_with(prefix) && seen.insert(Key::clone(key))).cloned().collect();
        keys.reverse();
        Some(keys)
    }
}

/// Memory of a batch of keys, in bytes, approximately.
fn size(keys: &[Key]) -> usize {
    KEY_OVERHEAD + keys.iter().map(|key| key.len() + KEY_OVERHEAD).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> Box<[Key]> {
        names.iter().map(|name| Key::from(*name)).collect()
    }

    #[test]
    fn changes_after_a_position_come_once_and_in_order() {
        let mut changes = Changes::new(10);
        changes.push(12, keys(&["a/1", "b/1"]));
        changes.push(15, keys(&["a/2", "a/1"]));
        let mut since = |position, prefix: &str| {
            changes
                .since(position, prefix)
                .map(|keys| keys.iter().map(|key| key.to_string()).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(since(10, "a/"), Some("a/2 a/1".to_owned()));
        assert_eq!(since(12, ""), Some("a/2 a/1".to_owned()));
        assert_eq!(since(15, ""), Some(String::new()));
        assert_eq!(since(9, ""), None);
    }

    #[test]
    fn what_was_forgotten_must_be_read_again() {
        let mut changes = Changes::new(0);
        changes.push(5, keys(&["a"]));
        changes.forget(5);
        assert!(changes.since(5, "").is_none() && changes.since(0, "").is_none());
        changes.push(7, keys(&["b"]));
        assert_eq!(changes.since(6, "").map(|keys| keys.len()), Some(1));
    }

    fn many(count: usize) -> Box<[Key]> {
        (0..count).map(|index| Key::from(format!("{index:036}"))).collect()
    }

    #[test]
    fn history_is_bounded_and_says_so() {
        let mut changes = Changes::new(0);
        assert!(changes.since(0, "").is_some());
        for position in 1..=3 {
            changes.push(position, many(BYTES_MAX / 250));
            assert!(changes.since(position, "").is_some());
        }
        assert!(changes.since(0, "").is_none());
        assert!(changes.since(1, "").is_some());
        assert!(changes.bytes <= BYTES_MAX);
    }

    #[test]
    fn little_is_kept_while_nobody_asks() {
        let mut changes = Changes::new(0);
        for position in 1..=100 {
            changes.push(position, many(1_000));
        }
        assert!(changes.bytes <= BYTES_MAX_UNASKED);
        assert!(changes.since(90, "").is_none(), "now somebody asks");
        for position in 101..=150 {
            changes.push(position, many(1_000));
        }
        assert!(changes.since(100, "").is_some_and(|keys| keys.len() == 1_000), "what came since then is there");
        for position in 151..=400 {
            changes.push(position, many(1_000));
        }
        assert!(changes.bytes <= BYTES_MAX_UNASKED, "whoever asked is gone");
    }

    #[test]
    fn many_changes_of_one_key_are_bounded_as_well() {
        let mut changes = Changes::new(0);
        for position in 1..=100_000 {
            changes.push(position, keys(&["a"]));
        }
        assert!(changes.bytes <= BYTES_MAX_UNASKED && changes.batches.capacity() <= 4 * CAPACITY_KEPT);
    }
}
