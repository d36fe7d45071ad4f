//! Metrics of the memory budget.

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Registry};

use super::register::{counter, float, float_gauge, gauge};
use crate::memory::PartUsage;

/// Usage of each part of the budget.
#[derive(Debug)]
pub(super) struct MemoryGauges {
    used: GaugeVec,
    limit: IntGaugeVec,
    refused: IntCounterVec,
}

impl MemoryGauges {
    pub(super) fn new(registry: &Registry) -> Self {
        let part = &["part"];
        Self {
            used: float_gauge(
                registry,
                "foldstream_memory_used_bytes",
                "Memory that a part of the host's budget uses; NaN if unknown.",
                part,
            ),
            limit: gauge(
                registry,
                "foldstream_memory_limit_bytes",
                "Limit of a part of the host's memory budget; folds, queries, code, requests, \
                 watches and connections share the limit of folds.",
                part,
            ),
            refused: counter(
                registry,
                "foldstream_memory_refused_total",
                "How often memory was refused to a part of the host's budget.",
                part,
            ),
        }
    }

    pub(super) fn set(&self, parts: &[PartUsage]) {
        for part in parts {
            let name = [part.name];
            self.used
                .with_label_values(&name)
                .set(float(part.used_bytes));
            self.limit
                .with_label_values(&name)
                .set(i64::try_from(part.limit_bytes).unwrap_or(i64::MAX));
            let refused = self.refused.with_label_values(&name);
            // It only rises, and pages are written one at a time.
            refused.inc_by(part.refused.saturating_sub(refused.get()));
        }
    }
}
