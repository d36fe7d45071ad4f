//! Handlers: what it costs to act.
//!
//! Throughput is compared with a consumer as one would write it by hand, which promises the same:
//! its state is durable before a message leaves, messages of one key leave one after the other, each
//! confirmed by the stream, and an event is acknowledged once all that it causes is stored. Latency
//! is that of any subscriber to the messages.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use foldstream::api;
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::{guests, wait};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::consumer;
use crate::report::{Report, Target, median, quantile};

/// The stream of events, and its source.
pub const INPUT: &str = "in";
/// The stream of messages, and its source.
pub const OUTPUT: &str = "out";
/// The guest, and its deployment.
const REACTOR: &str = "reactor";
/// Keys of events.
const KEYS: u64 = 1_000;
/// Most events of a measurement: each costs a publish.
const EVENTS_MAX: usize = 100_000;
/// Keys whose first event fails: one in a hundred.
const FAILING: u64 = KEYS / 100;
/// Events per second whose latency is measured.
const RATES: [u64; 2] = [100, 1_000];
/// Timers that one event sets, and events that do.
const TIMERS: (u64, u64) = (10_000, 100);
/// Timers that fire while all the others are pending.
const FIRED: u64 = 50;

/// Measures all of it.
pub async fn measure(arguments: &Arguments, report: &mut Report) {
    throughput(arguments, report).await;
    filtered(arguments, report).await;
    for rate in RATES {
        latency(arguments, rate, report).await;
    }
    timers(report).await;
}

/// What the module reads.
pub const READ: &str = "in.*.*";

/// Events that ask for one message each, of all keys in turn; the module reads all of them.
async fn server(events: usize, failing: u64) -> NatsServer {
    // Neither the handler nor the consumer by hand needs a filter, which costs the server time for
    // each event.
    server_with(READ, events, failing).await
}

/// The same in a stream with these subjects.
async fn server_with(subjects: &str, events: usize, failing: u64) -> NatsServer {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, INPUT, subjects).await;
    nats::create_stream(&context, OUTPUT, "out.>").await;
    // Spread over the first events of keys: a module that fails everywhere parks nothing.
    let is_failing =
        |number: u64| number < KEYS && failing > 0 && (number + 1).is_multiple_of(KEYS / failing);
    let subject = |number: u64| {
        let what = if is_failing(number) { "fail" } else { "one" };
        format!("in.{}.{what}", number % KEYS)
    };
    let messages = (0..events as u64).map(|number| (subject(number), bytes::Bytes::new()));
    nats::publish(&context, messages).await;
    server
}

/// A host that has compiled the guest before.
async fn host(server: &NatsServer) -> Host {
    let source = |name: &str| {
        let url = server.url();
        format!("[sources.{name}]\nkind = \"jetstream\"\nstream = {name:?}\nservers = [{url:?}]\n")
    };
    let log = "[sources.empty]\nkind = \"embedded\"\n";
    let host = Host::start_with(&format!("{}{}{log}", source(INPUT), source(OUTPUT))).await;
    host.client()
        .deploy_with("warm", &guests::module(REACTOR), "&source=empty")
        .await;
    host
}

async fn deploy(client: &Client, more: &str) {
    let parameters =
        format!("&source={INPUT}&effects-from=beginning&allow-publish=out.%3E%40{OUTPUT}{more}");
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), &parameters)
        .await;
}

/// Waits until the stream has this many messages.
async fn stored(server: &NatsServer, messages: usize) {
    let context = server.jetstream().await;
    let mut stream = context.get_stream(OUTPUT).await.expect("it is there");
    let begin = Instant::now();
    loop {
        let info = stream.info().await.expect("it answers");
        if info.state.messages >= messages as u64 {
            return;
        }
        assert!(
            begin.elapsed() < 10 * wait::DEADLINE,
            "{} of {messages} messages are stored",
            info.state.messages
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Events per second of the handler, of the consumer written by hand, and of the handler with some
/// keys parked.
async fn throughput(arguments: &Arguments, report: &mut Report) {
    let events = arguments.events.min(EVENTS_MAX);
    let (mut handler, mut by_hand, mut parking) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        handler.push(handled(server(events, 0).await, events, 0).await);
        by_hand.push(consumed(server(events, 0).await, events, None).await);
        parking.push(handled(server(events, FAILING).await, events, FAILING).await);
    }
    let note = format!("{events} events of {KEYS} keys, one message each");
    report.add(
        "handler: throughput",
        median(handler.clone()),
        "events/s",
        &*note,
    );
    report.add(
        "handler: consumer written by hand",
        median(by_hand.clone()),
        "events/s",
        note,
    );
    report.add_with_target(
        "handler: handler / written by hand",
        ratios(&handler, &by_hand),
        "ratio",
        Target::AtLeast(0.7),
    );
    report.add(
        "handler: 1 % of the keys parked / none",
        ratios(&parking, &handler),
        "ratio",
        format!("{FAILING} of {KEYS} keys"),
    );
}

/// The same in a stream that may have other subjects too, so that both need a filter.
async fn filtered(arguments: &Arguments, report: &mut Report) {
    let events = arguments.events.min(EVENTS_MAX);
    let server = || server_with("in.>", events, 0);
    let (mut handler, mut by_hand) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        handler.push(handled(server().await, events, 0).await);
        by_hand.push(consumed(server().await, events, Some(READ)).await);
    }
    let of = "handler of a part of a stream";
    report.add(
        format!("{of}: throughput"),
        median(handler.clone()),
        "events/s",
        "",
    );
    report.add_with_target(
        format!("{of}: handler / written by hand with the same filter"),
        ratios(&handler, &by_hand),
        "ratio",
        Target::AtLeast(0.7),
    );
}

/// The median of the ratios of two rows.
fn ratios(these: &[f64], those: &[f64]) -> f64 {
    let pairs = these.iter().zip(those);
    median(pairs.map(|(this, that)| this / that).collect())
}

async fn handled(server: NatsServer, events: usize, failing: u64) -> f64 {
    let host = host(&server).await;
    let begin = Instant::now();
    deploy(host.client(), "&on-failure=park").await;
    // What is parked publishes nothing.
    let parked = events as u64 / KEYS * failing;
    stored(&server, events - parked as usize).await;
    let seconds = begin.elapsed().as_secs_f64();
    let shown = host.client().reached(REACTOR, events as u64).await;
    assert_eq!(shown.parked.events, parked);
    events as f64 / seconds
}

async fn consumed(server: NatsServer, events: usize, filter: Option<&'static str>) -> f64 {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let context = server.jetstream().await;
    let begin = Instant::now();
    let consumer = tokio::spawn(async move { consumer::run(context, folder.path(), filter).await });
    stored(&server, events).await;
    let seconds = begin.elapsed().as_secs_f64();
    consumer.abort();
    events as f64 / seconds
}

/// From the publishing of an event to the message that it causes, as a subscriber sees it.
async fn latency(arguments: &Arguments, rate: u64, report: &mut Report) {
    let server = server(0, 0).await;
    let host = host(&server).await;
    deploy(host.client(), "").await;
    let events = rate * arguments.seconds;
    let client = server.client().await;
    let mut messages = client.subscribe("out.>").await.expect("it subscribes");
    client.flush().await.expect("the server answers");
    let received = tokio::spawn(async move {
        let mut received = Vec::with_capacity(events as usize);
        while received.len() < events as usize {
            let message = messages.next().await.expect("the connection stays");
            let data: Value = serde_json::from_slice(&message.payload).expect("JSON");
            received.push((data["of"].as_u64().expect("a cause"), Instant::now()));
        }
        received
    });
    let mut published = Vec::with_capacity(events as usize);
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate as f64));
    for number in 0..events {
        ticks.tick().await;
        published.push(Instant::now());
        let subject = format!("in.{}.one", number % KEYS);
        client
            .publish(subject, bytes::Bytes::new())
            .await
            .expect("the connection stays");
        client.flush().await.expect("the connection stays");
    }
    let received = received.await.expect("the subscriber ends");
    // The first second warms everything up.
    let mut times: Vec<f64> = received
        .iter()
        .filter(|(cause, _)| *cause > rate)
        .map(|(cause, at)| (*at - published[*cause as usize - 1]).as_secs_f64() * 1e3)
        .collect();
    times.sort_by(f64::total_cmp);
    let commit = commit_ms(host.client()).await;
    let (p50, p99) = (quantile(&times, 0.5), quantile(&times, 0.99));
    let of = format!("handler at {rate} events/s: event to message");
    report.add(format!("{of}, p50"), p50, "ms", "");
    report.add(format!("{of}, p99"), p99, "ms", "");
    let name = format!("handler at {rate} events/s: a commit");
    report.add(name, commit, "ms", "mean of the host's histogram");
    report.add_with_target(
        format!("{of}, p50 beyond a commit"),
        p50 - commit,
        "ms",
        Target::AtMost(2.0),
    );
}

/// Mean time of a commit of the handler, in milliseconds.
async fn commit_ms(client: &Client) -> f64 {
    let page = client.get("/metrics").await.expect(200).text();
    let figure = |part: &str| {
        let begin =
            format!("foldstream_commit_duration_seconds_{part}{{deployment=\"{REACTOR}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&begin));
        let figure = line.and_then(|figure| figure.parse::<f64>().ok());
        figure.expect("the host counts its commits")
    };
    figure("sum") / figure("count") * 1e3
}

/// Time and memory of a million pending timers, and how late others fire meanwhile.
async fn timers(report: &mut Report) {
    let mut host = Host::start().await;
    let grant = "&allow-publish=rang.%3E%40events";
    host.client()
        .deploy_with("alarm", &guests::module("alarm"), grant)
        .await;
    let before = host.memory_bytes();
    let begin = Instant::now();
    let later = 1_000 * 3_600 * 24;
    for number in 0..TIMERS.1 {
        let many =
            json!({ "name": format!("many-{number}"), "after_ms": later, "count": TIMERS.0 });
        append(host.client(), &many).await;
    }
    let durable = |shown: &api::Deployment| shown.checkpoint >= TIMERS.1;
    host.client()
        .show_when("alarm", "be durable", durable)
        .await;
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let count = TIMERS.0 * TIMERS.1;
    let note = format!("{count} timers");
    let seconds = begin.elapsed().as_secs_f64();
    report.add("timers: set and durable", seconds, "s", &*note);
    let grown = mebibytes(host.memory_bytes()) - mebibytes(before);
    report.add(
        "timers: memory of the host beyond before",
        grown,
        "MiB",
        &*note,
    );
    host.stop();
    let begin = Instant::now();
    host.restart().await;
    let shown = host
        .client()
        .show_when("alarm", "be live", |shown| {
            shown.state == api::DeploymentState::Live && shown.timers.is_some()
        })
        .await;
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!(shown.timers.expect("it was there").pending, count);
    report.add(
        "timers: start of a host that has them",
        seconds,
        "s",
        &*note,
    );
    let memory = mebibytes(host.memory_bytes());
    report.add("timers: memory of that host", memory, "MiB", note);
    let late = lateness_ms(host.client()).await;
    report.add(
        "timers: fired after their time, p50",
        quantile(&late, 0.5),
        "ms",
        "",
    );
    report.add(
        "timers: fired after their time, p99",
        quantile(&late, 0.99),
        "ms",
        "",
    );
}

async fn append(client: &Client, set: &Value) {
    let event = json!({ "subject": "alarm.key.set", "data": set });
    let event: api::NewEvent = serde_json::from_value(event).expect("an event");
    client.append(&[event]).await;
}

/// How late timers fire, by the clock of the stream; sorted.
async fn lateness_ms(client: &Client) -> Vec<f64> {
    for number in 0..FIRED {
        let soon = json!({ "name": format!("soon-{number}"), "after_ms": 200 + number * 37 });
        append(client, &soon).await;
    }
    let rang = wait::until("the timers to fire", || async {
        let path = "/v1/events?source=events&limit=1000&subject=rang.%3E";
        let page = client.get(path).await.expect(200).value();
        let rang = page["events"].as_array().expect("a list").clone();
        (rang.len() as u64 >= FIRED).then_some(rang)
    })
    .await;
    let times: BTreeMap<&str, f64> = rang
        .iter()
        .map(|message| {
            let time = |name: &str| message["data"][name].as_u64().expect("a time");
            let name = message["data"]["name"].as_str().expect("a name");
            (name, (time("fired") - time("at")) as f64 / 1e6)
        })
        .collect();
    let mut times: Vec<f64> = times.into_values().collect();
    times.sort_by(f64::total_cmp);
    times
}
