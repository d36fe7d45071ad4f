//! Generations: for how long a cut-over holds applying, what a rebuild does to readers and to live
//! events, and how long a look back takes.

use std::time::{Duration, Instant};

use foldstream::api;
use foldstream_tests::client::Client;
use foldstream_tests::guests;
use foldstream_tests::host::Host;
use foldstream_tests::nats::NatsServer;

use crate::arguments::Arguments;
use crate::report::{Report, Target, median, quantile};
use crate::workload::{self, STREAM};

/// Name of the deployment.
const NAME: &str = "totals";
/// Events a second that arrive while cut-overs are measured, and while a rebuild runs under load.
const RATE: u64 = 10_000;
/// Cut-overs whose holds are measured.
const CUT_OVERS: usize = 60;
/// Clients that read at a steady pace, and the pause of each between two reads: a load that leaves
/// the machine idle, so that what a rebuild adds is seen.
const READERS: usize = 4;
const READ_PAUSE: Duration = Duration::from_millis(10);
/// How long reads are measured on a host that does nothing else.
const IDLE: Duration = Duration::from_secs(4);
/// Reads as of the same moment behind the first one.
const WARM_READS: usize = 50;

/// Measures all of it.
pub async fn measure(arguments: &Arguments, report: &mut Report) {
    let events = arguments.events;
    let server = workload::publish(events, arguments.customers[0]).await;
    let host = Host::start_on(&server, STREAM).await;
    let client = host.client();
    client
        .deploy(NAME, &guests::module("customer-totals"))
        .await;
    client.reached(NAME, events as u64).await;
    rebuilds(arguments, &server, client, report).await;
    holds(&server, client, report).await;
    as_of(client, events as u64, report).await;
}

/// Rates of rebuilds, and of reads during them.
async fn rebuilds(
    arguments: &Arguments,
    server: &NatsServer,
    client: &Client,
    report: &mut Report,
) {
    let (mut alone, mut loaded, mut throttled) = (Vec::new(), Vec::new(), Vec::new());
    let (mut idle_tails, mut busy_tails, mut throttled_tails) =
        (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        idle_tails.push(tail(&read_until(client, tokio::time::sleep(IDLE)).await));
        alone.push(rebuild(client, "").await);
        busy_tails.push(tail(
            &read_until(client, async { _ = rebuild(client, "").await }).await,
        ));
        let percent = "&cpu-percent=50";
        throttled_tails.push(tail(
            &read_until(client, async {
                throttled.push(rebuild(client, percent).await);
            })
            .await,
        ));
        let live = Live::start(server, RATE).await;
        loaded.push(rebuild(client, "").await);
        live.stop().await;
        let shown = client
            .show_when(NAME, "know its stream", |shown| shown.head.is_some())
            .await;
        client
            .reached(NAME, shown.head.expect("checked above"))
            .await;
    }
    report.add(
        "rebuild alongside an idle generation",
        median(alone),
        "events/s",
        "deploy to serving",
    );
    report.add(
        format!("rebuild alongside {RATE} live events/s"),
        median(loaded),
        "events/s",
        "deploy to serving",
    );
    report.add(
        "rebuild at half a core",
        median(throttled),
        "events/s",
        "cpu-percent=50, while being read",
    );
    let (idle, busy, half) = (
        median(idle_tails),
        median(busy_tails),
        median(throttled_tails),
    );
    report.add(
        "point read of an idle host, p99",
        idle,
        "ms",
        format!("{READERS} readers, 100 reads/s each"),
    );
    report.add("point read during a rebuild, p99", busy, "ms", "");
    report.add_with_target(
        "point read p99, rebuild / idle",
        busy / idle,
        "ratio",
        Target::AtMost(3.0),
    );
    report.add(
        "point read during a rebuild at half a core, p99",
        half,
        "ms",
        "",
    );
    report.add_with_target(
        "point read p99, rebuild at half a core / idle",
        half / idle,
        "ratio",
        Target::AtMost(2.0),
    );
}

/// Events a second of a rebuild, from the deploy until the new generation serves.
async fn rebuild(client: &Client, parameters: &str) -> f64 {
    let started = Instant::now();
    let begun: api::Deployed = client
        .act(NAME, &format!("rebuild?promote=auto{parameters}"))
        .await
        .expect(200)
        .json();
    loop {
        let shown = client.show(NAME).await;
        if shown.generation == begun.generation {
            return shown.position as f64 / started.elapsed().as_secs_f64();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Times of reads in milliseconds, sorted, for as long as something takes.
async fn read_until(client: &Client, something: impl Future<Output = ()>) -> Vec<f64> {
    let readers: Vec<_> = (0..READERS)
        .map(|number| {
            let client = Client::new(client.url());
            let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
            (tokio::spawn(read(client, number, receiver)), sender)
        })
        .collect();
    something.await;
    let mut times = Vec::new();
    for (reader, stop) in readers {
        drop(stop);
        times.extend(reader.await.expect("no read fails"));
    }
    times.sort_by(f64::total_cmp);
    times
}

async fn read(
    client: Client,
    number: usize,
    mut stop: tokio::sync::oneshot::Receiver<()>,
) -> Vec<f64> {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let mut times = Vec::new();
    while stop.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
        let started = Instant::now();
        client
            .entry(NAME, &format!("customer/c{:07}", random.u32(..1_000)))
            .await
            .expect(200);
        times.push(started.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(READ_PAUSE).await;
    }
    times
}

fn tail(times: &[f64]) -> f64 {
    quantile(times, 0.99)
}

/// Holds of cut-overs under a live load.
async fn holds(server: &NatsServer, client: &Client, report: &mut Report) {
    let live = Live::start(server, RATE).await;
    let (mut holds, mut missed) = (Vec::new(), 0);
    while holds.len() < CUT_OVERS {
        let answer = client.act(NAME, "rollback").await;
        if answer.status == 409 {
            missed += 1;
            assert!(
                missed < CUT_OVERS,
                "cut-overs are missed: {}",
                answer.text()
            );
            continue;
        }
        holds.push(answer.expect(200).json::<api::CutOver>().hold_ms);
    }
    live.stop().await;
    holds.sort_by(f64::total_cmp);
    let note = format!("{CUT_OVERS} at {RATE} events/s, {missed} missed and tried again");
    report.add("hold of a cut-over, p50", quantile(&holds, 0.5), "ms", note);
    report.add_with_target(
        "hold of a cut-over, p99",
        quantile(&holds, 0.99),
        "ms",
        Target::AtMost(20.0),
    );
    report.add(
        "hold of a cut-over, worst",
        holds[holds.len() - 1],
        "ms",
        "",
    );
}

/// Reads as of the middle of the stream, the first one and those behind it.
async fn as_of(client: &Client, events: u64, report: &mut Report) {
    let path = format!(
        "/v1/deployments/{NAME}/entries?limit=1&timeout=30s&as-of={}",
        events / 2
    );
    let started = Instant::now();
    while client.get(&path).await.status == 503 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let cold = started.elapsed().as_secs_f64() * 1e3;
    let mut warm = Vec::new();
    for _ in 0..WARM_READS {
        let started = Instant::now();
        client.get(&path).await.expect(200);
        warm.push(started.elapsed().as_secs_f64() * 1e3);
    }
    report.add(
        "as-of read, cold",
        cold,
        "ms",
        format!("{} events folded, without a snapshot", events / 2),
    );
    report.add("as-of read, warm", median(warm), "ms", "");
}

/// Events that arrive at a steady rate until told to stop.
struct Live {
    stop: tokio::sync::oneshot::Sender<()>,
    publisher: tokio::task::JoinHandle<()>,
}

impl Live {
    async fn start(server: &NatsServer, rate: u64) -> Self {
        let client = server.client().await;
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let publisher = tokio::spawn(async move {
            let mut events = workload::messages(usize::MAX, 1_000);
            let mut tick = tokio::time::interval(Duration::from_millis(2));
            while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                tick.tick().await;
                for (subject, data) in events.by_ref().take((rate / 500) as usize) {
                    client
                        .publish(subject, data)
                        .await
                        .expect("the connection stays");
                }
                client.flush().await.expect("the connection stays");
            }
        });
        Self { stop, publisher }
    }

    async fn stop(self) {
        drop(self.stop);
        self.publisher.await.expect("the publisher does not fail");
    }
}
