//! Gauges of what could not be applied.

use prometheus::{IntGaugeVec, Registry};

use super::DEPLOYMENT;
use super::register::gauge;
use crate::api::Deployment;

#[derive(Debug)]
pub(super) struct FailureGauges {
    breaker_open: IntGaugeVec,
}

impl FailureGauges {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            breaker_open: gauge(
                registry,
                "foldstream_breaker_open",
                "1 while retries are delayed because they take more time than \
                 pipeline.retry_percent allows.",
                DEPLOYMENT,
            ),
        }
    }

    pub(super) fn reset(&self) {
        self.breaker_open.reset();
    }

    pub(super) fn set(&self, deployment: &Deployment) {
        let is_open = deployment
            .failure
            .as_ref()
            .is_some_and(|failure| failure.breaker_open);
        self.breaker_open
            .with_label_values(&[deployment.name.as_str()])
            .set(is_open.into());
    }
}
