//! Whether the server that holds a reader's consumer has kept up with the stream.
//!
//! In a cluster, that server may lag behind the leader of the stream. It never delivers an event
//! that was removed before it got there, and to a reader for which it filters, the sequence of that
//! event looks like one of a message for others. So such a reader trusts its consumer only if it
//! was shown lately that the consumer has looked through all that the leader had stored.

use std::time::{Duration, Instant};

/// How long a proof counts. An event that exists for longer is never passed over unnoticed; a
/// shorter time would take a busy server for one that lags.
const PROOF_LIFE: Duration = Duration::from_secs(5);

/// What is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Currency {
    /// Whether the stream has several replicas; a single one can't lag behind itself.
    is_replicated: bool,
    /// When the leader led the stream of which the consumer has reached the end since.
    proved: Option<Instant>,
    /// When it did so before the earliest later answer, and the end of the stream in that, which
    /// the consumer has not reached.
    open: Option<(Instant, u64)>,
}

impl Currency {
    /// That of the consumer of a stream that one server holds.
    pub(super) fn alone() -> Self {
        Self {
            is_replicated: false,
            proved: None,
            open: None,
        }
    }

    /// At the creation of a consumer of a stream with several replicas; nothing is proved.
    pub(super) fn unproved() -> Self {
        Self {
            is_replicated: true,
            ..Self::alone()
        }
    }

    /// Whether it has to be proved again and again.
    pub(super) fn needs_proof(self) -> bool {
        self.is_replicated
    }

    /// A server that led the stream at this time said later where the stream ends; a reader is at
    /// this position.
    pub(super) fn stream_ends(&mut self, led: Instant, end: u64, position: u64) {
        // An older answer that is still open stays: only it can prove what was stored so long ago.
        self.open.get_or_insert((led, end));
        self.reached(position);
    }

    /// The consumer has looked through everything up to a position.
    pub(super) fn reached(&mut self, position: u64) {
        // As of that time, not of the answer: the stream may have grown in between.
        if let Some((led, _)) = self.open.take_if(|(_, end)| *end <= position) {
            self.proved = Some(led);
        }
    }

    /// Whether the consumer had everything that was stored a short while before this time.
    pub(super) fn is_proved(self, now: Instant) -> bool {
        // One replica needs no proof.
        let is_fresh = |proved: Instant| now.saturating_duration_since(proved) <= PROOF_LIFE;
        !self.is_replicated || self.proved.is_some_and(is_fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_single_replica_needs_no_proof() {
        let currency = Currency::alone();
        assert!(!currency.needs_proof());
        assert!(currency.is_proved(Instant::now()));
    }

    #[test]
    fn a_consumer_has_kept_up_if_it_reached_the_end_that_the_leader_named() {
        let begin = Instant::now();
        let mut currency = Currency::unproved();
        assert!(currency.needs_proof());
        assert!(!currency.is_proved(begin), "nothing is known yet");
        currency.stream_ends(begin, 10, 8);
        assert!(!currency.is_proved(begin), "9 and 10 may be on their way");
        currency.reached(9);
        assert!(!currency.is_proved(begin));
        currency.reached(10);
        assert!(currency.is_proved(begin + PROOF_LIFE));
        assert!(
            !currency.is_proved(begin + PROOF_LIFE + SECOND),
            "much may have come and gone since"
        );
        currency.stream_ends(begin + 4 * SECOND, 10, 10);
        assert!(currency.is_proved(begin + PROOF_LIFE + 4 * SECOND));
    }

    #[test]
    fn a_consumer_that_stays_behind_is_not_trusted_however_often_the_leader_is_asked() {
        let begin = Instant::now();
        let mut currency = Currency::unproved();
        currency.stream_ends(begin, 10, 10);
        for second in 1..20 {
            let now = begin + second * SECOND;
            currency.stream_ends(now, 20 + u64::from(second), 15);
            assert_eq!(currency.is_proved(now), now <= begin + PROOF_LIFE);
        }
        // What proves it is the time of the leader, not that of the answer.
        currency.reached(21);
        assert!(!currency.is_proved(begin + 20 * SECOND));
    }
}
