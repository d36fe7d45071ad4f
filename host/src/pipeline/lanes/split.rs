//! Which lane gets an event: that of its key, always the same one.

use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::LazyLock;

use foldhash::fast::RandomState;
use rayon::ThreadPool;

use crate::event::Event;
use crate::module::KeyRule;

/// The lane of each event, for at most 256 lanes. The keys are found on all threads: a key inside the
/// data costs as much as some modules take for the event.
pub(super) fn split(events: &[Event], rule: &KeyRule, lanes: usize, pool: &ThreadPool) -> Vec<u8> {
    let mut places = vec![0; events.len()];
    let size = events.len().div_ceil(lanes).max(1);
    let mut parts = events.chunks(size).zip(places.chunks_mut(size));
    let first = parts.next();
    let place = |(events, places): (&[Event], &mut [u8])| {
        for (event, place) in events.iter().zip(places) {
            *place = lane_of(rule, event, lanes);
        }
    };
    pool.in_place_scope(|scope| {
        for part in parts {
            scope.spawn(move |_| place(part));
        }
        first.map(place);
    });
    places
}

/// The lane of an event. Events without a key share one.
fn lane_of(rule: &KeyRule, event: &Event, lanes: usize) -> u8 {
    // Seeded by chance: keys come from events, and nobody may choose many for one lane.
    static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::default);
    let hash = rule.with_key(event, |key| {
        let mut hasher = SEED.build_hasher();
        hasher.write(key.unwrap_or_default().as_bytes());
        hasher.finish()
    });
    // The upper half, of which every bit depends on all of the key.
    ((hash >> 32) % lanes as u64) as u8
}
