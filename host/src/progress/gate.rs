//! Decides from which position reads are answered: never from an earlier position than clients saw,
//! no matter which process showed it.

use super::{DeploymentState, Now, Progress};
use crate::failure::Failure;

impl Progress {
    /// The position from which reads are answered; none while unknown.
    pub fn answers_from(&self) -> Option<u64> {
        let now = &self.inner.lock().now;
        // None until the stream was reached: what an earlier process showed is not known before
        // that.
        now.catches_up_to.map(|position| position.max(now.floor))
    }

    /// Clients have seen this position: reads are answered from there on, or from a later position.
    pub fn note_shown(&self, position: u64) {
        let now = &mut self.inner.lock().now;
        // It only rises: several reads may report their positions in any order.
        now.floor = now.floor.max(position);
    }

    /// This generation replaces another, of which clients saw `position` or more, at that position:
    /// whatever the other one may have shown before the process started, this one may have shown as
    /// well.
    pub fn note_predecessor(&self, before: &Now, position: u64) {
        let now = &mut self.change().now;
        now.floor = now.floor.max(before.floor).max(position);
        // If the other one never reached its stream, where it ended for this one takes its place.
        let inherited = before.catches_up_to.or(now.first_head);
        now.catches_up_to = match (now.catches_up_to, inherited) {
            (Some(own), Some(inherited)) => Some(own.max(inherited)),
            // The end of the stream decides, once it is reached.
            _ => None,
        };
    }

    /// It stopped at an event that nothing passes, so readers cannot have seen anything beyond.
    /// Reads are answered from now on, unless clients are known to have seen more.
    pub fn note_nothing_shown(&self) {
        self.change().now.catches_up_to = Some(0);
    }
}

impl Now {
    /// Whether the latest requested module has begun to fold.
    pub fn has_started(&self) -> bool {
        self.starts > 0 && !self.awaits_start
    }

    /// The event that fails, if there is one.
    pub fn failing_at(&self) -> Option<u64> {
        self.failure.as_ref().and_then(|failure| failure.sequence)
    }

    /// Whether the stream does not have what the state was built from: its end says nothing about
    /// the state.
    pub fn is_of_another_history(&self) -> bool {
        let failure = self.failure.as_ref();
        failure.is_some_and(Failure::is_of_another_history)
    }

    /// Whether it stopped, and does not continue on its own.
    pub fn has_stopped(&self) -> bool {
        self.state == DeploymentState::Failed
    }

    /// The stream was reached, and ends here.
    pub(super) fn reached(&mut self, head: u64) {
        // The first time only: what was appended after that, no reader of an earlier process saw.
        self.first_head.get_or_insert(head);
        self.catches_up_to.get_or_insert(head);
    }
}
