//! Chance on the way of a batch, to prove that nothing depends on it.

/// Events that a shuffled run applies one by one, with another instance for each: a mistake that shows at all mostly shows
/// there.
pub const SINGLES: u64 = 1_000;

/// Where batches end, and after which the module loses its memory: what it remembers must not matter.
pub(super) struct Shuffle {
    random: fastrand::Rng,
    /// Events still to be applied one by one.
    singles: u64,
}

impl Shuffle {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), singles: SINGLES }
    }

    /// How many events of so many go into a batch.
    pub(super) fn count(&mut self, events: usize) -> usize {
        if self.singles > 0 { 1 } else { self.random.usize(1..=events.max(1)) }
    }

    /// Whether the module begins again after a batch of so many events.
    pub(super) fn restarts_after(&mut self, events: usize) -> bool {
        let is_single = self.singles > 0;
        self.singles = self.singles.saturating_sub(events as u64);
        events > 0 && (is_single || self.random.bool())
    }
}
