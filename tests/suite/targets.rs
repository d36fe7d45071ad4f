//! What the target of a handler costs while it takes nothing.

use async_nats::jetstream::stream::Config;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer, Version};
use foldstream_tests::proxy::Proxy;
use foldstream_tests::reactor::published;
use foldstream_tests::{guests, wait};
use serde_json::json;

use crate::deliveries::{Stage, Target, full, plain, trouble, with_cursors};

/// Refusals after which a handler would have made a new connection for each.
const REFUSALS: usize = 4;

/// Waits until the server has refused some attempts; how many connections that took.
async fn connections_for_refusals(proxy: &Proxy) -> usize {
    let (connections, refusals) = (proxy.connections(), proxy.refusals());
    wait::until("some more attempts to be refused", || async {
        (proxy.refusals() >= refusals + REFUSALS).then_some(())
    })
    .await;
    proxy.connections() - connections
}

#[tokio::test]
async fn stream_that_is_missing_or_full_costs_no_new_connections() {
    for (target, config) in [
        (Target::Plain(Version::Newest), plain()),
        (Target::Cursors, with_cursors()),
    ] {
        let mut stage = Stage::start(target).await;
        let first = stage.append(1, "one").await;
        published(stage.client(), first).await;
        stage.edit(full(config.clone(), 1)).await;
        let second = stage.append(1, "one").await;
        let why = trouble(&stage).await;
        assert!(why.contains("maximum messages"), "{why}");
        assert_eq!(connections_for_refusals(stage.server().1).await, 0);

        let context = stage.server().0.jetstream().await;
        context.delete_stream("OUT").await.expect("is deleted");
        // After a start the host asks what the stream has.
        stage.host.restart().await;
        let why = trouble(&stage).await;
        assert!(why.contains("stream OUT does not exist"), "{why}");
        assert_eq!(connections_for_refusals(stage.server().1).await, 0);

        nats::create_stream_with(&context, config).await;
        published(stage.client(), second).await;
        assert_eq!(stage.causes().await, [second], "{target:?}");
    }
}

#[tokio::test]
async fn stream_that_refuses_firings_costs_no_new_connections() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let subjects = ["alarm.>", "rang.>", "_fs.timers.>"].map(str::to_owned);
    let config = Config {
        subjects: subjects.to_vec(),
        ..nats::stream_config("ALARMS", "alarm.>")
    };
    nats::create_stream_with(&context, config.clone()).await;
    let proxy = Proxy::start(&server.url()).await;
    let host = Host::start_with(&format!(
        "[sources.alarms]\nkind = \"jetstream\"\nstream = \"ALARMS\"\nservers = [{:?}]\n",
        proxy.url()
    ))
    .await;
    let client = host.client();
    let grant = "&allow-publish=rang.%3E%40alarms";
    client
        .deploy_with("alarm", &guests::module("alarm"), grant)
        .await;
    let edited = context.update_stream(full(config.clone(), 1)).await;
    edited.expect("is edited");
    let data = json!({ "name": "tea", "after_ms": 0 }).to_string();
    let sent = context.publish("alarm.a.set", data.into()).await;
    sent.expect("is sent").await.expect("is stored");
    client
        .show_when("alarm", "say that its stream is full", |shown| {
            let why = shown
                .timers
                .as_ref()
                .and_then(|timers| timers.trouble.clone());
            why.is_some_and(|why| why.contains("maximum messages"))
        })
        .await;
    assert_eq!(connections_for_refusals(&proxy).await, 0);
    context.update_stream(config).await.expect("is edited");
    client
        .show_when("alarm", "fire its timer", |shown| {
            let timers = shown.timers.as_ref();
            timers.is_some_and(|timers| timers.pending == 0)
        })
        .await;
}
