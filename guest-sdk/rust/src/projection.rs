//! The trait that a projection implements, and one running instance of it.

use crate::event::{Event, Payload};
use crate::failure::{Failure, QueryError};
use crate::manifest::Manifest;
use crate::state::State;
use crate::timer::Fired;

/// Folds events into a read model.
///
/// The result may depend on the events only: not on batch boundaries, restarts,
/// the clock or randomness. So keep everything in tables and nothing in other
/// fields; the host may replace an instance between any two batches.
pub trait Projection: Sized + 'static {
    /// What the projection is and needs. The host asks for it once, when the projection is
    /// deployed.
    fn manifest() -> Manifest<Self>;

    /// Opens the tables. Called when an instance starts, and for each query.
    fn open(state: &State) -> Self;

    /// Applies one event to the tables.
    ///
    /// An error drops what the event wrote; the events before it are kept.
    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure>;

    /// Handles a timer; only handlers have any.
    #[doc(hidden)]
    fn fire(&mut self, timer: &Fired<'_>) -> Result<(), Failure> {
        let _ = timer;
        Ok(())
    }

    /// Reads ahead what a batch will need, with [`Table::prefetch`](crate::Table::prefetch).
    /// Optional.
    ///
    /// It is worth it if most events touch keys that were not used before, and
    /// if the keys can be determined without decoding the data, for example
    /// from a token of the subject.
    fn prefetch(&self, events: &[Event<'_>]) {
        let _ = events;
    }
}

/// A projection with its state: answers the calls of the host.
pub(crate) struct Instance<P> {
    projection: P,
    state: State,
}

impl<P: Projection> Instance<P> {
    pub(crate) fn open(state: State) -> Self {
        Self {
            projection: P::open(&state),
            state,
        }
    }

    /// Applies a batch, or returns the index of the event at which it failed.
    pub(crate) fn apply(&mut self, events: &[Event<'_>]) -> Result<(), (u32, Failure)> {
        self.projection.prefetch(events);
        for (index, event) in (0..).zip(events) {
            // Tables note it with each change, to blame an event for a value that cannot be
            // written.
            self.state.shared.event.set(index);
            self.projection
                .apply(event)
                .map_err(|failure| (index, failure))?;
        }
        // Once for all events: a value that many of them change is encoded once.
        self.state.finish_batch()
    }

    pub(crate) fn query(&self, name: &str, arguments: Payload<'_>) -> Result<String, QueryError> {
        P::manifest().answer(&self.projection, name, arguments)
    }

    /// Handles timers, or returns the index of the one at which it failed.
    pub(crate) fn fire<'a>(
        &mut self,
        timers: impl IntoIterator<Item = Fired<'a>>,
    ) -> Result<(), (u32, Failure)> {
        // Timers have indexes like events; nothing is read ahead for them.
        for (index, timer) in (0..).zip(timers) {
            self.state.shared.event.set(index);
            self.projection
                .fire(&timer)
                .map_err(|failure| (index, failure))?;
        }
        self.state.finish_batch()
    }
}
