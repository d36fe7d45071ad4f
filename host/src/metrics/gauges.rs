//! Gauges of deployments and sources, set from overviews when the page is requested.

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Registry};

use super::disk::DiskGauges;
use super::failures::FailureGauges;
use super::memory::MemoryGauges;
use super::register::{counter, float, float_gauge, gauge};
use super::{DEPLOYMENT, Reachable};
use crate::module::CONTRACT;
use crate::overview::Deployment;
use crate::progress::DeploymentState;
use crate::source::SourceState;

/// Records which build runs.
fn set_build(registry: &Registry) {
    let build = gauge(
        registry,
        "foldstream_build_info",
        "The running build.",
        &["version", "contract"],
    );
    build
        .with_label_values(&[env!("CARGO_PKG_VERSION"), CONTRACT])
        .set(1);
}

/// Gauges of the deployments, set when the page is requested.
#[derive(Debug)]
pub(super) struct Gauges {
    lag_events: GaugeVec,
    missing_events: IntGaugeVec,
    lag_seconds: GaugeVec,
    head: GaugeVec,
    position: IntGaugeVec,
    checkpoint: IntGaugeVec,
    state_bytes: IntGaugeVec,
    memtable_bytes: IntGaugeVec,
    file_bytes: IntGaugeVec,
    guest_memory_bytes: IntGaugeVec,
    instances: IntGaugeVec,
    generation: IntGaugeVec,
    skipped: IntGaugeVec,
    module: IntGaugeVec,
    state: IntGaugeVec,
    rebuild_progress: GaugeVec,
    rebuild_remaining: GaugeVec,
    rebuild_lag: GaugeVec,
    rebuild_place: IntGaugeVec,
    candidate_state: IntGaugeVec,
    pinned_bytes: IntGaugeVec,
    sources: SourceGauges,
    pub(super) disk: DiskGauges,
    failures: FailureGauges,
    pub(super) memory: MemoryGauges,
}

/// Gauges of the sources.
#[derive(Debug)]
struct SourceGauges {
    state: IntGaugeVec,
    heard: GaugeVec,
    reachable: GaugeVec,
    reconnects: IntCounterVec,
    passed_over: IntCounterVec,
    repaired: IntCounterVec,
}

impl SourceGauges {
    fn new(registry: &Registry) -> Self {
        Self {
            state: gauge(
                registry,
                "foldstream_source_state",
                "1 for the current state of a deployment's source, 0 for the others.",
                &["deployment", "source", "state"],
            ),
            heard: float_gauge(
                registry,
                "foldstream_source_last_heard_timestamp_seconds",
                "When a deployment's source last answered, in seconds since the Unix epoch; NaN \
                 before that.",
                &["deployment", "source"],
            ),
            reachable: float_gauge(
                registry,
                "foldstream_source_reachable",
                "1 if a configured source could be reached at the last check, 0 if not; NaN before \
                 that.",
                &["source", "stream"],
            ),
            reconnects: counter(
                registry,
                "foldstream_source_reconnects_total",
                "Reconnects and recreated consumers.",
                &["deployment", "source"],
            ),
            passed_over: counter(
                registry,
                "foldstream_source_passed_over_total",
                "Messages that are not events, such as delete markers, tombstones and schedules.",
                &["deployment", "source"],
            ),
            repaired: counter(
                registry,
                "foldstream_source_repaired_total",
                "Invalid messages, delivered without their unusable parts.",
                &["deployment", "source"],
            ),
        }
    }
}

impl Gauges {
    pub(super) fn new(registry: &Registry) -> Self {
        set_build(registry);
        let perhaps = |name: &str, help: &str| float_gauge(registry, name, help, DEPLOYMENT);
        let of_deployment = |name: &str, help: &str| gauge(registry, name, help, DEPLOYMENT);
        Self {
            missing_events: of_deployment(
                "foldstream_missing_events",
                "Events that were already gone from the stream, and were accepted as missing.",
            ),
            lag_events: perhaps(
                "foldstream_lag_events",
                "Events that may match and are not applied yet; NaN while unknown.",
            ),
            lag_seconds: perhaps(
                "foldstream_lag_seconds",
                "Age of the oldest event that is not applied yet, 0 if there is none; NaN while \
                 unknown.",
            ),
            head: perhaps(
                "foldstream_head",
                "Last sequence in the stream; NaN while unknown.",
            ),
            position: of_deployment(
                "foldstream_position",
                "Last sequence that the state reflects.",
            ),
            checkpoint: of_deployment("foldstream_checkpoint", "Last durable position."),
            state_bytes: of_deployment("foldstream_state_bytes", "Keys and values of the state."),
            memtable_bytes: of_deployment(
                "foldstream_memtable_bytes",
                "State that is only in memory, with overhead.",
            ),
            pinned_bytes: of_deployment(
                "foldstream_pinned_bytes",
                "Memory held only by readers of an older state.",
            ),
            file_bytes: of_deployment(
                "foldstream_state_file_bytes",
                "Disk space of the active state file.",
            ),
            guest_memory_bytes: of_deployment(
                "foldstream_guest_memory_bytes",
                "Memory of instances that apply.",
            ),
            instances: of_deployment(
                "foldstream_guest_instances",
                "Number of instances, including those of queries.",
            ),
            generation: of_deployment("foldstream_generation", "Number of the active generation."),
            skipped: of_deployment(
                "foldstream_events_skipped",
                "Events that the active state skipped, as decided.",
            ),
            module: gauge(
                registry,
                "foldstream_module_info",
                "The module that a deployment runs.",
                &["deployment", "digest", "name", "state_version"],
            ),
            state: gauge(
                registry,
                "foldstream_deployment_state",
                "1 for the current state of a deployment, 0 for the others.",
                &["deployment", "state"],
            ),
            rebuild_progress: perhaps(
                "foldstream_rebuild_progress_ratio",
                "Progress of the candidate towards the head, from 0 to 1; NaN while unknown.",
            ),
            rebuild_remaining: perhaps(
                "foldstream_rebuild_remaining_seconds",
                "Estimated seconds until the candidate has caught up; NaN while unknown.",
            ),
            rebuild_lag: perhaps(
                "foldstream_rebuild_lag_events",
                "Events that the candidate still has to apply; NaN while unknown.",
            ),
            candidate_state: gauge(
                registry,
                "foldstream_candidate_state",
                "1 for the current state of a deployment's candidate, 0 for the others; all 0 \
                 while it is queued.",
                &["deployment", "state"],
            ),
            sources: SourceGauges::new(registry),
            disk: DiskGauges::new(registry),
            failures: FailureGauges::new(registry),
            memory: MemoryGauges::new(registry),
            rebuild_place: of_deployment(
                "foldstream_rebuild_queue_place",
                "Rebuilds that must end before the candidate's starts; 0 while it runs.",
            ),
        }
    }

    /// Sets all series from scratch, so that no series of a deleted deployment remains.
    pub(super) fn set(&self, deployments: &[Deployment], sources: &[Reachable]) {
        self.reset();
        for Reachable {
            source,
            stream,
            is_reachable,
        } in sources
        {
            let value = is_reachable.map_or(f64::NAN, |reachable| f64::from(u8::from(reachable)));
            self.sources
                .reachable
                .with_label_values(&[source.as_str(), stream.as_str()])
                .set(value);
        }
        for deployment in deployments {
            self.set_numbers(deployment);
            self.set_states(deployment);
            self.failures.set(deployment);
            self.set_rebuild(deployment);
        }
    }

    /// A deployment without a candidate has no series for rebuilds.
    fn set_rebuild(&self, deployment: &Deployment) {
        let Some(candidate) = &deployment.candidate else {
            return;
        };
        let name = [deployment.name.as_str()];
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.rebuild_progress
            .with_label_values(&name)
            .set(candidate.progress.unwrap_or(f64::NAN));
        self.rebuild_remaining
            .with_label_values(&name)
            .set(candidate.remaining_seconds.unwrap_or(f64::NAN));
        self.rebuild_lag
            .with_label_values(&name)
            .set(float(candidate.lag_events));
        for state in DeploymentState::ALL {
            let value = i64::from(candidate.state == Some(state));
            self.candidate_state
                .with_label_values(&[name[0], state.name()])
                .set(value);
        }
        self.rebuild_place
            .with_label_values(&name)
            .set(number(candidate.queued_behind.unwrap_or(0)));
    }

    fn reset(&self) {
        self.failures.reset();
        for vector in [
            &self.lag_seconds,
            &self.lag_events,
            &self.head,
            &self.rebuild_progress,
            &self.rebuild_remaining,
            &self.rebuild_lag,
            &self.sources.heard,
            &self.sources.reachable,
        ] {
            vector.reset();
        }
        // The host's own counts are set below: they only rise, also across a reset of the series.
        self.sources.reconnects.reset();
        self.sources.passed_over.reset();
        self.sources.repaired.reset();
        for vector in [
            &self.missing_events,
            &self.position,
            &self.checkpoint,
            &self.state_bytes,
            &self.memtable_bytes,
            &self.pinned_bytes,
            &self.file_bytes,
            &self.guest_memory_bytes,
            &self.instances,
            &self.generation,
            &self.skipped,
            &self.module,
            &self.state,
            &self.sources.state,
            &self.candidate_state,
            &self.rebuild_place,
        ] {
            vector.reset();
        }
    }

    fn set_numbers(&self, deployment: &Deployment) {
        let name = [deployment.name.as_str()];
        self.lag_seconds
            .with_label_values(&name)
            .set(deployment.lag_seconds.unwrap_or(f64::NAN));
        self.lag_events
            .with_label_values(&name)
            .set(float(deployment.lag_events));
        self.head
            .with_label_values(&name)
            .set(float(deployment.head));
        for (vector, value) in [
            (&self.missing_events, deployment.missing_events),
            (&self.position, deployment.position),
            (&self.checkpoint, deployment.checkpoint),
            (&self.state_bytes, deployment.state_bytes),
            (&self.memtable_bytes, deployment.memtable_bytes),
            (&self.pinned_bytes, deployment.pinned_bytes),
            (&self.file_bytes, deployment.file_bytes),
            (&self.guest_memory_bytes, deployment.guest_memory_bytes),
            (&self.instances, deployment.instances),
            (&self.generation, deployment.generation),
            (&self.skipped, deployment.skipped),
        ] {
            vector
                .with_label_values(&name)
                .set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    fn set_states(&self, deployment: &Deployment) {
        let (name, source) = (deployment.name.as_str(), deployment.source.as_str());
        let module = &deployment.module;
        let version = module.state_version.to_string();
        self.module
            .with_label_values(&[
                name,
                module.digest.as_str(),
                module.name.as_str(),
                version.as_str(),
            ])
            .set(1);
        for state in DeploymentState::ALL {
            self.state
                .with_label_values(&[name, state.name()])
                .set(i64::from(state == deployment.state));
        }
        let status = &deployment.source_status;
        for state in SourceState::ALL {
            self.sources
                .state
                .with_label_values(&[name, source, state.name()])
                .set(i64::from(state == status.state));
        }
        self.sources
            .reconnects
            .with_label_values(&[name, source])
            .inc_by(status.reconnects);
        self.sources
            .passed_over
            .with_label_values(&[name, source])
            .inc_by(status.passed_over);
        self.sources
            .repaired
            .with_label_values(&[name, source])
            .inc_by(status.repaired);
        let heard = status.last_heard();
        let heard = heard.map_or(f64::NAN, |time| time.as_millisecond() as f64 / 1e3);
        self.sources
            .heard
            .with_label_values(&[name, source])
            .set(heard);
    }
}
