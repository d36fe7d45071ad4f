//! All metrics, in one place and in the conventions of Prometheus: base units,
//! `_total` on counters, labels from closed sets (and names of deployments).
//!
//! Counters and histograms are updated where things happen, through
//! [`DeploymentMetrics`]; gauges are set from `overview::Deployment` when
//! the page is requested.

mod deployment;
mod disk;
mod failures;
mod gauges;
mod inbox;
mod lanes;
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
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use crate::failure::FailureClass;
use crate::memory::PartUsage;
use crate::overview::Deployment;
use crate::usage::Usage;
pub use deployment::DeploymentMetrics;
use gauges::Gauges;
use inbox::Inboxes;
use lanes::Lanes;
use outbox::Outboxes;
use register::{counter, histogram, number, register};
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
    lanes: Lanes,
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
            let options = HistogramOpts::new(name, help).buckets(seconds.clone());
            histogram(&registry, options, labels)
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
            lanes: Lanes::new(&registry),
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
                HistogramOpts::new("foldstream_batch_events", "Events in one batch.")
                    .buckets(sizes),
                DEPLOYMENT,
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
                "Watches and tails that the host closed: stalled, host-memory, or not-allowed.",
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
        memory: &[PartUsage],
    ) -> Vec<u8> {
        let gauges = self.gauges.lock();
        // From the same figures, so that a page does not contradict itself.
        gauges.set(deployments, sources);
        self.inbox.set(deployments);
        self.lanes.set(deployments);
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
