//! The applying stage: what happens to a batch, and to the failing event in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::portion::Portion;
use super::{Desired, Ended, Fold, MakeFold, Pace, Settings};
use crate::batch::Batch;
use crate::event::Event;
use crate::metrics::DeploymentMetrics;
use crate::module::{self, ApplyError};
use crate::progress::{Alive, Progress};
use crate::state::exceptions::Skips;
use crate::state::{self, Store, Writer};

/// Attempts for a module on probation before the previous module is restored.
const ATTEMPTS_ON_PROBATION: u32 = 3;
/// Attempts at an event that fails with the same message each time, for a reason that does not depend on load.
const ATTEMPTS_ALIKE: u32 = 3;
/// Pause before the next request for a resource that the host lacked, such as an instance; it doubles up to the
/// maximum.
const HOST_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How to interrupt a pause after a failure.
pub(super) struct Interrupt<'a> {
    pub(super) control: &'a watch::Receiver<Desired>,
    pub(super) wanted: Desired,
    pub(super) pace: &'a watch::Receiver<Pace>,
    pub(super) runtime: &'a Handle,
}

/// Why a pause ended.
enum Woken {
    Time,
    Control,
    Pace,
}

impl Interrupt<'_> {
    /// Another request, if there is one. Does not wait.
    fn is_due(&self) -> Option<Woken> {
        if *self.control.borrow() != self.wanted {
            return Some(Woken::Control);
        }
        self.pace.has_changed().unwrap_or(false).then_some(Woken::Pace)
    }

    /// Waits. Every arm is cancel-safe: it only observes.
    fn pause(&self, pause: Duration) -> Woken {
        let (mut control, mut pace) = (self.control.clone(), self.pace.clone());
        let wanted = self.wanted;
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = control.wait_for(|desired| *desired != wanted) => Woken::Control,
                Ok(()) = pace.changed() => Woken::Pace,
                () = tokio::time::sleep(pause) => Woken::Time,
            }
        })
    }
}

/// How much of a batch was processed.
pub(super) enum Processed {
    /// All of it.
    All,
    /// Only up to this position: the next event failed, and waits while the pipeline may be asked to hold.
    Through(u64),
}

/// What to do after a failure.
enum Next {
    /// Try this many events.
    Try(usize),
    /// First check for other requests.
    Yield,
}

/// Why events were not applied.
enum Fault {
    /// A call failed; the flag says whether on an instance that had applied events before.
    Call { error: ApplyError, on_used: bool },
    /// There was no instance to call.
    NoInstance(module::Error),
}

/// Failures of one event with the same message.
#[derive(Default)]
pub(super) struct Alike {
    sequence: u64,
    message: String,
    count: u32,
}

impl Alike {
    /// Counts a failure; returns how many in a row were equal.
    fn count(&mut self, sequence: u64, message: String) -> u32 {
        if self.sequence == sequence && self.message == message {
            self.count += 1;
        } else {
            *self = Self { sequence, message, count: 1 };
        }
        self.count
    }
}

/// A fold, counted while it lives.
pub(super) struct Living {
    fold: Box<dyn Fold>,
    /// It has applied events: its memory may be the cause if the next ones fail.
    is_used: bool,
    progress: Arc<Progress>,
    _alive: Alive,
}

impl Living {
    fn new(fold: Box<dyn Fold>, progress: &Arc<Progress>) -> Self {
        Self { fold, is_used: false, progress: Arc::clone(progress), _alive: progress.instance() }
    }
}

impl Living {
    /// Changes whenever another fold needs an instance.
    pub(super) fn wanted(&self) -> Option<watch::Receiver<u64>> {
        self.fold.wanted()
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.progress.memory(0);
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
    /// Attempts at the failing event.
    pub(super) attempts: u32,
    /// How many events are applied at once.
    pub(super) portion: Portion,
    pub(super) alike: Alike,
    /// How long to wait for the host, while it lacks something.
    pub(super) waiting: Option<Duration>,
    /// Why it can't continue, once it can't.
    pub(super) obstacle: Option<Obstacle>,
}

/// Why a pipeline can't continue without an operator.
pub(super) struct Obstacle {
    pub(super) kind: &'static str,
    pub(super) message: String,
    /// The event that stopped it, if one did.
    pub(super) sequence: Option<u64>,
}

impl Applier {
    /// Applies a batch, in parts if an event fails, so that the events before it are kept. Skipped events are no longer
    /// in the batch, but in `left_out`.
    pub(super) fn process(
        &mut self,
        batch: &Batch,
        left_out: &[Event],
        store: &Store,
        interrupt: &Interrupt<'_>,
    ) -> Result<Processed, Ended> {
        self.progress.received(batch);
        self.metrics.batch_events.observe(batch.events.len() as f64);
        let mut done = 0;
        let mut is_first = true;
        while done < batch.events.len() {
            // The search for a failing event takes many calls: other requests wait for at most one of them.
            let due = if std::mem::take(&mut is_first) { None } else { interrupt.is_due() };
            match due {
                Some(Woken::Control) => return Err(Ended::Asked),
                Some(_) => return Ok(Processed::Through(store.position())),
                None => {}
            }
            let end = batch.events.len().min(done.saturating_add(self.portion.next()));
            let events = &batch.events[done..end];
            match self.apply(events) {
                Ok(took) => {
                    self.portion.applied(events.len(), took);
                    let through =
                        if end == batch.events.len() { batch.through } else { batch.events[end - 1].sequence };
                    // The state may have been advanced over events of others meanwhile.
                    self.publish(batch, events.last(), through.max(store.position()), left_out, store);
                    let counter = if self.progress.serves() {
                        &self.metrics.events_applied
                    } else {
                        &self.metrics.events_rebuilt
                    };
                    counter.inc_by(events.len() as u64);
                    self.progress.applied(events);
                    done = end;
                }
                Err(fault) => match self.after_fault(fault, events, interrupt)? {
                    Next::Try(count) => self.portion.failed(count),
                    Next::Yield => return Ok(Processed::Through(store.position())),
                },
            }
        }
        if batch.events.is_empty() {
            self.publish(batch, None, batch.through, left_out, store);
        }
        if !left_out.is_empty() {
            self.progress.left_out(left_out, batch.through);
        }
        self.progress.finished(batch);
        Ok(Processed::All)
    }

    /// Applies events; returns how long the call took.
    fn apply(&mut self, events: &[Event]) -> Result<Duration, Fault> {
        let mut living = match self.fold.take() {
            Some(living) => living,
            None => Living::new((self.make_fold)().map_err(Fault::NoInstance)?, &self.progress),
        };
        let mut writer = self.writer.take().expect("the writer comes back from every call");
        writer.begin();
        let started = Instant::now();
        let (mut writer, mut result) = living.fold.apply(events, writer);
        let took = started.elapsed();
        self.metrics.apply_seconds.observe(took.as_secs_f64());
        if result.is_ok() {
            result = writer.check_size().map_err(|error| match error {
                state::Error::Limit { limit, message } => ApplyError::Limit { limit, message },
                other => ApplyError::State(other),
            });
        }
        if self.waiting.is_some() && !matches!(result, Err(ApplyError::Host(_) | ApplyError::Busy(_))) {
            self.waiting = None;
            if self.attempts == 0 {
                self.progress.recovered();
            }
        }
        let on_used = living.is_used;
        match &result {
            Ok(()) => {
                self.progress.memory(living.fold.memory_bytes());
                living.is_used = true;
                self.fold = Some(living);
            }
            // The instance is dropped with its writes.
            Err(_) => writer.discard(),
        }
        self.writer = Some(writer);
        result.map(|()| took).map_err(|error| Fault::Call { error, on_used })
    }

    /// Remembers how many events were too many at once, or that a single event fails.
    fn size_up(&mut self, error: &ApplyError, on_used: bool, events: &[Event]) {
        let deadline = match error {
            ApplyError::Deadline(deadline) => Some(*deadline),
            // An instance may have filled its memory with many earlier batches.
            ApplyError::Limit { limit, .. } if *limit != "memory-bytes" || !on_used => None,
            _ => return,
        };
        if events.len() > 1 {
            self.portion.too_many(events.len(), deadline);
        } else {
            self.portion.one_fails();
        }
    }

    fn publish(&mut self, batch: &Batch, last: Option<&Event>, through: u64, left_out: &[Event], store: &Store) {
        // In the same step, so that no crash separates the position from the reason why an event before it is missing.
        let passed = self.skips.passed(store.position(), through, left_out);
        let checkpoint = batch.checkpoint(store.published().as_ref(), last, through);
        self.writer.as_mut().expect("the writer comes back from every call").publish_with(checkpoint, passed);
        if self.attempts > 0 {
            self.attempts = 0;
            self.alike = Alike::default();
            self.progress.recovered();
        }
    }

    /// What to do after a fault: how many events to try next, or why to end.
    fn after_fault(&mut self, fault: Fault, events: &[Event], interrupt: &Interrupt<'_>) -> Result<Next, Ended> {
        match fault {
            Fault::NoInstance(error) if error.is_passing() => {
                let kind =
                    if matches!(error, module::Error::Busy(_) | module::Error::Short(_)) { "busy" } else { "host" };
                self.wait_for_host(kind, &error.to_string(), events, interrupt)
            }
            // The instance started when the module was accepted. No event is to blame.
            Fault::NoInstance(error) => self.retry("module", &error.to_string(), None, events, interrupt),
            Fault::Call { error: error @ (ApplyError::Host(_) | ApplyError::Busy(_)), .. } => {
                self.wait_for_host(error.kind(), &error.to_string(), events, interrupt)
            }
            Fault::Call { error, on_used } => {
                self.metrics.apply_failures.inc();
                self.size_up(&error, on_used, events);
                // The guest's own verdict counts, whatever else it holds in memory.
                if events.len() == 1 && on_used && (error.is_repeatable() || matches!(error, ApplyError::Deadline(_))) {
                    // What the instance kept of earlier events may be the cause, such as memory that was never freed.
                    return Ok(Next::Try(1));
                }
                self.after_failure(error, events, interrupt)
            }
        }
    }

    /// Waits for a resource that the host lacked. No attempt counts, and no event is blamed.
    fn wait_for_host(
        &mut self,
        kind: &str,
        message: &str,
        events: &[Event],
        interrupt: &Interrupt<'_>,
    ) -> Result<Next, Ended> {
        let pause = self.waiting.map_or(HOST_PAUSE.0, |last| (last * 2).min(HOST_PAUSE.1));
        self.waiting = Some(pause);
        self.progress.waiting(kind, message);
        // Randomised, so that waiting pipelines do not all ask at once.
        match interrupt.pause(pause.mul_f64(0.5 + fastrand::f64() / 2.0)) {
            Woken::Control => Err(Ended::Asked),
            Woken::Pace => Ok(Next::Yield),
            Woken::Time => Ok(Next::Try(events.len())),
        }
    }

    /// What to do after a failed call: how many events to try next, or why to end.
    fn after_failure(&mut self, error: ApplyError, events: &[Event], interrupt: &Interrupt<'_>) -> Result<Next, Ended> {
        let index = match &error {
            ApplyError::State(_) => None,
            ApplyError::Retry { index, .. } | ApplyError::Rejected { index, .. } => {
                Some((*index).min(events.len() - 1))
            }
            _ if events.len() == 1 => Some(0),
            // The failing event is unknown: halve until it is alone.
            _ => return Ok(Next::Try(events.len() / 2)),
        };
        match (index, error) {
            (None, ApplyError::State(error)) => Err(Ended::State(error)),
            (None, error) => Err(Ended::State(state::Error::Storage(error.to_string()))),
            // The events before it are applied again without it, and kept.
            (Some(index), _) if index > 0 => Ok(Next::Try(index)),
            (Some(_), error) => {
                self.progress.failing(&events[0]);
                let (sequence, message) = (events[0].sequence, error.to_string());
                let alike = if error.is_repeatable() { self.alike.count(sequence, message.clone()) } else { 0 };
                if matches!(error, ApplyError::Rejected { .. }) || alike >= ATTEMPTS_ALIKE {
                    self.attempts += 1;
                    return Err(self.stop(error.kind(), message, Some(sequence)));
                }
                self.retry(error.kind(), &message, Some(sequence), events, interrupt)
            }
        }
    }

    /// Nothing more is tried until an operator asks for it.
    fn stop(&mut self, kind: &'static str, message: String, sequence: Option<u64>) -> Ended {
        if sequence.is_some() {
            self.metrics.events_failed.inc();
        }
        self.obstacle = Some(Obstacle { kind, message, sequence });
        self.attempts = 0;
        self.alike = Alike::default();
        Ended::Failed
    }

    fn retry(
        &mut self,
        kind: &'static str,
        message: &str,
        sequence: Option<u64>,
        events: &[Event],
        interrupt: &Interrupt<'_>,
    ) -> Result<Next, Ended> {
        self.attempts += 1;
        let most = if self.progress.is_on_probation() { ATTEMPTS_ON_PROBATION } else { u32::MAX };
        if self.attempts >= self.settings.attempts.min(most) {
            return Err(self.stop(kind, message.to_owned(), sequence));
        }
        self.progress.retrying(kind, message, sequence, self.attempts);
        self.metrics.retries.inc();
        match interrupt.pause(self.backoff()) {
            Woken::Control => Err(Ended::Asked),
            Woken::Pace => Ok(Next::Yield),
            Woken::Time => Ok(Next::Try(events.len())),
        }
    }

    /// Doubles with each attempt up to the maximum, and varies by half, so that deployments that failed together do not
    /// retry together.
    fn backoff(&self) -> Duration {
        let doubled = self.settings.initial_backoff.saturating_mul(1 << (self.attempts - 1).min(20));
        doubled.min(self.settings.max_backoff).mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}
