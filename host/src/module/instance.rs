//! The instances that run a module: they apply batches, fire timers and answer queries.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::Store;
use wasmtime::component::Func;

use super::bindings::{Events, Failure, FailureKind, Fired, PayloadCopy, PayloadRef, QueryFailure};
use super::causes::Causes;
use super::chosen::Chosen;
use super::outbox::Handling;
use super::output::clipped;
use super::places::Permit;
use super::sandbox::{Access, Host};
use super::ticker::TICK;
use super::{ApplyError, Checking, KeyRule, MESSAGE_BYTES_MAX, QueryError};
use crate::event::{Event, Payload};
use crate::state;
use crate::subject::Pattern;
use crate::timers::{Firing, Timer, What};

pub(super) type ApplyResult = Result<(), Failure>;
pub(super) type QueryResult = Result<PayloadCopy, QueryFailure>;

/// One running instance.
pub struct Instance {
    pub(super) store: Store<Host>,
    pub(super) apply: Func,
    pub(super) query: Func,
    /// Only of a handler.
    pub(super) on_timer: Option<Func>,
    pub(super) deadline_ticks: u64,
    pub(super) with_headers: bool,
    /// Only of a handler.
    pub(super) handles: Option<Handles>,
    /// What it checks before the guest sees it, and before a message counts.
    pub(super) checks: Option<Checking>,
    /// A call failed: the guest's memory no longer matches the state.
    pub(super) spent: bool,
    /// After the store, so that the next user of the place finds the memories of this one free.
    pub(super) _permit: Permit,
}

/// What the messages of a handler need of its manifest.
pub(super) struct Handles {
    pub(super) rule: KeyRule,
    pub(super) publishes: Arc<[Pattern]>,
    /// The subject of firings, if it sets timers.
    pub(super) firings: Option<String>,
}

impl fmt::Debug for Instance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Instance")
            .field("host", self.store.data())
            .field("spent", &self.spent)
            .finish()
    }
}

impl Instance {
    /// How many instructions it may still execute; none if its engine does not count them.
    pub fn fuel(&self) -> Option<u64> {
        self.store.get_fuel().ok()
    }

    /// The same instance, which checks events.
    pub(crate) fn checking(mut self, checks: Option<Checking>) -> Self {
        self.checks = checks;
        self
    }

    /// Applies events to the state behind `writer`, and returns the writer. After an error the
    /// instance is not used again.
    pub fn apply(
        &mut self,
        events: &[Event],
        writer: state::Writer,
    ) -> (state::Writer, Result<(), ApplyError>) {
        if self.spent {
            let error =
                "the instance failed before and was used again; create another one".to_owned();
            return (writer, Err(ApplyError::Trap(error)));
        }
        let (writer, result) = if events.iter().any(|event| self.is_firing(event)) {
            self.apply_in_turns(events, writer)
        } else {
            self.apply_events(Chosen::all(events), writer)
        };
        // After any error, also a shortage: the guest may have stopped in the middle of a change of
        // its own memory, which is not rolled back as the state is.
        self.spent = result.is_err();
        (writer, result)
    }

    /// Applies the events with these indices, in order. Only of projections, whose events are never
    /// firings.
    pub(crate) fn apply_picked(
        &mut self,
        events: &[Event],
        picked: &[u32],
        writer: state::Writer,
    ) -> (state::Writer, Result<(), ApplyError>) {
        debug_assert!(self.handles.is_none() && !self.spent, "see above");
        let (writer, result) = self.apply_events(Chosen::picked(events, picked), writer);
        self.spent = result.is_err();
        (writer, result)
    }

    /// Whether an event of its own fires a timer. Subjects under `_fs` belong to the host, so the
    /// subject is enough to tell.
    fn is_firing(&self, event: &Event) -> bool {
        let handles = self.handles.as_ref();
        let firings = handles.and_then(|handles| handles.firings.as_ref());
        firings.is_some_and(|firings| *event.subject == **firings)
    }

    /// Applies events and firings in their order. Timers fire one by one, as what one does may
    /// cancel the next.
    fn apply_in_turns(
        &mut self,
        events: &[Event],
        mut writer: state::Writer,
    ) -> (state::Writer, Result<(), ApplyError>) {
        let mut done = 0;
        while done < events.len() {
            let result;
            let end = if self.is_firing(&events[done]) {
                (writer, result) = self.fire(&events[done], writer);
                done + 1
            } else {
                let end = events[done..]
                    .iter()
                    .position(|event| self.is_firing(event))
                    .map_or(events.len(), |count| done + count);
                let events = Chosen::all(&events[done..end]);
                (writer, result) = self.apply_events(events, writer);
                end
            };
            if let Err(error) = result {
                // The index of a blamed event counts within its call; the caller counts within the
                // batch.
                return (writer, Err(error.after(done)));
            }
            done = end;
        }
        (writer, Ok(()))
    }

    /// Fires the timer that a firing names, if it is due.
    fn fire(
        &mut self,
        event: &Event,
        mut writer: state::Writer,
    ) -> (state::Writer, Result<(), ApplyError>) {
        let Some(firing) = Firing::of(event) else {
            // Nonsense under this subject fires nothing, on every replay.
            return (writer, Ok(()));
        };
        let timer = match writer.fire_timer(&firing, event.time_ns) {
            Ok(Some(timer)) => timer,
            // Cancelled, or set to a later time, since the firing was appended. Replays decide the
            // same.
            Ok(None) => return (writer, Ok(())),
            Err(state::Error::Busy(shortage)) => return (writer, Err(ApplyError::Busy(shortage))),
            Err(state::Error::Limit { limit, message }) => {
                return (writer, Err(ApplyError::Limit { limit, message }));
            }
            Err(error) => return (writer, Err(ApplyError::State(error))),
        };
        if firing.what == What::Drop {
            return (writer, Ok(()));
        }
        // The guest's time is that of the firing in the log, never that of the machine.
        self.store.data().clock.advance(event.time_ns);
        let result =
            self.call_on_timer(&firing.name, &timer, event, Access::Apply(Box::new(writer)));
        self.ended(result, 1)
    }

    fn call_on_timer(
        &mut self,
        name: &str,
        timer: &Timer,
        event: &Event,
        access: Access,
    ) -> wasmtime::Result<ApplyResult> {
        let on_timer = self
            .on_timer
            .as_ref()
            .expect("a handler that sets timers has it")
            .typed::<(&[Fired<'_>],), (ApplyResult,)>(&self.store)?;
        self.store.set_epoch_deadline(self.deadline_ticks);
        self.store.data_mut().begin_call(access);
        if let Some(Handles { publishes, .. }) = &self.handles {
            // Messages continue the trace of the event that set the timer, whose headers the timer
            // keeps.
            let mut cause = event.clone();
            cause.headers = timer
                .headers
                .iter()
                .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
                .collect();
            self.store.data_mut().handling = Some(Handling {
                causes: Causes::of_timer(cause, timer.clone()),
                publishes: Arc::clone(publishes),
                sets_timers: true,
                checks: self.checks.clone(),
            });
        }
        let fired = Fired {
            name,
            at_ns: timer.at_ns,
            fired_ns: event.time_ns,
            sequence: event.sequence,
            key: timer.key.as_deref(),
        };
        let (result,) = on_timer.call(&mut self.store, (&[fired],))?;
        Ok(result)
    }

    /// Applies events in one call.
    fn apply_events(
        &mut self,
        events: Chosen<'_>,
        writer: state::Writer,
    ) -> (state::Writer, Result<(), ApplyError>) {
        if let Some(Err(invalid)) = self.checks.as_ref().map(|checks| checks.check(events)) {
            return (writer, Err(invalid));
        }
        if let Some(last) = events.last() {
            // A call has one time, that of its last event; each event carries its own as well.
            self.store.data().clock.advance(last.time_ns);
        }
        let result = self.call_apply(events, Access::Apply(Box::new(writer)));
        self.ended(result, events.len())
    }

    /// Takes the state back after a call about this many events or timers.
    fn ended(
        &mut self,
        result: wasmtime::Result<ApplyResult>,
        count: usize,
    ) -> (state::Writer, Result<(), ApplyError>) {
        let Access::Apply(writer) = self.store.data_mut().end_call() else {
            unreachable!("host functions put the state back that they took");
        };
        let result = match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => {
                // What a guest without memory says of an event may be due to its memory.
                let doubted = self.store.data().doubted(&message(&failure.message));
                Err(doubted.unwrap_or_else(|| failed_event(&failure, count)))
            }
            Err(error) => Err(self.store.data().explain(error)),
        };
        (*writer, result)
    }

    fn call_apply(&mut self, events: Chosen<'_>, access: Access) -> wasmtime::Result<ApplyResult> {
        // Linking found this type; checking it again costs little compared with a batch.
        let apply = self
            .apply
            .typed::<(Events<'_>,), (ApplyResult,)>(&self.store)?;
        self.store.set_epoch_deadline(self.deadline_ticks);
        self.store.data_mut().begin_call(access);
        if let Some(Handles {
            rule,
            publishes,
            firings,
        }) = &self.handles
        {
            let causes = Causes::new(events.whole(), rule.clone());
            self.store.data_mut().handling = Some(Handling {
                causes,
                publishes: Arc::clone(publishes),
                sets_timers: firings.is_some(),
                checks: self.checks.clone(),
            });
        }
        let (result,) = apply.call(
            &mut self.store,
            (Events {
                events,
                with_headers: self.with_headers,
            },),
        )?;
        Ok(result)
    }

    pub(super) fn query(
        &mut self,
        snapshot: state::Snapshot,
        name: &str,
        args: &Payload,
    ) -> wasmtime::Result<QueryResult> {
        let result = self.call_query(Access::Query(Box::new(snapshot)), name, args);
        self.store.data_mut().end_call();
        result
    }

    fn call_query(
        &mut self,
        access: Access,
        name: &str,
        args: &Payload,
    ) -> wasmtime::Result<QueryResult> {
        let query = self
            .query
            .typed::<(&str, PayloadRef<'_>), (QueryResult,)>(&self.store)?;
        self.store.set_epoch_deadline(self.deadline_ticks);
        self.store.data_mut().begin_call(access);
        let (result,) = query.call(&mut self.store, (name, args.into()))?;
        Ok(result)
    }

    /// Changes whenever something else needs a place for an instance, or memory.
    pub fn wanted(&self) -> tokio::sync::watch::Receiver<()> {
        self.store.data().wanted()
    }

    /// Linear memory now, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.store.data().growth.memory_bytes as u64
    }
}

/// The epochs after which a call is interrupted: the current one does not count.
pub(super) fn ticks(deadline: Duration) -> u64 {
    let ticks = deadline.as_nanos().div_ceil(TICK.as_nanos());
    // Half of the range, because the engine adds the current epoch to it.
    u64::try_from(ticks).unwrap_or(u64::MAX / 2) + 1
}

fn failed_event(failure: &Failure, count: usize) -> ApplyError {
    let index = failure.index as usize;
    let message = message(&failure.message);
    // Nothing can be done to an event that is not there: the fault is the module's, not an event's.
    if index >= count {
        return ApplyError::Trap(format!(
            "the module blamed event {index} of a batch of {count} events (counted from 0): \
             {message}"
        ));
    }
    match failure.kind {
        FailureKind::Retry => ApplyError::Retry { index, message },
        FailureKind::Reject => ApplyError::Rejected { index, message },
    }
}

pub(super) fn failed(error: ApplyError) -> QueryError {
    match error {
        ApplyError::Deadline(deadline) => QueryError::Deadline(deadline),
        ApplyError::Busy(shortage) => QueryError::Short(shortage),
        other => QueryError::Failed(message(&other.to_string())),
    }
}

pub(super) fn message(text: &str) -> String {
    clipped(text, MESSAGE_BYTES_MAX).to_owned()
}
