//! Which keys the file of a state may have, as far as this process has written all of them.
//!
//! Most events of a first build are about keys that are new. Without this, each costs a walk through
//! the file only to find nothing. It is a Bloom filter: it never denies a key that the file has. A
//! file that was there before has none, because to build one would take reading all its keys; and one
//! that would take too much memory is given up.

use parking_lot::RwLock;

use crate::memory::Reservation;

/// Keys of the first layer, and how many times as many the next one has.
const LAYER_KEYS: usize = 4 << 10;
const LAYER_FACTOR: usize = 4;
/// Keys of the largest layer.
const LAYER_KEYS_MAX: usize = 1 << 20;
/// Most memory of a filter, in bytes.
const BYTES_MAX: u64 = 8 << 20;
/// Keys for each word of 64 bits: about one key of a hundred is taken for another one.
const WORD_KEYS: usize = 4;

/// A filter that grows.
#[derive(Debug)]
pub(super) struct Known(RwLock<Option<Filter>>);

#[derive(Debug)]
struct Filter {
    /// Oldest first; the last one takes more keys.
    layers: Vec<Layer>,
    memory: Reservation,
}

#[derive(Debug)]
struct Layer {
    words: Box<[u64]>,
    /// How many more keys it takes.
    left: usize,
}

impl Known {
    /// That of an empty file.
    pub(super) fn nothing(memory: Reservation) -> Self {
        let layers = Vec::new();
        Self(RwLock::new(Some(Filter { layers, memory })))
    }

    /// That of a file about which nothing is known.
    pub(super) fn unknown() -> Self {
        Self(RwLock::new(None))
    }

    /// Whether the file may have a key with this hash.
    pub(super) fn may_have(&self, hash: u32) -> bool {
        self.0.read().as_ref().is_none_or(|filter| filter.has(hash))
    }

    /// Adds the hashes of keys. Must be called before a commit that writes them is visible.
    pub(super) fn add(&self, hashes: &[u32]) {
        let mut filter = self.0.write();
        if let Some(known) = &mut *filter
            && !hashes.iter().all(|hash| known.add(*hash))
        {
            // From here on the file has keys that the filter lacks.
            *filter = None;
        }
    }
}

#[cfg(test)]
impl Known {
    /// Lets everybody wait who asks, until the result is dropped, and at most for ten seconds.
    pub(super) fn hang(self: &std::sync::Arc<Self>) -> std::sync::mpsc::Sender<()> {
        let (locked, is_locked) = std::sync::mpsc::channel();
        let (resume, resumed) = std::sync::mpsc::channel();
        let known = std::sync::Arc::clone(self);
        std::thread::spawn(move || {
            let _held = known.0.write();
            locked.send(()).expect("somebody waits for it");
            let _ = resumed.recv_timeout(std::time::Duration::from_secs(10));
        });
        is_locked.recv().expect("the thread runs");
        resume
    }
}

impl Filter {
    fn has(&self, hash: u32) -> bool {
        // Most keys are in the largest layers.
        self.layers.iter().rev().any(|layer| layer.has(hash))
    }

    /// Adds a key; returns whether there was memory for it.
    fn add(&mut self, hash: u32) -> bool {
        // A key that is written again takes no place.
        if self.has(hash) {
            return true;
        }
        if self.layers.last().is_none_or(|last| last.left == 0) && !self.grow() {
            return false;
        }
        self.layers.last_mut().expect("a layer was added").add(hash);
        true
    }

    fn grow(&mut self) -> bool {
        let keys = self.layers.last().map_or(LAYER_KEYS, |last| {
            (last.words.len() * WORD_KEYS * LAYER_FACTOR).min(LAYER_KEYS_MAX)
        });
        let words = keys / WORD_KEYS;
        let bytes = self.memory.bytes() + 8 * words as u64;
        if bytes > BYTES_MAX || self.memory.grow_to(bytes).is_err() {
            return false;
        }
        self.layers.push(Layer {
            words: vec![0; words].into(),
            left: keys,
        });
        true
    }
}

impl Layer {
    /// The word of a hash, and its bits there.
    fn place(&self, hash: u32) -> (usize, u64) {
        // Spread, because the bits of one hash choose both.
        let spread = (u64::from(hash) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bit = |shift: u32| 1_u64 << (spread >> shift & 63);
        let word = (spread >> 40) as usize % self.words.len();
        (word, bit(8) | bit(16) | bit(24) | bit(32))
    }

    fn has(&self, hash: u32) -> bool {
        let (word, bits) = self.place(hash);
        self.words[word] & bits == bits
    }

    fn add(&mut self, hash: u32) {
        let (word, bits) = self.place(hash);
        self.words[word] |= bits;
        self.left -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::hash;
    use super::*;
    use crate::memory::{Memory, Purpose};

    fn hashes(numbers: std::ops::Range<u32>) -> Vec<u32> {
        numbers
            .map(|key| hash(&format!("customer/{key}")))
            .collect()
    }

    #[test]
    fn no_key_is_denied_and_few_others_are_taken_for_one() {
        let memory = Memory::unlimited();
        let known = Known::nothing(memory.reservation(Purpose::Fold));
        assert!(!known.may_have(7));
        let added = hashes(0..300_000);
        for part in added.chunks(1_000) {
            known.add(part);
        }
        assert!(added.iter().all(|hash| known.may_have(*hash)));
        let others = hashes(1_000_000..1_100_000);
        let mistaken = others.iter().filter(|hash| known.may_have(**hash)).count();
        assert!(
            mistaken < others.len() / 20,
            "{mistaken} of {}",
            others.len()
        );
    }

    #[test]
    fn a_filter_without_memory_denies_nothing() {
        let memory = Memory::new(1 << 20);
        let known = Known::nothing(memory.reservation(Purpose::Fold));
        known.add(&hashes(0..1_000));
        assert!(memory.used() > 0);
        for number in 1..1_000 {
            known.add(&hashes(number * 1_000..(number + 1) * 1_000));
        }
        assert!(
            hashes(2_000_000..2_001_000)
                .iter()
                .all(|hash| known.may_have(*hash))
        );
        assert_eq!(memory.used(), 0);
        assert!(Known::unknown().may_have(7));
    }
}
