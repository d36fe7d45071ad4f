//! From where on reads are answered: never from before what clients saw, whichever process showed it.

use super::{Now, Progress};
use crate::api::DeploymentState;

impl Progress {
    /// The position from which on reads are answered; none while it is not known.
    pub fn answers_from(&self) -> Option<u64> {
        let now = &self.inner.lock().now;
        now.catches_up_to.map(|position| position.max(now.floor))
    }

    /// Clients have seen this position: reads are answered from there on, if not from a later one.
    pub fn shown(&self, position: u64) {
        let now = &mut self.inner.lock().now;
        now.floor = now.floor.max(position);
    }

    /// It takes the place of another, of which clients saw `position` or more, at that position: what the other one may
    /// have shown before the process started, it may have shown as well.
    pub fn succeeds(&self, before: &Now, position: u64) {
        let now = &mut self.inner.lock().now;
        now.floor = now.floor.max(before.floor).max(position);
        let inherited = before.catches_up_to.or(now.first_head);
        now.catches_up_to = match (now.catches_up_to, inherited) {
            (Some(own), Some(inherited)) => Some(own.max(inherited)),
            // The end of the stream tells, once it is reached.
            _ => None,
        };
    }

    /// It stands at an event that nothing passes: nothing beyond can have been shown. Reads are answered from now on, unless
    /// clients are known to have seen more.
    pub fn answers_now(&self) {
        self.inner.lock().now.catches_up_to = Some(0);
    }
}

impl Now {
    /// Whether the module that was asked for last began to fold.
    pub fn has_started(&self) -> bool {
        self.starts > 0 && !self.awaits_start
    }

    /// The event at which it fails, if it is at one.
    pub fn failing_at(&self) -> Option<u64> {
        self.failure.as_ref().and_then(|failure| failure.sequence)
    }

    /// Whether it stopped, and does not go on by itself.
    pub fn has_stopped(&self) -> bool {
        self.state == DeploymentState::Failed
    }

    /// The stream was reached, and ends here.
    pub(super) fn reached(&mut self, head: u64) {
        self.first_head.get_or_insert(head);
        self.catches_up_to.get_or_insert(head);
    }
}
