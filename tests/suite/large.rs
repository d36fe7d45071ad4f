//! Events larger than a request: what they cost the host has a bound, however many deployments read
//! them, and no deployment waits for one that rests.

use bytes::Bytes;
use foldstream_tests::client::Client;
use foldstream_tests::guests;
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::wait;
use futures_util::future::join_all;

const MIB: u64 = 1 << 20;
/// The default in a container of 256 MiB.
const BUDGET: u64 = 192 * MIB;
/// Size of a large event, in bytes.
const LARGE: u64 = 30_000_000;
/// What docs/sizing.md promises in addition to the program itself: the budget, and two and a half times
/// a large event.
const BOUND: u64 = BUDGET + LARGE * 5 / 2;

/// A server that takes large events, with an empty stream.
async fn server() -> (NatsServer, async_nats::jetstream::Context) {
    let server = NatsServer::start_with("max_payload: 64MB\nmax_pending: 256MB\n").await;
    let context = server.jetstream().await;
    let mut config = nats::stream_config("ORDERS", "orders.>");
    config.subjects.push("mine.>".to_owned());
    nats::create_stream_with(&context, config).await;
    (server, context)
}

async fn host(server: &NatsServer, budget: u64) -> Host {
    let source = jetstream_source(&server.url(), "ORDERS");
    Host::start_with(&format!("[limits]\nmemory_bytes = {budget}\n{source}")).await
}

async fn publish_to(
    context: &async_nats::jetstream::Context,
    subject: &str,
    (bytes, count): (u64, usize),
) -> u64 {
    let data = Bytes::from(vec![b'x'; usize::try_from(bytes).expect("it fits")]);
    let mut last = 0;
    for _ in 0..count {
        last = nats::publish(context, [(subject.to_owned(), data.clone())]).await;
    }
    last
}

async fn publish(context: &async_nats::jetstream::Context, bytes: u64, count: usize) -> u64 {
    publish_to(context, "orders.a.placed", (bytes, count)).await
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("tally-{number}")).collect()
}

async fn reach(client: &Client, names: &[String], sequence: u64) {
    join_all(names.iter().map(async |name| {
        let patience = wait::DEADLINE;
        wait::until_within(patience, "a deployment to reach the end", async || {
            (client.show(name).await.position >= sequence).then_some(())
        })
        .await;
    }))
    .await;
}

/// Checks the peak of a host whose program takes `own` bytes, which depends on how it was built.
fn check(host: &Host, what: &str, own: u64) {
    let (peak, bound) = (host.peak_memory_bytes() / MIB, (own + BOUND) / MIB);
    let told = format!("{what}: at most {peak} MiB of {bound}");
    eprintln!("{told}, {} MiB of them the program", own / MIB);
    assert!(peak < bound, "{told}");
}

/// Deployments that have caught up meet large events.
async fn live(count: usize) {
    let (server, context) = server().await;
    let host = host(&server, BUDGET).await;
    let own = host.memory_bytes();
    let tally = guests::module("tally");
    let last = publish(&context, 10, 1).await;
    let names = names(count);
    for name in &names {
        host.client().deploy(name, &tally).await;
    }
    reach(host.client(), &names, last).await;
    // What follows them shows that all is in order again.
    publish(&context, LARGE, 3).await;
    let last = publish(&context, 10, 1).await;
    reach(host.client(), &names, last).await;
    check(&host, &format!("{count} live"), own);
}

#[tokio::test]
async fn one_deployment_meets_large_events_within_the_bound() {
    live(1).await;
}

#[tokio::test]
async fn five_deployments_that_share_a_reader_meet_large_events_within_the_bound() {
    live(5).await;
}

#[tokio::test]
async fn five_deployments_replay_large_events_and_start_again_after_one_within_the_bound() {
    let (server, context) = server().await;
    let mut host = host(&server, BUDGET).await;
    let own = host.memory_bytes();
    let tally = guests::module("tally");
    publish(&context, 10, 1).await;
    let last = publish(&context, LARGE, 3).await;
    let names = names(5);
    join_all(names.iter().map(|name| host.client().deploy(name, &tally))).await;
    reach(host.client(), &names, last).await;
    check(&host, "five replays", own);
    // Each proves that the stream still has its last event, which is a large one.
    host.stop();
    host.restart().await;
    let last = publish(&context, 10, 1).await;
    reach(host.client(), &names, last).await;
    check(&host, "five starts", own);
}

#[tokio::test]
async fn five_deployments_read_the_largest_events_of_a_log_within_the_bound() {
    let host = Host::start_with(&format!("[limits]\nmemory_bytes = {BUDGET}\n")).await;
    let own = host.memory_bytes();
    let tally = guests::module("tally");
    let names = names(5);
    join_all(names.iter().map(|name| host.client().deploy(name, &tally))).await;
    let data = "x".repeat(8_000_000);
    let mut last = 0;
    for _ in 0..6 {
        let event = serde_json::json!({ "subject": "orders.a.placed", "data": data });
        let event = serde_json::from_value(event).expect("an event");
        last = host.client().append(&[event]).await.last_sequence;
    }
    reach(host.client(), &names, last).await;
    check(&host, "five readers of a log", own);
}

#[tokio::test]
async fn deployments_that_lack_memory_for_a_large_event_at_once_all_get_it() {
    let (server, context) = server().await;
    // 40 MiB on demand: too little for two instances with such an event.
    let host = host(&server, 64 * MIB).await;
    let own = host.memory_bytes();
    let tally = guests::module("tally");
    let last = publish(&context, 10, 1).await;
    let names = names(5);
    for name in &names {
        host.client().deploy(name, &tally).await;
    }
    reach(host.client(), &names, last).await;
    publish(&context, 12_000_000, 3).await;
    let last = publish(&context, 10, 1).await;
    reach(host.client(), &names, last).await;
    check(&host, "five with little memory", own);
}

#[tokio::test]
async fn a_deployment_that_rests_with_a_large_event_keeps_nobody_from_reading_others() {
    let (server, context) = server().await;
    let source = jetstream_source(&server.url(), "ORDERS");
    let pauses = "[pipeline]\ninitial_backoff = \"10m\"\nmax_backoff = \"10m\"\n";
    let limits = format!("[limits]\nmemory_bytes = {BUDGET}\n");
    let host = Host::start_with(&format!("{limits}{pauses}{source}")).await;
    let own = host.memory_bytes();
    let client = host.client();
    let names = names(2);
    for name in &names {
        client.deploy(name, &guests::module("tally")).await;
    }
    // It stores what it gets, and no entry may be that large.
    client.deploy("witness", &guests::module("witness")).await;
    publish_to(&context, "mine.a", (LARGE, 1)).await;
    client
        .show_when("witness", "fail", |shown| shown.failure.is_some())
        .await;
    // One caught up, the other ones behind it.
    let last = publish(&context, LARGE, 2).await;
    reach(client, &names, last).await;
    check(&host, "one rests", own);
    assert!(client.show("witness").await.position < last);
}

#[tokio::test]
async fn an_event_beyond_the_budget_fails_with_its_size_and_stops_nobody_else() {
    let (server, context) = server().await;
    let source = jetstream_source(&server.url(), "ORDERS");
    let once = "[pipeline]\nattempts = 1\n";
    let host = Host::start_with(&format!(
        "[limits]\nmemory_bytes = \"32MiB\"\n{once}{source}"
    ))
    .await;
    let client = host.client();
    client.deploy("tally-0", &guests::module("tally")).await;
    client.deploy("witness", &guests::module("witness")).await;
    publish(&context, LARGE, 1).await;
    let (_, failure) = client.failed("tally-0").await;
    // As much as one module may have of the 20 MiB on demand.
    assert!(
        failure.message.starts_with("memory-bytes: ") && failure.message.contains("15728640"),
        "{}",
        failure.message
    );
    let last = publish_to(&context, "mine.a", (1_000_000, 1)).await;
    client.reached("witness", last).await;
}
