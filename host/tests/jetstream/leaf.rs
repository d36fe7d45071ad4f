//! A hub and an edge that is its leaf node, each with a JetStream domain of its own.

use async_nats::jetstream::stream::{Config, External, Source};
use foldstream::source::Request;
use foldstream::source::jetstream::Options;

use crate::reading::{Reading, checkpoint, numbers, options, request};
use crate::server::{Server, free_port, numbered, orders, publish, until};

async fn hub_and_edge() -> (Server, Server) {
    let port = free_port();
    let of_domain = |name: &str, leafnodes: String| {
        format!(
            "jetstream {{ store_dir: \"$FOLDER/store\", domain: {name} }}\nleafnodes {{ {leafnodes} }}"
        )
    };
    let listens = format!("listen: \"127.0.0.1:{port}\"");
    let hub = Server::start_with(&of_domain("hub", listens)).await;
    let connects = format!("reconnect: 1, remotes: [{{ url: \"nats://127.0.0.1:{port}\" }}]");
    let edge = Server::start_with(&of_domain("edge", connects)).await;
    (hub, edge)
}

#[tokio::test]
async fn a_mirror_behind_a_leaf_node_takes_the_place_of_its_origin() {
    let (mut hub, edge) = hub_and_edge().await;
    let origin = hub.jetstream().await;
    origin.create_stream(orders()).await.expect("stream");
    publish(&origin, numbered(0..10)).await;
    let (_, last) = Reading::begin(options(&hub), request(&[">"]))
        .events(10)
        .await;
    let known = Request {
        resume: Some(checkpoint(&last)),
        ..request(&[">"])
    };

    // The origin is read through the edge.
    let through_edge = Options {
        domain: Some("hub".to_owned()),
        ..options(&edge)
    };
    let (events, _) = Reading::begin(through_edge, request(&[">"]))
        .events(10)
        .await;
    assert_eq!(numbers(&events), (0..10).collect::<Vec<_>>());

    let external = External {
        api_prefix: "$JS.hub.API".to_owned(),
        delivery_prefix: None,
    };
    let mirror = Source {
        name: "ORDERS".to_owned(),
        external: Some(external),
        ..Source::default()
    };
    let at_edge = edge.jetstream().await;
    let config = Config {
        name: "EDGE".to_owned(),
        mirror: Some(mirror),
        ..Config::default()
    };
    at_edge.create_stream(config).await.expect("mirror");
    publish(&origin, numbered(10..11)).await;
    Box::pin(until("the mirror is whole", || async {
        let stream = at_edge.get_stream("EDGE").await.ok()?;
        (stream.cached_info().state.last_sequence == 11).then_some(())
    }))
    .await;

    // Its copy is read on, also without the hub.
    hub.kill();
    let of_edge = Options {
        stream: "EDGE".to_owned(),
        ..options(&edge)
    };
    let (events, last) = Reading::begin(of_edge, known).events(1).await;
    assert_eq!((numbers(&events), last.through), (vec![10], 11));
    assert_eq!(last.stream.name, "EDGE");
}
