//! The claims about streams hold on the oldest nats-server that we support, and on the newest.

use foldstream::api::DeploymentState;
use foldstream_tests::client::Client;
use foldstream_tests::guests;
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::model::Ledger;
use foldstream_tests::nats::{self, NatsServer, Version};
use foldstream_tests::orders::Orders;
use foldstream_tests::stage::{LEDGER, STREAM};

on_both_versions! {
    a_restart_of_server_and_host_loses_and_repeats_nothing
    a_stream_that_was_edited_is_the_same_stream_after_a_restart
    events_purged_before_they_were_applied_stop_the_deployment
    a_stream_created_again_is_another_history
}

/// A server of a version with a stream, and a host with the ledger deployed on it.
struct Place {
    server: NatsServer,
    host: Host,
    orders: Orders,
    model: Ledger,
}

impl Place {
    async fn start(version: Version) -> Self {
        let server = NatsServer::start_version(version).await;
        nats::create_stream(&server.jetstream().await, STREAM, "orders.>").await;
        let host = Host::start_with(&jetstream_source(&server.url(), STREAM)).await;
        host.client()
            .deploy(LEDGER, &guests::module("ledger"))
            .await;
        Self {
            server,
            host,
            orders: Orders::new(1, 10),
            model: Ledger::default(),
        }
    }

    fn client(&self) -> &Client {
        self.host.client()
    }

    /// Publishes this many orders and folds them into the model.
    async fn publish(&mut self, count: usize) -> u64 {
        let context = self.server.jetstream().await;
        let orders: Vec<_> = self.orders.by_ref().take(count).collect();
        let last = nats::publish(&context, orders.iter().map(|order| order.message())).await;
        for (sequence, order) in (last + 1 - count as u64..).zip(&orders) {
            self.model
                .apply(sequence, &order.subject(), order.data().as_bytes());
        }
        last
    }

    /// When its stream was created, as the server says.
    async fn created(&self) -> String {
        let context = self.server.jetstream().await;
        let stream = context
            .get_stream(STREAM)
            .await
            .expect("the stream is there");
        stream.cached_info().created.to_string()
    }

    async fn assert_equals_model(&self) {
        self.client().reached(LEDGER, self.model.last()).await;
        assert_eq!(
            self.client().entries(LEDGER, "").await,
            self.model.entries()
        );
    }

    async fn pause(&self) {
        self.client().act(LEDGER, "pause").await.expect(200);
        self.client()
            .show_when(LEDGER, "pause", |shown| {
                shown.state == DeploymentState::Paused
            })
            .await;
    }
}

async fn a_restart_of_server_and_host_loses_and_repeats_nothing(version: Version) {
    let mut place = Place::start(version).await;
    place.publish(300).await;
    place.assert_equals_model().await;
    place.server.restart().await;
    place.publish(300).await;
    place.assert_equals_model().await;
    place.host.kill();
    place.publish(300).await;
    place.host.restart().await;
    place.assert_equals_model().await;
}

async fn a_stream_that_was_edited_is_the_same_stream_after_a_restart(version: Version) {
    let mut place = Place::start(version).await;
    place.publish(100).await;
    place.assert_equals_model().await;
    // The oldest version writes another creation time down when a stream that it recovered is
    // edited.
    let before = place.created().await;
    place.server.stop();
    place.server.restart().await;
    let context = place.server.jetstream().await;
    let config = nats::stream_config(STREAM, "orders.>");
    let described = async_nats::jetstream::stream::Config {
        description: Some("what was sold".to_owned()),
        ..config
    };
    context
        .update_stream(described)
        .await
        .expect("a description can be edited");
    place.server.stop();
    place.server.restart().await;
    let has_moved = place.created().await != before;
    assert_eq!(
        has_moved,
        version == Version::Oldest,
        "the creation time of the stream"
    );
    place.publish(100).await;
    place.assert_equals_model().await;
    place.host.restart().await;
    place.publish(100).await;
    place.assert_equals_model().await;
}

async fn events_purged_before_they_were_applied_stop_the_deployment(version: Version) {
    let mut place = Place::start(version).await;
    let applied = place.publish(100).await;
    place.assert_equals_model().await;
    place.pause().await;
    place.publish(100).await;
    let context = place.server.jetstream().await;
    let stream = context
        .get_stream(STREAM)
        .await
        .expect("the stream is there");
    stream
        .purge()
        .sequence(151)
        .await
        .expect("a stream can be purged");
    place.client().act(LEDGER, "resume").await;
    let (shown, failure) = place.client().failed(LEDGER).await;
    assert_eq!(
        (failure.kind.as_str(), shown.position),
        ("source-gap", applied),
        "{failure:?}"
    );
}

async fn a_stream_created_again_is_another_history(version: Version) {
    let mut place = Place::start(version).await;
    let last = place.publish(100).await;
    place.assert_equals_model().await;
    let context = place.server.jetstream().await;
    context
        .delete_stream(STREAM)
        .await
        .expect("the stream is there");
    nats::create_stream(&context, STREAM, "orders.>").await;
    let orders: Vec<_> = place.orders.by_ref().take(200).collect();
    nats::publish(&context, orders.iter().map(|order| order.message())).await;
    let (shown, failure) = place.client().failed(LEDGER).await;
    assert_eq!(
        (failure.kind.as_str(), shown.position),
        ("source-diverged", last),
        "{failure:?}"
    );
    place.host.restart().await;
    let (_, failure) = place.client().failed(LEDGER).await;
    assert_eq!(
        failure.kind, "source-diverged",
        "a restart does not hide it: {failure:?}"
    );
}
