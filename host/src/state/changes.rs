//! Which keys changed lately, so that a watcher can go on where it was.

use std::collections::{HashSet, VecDeque};

use super::Key;

/// Most keys remembered; beyond it the oldest batches are forgotten.
const KEYS_MAX: usize = 65_536;

/// A bounded history of changed keys, batch by batch.
#[derive(Debug)]
pub(super) struct Changes {
    batches: VecDeque<(u64, Box<[Key]>)>,
    keys: usize,
    /// Changes after this position are all known.
    floor: u64,
}

impl Changes {
    /// A history that begins at a position.
    pub(super) fn new(floor: u64) -> Self {
        Self { batches: VecDeque::new(), keys: 0, floor }
    }

    /// Notes the keys of a batch that brought the state to `position`.
    pub(super) fn push(&mut self, position: u64, keys: Box<[Key]>) {
        self.keys += keys.len();
        self.batches.push_back((position, keys));
        while self.keys > KEYS_MAX {
            let (position, forgotten) = self.batches.pop_front().expect("keys are counted by batch");
            self.keys -= forgotten.len();
            self.floor = position;
        }
    }

    /// Forgets all up to a position, which no longer tells what its state is: whoever knows of it reads everything again.
    pub(super) fn forget(&mut self, position: u64) {
        self.batches.clear();
        self.keys = 0;
        self.floor = position + 1;
    }

    /// Keys under a prefix that changed after a position, in order of their last change, without
    /// duplicates; none when the position is older than what is remembered.
    pub(super) fn since(&self, position: u64, prefix: &str) -> Option<Vec<Key>> {
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
        let since = |position, prefix: &str| {
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

    #[test]
    fn history_is_bounded_and_says_so() {
        let mut changes = Changes::new(0);
        for position in 1..=3 {
            changes.push(position, (0..KEYS_MAX / 2).map(|index| Key::from(format!("{index}"))).collect());
        }
        assert!(changes.since(0, "").is_none());
        assert!(changes.since(1, "").is_some());
        assert!(changes.keys <= KEYS_MAX);
    }
}
