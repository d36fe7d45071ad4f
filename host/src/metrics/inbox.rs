//! Metrics of deployments that recognise events published twice.

use prometheus::{IntGaugeVec, Registry};

use super::DEPLOYMENT;
use super::register::gauge;
use crate::overview::Deployment;

/// Gauges, set when the page is requested; only deployments with an inbox have series.
#[derive(Clone, Debug)]
pub(super) struct Inboxes {
    ids: IntGaugeVec,
}

impl Inboxes {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            ids: gauge(
                registry,
                "foldstream_inbox_ids",
                "Ids by which events are recognised that were published twice.",
                DEPLOYMENT,
            ),
        }
    }

    /// Sets all gauges from scratch. One page at a time may do that.
    pub(super) fn set(&self, deployments: &[Deployment]) {
        self.ids.reset();
        for deployment in deployments {
            if let Some(inbox) = &deployment.inbox {
                self.ids
                    .with_label_values(&[deployment.name.as_str()])
                    .set(i64::try_from(inbox.ids).unwrap_or(i64::MAX));
            }
        }
    }
}
