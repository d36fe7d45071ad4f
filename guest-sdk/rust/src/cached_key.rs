//! How the caches store and find keys: fast for short keys, and identical in every run.

/// Longest key stored in place; one octet of three words has its length.
const SHORT_MAX: usize = 23;

/// Marks a longer key, in place of its length.
const LONG: u64 = 0xff;

/// A key in a cache: three words that are equal for equal keys, so that
/// checking an entry touches one place in memory.
///
/// They contain a short key, with its length in the last octet, or the hash of
/// a long key and its index among the long keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CachedKey([u64; 3]);

impl CachedKey {
    /// Stores the key that `octets` has from `start` to its end, if it is short.
    ///
    /// It takes the octets as a vector, to append zeros: reading three whole words is faster than
    /// any loop.
    #[inline]
    pub(crate) fn short(octets: &mut Vec<u8>, start: usize) -> Option<Self> {
        let end = octets.len();
        if end - start > SHORT_MAX {
            return None;
        }
        // Three whole words can be read from anywhere, also at the end of the key.
        octets.extend_from_slice(&[0; 24]);
        let mut held = [0, 1, 2].map(|place| word(&octets[start + 8 * place..][..8]));
        // A short key leaves the last octet free.
        held[2] |= ((end - start) as u64) << 56;
        octets.truncate(end);
        Some(Self(held))
    }

    /// Stores a long key by its index among the long ones.
    pub(crate) fn long(key: &[u8], start: usize) -> Self {
        Self([
            hash_long(key),
            // An index and a length of 32 bits each: long keys of a cache never have more together.
            start as u64 | (key.len() as u64) << 32,
            LONG << 56,
        ])
    }

    /// Whether it is this long key.
    pub(crate) fn is_long(&self, hash: u64, key: &[u8], long_keys: &[u8]) -> bool {
        // The hash first, which nearly always tells different keys apart.
        self.0[2] == LONG << 56 && self.0[0] == hash && self.octets(long_keys, &mut [0; 24]) == key
    }

    /// The hash of a key. Nothing stored depends on it, so it may change.
    #[inline]
    pub(crate) fn hash(self) -> u64 {
        let [first, second, third] = self.0;
        match self.0[2] >> 56 {
            LONG => first,
            _ => finish(mix(mix(mix(0, first), second), third)),
        }
    }

    /// The octets of a key, short or long; `buffer` is used for short ones.
    pub(crate) fn octets<'a>(&self, long_keys: &'a [u8], buffer: &'a mut [u8; 24]) -> &'a [u8] {
        match self.0[2] >> 56 {
            LONG => {
                let (start, length) = (self.0[1] as u32 as usize, (self.0[1] >> 32) as usize);
                &long_keys[start..start + length]
            }
            length => {
                for (octets, word) in buffer.chunks_exact_mut(8).zip(self.0) {
                    octets.copy_from_slice(&word.to_le_bytes());
                }
                &buffer[..length as usize]
            }
        }
    }
}

/// The hash of a long key.
pub(crate) fn hash_long(key: &[u8]) -> u64 {
    let words = key.chunks_exact(8);
    let rest = words.remainder();
    let hash = words.fold(key.len() as u64, |hash, octets| mix(hash, word(octets)));
    finish(
        rest.iter()
            .fold(hash, |hash, octet| mix(hash, u64::from(*octet))),
    )
}

/// A word of eight octets.
#[inline]
pub(crate) fn word(octets: &[u8]) -> u64 {
    u64::from_le_bytes(octets.try_into().expect("a word has eight octets"))
}

#[inline]
fn mix(hash: u64, word: u64) -> u64 {
    // A multiplier from the golden ratio spreads close numbers; the shift brings high bits down.
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

/// If addresses have 32 bits, the table takes its bits from both ends of the lower half.
#[inline]
fn finish(hash: u64) -> u64 {
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_keys_differ_as_keys_do_and_give_them_back() {
        let mut long_keys = Vec::new();
        let mut all = std::collections::HashMap::new();
        for length in 0..60_usize {
            for last in [0_u8, 1, 255] {
                let mut key = vec![b'x'; length];
                if let Some(octet) = key.last_mut() {
                    *octet = last;
                }
                let mut octets = [b"name".as_slice(), &key].concat();
                let held = CachedKey::short(&mut octets, 4).unwrap_or_else(|| {
                    long_keys.extend_from_slice(&key);
                    CachedKey::long(&key, long_keys.len() - key.len())
                });
                assert_eq!(octets.len(), 4 + length);
                assert_eq!(held.octets(&long_keys, &mut [0; 24]), key);
                let before = all.insert(held.hash(), key.clone()).unwrap_or(key.clone());
                assert_eq!(before, key, "such few keys have different hashes");
            }
        }
    }
}
