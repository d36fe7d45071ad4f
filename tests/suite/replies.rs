//! A handler replies to the publisher of an event, and to nobody else.

use std::time::Duration;

use foldstream::api;
use foldstream_tests::guests;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use futures_util::StreamExt as _;

const REACTOR: &str = "once-reactor";

/// Publishes an order of a requester that names its inbox.
async fn request(server: &NatsServer, order: u64, reply_to: &str) -> u64 {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("X-Order", order.to_string().as_str());
    headers.insert("Foldstream-Reply-To", reply_to);
    let jetstream = server.jetstream().await;
    let confirmed = jetstream
        .publish_with_headers(format!("orders.{order}"), headers, "{}".into())
        .await
        .expect("is sent");
    confirmed.await.expect("is stored").sequence
}

/// A server with a stream of orders and one of answers, and a host that knows both.
async fn start() -> (NatsServer, Host) {
    let server = NatsServer::start().await;
    for (name, subjects) in [("ORDERS", "orders.>"), ("ANSWERS", "answers.>")] {
        let config = nats::stream_config(name, subjects);
        nats::create_stream_with(&server.jetstream().await, config).await;
    }
    let source = |name: &str| {
        format!(
            "[sources.{}]\nkind = \"jetstream\"\nstream = {name:?}\nservers = [{:?}]\n",
            name.to_lowercase(),
            server.url()
        )
    };
    let host = Host::start_with(&format!("{}{}", source("ORDERS"), source("ANSWERS"))).await;
    (server, host)
}

#[tokio::test]
async fn handler_replies_to_inboxes_with_a_grant_and_to_nothing_else() {
    let (server, mut host) = start().await;
    let module = guests::module(REACTOR);
    let client = async_nats::connect(server.url()).await.expect("connects");
    let mut everything = client.subscribe("_INBOX.test.>").await.expect("subscribes");

    // Without a grant nobody gets a reply, and nothing stops.
    let grant = "&source=orders&allow-publish=answers.%3E%40answers";
    let deployed = host.client().deploy_with(REACTOR, &module, grant).await;
    assert_eq!(deployed.warnings, Vec::<String>::new());
    let last = request(&server, 1, "_INBOX.test.1").await;
    host.client().reached(REACTOR, last).await;

    let grants = "&source=orders&allow-publish=answers.%3E%40answers,_INBOX.%3E%40answers";
    host.client().deploy_with(REACTOR, &module, grants).await;
    // What a stranger writes there neither stops the handler nor reaches the server.
    for (order, hostile) in [
        "$JS.API.STREAM.DELETE.ORDERS",
        "_INBOX.*",
        "_INBOX.>",
        "_INBOX.",
        "_INBOX",
        "orders.9",
        "_INBOX.a b",
        "",
    ]
    .into_iter()
    .enumerate()
    {
        request(&server, 10 + order as u64, hostile).await;
    }
    request(&server, 2, "_INBOX.test.2").await;
    let reply = tokio::time::timeout(Duration::from_secs(60), everything.next()).await;
    let reply = reply.expect("in time").expect("it is subscribed");
    assert_eq!(
        (reply.subject.as_str(), &*reply.payload),
        ("_INBOX.test.2", &b"\"2\""[..])
    );
    let headers = reply.headers.expect("it has some");
    assert!(headers.get("ce-causationid").is_some(), "{headers:?}");

    // Nobody gets a second reply: not a requester that asks again, whose order is a duplicate, nor
    // because of a restart, nor of a state that is folded again. One that has left harms nobody.
    request(&server, 2, "_INBOX.test.2").await;
    host.stop();
    host.restart().await;
    let answer = host.client().act(REACTOR, "rebuild").await;
    let number = answer.json::<api::Deployed>().generation;
    let active = api::GenerationStatus::Active;
    host.client().becomes(REACTOR, number, active).await;
    request(&server, 4, "_INBOX.gone.1").await;
    let last = request(&server, 3, "_INBOX.test.3").await;
    let shown = host.client().reached(REACTOR, last).await;
    assert_eq!(shown.failure, None);
    let reply = tokio::time::timeout(Duration::from_secs(60), everything.next()).await;
    let reply = reply.expect("in time").expect("it is subscribed");
    assert_eq!(
        (reply.subject.as_str(), &*reply.payload),
        ("_INBOX.test.3", &b"\"3\""[..])
    );
    host.client()
        .show_when(REACTOR, "send everything", |shown| {
            shown
                .outbox
                .as_ref()
                .is_some_and(|outbox| outbox.entries == 0)
        })
        .await;
    let jetstream = server.jetstream().await;
    let mut stream = jetstream.get_stream("ANSWERS").await.expect("it is there");
    let stored = stream.info().await.expect("it answers").state.messages;
    assert_eq!(stored, 12, "each order is answered, and no reply is stored");
}

#[tokio::test]
async fn replies_can_not_be_granted_over_an_embedded_log() {
    let host = Host::start_with("[sources.events]\nkind = \"embedded\"\n").await;
    let query = format!("?name={REACTOR}&source=events&allow-publish=_INBOX.%3E%40events");
    let refused = host.client().upload(guests::module(REACTOR), &query).await;
    let refused = refused.problem(422, "refused");
    assert!(
        refused.detail.contains("leave over NATS"),
        "{}",
        refused.detail
    );
}

#[tokio::test]
async fn target_of_replies_alone_is_never_said_to_have_lost_messages() {
    let (server, mut host) = start().await;
    let grant = "&source=orders&allow-publish=answers.%3E%40answers,_INBOX.%3E%40orders";
    let module = guests::module(REACTOR);
    host.client().deploy_with(REACTOR, &module, grant).await;
    let client = async_nats::connect(server.url()).await.expect("connects");
    let mut replies = client.subscribe("_INBOX.test.>").await.expect("subscribes");
    for restarts in [false, true] {
        if restarts {
            host.stop();
            host.restart().await;
        }
        // One after the other, so that each is confirmed in a round of its own.
        for order in 0..3 {
            let order = order + 10 * u64::from(restarts);
            let last = request(&server, order, &format!("_INBOX.test.{order}")).await;
            let reply = tokio::time::timeout(Duration::from_secs(60), replies.next()).await;
            reply.expect("in time").expect("it is subscribed");
            let is_sent = |outbox: &api::Outbox| outbox.entries == 0;
            let shown = host.client().reached(REACTOR, last).await;
            assert_eq!(shown.failure, None);
            let is_empty = |shown: &api::Deployment| shown.outbox.as_ref().is_some_and(is_sent);
            let shown = host.client().show_when(REACTOR, "send it", is_empty).await;
            for target in shown.outbox.expect("it is a handler").targets {
                assert_ne!(target.promise, Some(api::Promise::Lost), "{order}");
            }
        }
    }
    let told = host.output();
    assert!(!told.contains("lacks messages that it had"), "{told}");
}
