//! The applying stage: what happens to a batch, and to the failing event in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::commits::is_large;
use super::duplicates::Duplicates;
use super::ladder::{Attempt, Ladder, Step};
use super::parking::{LeftOut, Outcomes, Parking};
use super::portion::Portion;
use super::{Desired, Ended, Fold, MakeFold, Pace, Policy, Settings, firings};
use crate::batch::Batch;
use crate::bundle::Fate;
use crate::event::Event;
use crate::failure::FailureClass;
use crate::memory::memtables::Share;
use crate::metrics::DeploymentMetrics;
use crate::module::{self, ApplyError, Lack};
use crate::progress::{Alive, Cause, NextAttempt, Progress};
use crate::state::exceptions::Skips;
use crate::state::{self, ParkedFailure, Store, Writer};
use crate::storage;

/// Pause before the next request for a resource that the host lacked, such as an instance; it
/// doubles up to the maximum.
const HOST_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Tells whether something else is requested.
pub(super) struct Interrupt<'a> {
    pub(super) control: &'a watch::Receiver<Desired>,
    pub(super) wanted: Desired,
    pub(super) pace: &'a watch::Receiver<Pace>,
}

/// What else is requested.
enum Woken {
    Control,
    Pace,
}

impl Interrupt<'_> {
    /// Another request, if there is one. Does not wait.
    fn is_due(&self) -> Option<Woken> {
        if *self.control.borrow() != self.wanted {
            return Some(Woken::Control);
        }
        self.pace
            .has_changed()
            .unwrap_or(false)
            .then_some(Woken::Pace)
    }
}

/// One step: what a publish makes visible at once.
pub(super) struct PublishedStep<'a> {
    pub(super) batch: &'a Batch,
    pub(super) left_out: &'a LeftOut,
    /// The position that it reaches.
    pub(super) through: u64,
}

/// The last event of a step that was not left out.
#[derive(Clone, Copy)]
pub(super) enum Latest<'a> {
    Applied(&'a Event),
    /// It was parked instead.
    Parked(&'a Event),
}

/// How much of a batch was processed.
pub(super) enum Processed {
    /// All of it.
    All,
    /// Only up to this position: the next event failed and waits for its next attempt, or the host
    /// lacks something. Meanwhile the pipeline commits, and may be asked to hold.
    Through(u64),
}

/// What to do after a failure.
enum Next {
    /// Try this many events.
    Try(usize),
    /// First check for other requests, and wait until the next attempt is due.
    Yield,
    /// Park the first event, and continue behind it.
    Park(ParkedFailure),
}

/// Why events were not applied.
pub(super) enum Fault {
    /// A call failed after this time; the flag says whether on an instance that had applied events
    /// before.
    Call {
        error: ApplyError,
        on_used: bool,
        took: Duration,
    },
    /// There was no instance to call.
    NoInstance(module::Error),
}

/// A fold, counted while it lives.
pub(super) struct Living {
    fold: Box<dyn Fold>,
    /// It has applied events: its memory may be the cause if the next ones fail.
    is_used: bool,
    /// When it last applied events, or was made.
    used_at: Instant,
    progress: Arc<Progress>,
    _alive: Alive,
}

impl Living {
    fn new(fold: Box<dyn Fold>, progress: &Arc<Progress>) -> Self {
        Self {
            fold,
            is_used: false,
            used_at: Instant::now(),
            progress: Arc::clone(progress),
            _alive: progress.count_instance(),
        }
    }
}

impl Living {
    /// Changes whenever another fold needs an instance.
    pub(super) fn wanted(&self) -> Option<watch::Receiver<()>> {
        self.fold.wanted()
    }

    /// When it last applied events, or was made.
    pub(super) fn used_at(&self) -> Instant {
        self.used_at
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.progress.set_memory(0);
    }
}

/// The applying stage: takes a batch and publishes its writes, or says why not.
pub(super) struct Applier {
    pub(super) make_fold: MakeFold,
    pub(super) fold: Option<Living>,
    /// Present except during a call.
    pub(super) writer: Option<Writer>,
    pub(super) settings: Settings,
    pub(super) progress: Arc<Progress>,
    pub(super) metrics: DeploymentMetrics,
    /// Which events are skipped, and recorded when the state passes them.
    pub(super) skips: Skips,
    /// Recognises events that a producer published twice.
    pub(super) duplicates: Option<Duplicates>,
    /// How often the failing event is tried, and when.
    pub(super) ladder: Ladder,
    /// How many events are applied at once.
    pub(super) portion: Portion,
    /// How long to wait for the host, while it lacks something.
    pub(super) waiting: Option<Duration>,
    /// Until when to wait for the host at least.
    pub(super) host_rests_until: Option<Instant>,
    /// What the host lacked at the last attempt, if it says when it has it again.
    pub(super) lack: Option<Lack>,
    /// Why it can't continue, once it can't.
    pub(super) obstacle: Option<Obstacle>,
    /// What happens to events after their last attempt.
    pub(super) parking: Parking,
    pub(super) outcomes: Outcomes,
}

/// A batch to be applied.
pub(super) struct DueBatch<'a> {
    pub(super) batch: &'a Batch,
    /// Events that were taken out of it.
    pub(super) left_out: &'a LeftOut,
}

/// Why a pipeline can't continue without an operator.
pub(super) struct Obstacle {
    pub(super) kind: &'static str,
    /// If it could not apply events.
    pub(super) class: Option<FailureClass>,
    pub(super) message: String,
    /// The event that stopped it, if one did.
    pub(super) sequence: Option<u64>,
}

impl Applier {
    /// Leaves out duplicates among the events of a batch that are not skipped; returns the events to
    /// apply, unless that is all of those that are not skipped.
    pub(super) fn leave_out_duplicates(
        &mut self,
        events: &[Event],
        skipped: &[Event],
    ) -> Result<Option<Vec<Event>>, Ended> {
        let (Some(duplicates), Some(writer)) = (&mut self.duplicates, &self.writer) else {
            return Ok(None);
        };
        duplicates
            .leave_out(events, skipped, writer)
            .map_err(Ended::State)
    }

    /// Reports the duplicates that a state has passed.
    pub(super) fn report_duplicates(&mut self, position: u64) {
        let Some(duplicates) = &mut self.duplicates else {
            return;
        };
        let passed = duplicates.take_passed();
        if !passed.is_empty() {
            // A candidate leaves out again what the active generation has left out.
            if self.progress.serves() {
                self.metrics.events_duplicate.inc_by(passed.len() as u64);
            }
            self.progress.note_left_out(&passed, position);
        }
    }

    /// Applies a batch, in parts if an event fails, so that the events before it are kept. Events
    /// that are not applied are no longer in the batch, but left out; duplicates are in neither.
    /// Ends early if what it has applied must be committed first: events are small, and what they
    /// write or set may not be.
    pub(super) fn process(
        &mut self,
        due: &DueBatch<'_>,
        store: &Store,
        interrupt: &Interrupt<'_>,
        share: &mut Share,
    ) -> Result<Processed, Ended> {
        let DueBatch { batch, left_out } = *due;
        self.progress.note_received(batch);
        if self.ladder.attempts() == 0 && self.waiting.is_none() {
            self.metrics.batch_events.observe(batch.events.len() as f64);
        }
        let mut done = 0;
        let mut is_first = true;
        while done < batch.events.len() {
            // The search for a failing event takes many calls: other requests wait for at most one
            // of them.
            let due = if std::mem::take(&mut is_first) {
                None
            } else {
                interrupt.is_due()
            };
            match due {
                Some(Woken::Control) => return Err(Ended::Asked),
                Some(_) => return Ok(Processed::Through(store.position())),
                None => {}
            }
            let end = batch
                .events
                .len()
                .min(done.saturating_add(self.portion.next()));
            let events = &batch.events[done..end];
            match self.apply(events) {
                Ok(took) => {
                    self.portion.applied(events.len(), took);
                    let through = if end == batch.events.len() {
                        batch.through
                    } else {
                        batch.events[end - 1].sequence
                    };
                    // The state may have been advanced over events of others meanwhile.
                    let step = PublishedStep {
                        batch,
                        left_out,
                        through: through.max(store.position()),
                    };
                    self.publish(&step, events.last().map(Latest::Applied), store);
                    self.count_applied(events);
                    done = end;
                    let limit = self.settings.memtable_bytes;
                    if done < batch.events.len() && is_large(share, store, limit) {
                        return Ok(Processed::Through(store.position()));
                    }
                }
                Err(fault) => match self.after_fault(fault, events, store)? {
                    Next::Try(count) => self.portion.failed(count),
                    Next::Yield => return Ok(Processed::Through(store.position())),
                    Next::Park(failure) => {
                        done += 1;
                        let event = &batch.events[done - 1];
                        let is_last = done == batch.events.len();
                        let through = if is_last {
                            batch.through
                        } else {
                            event.sequence
                        };
                        let step = PublishedStep {
                            batch,
                            left_out,
                            through: through.max(store.position()),
                        };
                        self.park(&step, event, failure, store)?;
                        if !is_last {
                            // Later events of its key now wait behind it.
                            return Ok(Processed::Through(store.position()));
                        }
                    }
                },
            }
        }
        if batch.events.is_empty() {
            let step = PublishedStep {
                batch,
                left_out,
                through: batch.through,
            };
            self.publish(&step, None, store);
        }
        let events = left_out.events();
        if !events.is_empty() {
            self.progress.note_left_out(&events, batch.through);
        }
        self.progress.note_finished(batch);
        Ok(Processed::All)
    }

    fn count_applied(&mut self, events: &[Event]) {
        self.outcomes.applied(events.len());
        let counter = if self.progress.serves() {
            &self.metrics.events_applied
        } else {
            &self.metrics.events_rebuilt
        };
        counter.inc_by(events.len() as u64);
        self.progress.note_applied(events);
    }

    /// Applies events; returns how long the call took.
    pub(super) fn apply(&mut self, events: &[Event]) -> Result<Duration, Fault> {
        let mut living = match self.fold.take() {
            Some(living) => living,
            None => match (self.make_fold)() {
                Ok(fold) => Living::new(fold, &self.progress),
                Err(error) => {
                    // What the caller has prepared belongs to no other batch.
                    if let Some(writer) = &mut self.writer {
                        writer.discard();
                    }
                    return Err(Fault::NoInstance(error));
                }
            },
        };
        let mut writer = self
            .writer
            .take()
            .expect("the writer comes back from every call");
        // Whatever a failed call before has left is gone.
        writer.begin();
        let started = Instant::now();
        let (mut writer, mut result) = living.fold.apply(events, writer);
        let took = started.elapsed();
        self.metrics.apply_seconds.observe(took.as_secs_f64());
        // The size of the state is known only after the call.
        if result.is_ok() {
            result = writer.check_size().map_err(|error| match error {
                state::Error::Limit { limit, message } => ApplyError::Limit { limit, message },
                other => ApplyError::State(other),
            });
        }
        // The host has what it lacked, whatever came of the call.
        if self.waiting.is_some()
            && !matches!(result, Err(ApplyError::Host(_) | ApplyError::Busy(_)))
        {
            self.waiting = None;
            if self.ladder.attempts() == 0 {
                self.progress.note_recovered();
            }
        }
        // Read before the instance is kept or dropped.
        let on_used = living.is_used;
        match &result {
            Ok(()) => {
                self.progress.set_memory(living.fold.memory_bytes());
                living.is_used = true;
                living.used_at = Instant::now();
                self.fold = Some(living);
            }
            // The instance is dropped with its writes.
            Err(_) => writer.discard(),
        }
        self.writer = Some(writer);
        result.map(|()| took).map_err(|error| Fault::Call {
            error,
            on_used,
            took,
        })
    }

    /// Remembers how many events were too many at once, or that a single event fails.
    fn size_up(&mut self, error: &ApplyError, events: &[Event]) {
        let deadline = match error {
            ApplyError::Deadline(deadline) => Some(*deadline),
            ApplyError::Limit { .. } => None,
            // The number of events has nothing to do with other failures.
            _ => return,
        };
        if events.len() > 1 {
            self.portion.too_many(events.len(), deadline);
        } else {
            self.portion.one_fails();
        }
    }

    /// Publishes a step, which ends with an event, or with none if all were left out.
    pub(super) fn publish(
        &mut self,
        step: &PublishedStep<'_>,
        latest: Option<Latest<'_>>,
        store: &Store,
    ) {
        let PublishedStep {
            batch,
            left_out,
            through,
        } = *step;
        // In the same step, so that no crash separates the position from the reason why an event
        // before it is missing.
        let position = store.position();
        // Recorded with the step that passes them; the next step must not record them again.
        let passed = self.skips.passed(position, through, &left_out.skipped);
        let recognised = self
            .duplicates
            .as_mut()
            .map(|duplicates| duplicates.pass(through));
        let writer = self
            .writer
            .as_mut()
            .expect("the writer comes back from every call");
        firings::pass(writer, &left_out.skipped, position, through);
        left_out
            .queued_between(position, through)
            .for_each(|queued| writer.park(queued.clone()));
        // Parked events and duplicates prove the stream as well as one that was applied.
        let queued = left_out
            .queued_between(position, through)
            .map(|queued| &queued.event);
        let duplicate = recognised.as_ref().and_then(|passed| passed.last.as_ref());
        let met = latest.map(|(Latest::Applied(event) | Latest::Parked(event))| event);
        let proof = queued
            .chain(met)
            .chain(duplicate)
            .max_by_key(|event| event.sequence);
        let mut checkpoint = batch.checkpoint(store.published().as_ref(), proof, through);
        if let Some(recognised) = recognised {
            checkpoint.duplicates += recognised.count;
            writer.see(recognised.ids, recognised.keep);
        }
        writer.publish_with(checkpoint, passed);
        // The failing event has been applied, so its attempts are over.
        if matches!(latest, Some(Latest::Applied(_))) && self.ladder.passed() {
            self.progress.note_recovered();
        }
    }

    /// What to do after a fault: how many events to try next, or why to end.
    fn after_fault(
        &mut self,
        fault: Fault,
        events: &[Event],
        store: &Store,
    ) -> Result<Next, Ended> {
        // That of an earlier attempt, which got further this time.
        self.lack = None;
        match fault {
            Fault::NoInstance(error) if error.is_passing() => {
                let kind = if matches!(error, module::Error::Busy(_) | module::Error::Short(_)) {
                    "busy"
                } else {
                    "host"
                };
                Ok(self.wait_for_host(kind, &error.to_string(), error.lack()))
            }
            // The instance started when the module was accepted. No event is to blame.
            Fault::NoInstance(error) => self.retry(
                Attempt {
                    kind: "module",
                    class: None,
                    sequence: None,
                    message: &error.to_string(),
                },
                None,
                store,
            ),
            Fault::Call {
                error: error @ (ApplyError::Host(_) | ApplyError::Busy(_)),
                ..
            } => Ok(self.wait_for_host(error.kind(), &error.to_string(), error.lack())),
            Fault::Call {
                error,
                on_used,
                took,
            } => {
                // Time counts even if nobody is to blame: the breaker limits what failures cost.
                self.ladder.lose(took, Instant::now());
                // By class, so that an alert can tell a module at fault from a busy host.
                self.metrics.apply_failed(error.class());
                // An instance may have filled its memory with many earlier batches.
                let is_of_instance = on_used
                    && matches!(&error, ApplyError::Limit { limit, .. } if *limit == "memory-bytes");
                if !is_of_instance {
                    self.size_up(&error, events);
                }
                // The guest's own verdict counts, whatever else it holds in memory.
                if events.len() == 1
                    && on_used
                    && (error.is_repeatable() || matches!(error, ApplyError::Deadline(_)))
                {
                    // What the instance kept of earlier events may be the cause, such as memory
                    // that was never freed.
                    return Ok(Next::Try(1));
                }
                self.after_failure(error, events, store)
            }
        }
    }

    /// Waits for a resource that the host lacked, while the pipeline commits what was applied. No
    /// attempt counts, and no event is blamed.
    fn wait_for_host(&mut self, kind: &str, message: &str, lack: Option<Lack>) -> Next {
        let pause = self
            .waiting
            .map_or(HOST_PAUSE.0, |last| (last * 2).min(HOST_PAUSE.1));
        self.waiting = Some(pause);
        self.metrics.apply_failed(Some(FailureClass::Busy));
        self.progress.note_lack(kind, message);
        // Also if the lack is over at once: an attempt may need more than what it lacked first. And
        // randomised, so that waiting pipelines do not all ask at once.
        let pause = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.host_rests_until = Some(Instant::now() + pause);
        self.lack = lack;
        Next::Yield
    }

    /// Until when nothing is tried, after a failure or because the host lacks something.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        // Both have to be over.
        self.ladder.rests_until().max(self.host_rests_until)
    }

    /// Whether the host still lacks something.
    pub(super) fn lacks(&self) -> bool {
        self.lack.as_ref().is_some_and(|lack| !lack.is_over())
    }

    /// What to do after a failed call: how many events to try next, or why to end.
    fn after_failure(
        &mut self,
        error: ApplyError,
        events: &[Event],
        store: &Store,
    ) -> Result<Next, Ended> {
        let index = match &error {
            ApplyError::State(_) => None,
            ApplyError::Retry { index, .. }
            | ApplyError::Rejected { index, .. }
            | ApplyError::Invalid { index, .. } => {
                // The guest may name an index beyond the batch.
                Some((*index).min(events.len() - 1))
            }
            _ if events.len() == 1 => Some(0),
            // The failing event is unknown: halve until it is alone.
            _ => return Ok(Next::Try(events.len() / 2)),
        };
        match (index, error) {
            (None, ApplyError::State(error)) => Err(Ended::State(error)),
            // Cannot occur: only an error of the state has no index here.
            (None, error) => Err(Ended::State(state::Error::Storage(storage::Error::of(
                error,
            )))),
            // The events before it are applied again without it, and kept.
            (Some(index), _) if index > 0 => Ok(Next::Try(index)),
            (Some(_), error) => {
                self.progress.note_failing(&events[0]);
                let message = error.to_string();
                let attempt = Attempt {
                    kind: error.kind(),
                    class: error.class(),
                    sequence: Some(events[0].sequence),
                    message: &message,
                };
                // A later event would fail alike, until an operator changes the deployment.
                let event = (!error.concerns_deployment()).then_some(&events[0]);
                self.retry(attempt, event, store)
            }
        }
    }

    /// Climbs the ladder after a failed attempt.
    fn retry(
        &mut self,
        attempt: Attempt<'_>,
        event: Option<&Event>,
        store: &Store,
    ) -> Result<Next, Ended> {
        let Attempt {
            kind,
            class,
            sequence,
            message,
        } = attempt;
        match self.ladder.failed(attempt, self.policy(), Instant::now()) {
            Step::Stop => {
                let why = match (class, self.refuses_to_park(class, event, store)) {
                    (Some(class), None) => {
                        let attempts = self.ladder.attempts();
                        let module = &self.parking.module;
                        let failure = ParkedFailure::new((kind, class), message, attempts, module);
                        // The event is applied once more, only to be recorded.
                        let traced = self.record_failure(event, attempt, Fate::Parked, store);
                        return Ok(Next::Park(failure.with_reads(&traced)));
                    }
                    (_, why) => why.unwrap_or_default(),
                };
                self.record_failure(event, attempt, Fate::Stops, store);
                if sequence.is_some() {
                    self.metrics.events_failed.inc();
                }
                self.obstacle = Some(Obstacle {
                    kind,
                    class,
                    message: format!("{message}{why}"),
                    sequence,
                });
                Err(Ended::Failed)
            }
            Step::Retry { pause, is_open } => {
                let cause = Cause {
                    kind,
                    class,
                    message,
                    sequence,
                };
                let next = NextAttempt {
                    pause,
                    breaker_open: is_open,
                };
                self.progress
                    .note_retry(&cause, self.ladder.attempts(), next);
                self.metrics.retries.inc();
                Ok(Next::Yield)
            }
        }
    }

    /// How often an event is tried now: a generation that answers no reads has a policy of its own.
    fn policy(&self) -> Policy {
        let Settings {
            policy,
            build_attempts,
            build_backoff,
            ..
        } = &self.settings;
        let policy = if self.progress.serves() {
            // A build that retries as long as an active generation would hold its place in the
            // queue.
            *policy
        } else {
            policy.capped(*build_attempts, *build_backoff)
        };
        if self.progress.is_on_probation() {
            policy.on_probation()
        } else {
            policy
        }
    }
}
