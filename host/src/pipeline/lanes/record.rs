//! What became of the batches that were split, and when the next one may be.
//!
//! It outlives the folds of one run of a pipeline: a failure makes another fold, which must not
//! begin to try from the start.

use std::collections::BTreeSet;
use std::time::Duration;

use parking_lot::Mutex;

use super::Cause;
use crate::state::Key;

/// Large batches in a row before one is split: entering and leaving lanes costs instances.
const PATIENCE: (u32, u32) = (2, 64);
/// Batches split in a row, without trouble, after which earlier trouble is forgotten.
const GOOD_RUN: u32 = 16;
/// Split batches that are remembered, and how many of them may collide. Each one that does was folded
/// twice; with more than an eighth of them, lanes gain little on two cores.
const REMEMBERED: u32 = 32;
const COLLISIONS_MAX: u32 = 4;
/// Keys of collisions that are kept to be shown.
const KEYS_MAX: usize = 5;

/// What became of the batches that were split.
#[derive(Debug, Default)]
pub struct Record {
    /// Name of the deployment, for the log.
    deployment: String,
    inner: Mutex<Collisions>,
}

#[derive(Debug)]
struct Collisions {
    /// The last split batches, a bit for each that collided; the newest is the lowest.
    recent: u32,
    /// Large batches in a row that were not split.
    waited: u32,
    /// Large batches in a row that a split waits for, and the fewest and most of them.
    patience: u32,
    patience_bounds: (u32, u32),
    /// Collisions among the remembered batches that are not too many.
    collisions_max: u32,
    /// Batches split in a row.
    run: u32,
    figures: Figures,
}

/// What is shown of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Batches whose parts were folded at once, and published.
    pub split: u64,
    /// The time in which lanes worked at once.
    pub at_once: Duration,
    /// Batches that were folded again serially, because lanes touched the same entries.
    pub collided: u64,
    /// Batches that were folded again serially for another reason.
    pub failed: u64,
    /// Some keys that lanes had in common.
    pub keys: BTreeSet<Key>,
    /// Too many batches collided: nothing is split any more.
    pub gave_up: bool,
}

/// Whether lanes are worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BatchSize {
    /// Too few events.
    Small,
    Large,
}

impl Default for Collisions {
    fn default() -> Self {
        Self {
            recent: 0,
            waited: 0,
            patience: PATIENCE.0,
            patience_bounds: PATIENCE,
            collisions_max: COLLISIONS_MAX,
            run: 0,
            figures: Figures::default(),
        }
    }
}

impl Record {
    /// One that splits each large batch, whatever became of others.
    #[cfg(test)]
    pub(in crate::pipeline) fn impatient() -> Self {
        Self {
            deployment: String::new(),
            inner: Mutex::new(Collisions {
                patience: 1,
                patience_bounds: (1, 1),
                collisions_max: REMEMBERED,
                ..Collisions::default()
            }),
        }
    }

    /// One without batches.
    pub fn new(deployment: &str) -> Self {
        Self {
            deployment: deployment.to_owned(),
            inner: Mutex::default(),
        }
    }

    /// What became of the batches so far.
    pub fn figures(&self) -> Figures {
        self.inner.lock().figures.clone()
    }

    /// Whether the next batch may be split.
    pub(super) fn is_due(&self, size: BatchSize) -> bool {
        let inner = &mut *self.inner.lock();
        if size == BatchSize::Small || inner.figures.gave_up {
            inner.waited = 0;
            // The next one begins with other instances.
            inner.run = 0;
            return false;
        }
        inner.waited = inner.waited.saturating_add(1);
        inner.waited >= inner.patience
    }

    /// A batch was split, and its parts are published; lanes worked at once for this long.
    pub(super) fn note_split(&self, at_once: Duration) {
        let inner = &mut *self.inner.lock();
        inner.figures.split += 1;
        inner.figures.at_once += at_once;
        inner.recent <<= 1;
        inner.run += 1;
        if inner.run >= GOOD_RUN {
            inner.patience = inner.patience_bounds.0;
        }
    }

    /// A batch was split, and is folded again serially.
    pub(super) fn note_fallback(&self, cause: &Cause) {
        let inner = &mut *self.inner.lock();
        inner.run = 0;
        inner.waited = 0;
        // Whatever it was, it may come again soon.
        inner.patience = (inner.patience * 2).min(inner.patience_bounds.1);
        match cause {
            Cause::Failed => {
                inner.figures.failed += 1;
                return;
            }
            Cause::TooMuch => {}
            Cause::Collision(key) if inner.figures.keys.len() < KEYS_MAX => {
                inner.figures.keys.insert(Key::clone(key));
            }
            Cause::Collision(_) => {}
        }
        inner.figures.collided += 1;
        inner.recent = inner.recent << 1 | 1;
        if inner.recent.count_ones() > inner.collisions_max {
            inner.figures.gave_up = true;
            tracing::warn!(
                deployment = self.deployment,
                collided = inner.figures.collided,
                keys = ?inner.figures.keys,
                "lanes touch the same entries; folding in one lane"
            );
        }
    }
}

const _: () = assert!(REMEMBERED == u32::BITS, "one bit for each");

#[cfg(test)]
mod tests {
    use super::*;

    fn collision(key: &str) -> Cause {
        Cause::Collision(Key::from(key))
    }

    #[test]
    fn small_batches_and_trouble_delay_the_next_split() {
        let record = Record::default();
        assert!(!record.is_due(BatchSize::Large), "the first one");
        assert!(
            !record.is_due(BatchSize::Small),
            "a small one starts the count again"
        );
        assert!(!record.is_due(BatchSize::Large));
        assert!(record.is_due(BatchSize::Large));
        record.note_fallback(&Cause::Failed);
        let until_due = || (1..).find(|_| record.is_due(BatchSize::Large));
        assert_eq!(until_due(), Some(4));
        record.note_fallback(&collision("a"));
        assert_eq!(until_due(), Some(8));
        for _ in 0..10 {
            record.note_fallback(&Cause::Failed);
        }
        assert_eq!(until_due(), Some(64), "but not for ever");
        (0..GOOD_RUN).for_each(|_| record.note_split(Duration::ZERO));
        assert!(record.is_due(BatchSize::Large));
        record.note_fallback(&Cause::Failed);
        assert_eq!(until_due(), Some(4));
        assert_eq!(record.figures().failed, 12);
    }

    #[test]
    fn the_fifth_collision_of_thirty_two_batches_ends_lanes() {
        let record = Record::default();
        for _ in 0..10 {
            for number in 0..4 {
                record.note_fallback(&collision(&number.to_string()));
            }
            (0..REMEMBERED).for_each(|_| record.note_split(Duration::ZERO));
        }
        assert!(!record.figures().gave_up, "an eighth is allowed");
        for number in 0..5 {
            assert!(!record.figures().gave_up);
            record.note_fallback(&collision(&format!("more {number}")));
        }
        let figures = record.figures();
        assert!(
            figures.gave_up && figures.keys.len() == KEYS_MAX,
            "{figures:?}"
        );
        assert!((0..100).all(|_| !record.is_due(BatchSize::Large)));
    }
}
