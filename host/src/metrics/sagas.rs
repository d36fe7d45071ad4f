//! Metrics of sagas, from the counts that modules keep in their state. Names of sagas and steps come
//! from modules, so their number is limited.

use jiff::Timestamp;
use prometheus::{GaugeVec, IntGaugeVec, Registry};

use super::register::{float_gauge, gauge};
use crate::overview::Deployment;
use crate::sagas::{Saga, SagaStatus};

/// Most groups of instances of one deployment that have series.
const GROUPS_MAX: usize = 200;

/// What an event or timer can be that changes nothing, as SDKs store it.
const IGNORED: [&str; 6] = [
    "duplicate",
    "late",
    "early",
    "unknown",
    "ended",
    "stale-timer",
];

/// Gauges, set when the page is requested; only deployments with sagas have series.
#[derive(Clone, Debug)]
pub(super) struct Sagas {
    instances: IntGaugeVec,
    oldest: GaugeVec,
    ended: IntGaugeVec,
    ignored: IntGaugeVec,
}

impl Sagas {
    pub(super) fn new(registry: &Registry) -> Self {
        let status = &["deployment", "saga", "status"];
        Self {
            instances: gauge(
                registry,
                "foldstream_saga_instances",
                "Instances of a saga that have not ended, by status (running, compensating, stuck) \
                 and step.",
                &["deployment", "saga", "status", "step"],
            ),
            oldest: float_gauge(
                registry,
                "foldstream_saga_oldest_seconds",
                "How long the instance with this status that has waited longest has been in its \
                 step, 0 if there is none.",
                status,
            ),
            ended: gauge(
                registry,
                "foldstream_saga_ended",
                "Instances that ended, by status (completed, compensated), with those that are not \
                 kept any more; a rebuild counts again.",
                status,
            ),
            ignored: gauge(
                registry,
                "foldstream_saga_ignored",
                "Events and timers that changed nothing, by what they were; a rebuild counts again.",
                &["deployment", "saga", "what"],
            ),
        }
    }

    /// Sets all gauges from scratch. One page at a time may do that.
    pub(super) fn set(&self, deployments: &[Deployment]) {
        self.instances.reset();
        self.oldest.reset();
        self.ended.reset();
        self.ignored.reset();
        let now = Timestamp::now();
        for deployment in deployments {
            let mut room = GROUPS_MAX;
            for saga in &deployment.sagas {
                self.set_saga(&deployment.name, saga, now, &mut room);
            }
        }
    }

    fn set_saga(&self, name: &str, saga: &Saga, now: Timestamp, room: &mut usize) {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let known = saga.name.as_str();
        for status in SagaStatus::WAITING {
            let groups = saga.waiting.iter().filter(|group| group.status == status);
            let mut oldest = 0.0_f64;
            for group in groups {
                let since = group.since.as_ref().and_then(|since| since.parse().ok());
                let age = since.map_or(0.0, |since: Timestamp| {
                    (now.as_nanosecond() - since.as_nanosecond()) as f64 / 1e9
                });
                oldest = oldest.max(age);
                if *room > 0 {
                    *room -= 1;
                    self.instances
                        .with_label_values(&[name, known, status.name(), group.step.as_str()])
                        .set(number(group.instances));
                }
            }
            self.oldest
                .with_label_values(&[name, known, status.name()])
                .set(oldest);
        }
        // What else a module writes there is not its affair.
        for status in [SagaStatus::Completed, SagaStatus::Compensated] {
            let count = saga.ended.get(status.name()).copied().unwrap_or(0);
            self.ended
                .with_label_values(&[name, known, status.name()])
                .set(number(count));
        }
        for what in IGNORED {
            let count = saga.ignored.get(what).copied().unwrap_or(0);
            self.ignored
                .with_label_values(&[name, known, what])
                .set(number(count));
        }
    }
}
