//! The trait that a handler implements.

use crate::effects::Effects;
use crate::event::Event;
use crate::failure::{Failure, MigrateError};
use crate::manifest::{Manifest, Query};
use crate::migrate::{Migrate, NewEntries, OldEntry};
use crate::projection::Projection;
use crate::state::State;
use crate::timer::Fired;

/// Folds events into tables, as a [`Projection`] does, and publishes messages.
///
/// What it writes and publishes may depend on the events only: not on batch boundaries, restarts,
/// the clock or randomness. The host then sends each message once, whatever happens in between.
pub trait Handler: Sized + 'static {
    /// What the handler is and needs; [`Manifest::publishes`] declares its subjects.
    fn manifest() -> Manifest<Self>;

    /// Opens the tables. Called when an instance starts, and for each query.
    fn open(state: &State) -> Self;

    /// Handles one event.
    ///
    /// An error drops what the event wrote and published; the events before it are kept.
    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure>;

    /// Handles a timer that fires, set with [`Effects::set_timer`].
    ///
    /// Firings have a place among the events, so the same rules apply: the result may depend on
    /// what was handled before, and on the timer, and on nothing else.
    fn on_timer(&mut self, timer: &Fired<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let _ = effects;
        Err(Failure::reject(format!(
            "timer {} fired, and this handler has no `on_timer`",
            timer.name()
        )))
    }
}

/// A handler as a projection that also publishes: what the host calls.
#[doc(hidden)]
pub struct Handling<H> {
    handler: H,
    state: State,
}

impl<H: Handler> Projection for Handling<H> {
    fn manifest() -> Manifest<Self> {
        let Manifest {
            name,
            description,
            subjects,
            publishes,
            timers,
            wants_headers,
            key_rule,
            state_version,
            attempts,
            initial_backoff_ms,
            max_backoff_ms,
            memory_bytes,
            deadline_ms,
            batch_events,
            state_bytes,
            queries,
            inbox,
        } = H::manifest();
        let adapted = |query: Query<H>| {
            let Query {
                name,
                description,
                answer,
            } = query;
            let answer = Box::new(move |handling: &Self, arguments: crate::Payload<'_>| {
                answer(&handling.handler, arguments)
            });
            Query {
                name,
                description,
                answer: answer as _,
            }
        };
        Manifest {
            // Everything but the queries is the same; they only reach through to the handler.
            name,
            description,
            subjects,
            publishes,
            timers,
            wants_headers,
            key_rule,
            state_version,
            attempts,
            initial_backoff_ms,
            max_backoff_ms,
            memory_bytes,
            deadline_ms,
            batch_events,
            state_bytes,
            queries: queries.into_iter().map(adapted).collect(),
            inbox,
        }
    }

    fn open(state: &State) -> Self {
        Self {
            handler: H::open(state),
            state: state.clone(),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let mut effects = Effects::default();
        // Passed on after success only: a failed event has no effects.
        self.handler.handle(event, &mut effects)?;
        self.pass_on(effects);
        Ok(())
    }

    fn fire(&mut self, timer: &Fired<'_>) -> Result<(), Failure> {
        let mut effects = Effects::default();
        self.handler.on_timer(timer, &mut effects)?;
        self.pass_on(effects);
        Ok(())
    }
}

impl<H: Handler> Handling<H> {
    fn pass_on(&self, effects: Effects) {
        let Effects { messages, timers } = effects;
        // The host finds the event by its index in the batch, which it knows itself.
        let cause = self.state.shared.event.get();
        if !messages.is_empty() {
            #[cfg(target_arch = "wasm32")]
            crate::host::publish(cause, &messages);
            #[cfg(not(target_arch = "wasm32"))]
            self.state.shared.backend.publish(cause, messages);
        }
        if !timers.is_empty() {
            #[cfg(target_arch = "wasm32")]
            crate::host::change_timers(cause, &timers);
            #[cfg(not(target_arch = "wasm32"))]
            self.state.shared.backend.change_timers(timers);
        }
    }
}

impl<H: Handler + Migrate> Migrate for Handling<H> {
    fn migrate(
        from_version: u32,
        old: &OldEntry<'_>,
        new: &mut NewEntries,
    ) -> Result<(), MigrateError> {
        H::migrate(from_version, old, new)
    }
}
