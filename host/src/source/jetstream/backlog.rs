//! Whether the stream may hold events for a reader that were not sent yet, and so may be removed
//! before the reader sees them.

/// What is known of it. A reader for which the server filters relies on this: while it has nothing
/// unsent, the server sends it each event soon after it is stored, so that a jump over sequences
/// skips only messages for others. Of streams that may remove an event before that, all is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backlog {
    is_behind: bool,
}

impl Backlog {
    /// At the creation of a consumer that has this many matching events.
    pub(super) fn new(pending: u64) -> Self {
        // Events that were there before the consumer are sent one after the other, not at once.
        Self {
            is_behind: pending > 0,
        }
    }

    /// Whether events may be unsent.
    pub(super) fn is_behind(self) -> bool {
        self.is_behind
    }

    /// An event arrived, with the number of matching ones after it. `requested` events may still
    /// arrive: without an open request, new events wait in the stream.
    pub(super) fn arrived(&mut self, pending: u64, requested: u64) {
        // Without an open request, the next event has to wait in the stream.
        self.is_behind = pending > 0 || requested == 0;
    }

    pub(super) fn request_ended(&mut self, requested: u64) {
        // It stays behind until a heartbeat or an event shows otherwise.
        self.is_behind |= requested == 0;
    }

    /// Nothing is unsent up to the position, as the server said.
    pub(super) fn caught_up(&mut self, requested: u64) {
        self.is_behind = requested == 0;
    }

    /// An idle consumer says how far it has looked; returns whether that is beyond the position.
    pub(super) fn heartbeat(&mut self, looked_through: u64, position: u64, requested: u64) -> bool {
        // The consumer has looked at exactly what was read, so nothing lies in between.
        if looked_through == position {
            self.caught_up(requested);
        }
        // A replica that lags may not have examined what we have read, and so proves nothing.
        looked_through > position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_that_ends_with_its_request_may_leave_events_in_the_stream() {
        let mut backlog = Backlog::new(0);
        backlog.arrived(0, 1);
        assert!(!backlog.is_behind(), "another one would be sent");
        backlog.arrived(0, 0);
        assert!(
            backlog.is_behind(),
            "another one would wait for the next request"
        );
        // The next request alone proves nothing: something may have come and gone in between.
        backlog.request_ended(5_000);
        assert!(backlog.is_behind());
        backlog.caught_up(5_000);
        assert!(!backlog.is_behind());
        backlog.request_ended(0);
        assert!(backlog.is_behind(), "the last request is over");
    }

    #[test]
    fn what_is_pending_is_unsent_until_it_arrived() {
        let mut backlog = Backlog::new(2);
        assert!(backlog.is_behind());
        backlog.arrived(1, 10);
        assert!(backlog.is_behind());
        backlog.arrived(0, 9);
        assert!(!backlog.is_behind());
    }

    #[test]
    fn a_heartbeat_from_behind_the_position_proves_nothing() {
        for pending in [0, 1] {
            let mut backlog = Backlog::new(pending);
            assert!(!backlog.heartbeat(9, 10, 100), "it claims nothing");
            assert_eq!(backlog, Backlog::new(pending), "and changes nothing");
        }
        let mut backlog = Backlog::new(1);
        assert!(backlog.heartbeat(11, 10, 100), "a claim, which is checked");
        assert!(backlog.is_behind(), "until it is confirmed");
        assert!(!backlog.heartbeat(10, 10, 100));
        assert!(!backlog.is_behind(), "all was looked through");
        assert!(!backlog.heartbeat(10, 10, 0));
        assert!(
            backlog.is_behind(),
            "but without a request, the next one waits"
        );
    }
}
