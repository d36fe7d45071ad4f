//! Events that a producer published twice are folded once, beyond the window of any stream: live
//! and folded again, on the embedded log and on JetStream, by projections and handlers.

use std::time::Duration;

use foldstream::api::{self, GenerationStatus};
use foldstream_tests::client::Client;
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::{cli, guests, wait};
use serde_json::json;

use crate::pressure::metric;

const ONCE: &str = "once";
const REACTOR: &str = "once-reactor";
/// A log that recognises nothing itself.
const LOG: &str = "[sources.events]\nkind = \"embedded\"\nduplicate_window = \"0s\"\n";

/// An event of a customer with an id, at a minute of a day.
fn event(customer: u64, id: Option<&str>, minute: u64) -> api::NewEvent {
    let (hour, minute) = (minute / 60, minute % 60);
    let mut event = json!({
        "subject": format!("orders.{customer}.placed"),
        "time": format!("2026-01-01T{hour:02}:{minute:02}:00Z"),
        "data": {},
    });
    if let Some(id) = id {
        event["id"] = json!(id);
    }
    serde_json::from_value(event).expect("an event")
}

async fn count(client: &Client, customer: u64) -> u64 {
    let path = format!("/v1/deployments/{ONCE}/entries/counts/{customer}");
    let value = client.get(&path).await.expect(200).value();
    value.as_u64().expect("a count")
}

fn duplicates(shown: &api::Deployment) -> u64 {
    shown.inbox.as_ref().expect("it has an inbox").duplicates
}

#[tokio::test]
async fn event_published_twice_is_folded_once_within_the_window_and_in_every_fold() {
    let mut host = Host::start_with(LOG).await;
    let client = host.client();
    let deployed = client.deploy(ONCE, &guests::module(ONCE)).await;
    let inbox = deployed.deployment.module.inbox.expect("it asks for one");
    assert_eq!(
        (inbox.id.as_str(), inbox.window_ms, inbox.ids_max),
        ("message-id", 3_600_000, 50_000)
    );
    let events = [
        event(1, Some("a"), 0),
        event(1, Some("b"), 1),
        // The same, in one batch and an hour later, and again when the hour is over.
        event(1, Some("a"), 2),
        event(1, Some("a"), 60),
        event(1, Some("a"), 61),
        // Of another customer, and without an id.
        event(2, Some("b"), 62),
        event(2, None, 63),
        event(2, None, 63),
    ];
    // One by one, because the log itself recognises an id within one append; read as one batch.
    client.act(ONCE, "pause").await.expect(200);
    for event in events {
        client.append(&[event]).await;
    }
    client.act(ONCE, "resume").await.expect(200);
    client.reached(ONCE, 8).await;
    assert_eq!((count(client, 1).await, count(client, 2).await), (3, 3));
    // Recognised after a kill, by what was durable or by what is folded again.
    host.kill();
    host.restart().await;
    let client = host.client();
    let last = client
        .append(&[event(1, Some("a"), 64)])
        .await
        .last_sequence;
    let shown = client.reached(ONCE, last).await;
    assert_eq!((count(client, 1).await, duplicates(&shown)), (3, 3));
    // The ids that are too old go with a commit.
    client
        .show_when(ONCE, "forget old ids", |shown| {
            shown.inbox.as_ref().is_some_and(|inbox| inbox.ids == 2)
        })
        .await;
    let page = client.get("/metrics").await.text();
    let known = format!("foldstream_inbox_ids{{deployment=\"{ONCE}\"}} 2");
    let left_out =
        format!("foldstream_events_total{{deployment=\"{ONCE}\",outcome=\"duplicate\"}}");
    assert!(page.contains(&known) && page.contains(&left_out), "{page}");
    let told = cli::on(&host, &["show", ONCE]).expect(0).stdout;
    assert!(
        told.contains("3 duplicates left out, 2 ids known")
            && told.contains("message-id within 1h, at most 50,000 ids"),
        "{told}"
    );

    let before = metric(&host, &left_out).await;

    // A rebuild, a state as of an earlier event, a verification, and the part of one customer.
    let answer = client.act(ONCE, "rebuild").await;
    let number = answer.json::<api::Deployed>().generation;
    let active = GenerationStatus::Active;
    client.becomes(ONCE, number, active).await;
    let shown = client.show(ONCE).await;
    assert_eq!((count(client, 1).await, duplicates(&shown)), (3, 3));
    let path = format!("/v1/deployments/{ONCE}/entries/counts/1?as-of=4");
    let earlier = wait::until("a state as of event 4", || async {
        let answer = client.get(&path).await;
        (answer.status == 200).then(|| answer.value())
    })
    .await;
    assert_eq!(earlier, json!(2));
    client.act(ONCE, "verification").await;
    let verified = wait::until("the verification to end", || async {
        let path = format!("/v1/deployments/{ONCE}/verification");
        let verification: api::Verification = client.get(&path).await.expect(200).json();
        let is_over = [api::WorkState::Done, api::WorkState::Failed];
        is_over
            .contains(&verification.state)
            .then_some(verification)
    })
    .await;
    assert_eq!(verified.state, api::WorkState::Done, "{verified:?}");
    client.act(ONCE, "rebuild-part?key=1").await.expect(200);
    assert_eq!(count(client, 1).await, 3);
    // None of them is work of the deployment.
    assert!(metric(&host, &left_out).await < before + 0.5);
    let last = client
        .append(&[event(1, Some("a"), 65)])
        .await
        .last_sequence;
    client.reached(ONCE, last).await;
    assert_eq!(count(client, 1).await, 3);
}

#[tokio::test]
async fn ids_come_along_with_a_backup() {
    let mut host = Host::start_with(LOG).await;
    host.client().deploy(ONCE, &guests::module(ONCE)).await;
    let last = host.client().append(&[event(1, Some("a"), 0)]).await;
    host.client().reached(ONCE, last.last_sequence).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("copy");
    // Everything is durable before it is copied.
    host.stop();
    host.restart().await;
    cli::on(&host, &["backup", &target.to_string_lossy()]).expect(0);
    host.kill();
    std::fs::remove_dir_all(host.data_dir()).expect("it is there");
    std::fs::rename(&target, host.data_dir()).expect("on one disk");
    host.restart().await;
    let client = host.client();
    let last = client.append(&[event(1, Some("a"), 1)]).await.last_sequence;
    let shown = client.reached(ONCE, last).await;
    assert_eq!((count(client, 1).await, duplicates(&shown)), (1, 1));
}

/// Publishes an event of customer 1, again and again until the stream no longer recognises its id.
async fn publish_again(server: &NatsServer, header: Option<(&str, &str)>, data: &str) -> u64 {
    let jetstream = server.jetstream().await;
    wait::until("the stream to forget the id", || async {
        let mut headers = async_nats::HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, value);
        }
        let data = data.to_owned().into();
        let sent = jetstream.publish_with_headers("orders.1.placed", headers, data);
        let stored = sent.await.expect("is sent").await.expect("is answered");
        (!stored.duplicate).then_some(stored.sequence)
    })
    .await
}

#[tokio::test]
async fn message_ids_of_a_stream_are_recognised_beyond_its_own_window() {
    let server = NatsServer::start().await;
    let config = async_nats::jetstream::stream::Config {
        duplicate_window: Duration::from_millis(100),
        ..nats::stream_config("ORDERS", "orders.>")
    };
    nats::create_stream_with(&server.jetstream().await, config).await;
    let host = Host::start_with(&jetstream_source(&server.url(), "ORDERS")).await;
    let client = host.client();
    client.deploy(ONCE, &guests::module(ONCE)).await;
    let long = "x".repeat(60_000);
    let mut last = 0;
    for data in ["{}", r#"{"other":1}"#] {
        // The same id with other data is the same event; one without an id is not, nor is one with
        // a header that happens to be called so.
        for header in [
            Some(("Nats-Msg-Id", "1")),
            Some(("Nats-Msg-Id", long.as_str())),
            Some(("id", "1")),
            None,
        ] {
            last = publish_again(&server, header, data).await;
        }
    }
    assert_eq!(last, 8);
    let shown = client.reached(ONCE, last).await;
    assert_eq!((count(client, 1).await, duplicates(&shown)), (6, 2));
}

/// Publishes an order, whose number is a header.
async fn publish(server: &NatsServer, order: u64) -> u64 {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("X-Order", order.to_string().as_str());
    let subject = format!("orders.{order}");
    let jetstream = server.jetstream().await;
    let confirmed = jetstream
        .publish_with_headers(subject, headers, "{}".into())
        .await
        .expect("is sent");
    confirmed.await.expect("is stored").sequence
}

/// Messages of the target.
async fn answers(server: &NatsServer) -> u64 {
    let jetstream = server.jetstream().await;
    let mut stream = jetstream.get_stream("ANSWERS").await.expect("it is there");
    stream.info().await.expect("it answers").state.messages
}

#[tokio::test]
async fn handler_answers_an_order_once_through_kills_and_a_change_of_owner() {
    let server = NatsServer::start().await;
    for (name, subjects) in [("ORDERS", "orders.>"), ("ANSWERS", "answers.>")] {
        let config = async_nats::jetstream::stream::Config {
            duplicate_window: Duration::from_millis(100),
            ..nats::stream_config(name, subjects)
        };
        nats::create_stream_with(&server.jetstream().await, config).await;
    }
    let source = |name: &str| {
        format!(
            "[sources.{}]\nkind = \"jetstream\"\nstream = {name:?}\nservers = [{:?}]\n",
            name.to_lowercase(),
            server.url()
        )
    };
    let config = format!(
        "{}{}[rollout]\nhold_max = \"5s\"\n",
        source("ORDERS"),
        source("ANSWERS")
    );
    let mut host = Host::start_with(&config).await;
    let options = "&source=orders&allow-publish=answers.%3E%40answers";
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), options)
        .await;
    let answered = async |host: &Host, last: u64, orders: u64| {
        let shown = host.client().reached(REACTOR, last).await;
        wait::until("the answers", || async {
            (answers(&server).await >= orders).then_some(())
        })
        .await;
        assert_eq!(answers(&server).await, orders, "one for each order");
        shown
    };
    for order in 1..=20 {
        publish(&server, order).await;
    }
    let mut last = 0;
    for order in 1..=20 {
        last = publish(&server, order).await;
    }
    assert_eq!(last, 40, "the stream has them twice");
    answered(&host, last, 20).await;
    host.kill();
    host.restart().await;
    for order in 11..=30 {
        last = publish(&server, order).await;
    }
    answered(&host, last, 30).await;
    let answer = host.client().act(REACTOR, "rebuild").await;
    let number = answer.json::<api::Deployed>().generation;
    let active = GenerationStatus::Active;
    host.client().becomes(REACTOR, number, active).await;
    for order in 21..=40 {
        last = publish(&server, order).await;
    }
    let shown = answered(&host, last, 40).await;
    assert_eq!(duplicates(&shown), 40);
    assert_eq!(shown.outbox.expect("it is a handler").epoch, 2);
}
