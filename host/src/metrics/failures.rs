//! Gauges of what could not be applied.

use prometheus::{GaugeVec, IntGaugeVec, Registry};

use super::DEPLOYMENT;
use super::register::{float_gauge, gauge};
use crate::overview::Deployment;

#[derive(Debug)]
pub(super) struct FailureGauges {
    breaker_open: IntGaugeVec,
    parked_keys: IntGaugeVec,
    parked_events: IntGaugeVec,
    parked_bytes: IntGaugeVec,
    parked_seconds: GaugeVec,
}

impl FailureGauges {
    pub(super) fn new(registry: &Registry) -> Self {
        let of_deployment = |name: &str, help: &str| gauge(registry, name, help, DEPLOYMENT);
        Self {
            breaker_open: of_deployment(
                "foldstream_breaker_open",
                "1 while retries are delayed because they take more time than \
                 pipeline.retry_percent allows.",
            ),
            parked_keys: of_deployment("foldstream_parked_keys", "Keys with parked events."),
            parked_events: of_deployment(
                "foldstream_parked_events",
                "Parked events, which the state lacks.",
            ),
            parked_bytes: of_deployment("foldstream_parked_bytes", "Size of the parked events."),
            parked_seconds: float_gauge(
                registry,
                "foldstream_parked_oldest_seconds",
                "How long ago the oldest failure was parked, 0 if nothing is parked.",
                DEPLOYMENT,
            ),
        }
    }

    pub(super) fn reset(&self) {
        self.parked_seconds.reset();
        for vector in [
            &self.breaker_open,
            &self.parked_keys,
            &self.parked_events,
            &self.parked_bytes,
        ] {
            vector.reset();
        }
    }

    pub(super) fn set(&self, deployment: &Deployment) {
        let name = [deployment.name.as_str()];
        let is_open = deployment
            .failure
            .as_ref()
            .is_some_and(|failure| failure.breaker_open);
        self.breaker_open
            .with_label_values(&name)
            .set(is_open.into());
        let parked = &deployment.parked;
        for (vector, value) in [
            (&self.parked_keys, parked.keys),
            (&self.parked_events, parked.events),
            (&self.parked_bytes, parked.bytes),
        ] {
            vector
                .with_label_values(&name)
                .set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        let since = parked
            .since
            .as_ref()
            .and_then(|since| since.parse::<jiff::Timestamp>().ok());
        // The clock may have been set back since.
        let age = since.map_or(0.0, |since| {
            jiff::Timestamp::now()
                .duration_since(since)
                .as_secs_f64()
                .max(0.0)
        });
        self.parked_seconds.with_label_values(&name).set(age);
    }
}
