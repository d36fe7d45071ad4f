//! How much a reader requests at a time from a server that cuts it off.
//!
//! A server closes the connection of a client for which more waits than its setting `max_pending`
//! allows, and does not tell the client why. So if connections are lost while events arrive, the
//! reader requests half as much at a time after each loss. After a while without one it requests
//! more again; the while doubles with each loss, until requests of full size went well for an hour.

use std::time::{Duration, Instant};

/// How often the size of a request may be halved: from 4 MiB to 16 KiB, which every server lets
/// through that takes events of usual size.
const HALVINGS_MAX: u32 = 8;
/// How long it lasts, without a loss, until requests may be twice as large again.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));
/// Losses before the operator hears of them: a single one is normal.
const LOSSES_SHOWN: u32 = 3;

/// How much to request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Appetite {
    /// How often the size was halved, as of the last loss.
    halvings: u32,
    /// Losses since requests were of full size.
    losses: u32,
    lost_at: Option<Instant>,
    patience: Duration,
}

impl Default for Appetite {
    fn default() -> Self {
        Self {
            halvings: 0,
            losses: 0,
            lost_at: None,
            patience: PATIENCE.0,
        }
    }
}

impl Appetite {
    /// The connection was lost while events arrived.
    pub(super) fn lost(&mut self, now: Instant) {
        let (halvings, calm) = (self.halvings_at(now), self.calm(now));
        if halvings == 0 {
            // All of it was fine for a while.
            self.losses = 0;
        }
        if calm > self.patience * self.halvings + PATIENCE.1 {
            // Requests of full size went well for long, so this loss is like a first one.
            self.patience = PATIENCE.0;
        } else if self.halvings > halvings {
            // A server that cut it off again when it requested more: it tries that less often.
            self.patience = (self.patience * 2).min(PATIENCE.1);
        }
        self.halvings = (halvings + 1).min(HALVINGS_MAX);
        self.losses = self.losses.saturating_add(1);
        self.lost_at = Some(now);
    }

    /// The size of a request, in bytes, that would otherwise have this many.
    pub(super) fn of(&self, bytes: u64, now: Instant) -> u64 {
        (bytes >> self.halvings_at(now)).max(1)
    }

    /// What the losses are probably due to, once there were several.
    pub(super) fn explanation(&self, bytes: u64, now: Instant) -> Option<String> {
        (self.losses >= LOSSES_SHOWN).then(|| {
            format!(
                "the connection was lost {} times while events arrived; perhaps the server's \
                 max_pending is too small for what is requested at once: raise it; from now on at \
                 most {} bytes are requested at once",
                self.losses,
                self.of(bytes, now)
            )
        })
    }

    /// Whether this loss is the first of which the operator hears.
    pub(super) fn is_worth_a_warning(&self) -> bool {
        self.losses == LOSSES_SHOWN
    }

    /// How long ago the last loss was.
    fn calm(&self, now: Instant) -> Duration {
        self.lost_at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    fn halvings_at(&self, now: Instant) -> u32 {
        let recovered = self.calm(now).as_secs() / self.patience.as_secs().max(1);
        self.halvings
            .saturating_sub(u32::try_from(recovered).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_shrink_with_each_loss_and_recover_slowly_and_more_slowly_after_another() {
        let (mut now, mut appetite) = (Instant::now(), Appetite::default());
        let most = 4 << 20;
        assert_eq!(appetite.of(most, now), most);
        appetite.lost(now);
        assert_eq!(appetite.of(most, now), most / 2);
        assert_eq!(appetite.explanation(most, now), None, "one is normal");
        (0..2).for_each(|_| appetite.lost(now));
        let told = appetite.explanation(most, now).expect("three are not");
        assert!(
            told.contains("max_pending") && told.contains("524288"),
            "{told}"
        );
        now += PATIENCE.0;
        assert_eq!(appetite.of(most, now), most / 4);
        appetite.lost(now);
        assert_eq!(appetite.of(most, now), most / 8);
        now += PATIENCE.0;
        assert_eq!(appetite.of(most, now), most / 8, "it waits for longer");
        now += PATIENCE.0;
        assert_eq!(appetite.of(most, now), most / 4);
        (0..20).for_each(|_| appetite.lost(now));
        assert_eq!(appetite.of(most, now), most >> HALVINGS_MAX);
        now += PATIENCE.1 * HALVINGS_MAX;
        assert_eq!(appetite.of(most, now), most);
    }

    #[test]
    fn losses_far_apart_do_not_make_it_more_patient() {
        let (mut now, mut appetite) = (Instant::now(), Appetite::default());
        let most = 4 << 20;
        for _ in 0..10 {
            now += PATIENCE.1 * 3;
            appetite.lost(now);
        }
        assert_eq!(appetite.of(most, now), most / 2);
        now += PATIENCE.0;
        assert_eq!(appetite.of(most, now), most, "it recovers as after one");
        // What comes again and again still makes it so, and a long calm ends that.
        for _ in 0..10 {
            now += appetite.patience + PATIENCE.0;
            appetite.lost(now);
        }
        assert_eq!(appetite.patience, PATIENCE.1);
        now += PATIENCE.1 * 3;
        appetite.lost(now);
        assert_eq!(appetite.patience, PATIENCE.0);
    }
}
