//! Metrics of handlers: what waits in their outbox, and how safe publishing is.

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec,
    Registry,
};

use super::DEPLOYMENT;
use super::register::{counter, float_gauge, gauge, histogram};
use crate::effects::Promise;
use crate::overview::Deployment;

/// Upper bounds of the lateness of timers, in seconds.
const LATENESS: &[f64] = &[
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3_600.0, 86_400.0,
];

/// Counters of what was published, and gauges of what waits.
#[derive(Clone, Debug)]
pub(super) struct Outboxes {
    released: IntCounterVec,
    resent: IntCounterVec,
    lateness: HistogramVec,
    gauges: Gauges,
}

impl Outboxes {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            released: counter(
                registry,
                "foldstream_outbox_released_total",
                "Messages of a handler that their stream confirmed as stored.",
                DEPLOYMENT,
            ),
            resent: counter(
                registry,
                "foldstream_outbox_resent_total",
                "Messages of a handler that were sent again and were stored already.",
                DEPLOYMENT,
            ),
            lateness: histogram(
                registry,
                HistogramOpts::new(
                    "foldstream_timer_lateness_seconds",
                    "How long after its time a timer fired, by the clock of the stream; the count is that of timers that fired.",
                )
                .buckets(LATENESS.to_vec()),
                DEPLOYMENT,
            ),
            gauges: Gauges::new(registry),
        }
    }

    pub(super) fn lateness(&self, name: &str) -> Histogram {
        self.lateness.with_label_values(&[name])
    }

    pub(super) fn released(&self, name: &str) -> IntCounter {
        self.released.with_label_values(&[name])
    }

    pub(super) fn resent(&self, name: &str) -> IntCounter {
        self.resent.with_label_values(&[name])
    }

    /// Sets all gauges from scratch. One page at a time may do that.
    pub(super) fn set(&self, deployments: &[Deployment]) {
        self.gauges.reset();
        deployments
            .iter()
            .for_each(|deployment| self.gauges.set(deployment));
    }

    pub(super) fn forget(&self, name: &str) {
        // An error means that the series does not exist, which is the goal.
        let _ = self.released.remove_label_values(&[name]);
        let _ = self.resent.remove_label_values(&[name]);
        let _ = self.lateness.remove_label_values(&[name]);
    }
}

/// Gauges, set when the page is requested; only handlers have series.
#[derive(Clone, Debug)]
struct Gauges {
    entries: IntGaugeVec,
    bytes: IntGaugeVec,
    delayed: IntGaugeVec,
    conflicts: IntGaugeVec,
    oldest: GaugeVec,
    promise: IntGaugeVec,
    longest_wait: GaugeVec,
    window: GaugeVec,
    troubled: IntGaugeVec,
    timers: IntGaugeVec,
    timers_overdue: GaugeVec,
    timers_troubled: IntGaugeVec,
    timers_looping: IntGaugeVec,
}

impl Gauges {
    fn new(registry: &Registry) -> Self {
        let target = &["deployment", "target"];
        Self {
            entries: gauge(
                registry,
                "foldstream_outbox_entries",
                "Messages that wait to be published.",
                DEPLOYMENT,
            ),
            bytes: gauge(
                registry,
                "foldstream_outbox_bytes",
                "Size of messages that wait to be published.",
                DEPLOYMENT,
            ),
            delayed: gauge(
                registry,
                "foldstream_outbox_delayed",
                "Messages that wait for a time of their own before they are published.",
                DEPLOYMENT,
            ),
            conflicts: gauge(
                registry,
                "foldstream_outbox_conflicts",
                "Messages that are set aside because their condition does not hold.",
                DEPLOYMENT,
            ),
            oldest: float_gauge(
                registry,
                "foldstream_outbox_oldest_seconds",
                "Age of the oldest message that could be published, 0 if there is none.",
                DEPLOYMENT,
            ),
            promise: gauge(
                registry,
                "foldstream_outbox_promise",
                "1 for how safe publishing to a stream is (exact, read-back, window, lost), 0 for \
                 the others; all 0 while unknown.",
                &["deployment", "target", "level"],
            ),
            longest_wait: float_gauge(
                registry,
                "foldstream_outbox_longest_wait_seconds",
                "The longest wait of a message for its confirmation so far, also before restarts.",
                target,
            ),
            window: float_gauge(
                registry,
                "foldstream_outbox_window_seconds",
                "How long a stream recognises ids, if nothing else prevents second copies.",
                target,
            ),
            troubled: gauge(
                registry,
                "foldstream_outbox_troubled",
                "1 while nothing can be published to a stream, otherwise 0.",
                target,
            ),
            timers: gauge(
                registry,
                "foldstream_timers_pending",
                "Timers that are pending.",
                DEPLOYMENT,
            ),
            timers_overdue: float_gauge(
                registry,
                "foldstream_timers_overdue_seconds",
                "How long the next timer has been due, 0 if none is due.",
                DEPLOYMENT,
            ),
            timers_troubled: gauge(
                registry,
                "foldstream_timers_troubled",
                "1 while a timer that is due cannot fire, otherwise 0.",
                DEPLOYMENT,
            ),
            timers_looping: gauge(
                registry,
                "foldstream_timers_looping",
                "1 while timers set each other without a pause and are slowed down, otherwise 0.",
                DEPLOYMENT,
            ),
        }
    }

    fn reset(&self) {
        for vector in [
            &self.entries,
            &self.bytes,
            &self.delayed,
            &self.conflicts,
            &self.promise,
            &self.troubled,
            &self.timers,
            &self.timers_troubled,
            &self.timers_looping,
        ] {
            vector.reset();
        }
        for vector in [
            &self.oldest,
            &self.longest_wait,
            &self.window,
            &self.timers_overdue,
        ] {
            vector.reset();
        }
    }

    fn set(&self, deployment: &Deployment) {
        let name = deployment.name.as_str();
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        if let Some(timers) = &deployment.timers {
            self.timers
                .with_label_values(&[name])
                .set(number(timers.pending));
            self.timers_overdue
                .with_label_values(&[name])
                .set(timers.overdue_seconds);
            self.timers_troubled
                .with_label_values(&[name])
                .set(i64::from(timers.trouble.is_some()));
            self.timers_looping
                .with_label_values(&[name])
                .set(i64::from(timers.timer_loop.is_some()));
        }
        let Some(outbox) = &deployment.outbox else {
            return;
        };
        self.entries
            .with_label_values(&[name])
            .set(number(outbox.entries));
        self.bytes
            .with_label_values(&[name])
            .set(number(outbox.bytes));
        self.delayed
            .with_label_values(&[name])
            .set(number(outbox.delayed));
        self.conflicts
            .with_label_values(&[name])
            .set(number(outbox.conflicts));
        self.oldest
            .with_label_values(&[name])
            .set(outbox.oldest_seconds);
        for target in &outbox.targets {
            let source = target.source.as_str();
            self.troubled
                .with_label_values(&[name, source])
                .set(i64::from(target.trouble.is_some()));
            self.longest_wait
                .with_label_values(&[name, source])
                .set(target.longest_wait_seconds);
            if let (Some(Promise::Window), Some(window)) = (target.promise, target.window_seconds) {
                self.window.with_label_values(&[name, source]).set(window);
            }
            for promise in Promise::ALL {
                let value = i64::from(target.promise == Some(promise));
                self.promise
                    .with_label_values(&[name, source, promise.name()])
                    .set(value);
            }
        }
    }
}
