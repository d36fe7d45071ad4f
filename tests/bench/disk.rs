//! Bytes that a host writes to its disk for each event that a deployment applies, by rate and flush
//! interval.

use std::time::Duration;

use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::{guests, nats};

use crate::arguments::Arguments;
use crate::report::Report;
use crate::workload::{self, STREAM};

/// Deployments of the same module on one stream.
const DEPLOYMENTS: u64 = 5;
/// Events before the measurement, so that the files have a size.
const BEFORE: usize = 20_000;
/// Events per second.
const RATES: [usize; 3] = [10, 100, 1_000];
/// Flush intervals.
const INTERVALS: [&str; 2] = ["1s", "10s"];
/// Length of each measurement at least: several of the longest intervals.
const SECONDS_MIN: u64 = 40;
/// How often events are published.
const TICK: Duration = Duration::from_millis(100);
const TICKS_PER_SECOND: usize = 10;

/// Measures it for events that come one by one, and for events that are all there.
pub async fn measure(arguments: &Arguments, report: &mut Report) {
    let seconds = arguments.seconds.max(SECONDS_MIN);
    let customers = arguments.customers[0];
    for interval in INTERVALS {
        for rate in RATES {
            let bytes = live(interval, rate, seconds, customers).await;
            let name = format!(
                "written per event and deployment, {rate} events/s, flush_interval {interval}"
            );
            report.add(
                name,
                bytes / 1024.0,
                "KiB",
                format!("{DEPLOYMENTS} deployments, {customers} customers"),
            );
        }
    }
    let events = arguments.events.min(200_000);
    let bytes = built(events, customers).await;
    let name = "written per event and deployment, built from a stream";
    report.add(
        name,
        bytes / 1024.0,
        "KiB",
        format!("{DEPLOYMENTS} deployments, {events} events, {customers} customers"),
    );
}

/// Bytes per event and deployment while events arrive at a rate.
async fn live(interval: &str, rate: usize, seconds: u64, customers: u32) -> f64 {
    let server = workload::publish(BEFORE, customers).await;
    let source = jetstream_source(&server.url(), STREAM);
    let host = Host::start_with(&format!(
        "[state]\nflush_interval = \"{interval}\"\n{source}"
    ))
    .await;
    deploy(&host).await;
    durable(&host, BEFORE as u64).await;
    let context = server.jetstream().await;
    let before = host.written_bytes();
    let mut ticker = tokio::time::interval(TICK);
    let each = rate / TICKS_PER_SECOND;
    let ticks = usize::try_from(seconds).expect("a short time") * TICKS_PER_SECOND;
    let mut messages = workload::messages(BEFORE + ticks * each, customers).skip(BEFORE);
    for _ in 0..ticks {
        ticker.tick().await;
        nats::publish(&context, messages.by_ref().take(each).collect::<Vec<_>>()).await;
    }
    durable(&host, (BEFORE + ticks * each) as u64).await;
    (host.written_bytes() - before) as f64 / (ticks * each) as f64 / DEPLOYMENTS as f64
}

/// Bytes per event and deployment if a stream is read from its beginning.
async fn built(events: usize, customers: u32) -> f64 {
    let server = workload::publish(events, customers).await;
    let host = Host::start_on(&server, STREAM).await;
    let before = host.written_bytes();
    deploy(&host).await;
    durable(&host, events as u64).await;
    (host.written_bytes() - before) as f64 / events as f64 / DEPLOYMENTS as f64
}

async fn deploy(host: &Host) {
    let module = guests::module("customer-totals");
    for number in 0..DEPLOYMENTS {
        host.client()
            .deploy(&format!("totals-{number}"), &module)
            .await;
    }
}

/// Waits until all of them have committed a position.
async fn durable(host: &Host, position: u64) {
    for number in 0..DEPLOYMENTS {
        let name = format!("totals-{number}");
        host.client()
            .show_when(&name, "be durable", |shown| shown.checkpoint >= position)
            .await;
    }
}
