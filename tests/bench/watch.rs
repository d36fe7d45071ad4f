//! Watches: how long after its publishing an event's change reaches each of many watchers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use foldstream_tests::guests;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::arguments::Arguments;
use crate::report::{Report, Target, quantile};
use crate::workload::{self, STREAM};

/// Numbers of watchers, each measured on its own.
const WATCHERS: [usize; 2] = [10, 1_000];
/// Time between two events: long enough that each is delivered before the next.
const APART: Duration = Duration::from_millis(200);
/// Events before the measurement.
const WARM: usize = 5;

/// Measures all numbers of watchers.
pub async fn measure(arguments: &Arguments, report: &mut Report) {
    for watchers in WATCHERS {
        let times = delivered(watchers, arguments.seconds).await;
        report.add(
            format!("watch, {watchers} watchers: publishing to delivery, p50"),
            quantile(&times, 0.5),
            "ms",
            format!("an event each {} ms", APART.as_millis()),
        );
        report.add_with_target(
            format!("watch, {watchers} watchers: publishing to delivery, p99"),
            quantile(&times, 0.99),
            "ms",
            Target::AtMost(1.0),
        );
    }
}

/// Milliseconds from the publishing of each event to its arrival at each watcher, sorted.
async fn delivered(watchers: usize, seconds: u64) -> Vec<f64> {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "orders.>").await;
    let host = Host::start_on(&server, STREAM).await;
    host.client()
        .deploy("watched", &guests::module("customer-totals"))
        .await;
    let events = WARM + (Duration::from_secs(seconds).as_millis() / APART.as_millis()) as usize;
    let open = Arc::new(Barrier::new(watchers + 1));
    let mut tasks = JoinSet::new();
    for _ in 0..watchers {
        let (client, open) = (host.client().clone(), Arc::clone(&open));
        tasks.spawn(async move {
            let mut changes = client.events("/v1/deployments/watched/changes", None).await;
            open.wait().await;
            let mut arrived = vec![None; events];
            while arrived.iter().any(Option::is_none) {
                let change = changes.change().await;
                let at = Instant::now();
                let event = usize::try_from(change.position).expect("a small number") - 1;
                arrived[event].get_or_insert(at);
            }
            arrived
        });
    }
    open.wait().await;
    let mut published = Vec::with_capacity(events);
    let mut ticker = tokio::time::interval(APART);
    for message in workload::messages(events, 1) {
        ticker.tick().await;
        published.push(Instant::now());
        nats::publish(&context, [message]).await;
    }
    let mut times = Vec::with_capacity(watchers * events);
    while let Some(arrived) = tasks.join_next().await {
        let arrived = arrived.expect("the watcher ends");
        let arrived = arrived.into_iter().zip(&published).skip(WARM);
        times.extend(arrived.map(|(arrived, published)| {
            let arrived = arrived.expect("each event arrived");
            (arrived - *published).as_secs_f64() * 1e3
        }));
    }
    times.sort_by(f64::total_cmp);
    times
}
