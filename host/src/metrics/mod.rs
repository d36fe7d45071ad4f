//! All metrics, in one place and in the conventions of Prometheus: base units,
//! `_total` on counters, labels from closed sets (and names of deployments).
//!
//! Counters and histograms are updated where things happen, through
//! [`DeploymentMetrics`]; gauges are set from [`crate::api::Deployment`] when
//! the page is requested.

mod deployment;
mod disk;
mod failures;
mod inbox;
mod memory;
mod outbox;
mod register;
mod sagas;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, GaugeVec, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::api::{CONTRACT, Deployment, DeploymentState, FailureClass, MemoryPart, SourceState};
use crate::usage::Usage;
pub use deployment::DeploymentMetrics;
use disk::DiskGauges;
use failures::FailureGauges;
use inbox::Inboxes;
use memory::MemoryGauges;
use outbox::Outboxes;
use register::{counter, float_gauge, gauge, histogram, number, register};
use sagas::Sagas;

/// The metrics of a host.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    events: IntCounterVec,
    apply_failures: IntCounterVec,
    retries: IntCounterVec,
    state_failures: IntCounterVec,
    inbox: Inboxes,
    outbox: Outboxes,
    sagas: Sagas,
    apply: HistogramVec,
    commit: HistogramVec,
    query: HistogramVec,
    batch: HistogramVec,
    requests: HistogramVec,
    holds: HistogramVec,
    cut_overs: IntCounterVec,
    watches: IntGauge,
    watches_ended: IntCounterVec,
    door: Door,
    /// Behind a lock, because only one page at a time may set and collect them.
    gauges: Arc<Mutex<Gauges>>,
}

/// Metrics of refused requests and of the certificate.
#[derive(Clone, Debug)]
struct Door {
    refused: IntCounterVec,
    certificate_end: prometheus::Gauge,
}

/// A registry with what the system knows of this process.
fn of_the_process() -> Registry {
    let registry = Registry::new();
    registry
        .register(Box::new(ProcessCollector::for_self()))
        .expect("each name is registered once");
    registry
}

impl Door {
    fn new(registry: &Registry) -> Self {
        let refused = counter(
            registry,
            "foldstream_http_refused_total",
            "Requests refused because of their token (missing, wrong, not allowed) or their origin.",
            &["reason"],
        );
        for reason in REFUSALS {
            // An increase is visible only in a series that already exists.
            let _ = refused.with_label_values(&[reason]);
        }
        let options = Opts::new(
            "foldstream_tls_certificate_end_timestamp_seconds",
            "When the certificate of the server expires; NaN without TLS.",
        );
        let certificate_end =
            prometheus::Gauge::with_opts(options).expect("name and help are constant and valid");
        certificate_end.set(f64::NAN);
        Self {
            refused,
            certificate_end: register(registry, certificate_end),
        }
    }
}

/// Counts an open watch until it is dropped.
#[derive(Debug)]
pub struct WatchGuard(IntGauge, IntCounterVec);

impl WatchGuard {
    /// Counts that the host ends the watch, by reason.
    pub fn ended(&self, reason: &'static str) {
        self.1.with_label_values(&[reason]).inc();
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Reasons of `foldstream_http_refused_total`.
pub const REFUSALS: [&str; 4] = ["token-missing", "token-wrong", "not-allowed", "origin"];
const DEPLOYMENT: &[&str] = &["deployment"];
/// Kinds and outcomes of `foldstream_cut_overs_total`.
const KINDS: [&str; 2] = ["cut-over", "rollback"];
const OUTCOMES: [&str; 2] = ["done", "missed"];

impl Metrics {
    /// An empty set.
    pub fn new() -> Self {
        let registry = of_the_process();
        let seconds =
            prometheus::exponential_buckets(0.000_1, 2.5, 14).expect("constant and valid");
        let sizes = prometheus::exponential_buckets(1.0, 4.0, 8).expect("constant and valid");
        let timer = |name: &str, help: &str, labels: &[&str]| {
            histogram(&registry, name, help, labels, &seconds)
        };
        let count =
            |name: &str, help: &str, labels: &[&str]| counter(&registry, name, help, labels);
        Self {
            events: count(
                "foldstream_events_total",
                "Events by outcome; failed ones are those at which a deployment stopped.",
                &["deployment", "outcome"],
            ),
            apply_failures: count(
                "foldstream_apply_failures_total",
                "Failed calls of apply by class; a bad event fails several until it is alone.",
                &["deployment", "class"],
            ),
            retries: count(
                "foldstream_retries_total",
                "Attempts to apply a batch again after a failure.",
                DEPLOYMENT,
            ),
            state_failures: count(
                "foldstream_state_failures_total",
                "Failures to read or write a state file, after which it was reopened.",
                DEPLOYMENT,
            ),
            inbox: Inboxes::new(&registry),
            outbox: Outboxes::new(&registry),
            sagas: Sagas::new(&registry),
            apply: timer(
                "foldstream_apply_duration_seconds",
                "Duration of one call of apply.",
                DEPLOYMENT,
            ),
            commit: timer(
                "foldstream_commit_duration_seconds",
                "Duration of one durable commit of state and checkpoint.",
                DEPLOYMENT,
            ),
            query: timer(
                "foldstream_query_duration_seconds",
                "Duration of one query in the guest.",
                DEPLOYMENT,
            ),
            batch: histogram(
                &registry,
                "foldstream_batch_events",
                "Events in one batch.",
                DEPLOYMENT,
                &sizes,
            ),
            requests: timer(
                "foldstream_http_request_duration_seconds",
                "Duration of HTTP requests; for streams, until they are open.",
                &["route", "method", "status"],
            ),
            holds: timer(
                "foldstream_cut_over_hold_seconds",
                "How long a cut-over or rollback held applying.",
                DEPLOYMENT,
            ),
            cut_overs: count(
                "foldstream_cut_overs_total",
                "Attempted cut-overs and rollbacks, by outcome.",
                &["deployment", "kind", "outcome"],
            ),
            door: Door::new(&registry),
            watches: number(&registry, "foldstream_watches_open", "Watches and tails."),
            watches_ended: count(
                "foldstream_watches_ended_total",
                "Watches and tails that the host closed: stalled, or host-memory.",
                &["reason"],
            ),
            gauges: Arc::new(Mutex::new(Gauges::new(&registry))),
            registry,
        }
    }

    /// The handles of a deployment. Its counters start at 0, so that the first event that they
    /// count is visible as an increase.
    pub fn deployment(&self, name: &str) -> DeploymentMetrics {
        for (kind, outcome) in KINDS
            .iter()
            .flat_map(|kind| OUTCOMES.map(|outcome| (*kind, outcome)))
        {
            // Made by being looked up.
            self.cut_overs.with_label_values(&[name, kind, outcome]);
        }
        self.holds.with_label_values(&[name]);
        DeploymentMetrics {
            events_applied: self.events.with_label_values(&[name, "applied"]),
            events_rebuilt: self.events.with_label_values(&[name, "rebuilt"]),
            events_duplicate: self.events.with_label_values(&[name, "duplicate"]),
            events_failed: self.events.with_label_values(&[name, "failed"]),
            events_parked: self.events.with_label_values(&[name, "parked"]),
            apply_failures: FailureClass::ALL
                .map(|class| self.apply_failures.with_label_values(&[name, class.name()])),
            retries: self.retries.with_label_values(&[name]),
            state_failures: self.state_failures.with_label_values(&[name]),
            outbox_released: self.outbox.released(name),
            outbox_resent: self.outbox.resent(name),
            timer_lateness: self.outbox.lateness(name),
            apply_seconds: self.apply.with_label_values(&[name]),
            commit_seconds: self.commit.with_label_values(&[name]),
            query_seconds: self.query.with_label_values(&[name]),
            batch_events: self.batch.with_label_values(&[name]),
        }
    }

    /// Removes the series of a deleted deployment. Remaining handles have no effect.
    pub fn forget(&self, name: &str) {
        // An error means that the series does not exist, which is the goal.
        for outcome in ["applied", "rebuilt", "duplicate", "failed", "parked"] {
            let _ = self.events.remove_label_values(&[name, outcome]);
        }
        for class in FailureClass::ALL {
            let _ = self
                .apply_failures
                .remove_label_values(&[name, class.name()]);
        }
        let _ = self.retries.remove_label_values(&[name]);
        let _ = self.state_failures.remove_label_values(&[name]);
        self.outbox.forget(name);
        for vector in [
            &self.apply,
            &self.commit,
            &self.query,
            &self.batch,
            &self.holds,
        ] {
            let _ = vector.remove_label_values(&[name]);
        }
        for (kind, outcome) in KINDS
            .iter()
            .flat_map(|kind| OUTCOMES.map(|outcome| (*kind, outcome)))
        {
            let _ = self.cut_overs.remove_label_values(&[name, kind, outcome]);
        }
    }

    /// Records an attempted cut-over or rollback: how long it held applying, or none if it was
    /// missed.
    pub fn cut_over(&self, deployment: &str, kind: &str, held: Option<Duration>) {
        let outcome = OUTCOMES[usize::from(held.is_none())];
        self.cut_overs
            .with_label_values(&[deployment, kind, outcome])
            .inc();
        // A missed one held nothing worth a figure.
        if let Some(held) = held {
            self.holds
                .with_label_values(&[deployment])
                .observe(held.as_secs_f64());
        }
    }

    /// Counts a watch until the guard is dropped.
    pub fn watch(&self) -> WatchGuard {
        self.watches.inc();
        WatchGuard(self.watches.clone(), self.watches_ended.clone())
    }

    /// Records an HTTP request under the template of its route, never its path; labels come from
    /// closed sets.
    pub fn request(&self, route: &str, method: &str, status: &str, duration: Duration) {
        self.requests
            .with_label_values(&[route, method, status])
            .observe(duration.as_secs_f64());
    }

    /// Counts a refused request, by reason.
    pub fn refused(&self, reason: &str) {
        self.door.refused.with_label_values(&[reason]).inc();
    }

    /// Sets when the certificate of the server expires, in seconds since 1970.
    pub fn certificate(&self, end: Option<i64>) {
        if let Some(end) = end {
            self.door.certificate_end.set(end as f64);
        }
    }

    /// The page for Prometheus, in text exposition format 0.0.4, with the gauges of these
    /// deployments and sources.
    pub fn page(
        &self,
        deployments: &[Deployment],
        sources: &[Reachable],
        usage: &Usage,
        memory: &[MemoryPart],
    ) -> Vec<u8> {
        let gauges = self.gauges.lock();
        // From the same figures, so that a page does not contradict itself.
        gauges.set(deployments, sources);
        self.inbox.set(deployments);
        self.outbox.set(deployments);
        self.sagas.set(deployments);
        gauges.disk.set(usage);
        gauges.memory.set(memory);
        let mut page = Vec::with_capacity(64 << 10);
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut page)
            .expect("names and labels are valid");
        page
    }

    /// The registry, for the page.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

/// Whether a configured source can be reached, as far as known.
#[derive(Clone, Debug)]
pub struct Reachable {
    /// Its name.
    pub source: String,
    /// Its stream.
    pub stream: String,
    /// Whether it could be reached last; none before the first attempt.
    pub is_reachable: Option<bool>,
}

/// A number as a float; NaN if unknown.
fn float(value: Option<u64>) -> f64 {
    value.map_or(f64::NAN, |value| value as f64)
}

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
struct Gauges {
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
    disk: DiskGauges,
    failures: FailureGauges,
    memory: MemoryGauges,
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
    fn new(registry: &Registry) -> Self {
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
    fn set(&self, deployments: &[Deployment], sources: &[Reachable]) {
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
        let heard = status
            .last_heard
            .as_ref()
            .and_then(|time| time.parse::<jiff::Timestamp>().ok());
        let heard = heard.map_or(f64::NAN, |time| time.as_millisecond() as f64 / 1e3);
        self.sources
            .heard
            .with_label_values(&[name, source])
            .set(heard);
    }
}
