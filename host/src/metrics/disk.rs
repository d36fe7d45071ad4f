//! Metrics of the disk of the data folder.

use prometheus::{GaugeVec, IntGauge, IntGaugeVec, Registry};

use super::register::{float, float_gauge, gauge, number};
use crate::usage::Usage;

/// Figures of the disk.
#[derive(Debug)]
pub(super) struct DiskGauges {
    deployments: IntGaugeVec,
    folder: IntGauge,
    free: GaugeVec,
    total: GaugeVec,
}

impl DiskGauges {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            deployments: gauge(
                registry,
                "foldstream_deployment_disk_bytes",
                "Bytes allocated on the disk for all generations and snapshots of a deployment.",
                &["deployment"],
            ),
            folder: number(
                registry,
                "foldstream_data_folder_bytes",
                "Bytes allocated on the disk for the data folder.",
            ),
            free: float_gauge(
                registry,
                "foldstream_disk_free_bytes",
                "Free bytes on the disk of the data folder; NaN if unknown.",
                &[],
            ),
            total: float_gauge(
                registry,
                "foldstream_disk_bytes",
                "Size of the disk of the data folder in bytes; NaN if unknown.",
                &[],
            ),
        }
    }

    pub(super) fn set(&self, usage: &Usage) {
        self.deployments.reset();
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        for (deployment, bytes) in &usage.deployments {
            self.deployments
                .with_label_values(&[deployment.as_str()])
                .set(signed(*bytes));
        }
        self.folder.set(signed(usage.folder_bytes));
        let nothing: [&str; 0] = [];
        self.free
            .with_label_values(&nothing)
            .set(float(usage.free_bytes));
        self.total
            .with_label_values(&nothing)
            .set(float(usage.disk_bytes));
    }
}
