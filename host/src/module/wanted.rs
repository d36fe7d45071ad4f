//! Whether anybody still waits for a check or a compilation.

use std::convert::Infallible;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, never};

/// Held by who waits for a piece of work; the work is given up when this is dropped.
#[derive(Debug)]
pub struct Waiting(#[expect(dead_code, reason = "dropping it is the message")] Sender<Infallible>);

/// Tells a piece of work whether its result is still wanted.
#[derive(Clone, Debug)]
pub struct Wanted(Receiver<Infallible>);

impl Wanted {
    /// The result is wanted in any case.
    pub fn always() -> Self {
        Self(never())
    }

    /// The result is wanted as long as somebody holds the other half.
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
