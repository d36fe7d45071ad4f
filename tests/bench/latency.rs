//! Live: how long after its publishing an event can be read, against a plain subscriber to the same
//! subjects.
//!
//! The reader is a client as any other: it asks over HTTP for an entry `at-least` the event's
//! sequence, before the event is published, and stops the clock when the answer is there. Both
//! clocks start before the same call of publish.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldstream_tests::client::Client;
use foldstream_tests::guests;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use futures_util::StreamExt;
use tokio::task::JoinSet;

use crate::arguments::Arguments;
use crate::report::{Report, Target, median, quantile};
use crate::workload::{self, STREAM};

/// Events a second whose reading is measured: few enough that measuring is not the load.
const SAMPLES_PER_SECOND: u64 = 100;
/// Pace of the publisher: what falls due within this long is sent at once.
const TICK: Duration = Duration::from_millis(1);
/// How long before its publishing an event is asked for.
const AHEAD: Duration = Duration::from_millis(200);

/// Times in milliseconds, sorted.
struct Latencies {
    bare: Vec<f64>,
    queryable: Vec<f64>,
}

/// Measures all rates.
pub async fn measure(arguments: &Arguments, report: &mut Report) {
    for &rate in &arguments.rates {
        let mut rounds = Vec::new();
        for _ in 0..arguments.rounds {
            rounds.push(live(rate, arguments.seconds).await);
        }
        add(report, rate, &rounds);
    }
}

fn add(report: &mut Report, rate: u64, rounds: &[Latencies]) {
    for (name, part, most) in [("p50", 0.5, 1.0), ("p99", 0.99, 5.0)] {
        let bare = median(
            rounds
                .iter()
                .map(|round| quantile(&round.bare, part))
                .collect(),
        );
        let queryable = median(
            rounds
                .iter()
                .map(|round| quantile(&round.queryable, part))
                .collect(),
        );
        let over = rounds
            .iter()
            .map(|round| quantile(&round.queryable, part) - quantile(&round.bare, part));
        report.add(
            format!("live at {rate} events/s: bare subscriber {name}"),
            bare,
            "ms",
            "",
        );
        report.add(
            format!("live at {rate} events/s: queryable over HTTP {name}"),
            queryable,
            "ms",
            "",
        );
        let name = format!("live at {rate} events/s: {name} beyond the subscriber");
        report.add_with_target(name, median(over.collect()), "ms", Target::AtMost(most));
    }
}

async fn live(rate: u64, seconds: u64) -> Latencies {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "orders.>").await;
    let host = Host::start_on(&server, STREAM).await;
    host.client()
        .deploy("live", &guests::module("customer-totals"))
        .await;
    let events: Vec<(String, Bytes)> =
        workload::messages((rate * seconds) as usize, 1_000).collect();
    let stride = (rate / SAMPLES_PER_SECOND).max(1);
    // The first second warms everything up.
    let samples: Arc<Vec<u64>> = Arc::new(
        (rate + 1..=events.len() as u64)
            .filter(|at| at % stride == 0)
            .collect(),
    );
    let subscriber = subscribe(&server, events.len()).await;
    let begin = Instant::now() + AHEAD * 2;
    let readers = read_samples(host.client().clone(), Arc::clone(&samples), rate, begin);
    let published = publish(server.client().await, events, rate, begin).await;
    let (received, answered) = (
        subscriber.await.expect("the subscriber ends"),
        readers.await.expect("the readers end"),
    );
    let since =
        |at: Instant, sequence: u64| (at - published[sequence as usize - 1]).as_secs_f64() * 1e3;
    let sorted = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times
    };
    Latencies {
        bare: sorted(
            samples
                .iter()
                .map(|&sequence| since(received[sequence as usize - 1], sequence))
                .collect(),
        ),
        queryable: sorted(
            answered
                .into_iter()
                .map(|(sequence, at)| since(at, sequence))
                .collect(),
        ),
    }
}

/// When each event arrived at a plain subscriber, in order.
async fn subscribe(server: &NatsServer, events: usize) -> tokio::task::JoinHandle<Vec<Instant>> {
    let client = server.client().await;
    let mut subscriber = client
        .subscribe("orders.>")
        .await
        .expect("the server takes a subscription");
    client.flush().await.expect("the server answers");
    tokio::spawn(async move {
        let mut received = Vec::with_capacity(events);
        while received.len() < events {
            subscriber.next().await.expect("the connection stays");
            received.push(Instant::now());
        }
        // Kept until here: it carries the subscription.
        drop(client);
        received
    })
}

/// Asks for each sample shortly before it is published; when each was answered.
fn read_samples(
    client: Client,
    samples: Arc<Vec<u64>>,
    rate: u64,
    begin: Instant,
) -> tokio::task::JoinHandle<Vec<(u64, Instant)>> {
    tokio::spawn(async move {
        let mut waiting = JoinSet::new();
        for &sequence in samples.iter() {
            let due = begin + Duration::from_secs_f64((sequence - 1) as f64 / rate as f64);
            tokio::time::sleep_until((due - AHEAD).into()).await;
            let client = client.clone();
            waiting.spawn(async move {
                let path =
                    format!("/v1/deployments/live/entries?limit=1&at-least={sequence}&timeout=30s");
                let answer = client.get(&path).await.expect(200);
                (sequence, Instant::now(), answer.position())
            });
        }
        let answered = waiting.join_all().await;
        assert!(
            answered
                .iter()
                .all(|(sequence, _, position)| position >= sequence),
            "an answer was too early"
        );
        answered
            .into_iter()
            .map(|(sequence, at, _)| (sequence, at))
            .collect()
    })
}

/// Publishes at a steady rate; when each event was handed over.
async fn publish(
    client: async_nats::Client,
    events: Vec<(String, Bytes)>,
    rate: u64,
    begin: Instant,
) -> Vec<Instant> {
    let mut published = Vec::with_capacity(events.len());
    let mut events = events.into_iter().peekable();
    let mut tick = tokio::time::interval_at(begin.into(), TICK);
    while events.peek().is_some() {
        tick.tick().await;
        let due = (begin.elapsed().as_secs_f64() * rate as f64) as usize + 1;
        while published.len() < due
            && let Some((subject, data)) = events.next()
        {
            published.push(Instant::now());
            client
                .publish(subject, data)
                .await
                .expect("the connection stays");
        }
        client.flush().await.expect("the connection stays");
    }
    published
}
