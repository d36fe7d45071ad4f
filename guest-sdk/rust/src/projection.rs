//! The trait that a projection implements, and one running instance of it.

use crate::event::{Event, Payload};
use crate::failure::{Failure, QueryError};
use crate::manifest::Manifest;
use crate::state::State;

/// Folds events into a read model.
///
/// The result may depend on the events alone: not on where one batch ends and
/// the next begins, not on restarts, the clock or chance. So keep everything
/// in tables and nothing in other fields; an instance may be replaced between
/// any two batches.
pub trait Projection: Sized + 'static {
    /// What the projection is and needs. Asked for once, when it is deployed.
    fn manifest() -> Manifest<Self>;

    /// Opens the tables. Called when an instance starts, and for each query.
    fn open(state: &State) -> Self;

    /// Applies one event to the tables.
    ///
    /// An error drops what the event wrote; the events before it are kept.
    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure>;

    /// Reads ahead what a batch will need, with [`Table::prefetch`](crate::Table::prefetch). Nothing need be done.
    ///
    /// It pays where most events touch keys that were not used before, and
    /// where the keys can be told without decoding the data, as from a token
    /// of the subject.
    fn prefetch(&self, events: &[Event<'_>]) {
        let _ = events;
    }
}

/// A projection with its state: what answers the calls of the host.
pub(crate) struct Instance<P> {
    projection: P,
    state: State,
}

impl<P: Projection> Instance<P> {
    pub(crate) fn open(state: State) -> Self {
        Self { projection: P::open(&state), state }
    }

    /// Applies a batch, or names the index of the event at which it failed.
    pub(crate) fn apply(&mut self, events: &[Event<'_>]) -> Result<(), (u32, Failure)> {
        self.projection.prefetch(events);
        for (index, event) in (0..).zip(events) {
            self.state.shared.event.set(index);
            self.projection.apply(event).map_err(|failure| (index, failure))?;
        }
        self.state.finish_batch()
    }

    pub(crate) fn query(&self, name: &str, arguments: Payload<'_>) -> Result<String, QueryError> {
        P::manifest().answer(&self.projection, name, arguments)
    }
}
