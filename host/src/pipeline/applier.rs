//! The applying stage: what happens to a batch, and to the event in it that fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{Desired, Ended, Fold, MakeFold, Settings};
use crate::batch::Batch;
use crate::event::Event;
use crate::metrics::DeploymentMetrics;
use crate::module::ApplyError;
use crate::position::{Checkpoint, EventMark};
use crate::progress::Progress;
use crate::state::{self, Store, Writer};

/// How a pause after a failure is cut short.
pub(super) struct Interrupt<'a> {
    pub(super) control: &'a watch::Receiver<Desired>,
    pub(super) wanted: Desired,
    pub(super) runtime: &'a Handle,
}

impl Interrupt<'_> {
    /// Waits; returns whether the run is to end.
    fn pause(&self, pause: Duration) -> bool {
        let mut control = self.control.clone();
        let wanted = self.wanted;
        self.runtime.block_on(async {
            tokio::time::timeout(pause, control.wait_for(|desired| *desired != wanted)).await.is_ok()
        })
    }
}

/// The applying stage: a batch in, its writes published, or why not.
pub(super) struct Applier {
    pub(super) make_fold: MakeFold,
    pub(super) fold: Option<Box<dyn Fold>>,
    /// There except during a call.
    pub(super) writer: Option<Writer>,
    pub(super) settings: Settings,
    pub(super) progress: Arc<Progress>,
    pub(super) metrics: DeploymentMetrics,
    /// Attempts at the event that fails now.
    pub(super) attempts: u32,
}

impl Applier {
    /// Applies a batch, in parts where some event fails, so that those before it are kept.
    pub(super) fn process(&mut self, batch: &Batch, store: &Store, interrupt: &Interrupt<'_>) -> Result<(), Ended> {
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
                    self.metrics.events_applied.inc_by(events.len() as u64);
                    done = end;
                    part = part.saturating_mul(2);
                }
                Err(error) => part = self.after_failure(error, events, interrupt)?,
            }
        }
        if batch.events.is_empty() {
            self.publish(batch, None, batch.through, store);
        }
        self.progress.applied(batch);
        Ok(())
    }

    fn apply(&mut self, events: &[Event]) -> Result<(), ApplyError> {
        let mut fold = match self.fold.take() {
            Some(fold) => fold,
            None => (self.make_fold)().map_err(|error| ApplyError::Trap(error.to_string()))?,
        };
        let mut writer = self.writer.take().expect("the writer comes back from every call");
        writer.begin();
        let started = Instant::now();
        let (mut writer, mut result) = fold.apply(events, writer);
        self.metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        if result.is_ok() {
            result = writer.check_size().map_err(|error| match error {
                state::Error::Limit { limit, message } => ApplyError::Limit { limit, message },
                other => ApplyError::State(other),
            });
        }
        match &result {
            Ok(()) => {
                self.progress.memory(fold.memory_bytes());
                self.fold = Some(fold);
            }
            // The instance goes with its writes.
            Err(_) => writer.discard(),
        }
        self.writer = Some(writer);
        result
    }

    fn publish(&mut self, batch: &Batch, last: Option<&Event>, through: u64, store: &Store) {
        let last_event =
            last.map(EventMark::of).or_else(|| store.published().and_then(|checkpoint| checkpoint.last_event));
        let checkpoint = Checkpoint { position: through, stream: (*batch.stream).clone(), last_event };
        self.writer.as_mut().expect("the writer comes back from every call").publish(checkpoint);
        if self.attempts > 0 {
            self.attempts = 0;
            self.progress.recovered();
        }
    }

    /// What to do after a failure: how many events to try next, or why to end.
    fn after_failure(
        &mut self,
        error: ApplyError,
        events: &[Event],
        interrupt: &Interrupt<'_>,
    ) -> Result<usize, Ended> {
        self.metrics.events_failed.inc();
        let index = match &error {
            ApplyError::State(_) => None,
            ApplyError::Retry { index, .. } | ApplyError::Rejected { index, .. } => {
                Some((*index).min(events.len() - 1))
            }
            _ if events.len() == 1 => Some(0),
            // Which event it was is not known: halve until the failing one stands alone.
            _ => return Ok(events.len() / 2),
        };
        match (index, error) {
            (None, error) => Err(Ended::State(state::Error::Storage(error.to_string()))),
            // Those before it are applied again without it, and kept.
            (Some(index), _) if index > 0 => Ok(index),
            (Some(_), error) => self.retry(&error, &events[0], interrupt).map(|()| events.len()),
        }
    }

    fn retry(&mut self, error: &ApplyError, event: &Event, interrupt: &Interrupt<'_>) -> Result<(), Ended> {
        self.attempts += 1;
        let kind = error.kind();
        let rejected = matches!(error, ApplyError::Rejected { .. });
        if rejected || self.attempts >= self.settings.attempts {
            self.progress.stopped(kind, &error.to_string(), Some(event.sequence));
            self.attempts = 0;
            return Err(Ended::Failed);
        }
        self.progress.retrying(kind, &error.to_string(), event.sequence, self.attempts);
        self.metrics.retries.inc();
        if interrupt.pause(self.backoff()) { Err(Ended::Asked) } else { Ok(()) }
    }

    /// Doubles with each attempt, up to the longest, and varies by half so that deployments that
    /// failed together do not try again together.
    fn backoff(&self) -> Duration {
        let doubled = self.settings.initial_backoff.saturating_mul(1 << (self.attempts - 1).min(20));
        doubled.min(self.settings.max_backoff).mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}
