//! Whether anybody still waits for a check or a compilation.

use std::convert::Infallible;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, never};

/// Held by the caller that waits for work; dropping it cancels the work.
#[derive(Debug)]
pub struct Waiting(#[expect(dead_code, reason = "dropping it is the message")] Sender<Infallible>);

/// Tells the worker whether its result is still wanted.
#[derive(Clone, Debug)]
pub struct Wanted(Receiver<Infallible>);

impl Wanted {
    /// The result is always wanted.
    pub fn always() -> Self {
        Self(never())
    }

    /// The result is wanted while somebody holds the other half.
    pub fn while_waiting() -> (Waiting, Self) {
        let (sender, receiver) = bounded(0);
        (Waiting(sender), Self(receiver))
    }

    /// Becomes ready when nobody waits any more; nothing is ever received.
    pub(super) fn ended(&self) -> &Receiver<Infallible> {
        &self.0
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.0.try_recv(), Err(TryRecvError::Disconnected))
    }
}
