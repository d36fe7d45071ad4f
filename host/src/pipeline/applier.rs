//! The applying stage: what happens to a batch, and to the event in it that fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{Desired, Ended, Fold, MakeFold, Pace, Settings};
use crate::batch::Batch;
use crate::event::Event;
use crate::metrics::DeploymentMetrics;
use crate::module::ApplyError;
use crate::position::Checkpoint;
use crate::progress::{Alive, Progress};
use crate::state::{self, Store, Writer};

/// Attempts that a module gets that took over a state, before the one that had it before is put back.
const ATTEMPTS_ON_PROBATION: u32 = 3;

/// How a pause after a failure is cut short.
pub(super) struct Interrupt<'a> {
    pub(super) control: &'a watch::Receiver<Desired>,
    pub(super) wanted: Desired,
    pub(super) pace: &'a watch::Receiver<Pace>,
    pub(super) runtime: &'a Handle,
}

/// What ended a pause.
enum Woken {
    Time,
    Control,
    Pace,
}

impl Interrupt<'_> {
    /// Waits. Every arm is cancel-safe: it only looks.
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
    /// So many of its events; the next one failed, and waits while the pipeline may be asked to stand still.
    Through(usize),
}

/// What to do after a failure.
enum Next {
    /// Try so many events.
    Try(usize),
    /// See first what else is wanted.
    Yield,
}

/// A fold, counted for as long as it lives.
pub(super) struct Living {
    fold: Box<dyn Fold>,
    progress: Arc<Progress>,
    _alive: Alive,
}

impl Living {
    fn new(fold: Box<dyn Fold>, progress: &Arc<Progress>) -> Self {
        Self { fold, progress: Arc::clone(progress), _alive: progress.instance() }
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.progress.memory(0);
    }
}

/// The applying stage: a batch in, its writes published, or why not.
pub(super) struct Applier {
    pub(super) make_fold: MakeFold,
    pub(super) fold: Option<Living>,
    /// There except during a call.
    pub(super) writer: Option<Writer>,
    pub(super) settings: Settings,
    pub(super) progress: Arc<Progress>,
    pub(super) metrics: DeploymentMetrics,
    /// Attempts at the event that fails now.
    pub(super) attempts: u32,
    /// Why it can't go on, once it can't.
    pub(super) obstacle: Option<Obstacle>,
}

/// Why a pipeline can't go on without an operator.
pub(super) struct Obstacle {
    pub(super) kind: &'static str,
    pub(super) message: String,
    /// The event at which it stopped, where there is one.
    pub(super) sequence: Option<u64>,
}

impl Applier {
    /// Applies a batch, in parts where some event fails, so that those before it are kept.
    pub(super) fn process(
        &mut self,
        batch: &Batch,
        store: &Store,
        interrupt: &Interrupt<'_>,
    ) -> Result<Processed, Ended> {
        self.progress.received(batch);
        self.metrics.batch_events.observe(batch.events.len() as f64);
        let mut done = 0;
        let mut part = batch.events.len();
        while done < batch.events.len() {
            let end = batch.events.len().min(done + part);
            let events = &batch.events[done..end];
            match self.apply(events) {
                Ok(()) => {
                    let through =
                        if end == batch.events.len() { batch.through } else { batch.events[end - 1].sequence };
                    self.publish(batch, events.last(), through, store);
                    let counter = if self.progress.serves() {
                        &self.metrics.events_applied
                    } else {
                        &self.metrics.events_rebuilt
                    };
                    counter.inc_by(events.len() as u64);
                    self.progress.applied(events);
                    done = end;
                    part = part.saturating_mul(2);
                }
                Err(error) => match self.after_failure(error, events, interrupt)? {
                    Next::Try(count) => part = count,
                    Next::Yield => return Ok(Processed::Through(done)),
                },
            }
        }
        if batch.events.is_empty() {
            self.publish(batch, None, batch.through, store);
        }
        self.progress.finished(batch);
        Ok(Processed::All)
    }

    fn apply(&mut self, events: &[Event]) -> Result<(), ApplyError> {
        let mut living = match self.fold.take() {
            Some(living) => living,
            None => {
                let fold = (self.make_fold)().map_err(|error| ApplyError::Trap(error.to_string()))?;
                Living::new(fold, &self.progress)
            }
        };
        let mut writer = self.writer.take().expect("the writer comes back from every call");
        writer.begin();
        let started = Instant::now();
        let (mut writer, mut result) = living.fold.apply(events, writer);
        self.metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        if result.is_ok() {
            result = writer.check_size().map_err(|error| match error {
                state::Error::Limit { limit, message } => ApplyError::Limit { limit, message },
                other => ApplyError::State(other),
            });
        }
        match &result {
            Ok(()) => {
                self.progress.memory(living.fold.memory_bytes());
                self.fold = Some(living);
            }
            // The instance goes with its writes.
            Err(_) => writer.discard(),
        }
        self.writer = Some(writer);
        result
    }

    fn publish(&mut self, batch: &Batch, last: Option<&Event>, through: u64, store: &Store) {
        let checkpoint = Checkpoint::after(store.published().as_ref(), batch, last, through);
        self.writer.as_mut().expect("the writer comes back from every call").publish(checkpoint);
        if self.attempts > 0 {
            self.attempts = 0;
            self.progress.recovered();
        }
    }

    /// What to do after a failure: how many events to try next, or why to end.
    fn after_failure(&mut self, error: ApplyError, events: &[Event], interrupt: &Interrupt<'_>) -> Result<Next, Ended> {
        self.metrics.apply_failures.inc();
        let index = match &error {
            ApplyError::State(_) => None,
            ApplyError::Retry { index, .. } | ApplyError::Rejected { index, .. } => {
                Some((*index).min(events.len() - 1))
            }
            _ if events.len() == 1 => Some(0),
            // Which event it was is not known: halve until the failing one stands alone.
            _ => return Ok(Next::Try(events.len() / 2)),
        };
        match (index, error) {
            (None, error) => Err(Ended::State(state::Error::Storage(error.to_string()))),
            // Those before it are applied again without it, and kept.
            (Some(index), _) if index > 0 => Ok(Next::Try(index)),
            (Some(_), error) => self.retry(&error, events, interrupt),
        }
    }

    fn retry(&mut self, error: &ApplyError, events: &[Event], interrupt: &Interrupt<'_>) -> Result<Next, Ended> {
        let event = &events[0];
        self.attempts += 1;
        let kind = error.kind();
        let rejected = matches!(error, ApplyError::Rejected { .. });
        let most = if self.progress.is_on_probation() { ATTEMPTS_ON_PROBATION } else { u32::MAX };
        if rejected || self.attempts >= self.settings.attempts.min(most) {
            self.metrics.events_failed.inc();
            self.obstacle = Some(Obstacle { kind, message: error.to_string(), sequence: Some(event.sequence) });
            self.attempts = 0;
            return Err(Ended::Failed);
        }
        self.progress.retrying(kind, &error.to_string(), event.sequence, self.attempts);
        self.metrics.retries.inc();
        match interrupt.pause(self.backoff()) {
            Woken::Control => Err(Ended::Asked),
            Woken::Pace => Ok(Next::Yield),
            Woken::Time => Ok(Next::Try(events.len())),
        }
    }

    /// Doubles with each attempt, up to the longest, and varies by half so that deployments that
    /// failed together do not try again together.
    fn backoff(&self) -> Duration {
        let doubled = self.settings.initial_backoff.saturating_mul(1 << (self.attempts - 1).min(20));
        doubled.min(self.settings.max_backoff).mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}
