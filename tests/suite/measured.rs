//! What a host takes at its worst, measured: the figures of docs/benchmarks.md. They take minutes,
//! and run by name:
//!
//! `cargo test -p foldstream-tests --test suite -- --ignored --nocapture measured::`

use std::time::Duration;

use bytes::Bytes;
use foldstream::api::NewEvent;
use foldstream_tests::guests;
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::orders::Orders;
use foldstream_tests::wait;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

const MIB: u64 = 1 << 20;
/// Events of a replay.
const EVENTS: usize = 300_000;
/// Events in one append.
const APPEND: usize = 5_000;
/// Longest that a step may take: these are far more events than a test has.
const LONG: Duration = Duration::from_secs(900);

fn verb(text: &str) -> NewEvent {
    let event = json!({ "subject": "mischief.a", "data": text });
    serde_json::from_value(event).expect("an event")
}

async fn reaches(host: &Host, name: &str, sequence: u64) {
    wait::until_within(LONG, "a deployment to reach the end", || async {
        (host.client().show(name).await.position >= sequence).then_some(())
    })
    .await;
}

fn tell(what: &str, host: &Host) {
    eprintln!(
        "{what}: {} MiB now, {} MiB at most",
        host.memory_bytes() / MIB,
        host.peak_memory_bytes() / MIB
    );
}

/// Budget 192 MiB is the default in a container of 256 MiB.
#[tokio::test]
#[ignore = "takes minutes, for docs/benchmarks.md"]
async fn five_deployments_with_defaults_stay_within_256_mib() {
    let host = Host::start_with("[limits]\nmemory_bytes = \"192MiB\"\n").await;
    let mut orders = Orders::new(7, 20_000);
    for _ in 0..EVENTS / APPEND {
        let events: Vec<NewEvent> = orders
            .by_ref()
            .take(APPEND)
            .map(|order| order.new_event())
            .collect();
        host.client().append(&events).await;
    }
    tell("after the appends", &host);
    let names: Vec<String> = (0..5).map(|number| format!("ledger-{number}")).collect();
    let module = guests::module("ledger");
    join_all(names.iter().map(|name| host.client().deploy(name, &module))).await;
    join_all(names.iter().map(|name| reaches(&host, name, EVENTS as u64))).await;
    tell("after the replays", &host);
    for name in names.iter().cycle().take(200) {
        host.client()
            .get(&format!("/v1/deployments/{name}/entries?limit=1000"))
            .await
            .expect(200);
    }
    tell("after 200 pages of entries", &host);
    assert!(host.peak_memory_bytes() < 256 * MIB);
}

/// What docs/sizing.md says of large events.
#[tokio::test]
#[ignore = "takes minutes, for docs/sizing.md"]
async fn five_deployments_of_one_stream_meet_three_events_of_30_mb() {
    let server = NatsServer::start_with("max_payload: 64MB\nmax_pending: 256MB\n").await;
    let context = server.jetstream().await;
    nats::create_stream(&context, "ORDERS", "orders.>").await;
    let source = jetstream_source(&server.url(), "ORDERS");
    let limits = "[limits]\nmemory_bytes = \"192MiB\"\n";
    let host = Host::start_with(&format!("{limits}{source}")).await;
    let names: Vec<String> = (0..5).map(|number| format!("tally-{number}")).collect();
    let publish = async |bytes: usize| {
        let data = Bytes::from(vec![b'x'; bytes]);
        nats::publish(&context, [("orders.a.placed".to_owned(), data)]).await
    };
    let mut last = publish(10).await;
    let tally = guests::module("tally");
    for name in &names {
        host.client().deploy(name, &tally).await;
        reaches(&host, name, last).await;
    }
    tell("before large events", &host);
    for _ in 0..3 {
        last = publish(30_000_000).await;
    }
    for name in &names {
        reaches(&host, name, last).await;
    }
    tell("after large events", &host);
    wait::until_within(LONG, "the memory to be given back", || async {
        (host.memory_bytes() < 96 * MIB).then_some(())
    })
    .await;
    tell("some time later", &host);
}

/// Budget 768 MiB is the default in a container of 1 GiB.
#[tokio::test]
#[ignore = "takes minutes, for docs/benchmarks.md"]
async fn a_hostile_set_of_modules_stays_within_1_gib() {
    let mut host = Host::start_with("[limits]\nmemory_bytes = \"768MiB\"\n").await;
    let mischief = guests::module("mischief");
    host.client()
        .deploy("ledger", &guests::module("ledger"))
        .await;
    let names: Vec<String> = (0..30).map(|number| format!("mischief-{number}")).collect();
    for name in &names {
        host.client().deploy(name, &mischief).await;
    }
    host.client().append(&[verb("keep 26")]).await;
    let (mut answers, mut refusals) = (0, 0);
    for round in [
        "big-value 1000000",
        "fill 2000",
        "many-keys 60000",
        "log-storm 10000",
        "many-entries 60000",
        "grow",
    ] {
        host.client().append(&[verb(round)]).await;
        let asked = (0..64).map(|number| {
            let (query, args) = if number % 2 == 0 {
                ("grow", "")
            } else {
                ("big", "8000000")
            };
            let path = format!(
                "/v1/deployments/{}/queries/{query}",
                names[number % names.len()]
            );
            let client = host.client();
            let request = client
                .request(Method::POST, &path)
                .header("content-type", "text/plain")
                .body(args);
            async move { client.send(request).await.status }
        });
        let statuses = join_all(asked).await;
        answers += statuses.iter().filter(|status| **status == 200).count();
        refusals += statuses.iter().filter(|status| **status == 503).count();
        tell(round, &host);
    }
    eprintln!("queries: {answers} answered, {refusals} refused with 503");
    let orders: Vec<NewEvent> = Orders::new(7, 100)
        .take(1_000)
        .map(|order| order.new_event())
        .collect();
    let last = host.client().append(&orders).await.last_sequence;
    reaches(&host, "ledger", last).await;
    tell("after the ledger reached the end", &host);
    host.client().get("/livez").await.expect(200);
    assert!(!host.has_ended() && host.peak_memory_bytes() < 1024 * MIB);
}
