//! Which timers may fire now.

use std::time::{Duration, Instant};

use super::sweep::Part;
use super::{FIRINGS_MAX, LOOP_PAUSE, PART_PAUSE, PAUSE, SLEEP_MAX, UNDER_WAY_MAX, Work};
use crate::state::Due;

impl Work {
    /// What to publish now, in the order of the times, and how long to sleep if that is nothing.
    pub(super) fn ready(&mut self, part: Part, until_ns: u64) -> (Vec<(Due, u32)>, Duration) {
        let (store, subject) = (self.parts.store.clone(), self.subject.clone());
        let is_parked = |due: &Due| store.is_parked_firing(&subject, &due.name);
        let is_pending = |due: &Due| !part.covers(due) || part.has(due);
        // A parked one must not keep others from being under way.
        self.under_way
            .retain(|due, _| is_pending(due) && !is_parked(due));
        self.refused.retain(|due, _| is_pending(due));
        let folded = store.checkpoint();
        let folded = folded.map_or(0, |checkpoint| checkpoint.position);
        let mut sweep = std::mem::take(&mut self.sweep);
        let (mut ready, mut sleep) = (Vec::new(), SLEEP_MAX);
        for due in &part.timers {
            if due.at_ns > until_ns {
                sleep = sleep.min(Duration::from_nanos(due.at_ns - until_ns));
                // In order of time, so nothing after it is due.
                break;
            }
            let mut wakes = |tried: Result<u32, Duration>| {
                let note = |wait: &Duration| sleep = sleep.min(*wait);
                tried.inspect_err(note).ok()
            };
            let under_way = self.under_way.len() + ready.len();
            // A loop of timers must not fill the stream.
            if due.depth >= store.timers_in_a_row_max() {
                let attempt = || wakes(self.attempt(due, folded, under_way));
                self.turns.offer(&mut sweep, due, attempt);
                continue;
            }
            // The others follow in the next round.
            if ready.len() < FIRINGS_MAX {
                let attempt = wakes(self.attempt(due, folded, under_way));
                ready.extend(attempt.map(|attempt| (due.clone(), attempt)));
            }
        }
        if part.is_cut {
            sweep.after = part.timers.last().cloned();
            self.sweep = sweep;
            return (ready, sleep.min(PART_PAUSE));
        }
        // All of them have been offered the turn.
        if sweep.has_turn() {
            let waited = self.looped_at.map(|at| at.elapsed());
            if let Some(waited) = waited.filter(|waited| *waited < LOOP_PAUSE) {
                sleep = sleep.min(LOOP_PAUSE - waited);
            } else if let Some(turn) = self.turns.take(&mut sweep) {
                let place = ready.partition_point(|(due, _)| *due < turn.0);
                ready.insert(place, turn);
                self.looped_at = Some(Instant::now());
            }
        }
        (ready, sleep)
    }

    /// How often a timer that is due was tried, if it may fire now, or how long it waits at most.
    fn attempt(&self, due: &Due, folded: u64, under_way: usize) -> Result<u32, Duration> {
        let attempt = match self.under_way.get(due) {
            // A fold that is behind would only get a longer queue.
            None if under_way >= UNDER_WAY_MAX => return Err(SLEEP_MAX),
            // One whose firing is parked fires when its key is retried.
            None if self.parts.store.is_parked_firing(&self.subject, &due.name) => {
                return Err(SLEEP_MAX);
            }
            None => 0,
            // Not folded yet: it has to be met first.
            Some(published) if published.sequence > folded => return Err(SLEEP_MAX),
            // The fold ignored it: by the clock of the stream it came too early.
            Some(published) => {
                has_waited(published.attempt, published.at)?;
                published.attempt + 1
            }
        };
        if let Some(refused) = self.refused.get(due) {
            has_waited(refused.attempt, refused.at)?;
        }
        Ok(attempt)
    }
}

/// Whether the pause is over after an attempt at a time; if not, how much of it is left.
fn has_waited(attempt: u32, at: Instant) -> Result<(), Duration> {
    match pause_after(attempt).checked_sub(at.elapsed()) {
        None | Some(Duration::ZERO) => Ok(()),
        Some(left) => Err(left),
    }
}

/// How long to wait before a timer fires again whose firing was ignored.
fn pause_after(attempt: u32) -> Duration {
    PAUSE
        .0
        .saturating_mul(2_u32.saturating_pow(attempt))
        .min(PAUSE.1)
}
