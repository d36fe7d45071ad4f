//! Sorting keys that lie anywhere in memory.
//!
//! A comparison of two keys reads both, each from another place in memory. So this sort reads a few
//! octets of each key once, sorts these, and reads on only in keys that are equal so far.

/// Octets of a key that are compared at once.
const WINDOW: usize = 7;
/// A key has more octets than its window.
const MORE: u64 = WINDOW as u64 + 1;
/// Up to this many keys are compared one by one.
const FEW: usize = 8;

struct Item {
    window: u64,
    place: u32,
}

/// The places from 0 up to `count`, in the order of the octets of their keys, which all differ.
pub(super) fn sorted<'k>(count: usize, key: impl Fn(u32) -> &'k str) -> Vec<u32> {
    let key = |place| key(place).as_bytes();
    let mut items: Vec<Item> = (0..count as u32)
        .map(|place| Item { window: 0, place })
        .collect();
    sort(&mut items, &key, 0);
    items.into_iter().map(|item| item.place).collect()
}

/// Sorts keys that are equal before `from`, and as long as that.
fn sort<'k>(items: &mut [Item], key: &impl Fn(u32) -> &'k [u8], from: usize) {
    if items.len() <= FEW {
        items.sort_unstable_by(|one, other| key(one.place)[from..].cmp(&key(other.place)[from..]));
        return;
    }
    for item in &mut *items {
        item.window = window(&key(item.place)[from..]);
    }
    items.sort_unstable_by_key(|item| item.window);
    for run in items.chunk_by_mut(|one, other| one.window == other.window) {
        // Keys that end in the same window would be one key.
        if run.len() > 1 && run[0].window & 0xff == MORE {
            sort(run, key, from + WINDOW);
        }
    }
}

/// The first octets, and how many there are: so a key comes before those that continue it, even with
/// octets that are 0.
fn window(rest: &[u8]) -> u64 {
    let mut window = [0; 8];
    let length = rest.len().min(WINDOW);
    window[..length].copy_from_slice(&rest[..length]);
    window[WINDOW] = rest.len().min(WINDOW + 1) as u8;
    u64::from_be_bytes(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_the_order_of_their_octets() {
        let mut chance = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let alphabet = ["\0", "a", "b", "\u{e9}", "customer/", "z"];
            let mut keys: Vec<String> = (0..chance.usize(..300))
                .map(|_| {
                    (0..chance.usize(..12))
                        .map(|_| alphabet[chance.usize(..alphabet.len())])
                        .collect()
                })
                .collect();
            keys.sort();
            keys.dedup();
            let expected = keys.clone();
            chance.shuffle(&mut keys);
            let sorted = sorted(keys.len(), |place| &keys[place as usize]);
            let found: Vec<&String> = sorted.iter().map(|place| &keys[*place as usize]).collect();
            assert!(found.into_iter().eq(&expected));
        }
    }
}
