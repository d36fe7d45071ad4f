//! The memtable: recent writes in memory, in key order, with just as many old
//! versions as live snapshots need.
//!
//! Versions count published batches. One thread writes; a reader passes the
//! version that it may see and gets the newest value not younger than that.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::exceptions::Exception;
use super::{Direction, Key};
use crate::event::Payload;

/// What an entry costs beside key and value: tree node, reference counts, slot.
const ENTRY_OVERHEAD: u64 = 160;

/// One value of a key; none says that the key was deleted.
#[derive(Debug)]
struct Version {
    number: u64,
    value: Option<Payload>,
}

/// All versions of a key that someone may still read.
#[derive(Debug)]
struct Slot {
    newest: Version,
    /// Older versions, oldest first; empty unless a snapshot was alive when they were replaced.
    older: Vec<Version>,
}

impl Slot {
    fn at(&self, version: u64) -> Option<&Option<Payload>> {
        if self.newest.number <= version {
            return Some(&self.newest.value);
        }
        self.older.iter().rev().find(|older| older.number <= version).map(|older| &older.value)
    }
}

/// The versions that live snapshots see, as far as a writer must know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LiveRange {
    /// The oldest version in use.
    pub(super) oldest: u64,
    /// The newest version in use.
    pub(super) newest: u64,
}

/// What a lookup found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The key was written here: its value, or that it was deleted.
    Here(Option<Payload>),
    /// Nothing is known here; an older layer decides.
    Below,
}

/// Recent writes of one store.
#[derive(Debug, Default)]
pub(super) struct Memtable {
    map: RwLock<BTreeMap<Key, Slot>>,
    /// What became of events that were not folded, to be committed with the rest.
    exceptions: RwLock<BTreeMap<u64, Exception>>,
    /// Keys, values and overhead of the newest versions, in bytes.
    bytes: AtomicU64,
    /// Keys and values of the newest versions that are not deletions, in bytes.
    payload_bytes: AtomicU64,
}

impl Memtable {
    /// Memory in use, in bytes, approximately.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Keys and values that would be stored if all of them were new, in bytes.
    pub(super) fn payload_bytes(&self) -> u64 {
        self.payload_bytes.load(Ordering::Relaxed)
    }

    /// Whether nothing was written.
    pub(super) fn is_empty(&self) -> bool {
        self.map.read().is_empty()
    }

    /// Adds what became of events that were not folded.
    pub(super) fn except(&self, exceptions: &BTreeMap<u64, Exception>) {
        let cloned = exceptions.iter().map(|(sequence, exception)| (*sequence, exception.clone()));
        self.exceptions.write().extend(cloned);
    }

    /// What became of events that were not folded.
    pub(super) fn exceptions(&self) -> BTreeMap<u64, Exception> {
        self.exceptions.read().clone()
    }

    /// The value of a key at a version.
    pub(super) fn get(&self, key: &str, version: u64) -> Found {
        match self.map.read().get(key).and_then(|slot| slot.at(version)) {
            Some(value) => Found::Here(value.clone()),
            None => Found::Below,
        }
    }

    /// Writes a batch as one version. Versions that no live snapshot sees are dropped on the way.
    pub(super) fn write(
        &self,
        writes: impl Iterator<Item = (Key, Option<Payload>)>,
        number: u64,
        live: Option<LiveRange>,
    ) {
        let mut map = self.map.write();
        let (mut bytes, mut payload_bytes) = (self.bytes(), self.payload_bytes());
        for (key, value) in writes {
            let stored = value.as_ref().map_or(0, |value| (key.len() + value.len()) as u64);
            let size = key.len() as u64 + value.as_ref().map_or(0, |value| value.len() as u64) + ENTRY_OVERHEAD;
            bytes += size;
            payload_bytes += stored;
            let version = Version { number, value };
            let key_bytes = key.len() as u64;
            match map.entry(key) {
                Entry::Vacant(slot) => {
                    slot.insert(Slot { newest: version, older: Vec::new() });
                }
                Entry::Occupied(mut slot) => {
                    let slot = slot.get_mut();
                    let replaced = std::mem::replace(&mut slot.newest, version);
                    let length = replaced.value.as_ref().map_or(0, |value| value.len() as u64);
                    bytes -= key_bytes + length + ENTRY_OVERHEAD;
                    payload_bytes -= replaced.value.as_ref().map_or(0, |_| key_bytes + length);
                    keep_if_needed(&mut slot.older, replaced, live);
                }
            }
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        self.payload_bytes.store(payload_bytes, Ordering::Relaxed);
    }

    /// Up to `limit` keys written at or before a version, in the direction of
    /// the scan, within bounds; the flag says whether the table may have more.
    pub(super) fn chunk(
        &self,
        bounds: (Bound<&str>, Bound<&str>),
        direction: Direction,
        version: u64,
        limit: usize,
    ) -> (Vec<(Key, Option<Payload>)>, bool) {
        let map = self.map.read();
        let visible = |(key, slot): (&Key, &Slot)| slot.at(version).map(|value| (Key::clone(key), value.clone()));
        let range = map.range::<str, _>(bounds);
        let entries: Vec<_> = match direction {
            Direction::Forwards => range.filter_map(visible).take(limit).collect(),
            Direction::Backwards => range.rev().filter_map(visible).take(limit).collect(),
        };
        let more = entries.len() == limit;
        (entries, more)
    }

    /// Calls `visit` with the newest version of each key, in key order.
    pub(super) fn for_each<E>(&self, mut visit: impl FnMut(&Key, &Option<Payload>) -> Result<(), E>) -> Result<(), E> {
        self.map.read().iter().try_for_each(|(key, slot)| visit(key, &slot.newest.value))
    }
}

/// Puts a replaced version aside if a live snapshot sees it, and forgets those that none sees any more.
fn keep_if_needed(older: &mut Vec<Version>, replaced: Version, live: Option<LiveRange>) {
    let Some(live) = live else {
        older.clear();
        return;
    };
    if !older.is_empty() {
        // All but the newest version that the oldest snapshot sees are out of reach.
        let reachable = older.iter().rposition(|version| version.number <= live.oldest).unwrap_or(0);
        older.drain(..reachable);
    }
    if replaced.number <= live.newest {
        if replaced.number <= live.oldest {
            older.clear();
        }
        older.push(replaced);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(table: &Memtable, number: u64, key: &str, value: Option<&str>, live: Option<LiveRange>) {
        table.write(std::iter::once((Key::from(key), value.map(Payload::from))), number, live);
    }

    fn here(value: Option<&str>) -> Found {
        Found::Here(value.map(Payload::from))
    }

    #[test]
    fn snapshots_keep_the_versions_that_they_see_and_no_others() {
        let table = Memtable::default();
        write(&table, 1, "a", Some("one"), None);
        write(&table, 2, "a", Some("two"), Some(LiveRange { oldest: 1, newest: 1 }));
        write(&table, 3, "a", None, Some(LiveRange { oldest: 1, newest: 2 }));
        assert_eq!(table.get("a", 0), Found::Below);
        assert_eq!(table.get("a", 1), here(Some("one")));
        assert_eq!(table.get("a", 2), here(Some("two")));
        assert_eq!(table.get("a", 3), here(None));
        write(&table, 4, "a", Some("four"), Some(LiveRange { oldest: 3, newest: 3 }));
        assert_eq!(table.get("a", 3), here(None));
        assert_eq!(table.map.read()["a"].older.len(), 1, "versions 1 and 2 are out of reach");
        write(&table, 5, "a", Some("five"), None);
        assert!(table.map.read()["a"].older.is_empty());
    }

    #[test]
    fn sizes_follow_the_newest_versions() {
        let table = Memtable::default();
        write(&table, 1, "key", Some("12345"), None);
        assert_eq!(table.payload_bytes(), 8);
        write(&table, 2, "key", Some("1"), None);
        assert_eq!(table.payload_bytes(), 4);
        write(&table, 3, "key", None, None);
        assert_eq!(table.payload_bytes(), 0);
        assert_eq!(table.bytes(), 3 + ENTRY_OVERHEAD);
    }

    #[test]
    fn chunks_come_in_the_order_of_the_scan() {
        let table = Memtable::default();
        for key in ["a", "b", "c", "d"] {
            write(&table, 1, key, Some(key), None);
        }
        let keys = |direction, limit| {
            let bounds = (Bound::Included("b"), Bound::Unbounded);
            let (entries, more) = table.chunk(bounds, direction, 1, limit);
            (entries.into_iter().map(|(key, _)| key.to_string()).collect::<String>(), more)
        };
        assert_eq!(keys(Direction::Forwards, 2), ("bc".to_owned(), true));
        assert_eq!(keys(Direction::Backwards, 10), ("dcb".to_owned(), false));
    }
}
