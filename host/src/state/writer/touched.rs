//! What was read and written through a branch of a writer, in bounded memory.
//!
//! Keys are noted as fingerprints of 64 bits: two keys with one fingerprint are taken for one, which
//! can report too much, and never too little.

use std::collections::BTreeMap;
use std::ops::Bound;

use hashbrown::HashTable;

use super::super::places::fingerprint;
use super::super::{Selection, scan};
use crate::memory::{Memory, Purpose, Reservation};

/// Keys from which notes are large. Few enough that looking at them stays fast; many enough that the
/// instance, which starts again with its notes, seldom does.
const KEYS_LARGE: usize = 1 << 17;
/// Most keys in the notes. One batch may touch many more than an instance does in many batches.
const KEYS_MAX: usize = 1 << 20;
/// Ranges from which notes are large, and most of them.
const RANGES_LARGE: usize = 8_192;
const RANGES_MAX: usize = 16_384;
/// Most bytes of the bounds of ranges.
const RANGES_BYTES_MAX: usize = 1 << 20;
/// Keys that a batch writes for which the list keeps its memory.
const WRITTEN_KEPT: usize = 65_536;
/// Memory of a fingerprint in a table that may be half empty, in bytes.
const KEY_BYTES: u64 = 20;

#[derive(Debug)]
pub(super) struct Touched {
    /// Keys that were read or written, also absent ones.
    keys: HashTable<u64>,
    /// What was scanned: begin, and end (exclusive; none is unbounded). No two of them overlap.
    ranges: BTreeMap<String, Option<String>>,
    /// Bytes of the bounds.
    range_bytes: usize,
    /// The keys that the batch writes, in the order of its writes.
    written: Vec<u64>,
    /// The memory of the host for keys and ranges.
    memory: Reservation,
    is_cut: bool,
}

impl Touched {
    pub(super) fn new(memory: &Memory) -> Self {
        Self {
            keys: HashTable::new(),
            ranges: BTreeMap::new(),
            range_bytes: 0,
            written: Vec::new(),
            memory: memory.reservation(Purpose::Fold),
            is_cut: false,
        }
    }

    /// A key was read.
    pub(super) fn read(&mut self, key: &str) {
        self.insert(fingerprint(key));
    }

    /// A key was written, for the first time in this batch.
    pub(super) fn write(&mut self, key: &str) {
        let fingerprint = fingerprint(key);
        self.written.push(fingerprint);
        self.insert(fingerprint);
    }

    fn insert(&mut self, fingerprint: u64) {
        // The batch is folded again anyway; the host is not asked for memory for each key.
        if self.is_cut {
            return;
        }
        if self.keys.len() == self.keys.capacity() && !self.grow() {
            self.is_cut = true;
            return;
        }
        self.keys
            .entry(fingerprint, |other| *other == fingerprint, |other| *other)
            .or_insert(fingerprint);
    }

    /// Makes room for more keys; returns whether there is any.
    fn grow(&mut self) -> bool {
        let wanted = (self.keys.capacity() * 2).max(1_024);
        if wanted > 2 * KEYS_MAX {
            return false;
        }
        let bytes = wanted as u64 * KEY_BYTES + RANGES_BYTES_MAX as u64;
        if self.memory.grow_to(bytes).is_err() {
            return false;
        }
        self.keys
            .reserve(wanted - self.keys.len(), |fingerprint| *fingerprint);
        true
    }

    /// A selection was scanned.
    pub(super) fn scan(&mut self, selection: &Selection) {
        let Some((mut start, mut end)) = scan::bounds(selection) else {
            return;
        };
        // Merged with all that it overlaps, from behind.
        while let Some((other, other_end)) = self.last_before(end.as_deref()) {
            let overlaps = other_end.as_ref().is_none_or(|other| *other >= start);
            if !overlaps {
                break;
            }
            let (other, other_end) = (other.clone(), other_end.clone());
            self.ranges.remove(&other);
            self.range_bytes -= bytes_of(&other, other_end.as_deref());
            start = start.min(other);
            end = match (end, other_end) {
                (Some(one), Some(other)) => Some(one.max(other)),
                _ => None,
            };
        }
        let bytes = bytes_of(&start, end.as_deref());
        if self.ranges.len() >= RANGES_MAX || self.range_bytes + bytes > RANGES_BYTES_MAX {
            self.is_cut = true;
            return;
        }
        self.range_bytes += bytes;
        self.ranges.insert(start, end);
    }

    /// The last range that begins at or before an end.
    fn last_before(&self, end: Option<&str>) -> Option<(&String, &Option<String>)> {
        match end {
            Some(end) => self.at_or_before(end),
            None => self.ranges.last_key_value(),
        }
    }

    /// The last range that begins at or before a key.
    fn at_or_before(&self, key: &str) -> Option<(&String, &Option<String>)> {
        let bounds = (Bound::Unbounded, Bound::Included(key));
        self.ranges.range::<str, _>(bounds).next_back()
    }

    /// Whether a key was touched.
    pub(super) fn has(&self, fingerprint: u64, key: &str) -> bool {
        let is_known = |other: &u64| *other == fingerprint;
        self.keys.find(fingerprint, is_known).is_some() || self.has_scanned(key)
    }

    fn has_scanned(&self, key: &str) -> bool {
        let range = self.at_or_before(key);
        range.is_some_and(|(_, end)| end.as_ref().is_none_or(|end| key < end.as_str()))
    }

    /// The fingerprints of the keys that the batch writes, in the order of its writes.
    pub(super) fn written(&self) -> &[u64] {
        &self.written
    }

    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    pub(super) fn is_large(&self) -> bool {
        self.keys.len() >= KEYS_LARGE
            || self.ranges.len() >= RANGES_LARGE
            || self.range_bytes >= RANGES_BYTES_MAX / 2
    }

    /// The batch is over; what was touched in it stays.
    pub(super) fn end_batch(&mut self) {
        // One large batch would leave its memory for ever.
        if self.written.len() > WRITTEN_KEPT {
            self.written = Vec::new();
        }
        self.written.clear();
    }

    pub(super) fn renew(&mut self) {
        let large = self.keys.capacity() > 2 * KEYS_LARGE;
        if large {
            self.keys = HashTable::new();
            self.memory.shrink_to(0);
        } else {
            self.keys.clear();
        }
        self.ranges.clear();
        self.range_bytes = 0;
        self.written = Vec::new();
        self.is_cut = false;
    }
}

/// Bytes of the bounds of a range.
fn bytes_of(start: &str, end: Option<&str>) -> usize {
    start.len() + end.map_or(0, str::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: Option<&str>, end: Option<&str>) -> Selection {
        Selection::Range {
            start: start.map(str::to_owned),
            end: end.map(str::to_owned),
        }
    }

    #[test]
    fn scanned_ranges_cover_exactly_the_keys_in_them() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut touched = Touched::new(&Memory::unlimited());
            let mut selections = Vec::new();
            for _ in 0..random.usize(1..8) {
                let mut bound =
                    || (random.u8(0..6) > 0).then(|| char::from(random.u8(b'a'..b'm')).to_string());
                let (start, end) = (bound(), bound());
                let selection = range(start.as_deref(), end.as_deref());
                touched.scan(&selection);
                selections.push((start.unwrap_or_default(), end));
            }
            for key in (b'a'..b'n').map(|letter| format!("{}x", char::from(letter))) {
                let expected = selections.iter().any(|(start, end)| {
                    start.as_str() <= key.as_str()
                        && end.as_ref().is_none_or(|end| key.as_str() < end.as_str())
                });
                assert_eq!(
                    touched.has_scanned(&key),
                    expected,
                    "{key} of {selections:?} as {:?}",
                    touched.ranges
                );
            }
        }
    }

    #[test]
    fn notes_that_are_full_say_so() {
        let mut touched = Touched::new(&Memory::unlimited());
        for number in 0..=4 * KEYS_MAX as u64 {
            touched.insert(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        assert!(touched.is_cut() && touched.is_large());
        touched.renew();
        assert!(!touched.is_cut() && !touched.is_large());
        for number in 0..=RANGES_MAX {
            let selection = range(
                Some(&format!("{number:06}a")),
                Some(&format!("{number:06}b")),
            );
            touched.scan(&selection);
        }
        assert!(touched.is_cut() && touched.is_large());
        let mut touched = Touched::new(&Memory::new(10));
        touched.read("key");
        assert!(touched.is_cut(), "the host has no memory for it");
    }
}
