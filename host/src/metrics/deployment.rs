//! Counters and histograms of one deployment.

use crate::failure::FailureClass;
use prometheus::{Histogram, IntCounter};

/// Counters and histograms of one deployment, with their labels resolved.
#[derive(Clone, Debug)]
pub struct DeploymentMetrics {
    /// Events applied by the active generation.
    pub events_applied: IntCounter,
    /// Events applied by candidates and previous generations.
    pub events_rebuilt: IntCounter,
    /// Events that the active generation left out because their producer had published them before.
    pub events_duplicate: IntCounter,
    /// Events at which the deployment stopped.
    pub events_failed: IntCounter,
    /// Events that were parked because they failed.
    pub events_parked: IntCounter,
    /// Failed calls of `apply`, by class: with a batch, with part of it during the search for the
    /// event, with that event. Of the class `busy`, also each time that there was no instance to
    /// call.
    pub(super) apply_failures: [IntCounter; FailureClass::ALL.len()],
    /// Attempts after a failure.
    pub retries: IntCounter,
    /// Failures to read or write the state file.
    pub state_failures: IntCounter,
    /// Messages of a handler that are confirmed as stored.
    pub outbox_released: IntCounter,
    /// Messages of a handler that were sent again.
    pub outbox_resent: IntCounter,
    /// How late timers fired, in seconds.
    pub timer_lateness: Histogram,
    /// Seconds of one call of `apply`.
    pub apply_seconds: Histogram,
    /// Seconds of one durable commit.
    pub commit_seconds: Histogram,
    /// Seconds of one query.
    pub query_seconds: Histogram,
    /// Events in a batch.
    pub batch_events: Histogram,
}

impl DeploymentMetrics {
    /// The same for a side fold: its events are not counted, because the deployment has applied them
    /// before.
    pub fn without_events(self) -> Self {
        let uncounted = || IntCounter::new("uncounted", "events of side folds");
        let uncounted = || uncounted().expect("the name is valid");
        Self {
            events_applied: uncounted(),
            events_rebuilt: uncounted(),
            events_duplicate: uncounted(),
            events_failed: uncounted(),
            events_parked: uncounted(),
            ..self
        }
    }

    /// Counts a failed call of `apply`; a failure of the state has no class, and a counter of its
    /// own.
    pub fn apply_failed(&self, class: Option<FailureClass>) {
        let counter = class.and_then(|class| {
            let place = FailureClass::ALL.iter().position(|known| *known == class)?;
            self.apply_failures.get(place)
        });
        if let Some(counter) = counter {
            counter.inc();
        }
    }
}
