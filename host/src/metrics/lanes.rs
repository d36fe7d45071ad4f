//! Metrics of deployments that fold in several lanes.

use prometheus::{IntGaugeVec, Registry};

use super::DEPLOYMENT;
use super::register::gauge;
use crate::overview::Deployment;

/// Gauges, set when the page is requested; only deployments with lanes have series.
#[derive(Clone, Debug)]
pub(super) struct Lanes {
    lanes: IntGaugeVec,
    batches: IntGaugeVec,
}

impl Lanes {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            lanes: gauge(
                registry,
                "foldstream_lanes",
                "Lanes in which large batches are folded; 1 if too many batches collided.",
                DEPLOYMENT,
            ),
            batches: gauge(
                registry,
                "foldstream_lane_batches",
                "Batches since the module started: `split` into lanes, or folded again in one \
                 because lanes `collided` or `failed`.",
                &["deployment", "outcome"],
            ),
        }
    }

    /// Sets all gauges from scratch. One page at a time may do that.
    pub(super) fn set(&self, deployments: &[Deployment]) {
        self.lanes.reset();
        self.batches.reset();
        for deployment in deployments {
            let Some(lanes) = &deployment.lanes else {
                continue;
            };
            let name = deployment.name.as_str();
            let in_use = if lanes.gave_up { 1 } else { lanes.count };
            self.lanes.with_label_values(&[name]).set(in_use.into());
            for (outcome, count) in [
                ("split", lanes.split),
                ("collided", lanes.collided),
                ("failed", lanes.failed),
            ] {
                self.batches
                    .with_label_values(&[name, outcome])
                    .set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }
}
