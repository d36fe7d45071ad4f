//! The leash of a mute fold: the position that the owner of the deployment's effects has durably
//! reached.
//!
//! A mute fold never passes it. So when the fold becomes the owner, the owner before it has decided
//! about every event that the fold has applied, and no effect falls between the two: not if the
//! owner has stopped at an event that it cannot apply, and not if a crash takes it back to its
//! last commit.

use tokio::sync::watch;

use super::Ceiling;
use crate::batch::Batch;

/// The leash of a fold that may go as far as there are events.
pub const NO_LEASH: u64 = u64::MAX;

/// How far a fold may go.
#[derive(Clone, Debug)]
pub struct Leash(watch::Receiver<u64>);

impl Leash {
    /// A leash whose end moves.
    pub fn new(end: watch::Receiver<u64>) -> Self {
        Self(end)
    }

    /// None.
    pub fn none() -> Self {
        // The sender is dropped at once: the value stays, and `moved` never comes.
        Self(watch::Sender::new(NO_LEASH).subscribe())
    }

    /// Whether nothing more may be applied.
    pub(super) fn is_at_end(&self, position: u64) -> bool {
        position >= *self.0.borrow()
    }

    /// Splits off the part of a batch beyond the end.
    pub(super) fn cut(&self, batch: Batch) -> (Option<Batch>, Option<Batch>) {
        Ceiling::Position(*self.0.borrow()).cut(batch)
    }

    /// Waits until the end has moved. Cancel-safe.
    pub(super) async fn moved(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody is left who could move it.
            std::future::pending::<()>().await;
        }
    }
}
