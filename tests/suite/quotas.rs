//! What counts for the limit of a state: its entries, and nothing that waits next to them.

use foldstream::api;
use foldstream_tests::client::Client;
use foldstream_tests::guests;
use foldstream_tests::host::Host;
use foldstream_tests::reactor::{REACTOR, TO_LOG, events};
use serde_json::json;

use crate::timers::{ALARM, LATER_MS, event};

/// The limit of a state, in bytes.
const LIMIT: u64 = 64 << 10;
/// What waits of each kind: far more bytes than the limit.
const WAITING: u64 = 3_000;

async fn start() -> Host {
    let config = format!("[state]\nstate_bytes_max = {LIMIT}\nvalue_bytes_max = 4096\n");
    let host = Host::start_with(&config).await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    let parameters = "&on-failure=park&allow-publish=rang.%3E%40events";
    client
        .deploy_with(ALARM, &guests::module(ALARM), parameters)
        .await;
    host
}

/// Messages, timers and parked events that wait; returns the last event.
async fn let_wait(client: &Client) -> u64 {
    client.append(&events(WAITING, "tomorrow")).await;
    let later = json!({ "name": "later", "count": WAITING, "after_ms": LATER_MS });
    let ill = json!({ "name": "x".repeat(200), "after_ms": LATER_MS });
    let ill = event("ill", "ill-set", &ill);
    let mut told = vec![event("a", "set", &later)];
    told.extend(std::iter::repeat_n(ill, WAITING as usize));
    client.append(&told).await.last_sequence
}

/// Nothing of what waits is part of the size of the states, and all of it is there.
async fn assert_waits(client: &Client, last: u64) {
    let (reactor, alarm) = (
        client.reached(REACTOR, last).await,
        client.reached(ALARM, last).await,
    );
    let outbox = reactor.outbox.as_ref().expect("it is a handler");
    assert_eq!(outbox.delayed, WAITING, "{reactor:#?}");
    assert_eq!(
        alarm.timers.as_ref().expect("it sets some").pending,
        WAITING
    );
    assert_eq!(alarm.parked.events, WAITING, "{alarm:#?}");
    assert!(outbox.bytes > LIMIT && alarm.parked.bytes > LIMIT);
    for shown in [&reactor, &alarm] {
        assert_eq!(shown.failure, None, "{shown:#?}");
        assert!(shown.state_bytes < 1_000, "{shown:#?}");
    }
}

#[tokio::test]
async fn messages_timers_and_parked_events_that_wait_do_not_count_for_the_limit_of_a_state() {
    let mut host = start().await;
    let last = let_wait(host.client()).await;
    assert_waits(host.client(), last).await;
    host.kill();
    host.restart().await;
    assert_waits(host.client(), last).await;
    // A rebuilt state has its own entries and limit, and takes over what waits.
    let client = host.client();
    let answer = client.act(REACTOR, "rebuild").await.expect(200);
    let generation = answer.json::<api::Deployed>().generation;
    client
        .becomes(REACTOR, generation, api::GenerationStatus::Active)
        .await;
    assert_waits(client, last).await;

    // The limit holds for entries: one of each key.
    let keys =
        (0..WAITING).map(|key| event(&format!("key-with-a-long-name-{key}"), "quiet", &json!({})));
    client.append(&keys.collect::<Vec<_>>()).await;
    let (_, failure) = client.failed(ALARM).await;
    assert!(failure.message.contains("state_bytes_max"), "{failure:?}");
}
