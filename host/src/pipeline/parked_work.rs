//! Requests to change what is parked: retries, dry runs, drops and records. They are carried out
//! while the pipeline is held with everything durable.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::applier::Fault;
use super::recording::describe_fault;
use super::{Ended, Run};
use crate::bundle::{Bundle, EVENTS_BYTES_MAX, Failed};
use crate::event::Event;
use crate::failure::FailureClass;
use crate::module::ApplyError;
use crate::state::exceptions::{Exception, Skip};
use crate::state::{self, Parked, ParkedFailure, Replaced, Store, Writer};

/// Most events of a parked key that are applied at once.
const RETRY_EVENTS: usize = 256;
/// How long one request may apply parked events: the pipeline is held meanwhile.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Most entries whose change one dry run shows.
const CHANGES_MAX: usize = 100;

/// A request to change what is parked.
#[derive(Clone, Debug)]
pub enum ParkedWork {
    /// Apply the events of these keys, in order.
    Retry {
        /// The keys.
        keys: Vec<String>,
        /// Only find out what would happen.
        dry_run: bool,
    },
    /// Record how the events of a key fail, without applying them.
    Record {
        /// The key.
        key: String,
    },
    /// Leave out events for good.
    Drop {
        /// The keys, and how many events of each, from its first one on.
        parts: Vec<(String, usize)>,
        /// The operator's reason.
        reason: String,
    },
}

impl ParkedWork {
    /// Whether it needs a fold, but changes nothing.
    fn is_trial(&self) -> bool {
        match self {
            Self::Record { .. } => true,
            Self::Retry { dry_run, .. } => *dry_run,
            Self::Drop { .. } => false,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct ParkedOutcome {
    /// Events that are no longer parked.
    pub events: u64,
    /// Keys without parked events.
    pub keys: u64,
    /// Keys that failed again, with the error.
    pub failed: Vec<(String, String)>,
    /// Why keys were not tried; none if all were.
    pub unfinished: Option<String>,
    /// Of a dry run: the first entries that would change.
    pub changes: Vec<Replaced>,
    /// How many more would change.
    pub more_changes: u64,
    /// How many messages would be published.
    pub effects: u64,
    /// The record that was asked for.
    pub recorded: Option<Box<Bundle>>,
}

/// Why nothing came of it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ParkedWorkError {
    /// There is no pipeline to apply events.
    #[error(
        "the deployment is paused or has stopped, so nothing can be applied; `foldstream resume` \
         first"
    )]
    NotRunning,
    /// The state failed, and is reopened at its last checkpoint.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The state was closed before anything was done.
    #[error("the state was closed meanwhile; try again")]
    Closed,
    /// The pipeline did not answer in time.
    #[error("the deployment was busy for too long; try again")]
    Late,
}

type Answer = Result<ParkedOutcome, ParkedWorkError>;

/// The request that waits for the thread that owns the state.
#[derive(Debug, Default)]
pub struct ParkedRequests(Mutex<Option<(ParkedWork, oneshot::Sender<Answer>)>>);

impl ParkedRequests {
    /// Requests work. The returned channel closes without an answer if the state is closed before,
    /// or if another request takes its place.
    pub fn hand_over(&self, work: ParkedWork) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        // The one before, if any, is dropped, and its requester gets a closed channel.
        *self.0.lock() = Some((work, answer));
        receiver
    }

    /// Withdraws a request that has not begun; returns whether there was one.
    pub fn withdraw(&self) -> bool {
        self.0.lock().take().is_some()
    }

    /// Whether a request waits.
    pub(super) fn is_waiting(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Whether a request waits that changes nothing: it is carried out while no pipeline runs, too.
    pub fn is_trial_waiting(&self) -> bool {
        self.0
            .lock()
            .as_ref()
            .is_some_and(|(work, _)| work.is_trial())
    }

    /// Answers that nothing can be applied.
    pub fn decline(&self) {
        if let Some((_, answer)) = self.take() {
            drop(answer.send(Err(ParkedWorkError::NotRunning)));
        }
    }

    /// The request, unless the requester no longer waits.
    fn take(&self) -> Option<(ParkedWork, oneshot::Sender<Answer>)> {
        self.0
            .lock()
            .take()
            .filter(|(_, answer)| !answer.is_closed())
    }

    /// Does what can be done without a fold while no pipeline runs, leaves what changes nothing, and
    /// declines the rest. After an error the state must be reopened.
    pub fn serve_resting(&self, writer: &mut Writer, store: &Store) -> Result<(), state::Error> {
        // For the caller, who may have a module to make a fold of.
        if self.is_trial_waiting() {
            return Ok(());
        }
        let Some((work, answer)) = self.take() else {
            return Ok(());
        };
        match work {
            ParkedWork::Retry { .. } | ParkedWork::Record { .. } => {
                drop(answer.send(Err(ParkedWorkError::NotRunning)));
            }
            ParkedWork::Drop { parts, reason } => {
                let dropped = drop_parked(writer, store, &parts, &reason);
                let _ = answer.send(answer_of(&dropped));
                dropped?;
            }
        }
        Ok(())
    }
}

fn answer_of(done: &Result<ParkedOutcome, state::Error>) -> Answer {
    Ok(done.clone()?)
}

/// The decision to leave out a parked event.
pub fn decision(parked: &Parked, reason: &str) -> Skip {
    let Parked { event, failure, .. } = parked;
    let error = failure
        .as_ref()
        .map(|failure| format!("{}: {}", failure.kind, failure.message));
    Skip::new(event.sequence, reason, error, Some(event))
}

/// Leaves out parked events of a key for good, in one step, like skipped ones. Timers of firings
/// among them are pending no more.
fn leave_out<'a>(
    writer: &mut Writer,
    key: &str,
    decided: impl Iterator<Item = (&'a Event, Exception)>,
) {
    writer.begin();
    let (mut exceptions, mut firings) = (BTreeMap::new(), Vec::new());
    for (event, exception) in decided {
        writer.unpark(key, event.sequence);
        exceptions.insert(event.sequence, exception);
        if super::firings::leave_out(writer, event) {
            firings.push(event.sequence);
        }
    }
    // For a fold that repeats this state: timers depend on what was applied before.
    if !firings.is_empty() {
        writer.drop_firings(key, firings);
    }
    writer.publish_in_place(exceptions);
}

/// Leaves out parked events for good, durably. They become exceptions of the state, like skipped
/// ones.
fn drop_parked(
    writer: &mut Writer,
    store: &Store,
    parts: &[(String, usize)],
    reason: &str,
) -> Result<ParkedOutcome, state::Error> {
    let mut outcome = ParkedOutcome::default();
    for (key, count) in parts {
        let (mut left, mut first) = (*count, None);
        while left > 0 {
            // In portions, because a key may have more events than fit into memory.
            let parked = store.parked_events(key, left.min(RETRY_EVENTS))?;
            let decided = parked.iter().map(|parked| {
                let event = &parked.event;
                let exception = match first {
                    Some(first) => Exception::dropped_behind(first, event),
                    None => Exception::skipped(&decision(parked, reason), Some(event)),
                };
                first.get_or_insert(event.sequence);
                (event, exception)
            });
            leave_out(writer, key, decided);
            outcome.events += parked.len() as u64;
            left = if parked.is_empty() {
                0
            } else {
                left - parked.len()
            };
        }
        outcome.keys += u64::from(!store.is_parked(key));
    }
    // Once for all keys: the answer is given after it.
    store.flush()?;
    Ok(outcome)
}

/// How trying a key ended.
enum Tried {
    /// All its events are applied.
    Done,
    /// The first one that is left failed.
    Failed(String),
    /// There was no time or no instance for it.
    NotNow(String),
}

fn used_up() -> String {
    format!(
        "{} s were used up; continue with another request",
        RETRY_MAX.as_secs()
    )
}

impl Run {
    /// Carries out a request to change what is parked. The pipeline is held, and everything is
    /// durable.
    pub(super) fn serve_parked(&mut self) -> Result<(), Ended> {
        // Other code may be about to take over, and the request may be for that code.
        if *self.control.borrow() != self.wanted {
            return Ok(());
        }
        let Some((work, answer)) = self.parked.take() else {
            return Ok(());
        };
        let done = match work {
            ParkedWork::Retry { keys, dry_run } if dry_run => self.try_parked(&keys),
            ParkedWork::Retry { keys, .. } => self.retry_parked(&keys),
            ParkedWork::Record { key } => self.record_key(&key),
            ParkedWork::Drop { parts, reason } => {
                drop_parked(self.applier.writer(), &self.store, &parts, &reason)
            }
        };
        // The instance may remember what it read before.
        self.applier.fold = None;
        // The requester may have stopped waiting.
        let _ = answer.send(answer_of(&done));
        done.map(drop).map_err(Ended::State)
    }

    fn retry_parked(&mut self, keys: &[String]) -> Result<ParkedOutcome, state::Error> {
        let (mut outcome, begun) = (ParkedOutcome::default(), Instant::now());
        // What an instance kept of other events is not to be the cause of another failure.
        self.applier.fold = None;
        for key in keys {
            match self.retry_key(key, begun, &mut outcome.events)? {
                Tried::Done => outcome.keys += 1,
                Tried::Failed(error) => outcome.failed.push((key.clone(), error)),
                Tried::NotNow(why) => {
                    outcome.unfinished = Some(why);
                    break;
                }
            }
        }
        // Also what a key applied before it failed.
        self.store.flush()?;
        Ok(outcome)
    }

    /// Applies the events of a key in order until one fails. Those before it stay applied.
    fn retry_key(
        &mut self,
        key: &str,
        begun: Instant,
        events_done: &mut u64,
    ) -> Result<Tried, state::Error> {
        // The event that failed comes first, alone, and then twice as many each time: one call may
        // take all the time of a request, so each request must get on by at least one event, and by
        // half of those before the next one that hangs.
        let mut portion = 1;
        loop {
            let parked = self.store.parked_events(key, portion)?;
            if parked.is_empty() {
                return Ok(Tried::Done);
            }
            // Asked between portions, so a request takes at most one call longer.
            if begun.elapsed() > RETRY_MAX {
                return Ok(Tried::NotNow(used_up()));
            }
            if self.drop_decided(key, &parked) {
                continue;
            }
            // As for events that are not parked: their messages would wait without a limit.
            if self.store.is_outbox_full() {
                return Ok(Tried::NotNow(
                    "as many messages wait to be published as its outbox takes; try again once \
                     they have left (`foldstream show` says what keeps them)"
                        .to_owned(),
                ));
            }
            let events: Vec<Event> = parked.iter().map(|parked| parked.event.clone()).collect();
            let sequences = events.iter().map(|event| event.sequence).collect();
            // Noted in the same step: a fold that repeats this state needs it.
            self.applier.writer().release(key, sequences);
            let (error, on_used) = match self.applier.apply(&events) {
                Ok(_) => {
                    self.released(key, &events);
                    *events_done += events.len() as u64;
                    portion = (portion * 2).min(RETRY_EVENTS);
                    continue;
                }
                Err(Fault::NoInstance(error)) => return Ok(Tried::NotNow(error.to_string())),
                Err(Fault::Call {
                    error: ApplyError::State(error),
                    ..
                }) => return Err(error),
                Err(Fault::Call {
                    // A lack of the host is no failure of the key.
                    error: error @ (ApplyError::Busy(_) | ApplyError::Host(_)),
                    ..
                }) => {
                    return Ok(Tried::NotNow(error.to_string()));
                }
                Err(Fault::Call { error, on_used, .. }) => (error, on_used),
            };
            self.applier.metrics.apply_failed(error.class());
            let failing = match &error {
                ApplyError::Retry { index, .. }
                | ApplyError::Rejected { index, .. }
                | ApplyError::Invalid { index, .. } => (*index).min(events.len() - 1),
                // Unknown: halve until it is alone.
                _ if events.len() > 1 => events.len() / 2,
                _ => 0,
            };
            // What is before it can be applied; itself alone next.
            portion = failing.max(1);
            // On a used instance the cause may be what it kept, so it gets one more attempt.
            if failing == 0 && !on_used {
                return Ok(Tried::Failed(self.failed_again(&parked[0], &error)));
            }
        }
    }

    /// Drops events that an operator decided to leave out, if a crash came before their drop.
    fn drop_decided(&mut self, key: &str, parked: &[Parked]) -> bool {
        let skips = &self.applier.skips;
        let events = parked.iter().map(|parked| &parked.event);
        let decided: Vec<_> = events
            .filter_map(|event| Some((event, skips.exception(event)?)))
            .collect();
        if decided.is_empty() {
            return false;
        }
        leave_out(self.applier.writer(), key, decided.into_iter());
        true
    }

    /// Publishes what parked events wrote, and removes them in the same step.
    pub(super) fn released(&mut self, key: &str, events: &[Event]) {
        let writer = self.applier.writer();
        events
            .iter()
            .for_each(|event| writer.unpark(key, event.sequence));
        writer.publish_in_place(BTreeMap::new());
    }

    /// Finds out what a retry would do.
    fn try_parked(&mut self, keys: &[String]) -> Result<ParkedOutcome, state::Error> {
        let (mut outcome, begun) = (ParkedOutcome::default(), Instant::now());
        for key in keys {
            let parked = self.store.parked_events(key, RETRY_EVENTS)?;
            let events: Vec<Event> = parked.into_iter().map(|parked| parked.event).collect();
            match self.try_key(&events, begun, &mut outcome)? {
                Tried::Done if self.store.parked_events_of(key) > events.len() as u64 => {
                    let tried = events.len();
                    outcome.unfinished = Some(format!(
                        "of `{key}` only the first {tried} events were tried"
                    ));
                }
                Tried::Done => outcome.keys += 1,
                Tried::Failed(error) => outcome.failed.push((key.clone(), error)),
                Tried::NotNow(why) => {
                    outcome.unfinished = Some(why);
                    break;
                }
            }
        }
        Ok(outcome)
    }

    /// Counts how many of these events could be applied.
    fn try_key(
        &mut self,
        events: &[Event],
        begun: Instant,
        outcome: &mut ParkedOutcome,
    ) -> Result<Tried, state::Error> {
        // `sound` events can be applied, `failing` can't.
        let (mut sound, mut failing, mut error) = (0, events.len() + 1, None);
        let mut best = None;
        while failing - sound > 1 && begun.elapsed() <= RETRY_MAX {
            let count = match error {
                // The one that failed first, alone, and then all of them.
                None if sound == 0 => 1,
                None => events.len(),
                Some(_) => sound + (failing - sound) / 2,
            };
            let tried = self.applier.try_out(&events[..count])?;
            match tried.result {
                Ok(()) => {
                    sound = count;
                    best = Some(tried);
                }
                Err(fault) => {
                    let (why, index) = describe_fault(&fault);
                    // The guest may name any index; the search must get smaller in each round.
                    failing = index.map_or(count, |index| (index + 1).clamp(sound + 1, count));
                    error = Some(why);
                }
            }
        }
        outcome.events += sound as u64;
        if let Some(tried) = best {
            let room = CHANGES_MAX.saturating_sub(outcome.changes.len());
            outcome.more_changes += tried.changes.len().saturating_sub(room) as u64;
            outcome.changes.extend(tried.changes.into_iter().take(room));
            outcome.effects += tried.effects;
        }
        Ok(match error {
            _ if failing - sound > 1 => Tried::NotNow(used_up()),
            Some(error) => Tried::Failed(error),
            None => Tried::Done,
        })
    }

    /// Records how the events of a key fail, and what they read.
    fn record_key(&mut self, key: &str) -> Result<ParkedOutcome, state::Error> {
        let parked = self.store.parked_events(key, RETRY_EVENTS)?;
        let events: Vec<Event> = parked.iter().map(|parked| parked.event.clone()).collect();
        let Some(first) = parked.first() else {
            return Ok(ParkedOutcome::default());
        };
        let tried = self.applier.try_out(&events[..1])?;
        let mut notes = Vec::new();
        let failure = match &tried.result {
            Err(Fault::Call { error, .. }) => Some(Failed {
                sequence: first.event.sequence,
                kind: error.kind().to_owned(),
                class: error.class().map(|class| class.name().to_owned()),
                message: error.to_string(),
                first_at: None,
            }),
            Err(Fault::NoInstance(error)) => {
                notes.push(format!("there was no instance to try the event: {error}"));
                None
            }
            Ok(()) => {
                notes.push("the first event can be applied now; retry the key".to_owned());
                None
            }
        };
        let mut traced = tried.traced;
        if events.len() > 1 {
            // For a replay with a corrected module, which continues with the others.
            let others = self.applier.try_out(&events[1..])?;
            let calls = traced.calls.clone();
            traced.extend(others.traced);
            // What the first event called for is the failure; calls of later ones are not part of
            // it.
            traced.calls = calls;
        }
        let store = self.store.clone();
        let mut bundle = self.applier.bundle(failure, &events, &traced, &store);
        bundle.notes.extend(notes);
        let left = store.parked_events_of(key) - bundle.events.len() as u64;
        if left > 0 {
            bundle.notes.push(format!(
                "{left} later events of the key are not in it: a bundle has at most {RETRY_EVENTS} \
                 events, and {} MiB of them",
                EVENTS_BYTES_MAX >> 20
            ));
            bundle.is_cut = true;
        }
        Ok(ParkedOutcome {
            recorded: Some(Box::new(bundle)),
            ..ParkedOutcome::default()
        })
    }

    /// Records that a parked event failed once more; returns the error.
    fn failed_again(&mut self, parked: &Parked, error: &ApplyError) -> String {
        let message = error.to_string();
        // An error without a class is one of the module all the same.
        let class = error.class().unwrap_or(FailureClass::Trap);
        let module = &self.applier.parking.module;
        let mut failure = ParkedFailure::new((error.kind(), class), &message, 1, module);
        // A call that took as long as it may is not made once more: the pipeline is held.
        if class != FailureClass::Deadline
            && let Ok(tried) = self.applier.try_out(std::slice::from_ref(&parked.event))
        {
            failure = failure.with_reads(&tried.traced);
        }
        if let Some(before) = &parked.failure {
            // The count continues over retries, and the time of the first failure stays.
            failure.attempts = before.attempts.saturating_add(1);
            failure.first_at.clone_from(&before.first_at);
            failure.number = before.number;
        }
        let writer = self.applier.writer();
        writer.begin();
        writer.park(Parked {
            failure: Some(failure),
            ..parked.clone()
        });
        writer.publish_in_place(BTreeMap::new());
        message
    }
}
