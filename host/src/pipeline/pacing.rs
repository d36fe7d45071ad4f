//! The pace of one run: the latest change that it has seen, and where it is held.

use std::time::Instant;

use tokio::sync::watch;

use super::{Ceiling, Pace, Standing};

/// How far and how fast a run may go, and its current state.
pub(super) struct Pacing {
    pub(super) receiver: watch::Receiver<Pace>,
    pub(super) pace: Pace,
    pub(super) standing: watch::Sender<Option<Standing>>,
    pub(super) is_standing: bool,
    /// An event younger than the ceiling is waiting.
    pub(super) is_beyond: bool,
    /// Events that may match after the last batch; none before the first.
    pub(super) pending: Option<u64>,
    /// The throttle allows nothing before this time.
    pub(super) rests_until: Option<Instant>,
}

impl Pacing {
    pub(super) fn new(
        mut receiver: watch::Receiver<Pace>,
        standing: watch::Sender<Option<Standing>>,
    ) -> Self {
        let pace = *receiver.borrow_and_update();
        Self {
            receiver,
            pace,
            standing,
            is_standing: false,
            is_beyond: false,
            pending: None,
            rests_until: None,
        }
    }

    /// Sees a new pace, before anything else is applied.
    pub(super) fn change(&mut self) {
        self.pace = *self.receiver.borrow_and_update();
        self.is_beyond = false;
        // The old throttle's pause does not bind the new one.
        self.rests_until = None;
        // Taken back before the next batch, so that nobody sees a standing that moves.
        if std::mem::take(&mut self.is_standing) {
            self.standing.send_replace(None);
        }
    }

    /// Whether nothing more may be applied.
    pub(super) fn is_at_ceiling(&self, position: u64) -> bool {
        match self.pace.ceiling {
            Ceiling::None => false,
            Ceiling::Position(ceiling) => position >= ceiling,
            // By time there is no last position: an event beyond it, or the end of the stream, has
            // to show it.
            Ceiling::Time(_) => self.is_beyond || self.pending == Some(0),
        }
    }
}
