//! Where keys are in a list, by their hash.
//!
//! A look at a random key among a million costs a few cache misses here, and one for each comparison
//! in a tree. An index keeps hashes and places only, so it grows without looking at keys.

use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::LazyLock;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// Parts of a large index. Each grows on its own, so that readers never wait for the growth of all
/// of it.
const PARTS: usize = 64;
/// Bits of a hash below those that choose its part; the ones above tell slots of a part apart.
const PART_SHIFT: u32 = 19;

/// A key to look up, with its hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sought<'a> {
    pub(super) key: &'a str,
    pub(super) hash: u32,
}

impl<'a> Sought<'a> {
    pub(super) fn new(key: &'a str) -> Self {
        Self {
            key,
            hash: hash(key),
        }
    }
}

/// The hash of a key in all indexes of this process.
pub(super) fn hash(key: &str) -> u32 {
    let hash = fingerprint(key);
    // Both halves count.
    (hash ^ (hash >> 32)) as u32
}

/// A hash that two keys of a million hardly ever share.
pub(super) fn fingerprint(key: &str) -> u64 {
    // Seeded by chance: keys come from events, and nobody may choose many with one hash.
    static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::default);
    let mut hasher = SEED.build_hasher();
    hasher.write(key.as_bytes());
    hasher.finish()
}

/// A hash as wide as the table wants it, which looks at both ends.
fn wide(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

/// A small index: the hash and the place of each key.
#[derive(Debug, Default)]
pub(super) struct Part(HashTable<(u32, u32)>);

impl Part {
    /// The place of a key; `is_there` compares the key at a place.
    #[inline]
    pub(super) fn find(&self, hash: u32, is_there: impl Fn(u32) -> bool) -> Option<u32> {
        let found = self.0.find(wide(hash), |(other, place)| {
            *other == hash && is_there(*place)
        });
        found.map(|(_, place)| *place)
    }

    /// Adds a key that is not in the index.
    #[inline]
    pub(super) fn add(&mut self, hash: u32, place: u32) {
        self.0
            .insert_unique(wide(hash), (hash, place), |(hash, _)| wide(*hash));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// An index of any size.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// None before the first key.
    parts: Vec<Part>,
}

impl Places {
    /// The place of a key; `is_there` compares the key at a place.
    #[inline]
    pub(super) fn find(&self, hash: u32, is_there: impl Fn(u32) -> bool) -> Option<u32> {
        self.parts.get(part(hash))?.find(hash, is_there)
    }

    /// Adds a key that is not in the index.
    #[inline]
    pub(super) fn add(&mut self, hash: u32, place: u32) {
        if self.parts.is_empty() {
            self.parts.resize_with(PARTS, Part::default);
        }
        self.parts[part(hash)].add(hash, place);
    }
}

fn part(hash: u32) -> usize {
    (hash >> PART_SHIFT) as usize % PARTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_at_its_place_and_no_other_key_is() {
        let keys: Vec<String> = (0..100_000).map(|key| format!("customer/{key}")).collect();
        let mut places = Places::default();
        let find = |places: &Places, key: &str| {
            places.find(hash(key), |place| keys[place as usize] == key)
        };
        for (place, key) in keys.iter().enumerate() {
            assert_eq!(find(&places, key), None);
            places.add(hash(key), place as u32);
        }
        for (place, key) in keys.iter().enumerate() {
            assert_eq!(find(&places, key), Some(place as u32));
        }
        assert_eq!(find(&places, "customer/"), None);
        let largest = places.parts.iter().map(|part| part.0.len()).max();
        assert!(
            largest.is_some_and(|keys| keys < 2 * 100_000 / PARTS),
            "no part has much more than its share: {largest:?}"
        );
    }
}
