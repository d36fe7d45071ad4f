//! Creates metrics and registers them.

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

pub(super) fn register<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> C {
    registry
        .register(Box::new(collector.clone()))
        .expect("each name is registered once");
    collector
}

pub(super) fn histogram(
    registry: &Registry,
    options: HistogramOpts,
    labels: &[&str],
) -> HistogramVec {
    register(
        registry,
        HistogramVec::new(options, labels).expect("name and labels are constant and valid"),
    )
}

pub(super) fn counter(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> IntCounterVec {
    let vector = IntCounterVec::new(Opts::new(name, help), labels);
    register(
        registry,
        vector.expect("name and labels are constant and valid"),
    )
}

pub(super) fn gauge(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    let vector = IntGaugeVec::new(Opts::new(name, help), labels);
    register(
        registry,
        vector.expect("name and labels are constant and valid"),
    )
}

pub(super) fn float_gauge(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> GaugeVec {
    let vector = GaugeVec::new(Opts::new(name, help), labels);
    register(
        registry,
        vector.expect("name and labels are constant and valid"),
    )
}

/// A gauge without labels.
pub(super) fn number(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(
        registry,
        IntGauge::new(name, help).expect("constant and valid"),
    )
}

/// A number as a float; NaN if unknown.
pub(super) fn float(value: Option<u64>) -> f64 {
    value.map_or(f64::NAN, |value| value as f64)
}
