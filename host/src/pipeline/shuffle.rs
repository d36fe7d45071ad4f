//! Random batch boundaries and restarts, to prove that the result does not depend on them.

/// Events that a shuffled run applies one by one, each in a new instance: most mistakes that show
/// at all show here.
pub const SINGLES: u64 = 1_000;

/// Chooses batch boundaries, and the batches after which the module gets a new instance: what it
/// remembers must not matter.
pub(super) struct Shuffle {
    random: fastrand::Rng,
    /// Events still to apply one by one.
    singles: u64,
}

impl Shuffle {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            singles: SINGLES,
        }
    }

    /// How many of this many events go into a batch.
    pub(super) fn count(&mut self, events: usize) -> usize {
        if self.singles > 0 {
            1
        } else {
            // At least one, so that the batch is not empty.
            self.random.usize(1..=events.max(1))
        }
    }

    /// Whether the module gets a new instance after a batch of this many events.
    pub(super) fn restarts_after(&mut self, events: usize) -> bool {
        let is_single = self.singles > 0;
        // Counts applied events; at 0 the random part begins.
        self.singles = self.singles.saturating_sub(events as u64);
        events > 0 && (is_single || self.random.bool())
    }
}
