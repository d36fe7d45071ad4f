//! Messages that are gone from the stream of a target before it is known that it had stored them.

use std::time::Duration;

use async_nats::jetstream::stream;
use foldstream::api::Promise;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::proxy::Proxy;
use foldstream_tests::reactor::{REACTOR, TO_STREAM, events, host_with_stream, published};
use foldstream_tests::{guests, wait};

/// A stream that has forgotten each id before the host is back.
fn forgetful(subjects: &[&str]) -> stream::Config {
    stream::Config {
        subjects: subjects.iter().map(|&subject| subject.to_owned()).collect(),
        duplicate_window: Duration::from_millis(200),
        ..nats::stream_config("OUT", "out.>")
    }
}

async fn stream(server: &NatsServer) -> stream::Stream {
    let stream = server.jetstream().await.get_stream("OUT").await;
    stream.expect("it is there")
}

async fn last(server: &NatsServer) -> u64 {
    let mut stream = stream(server).await;
    stream.info().await.expect("it answers").state.last_sequence
}

/// A host whose target is a stream, behind a proxy, which has confirmed some messages.
async fn begun(config: stream::Config) -> (NatsServer, Proxy, Host) {
    let server = NatsServer::start().await;
    nats::create_stream_with(&server.jetstream().await, config).await;
    let proxy = Proxy::start(&server.url()).await;
    let host = host_with_stream(&proxy.url(), "").await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    let last = client.append(&events(5, "one")).await.last_sequence;
    published(client, last).await;
    (server, proxy, host)
}

/// Has messages stored of which the host hears nothing before it is killed; returns the last event.
async fn dies_in_doubt((server, proxy, host): (&NatsServer, &Proxy, &mut Host)) -> u64 {
    let before = last(server).await;
    proxy.swallow(true);
    let appended = host.client().append(&events(3, "one")).await.last_sequence;
    wait::until("messages to be stored without an answer", || async {
        (last(server).await >= before + 3).then_some(())
    })
    .await;
    host.kill();
    proxy.break_all();
    proxy.swallow(false);
    // Longer than the window.
    tokio::time::sleep(Duration::from_millis(500)).await;
    appended
}

async fn promise_after(host: &Host, sequence: u64) -> Option<Promise> {
    let shown = published(host.client(), sequence).await;
    shown.outbox.expect("it is a handler").targets[0].promise
}

#[tokio::test]
async fn single_messages_that_are_gone_since_the_last_certain_one_leave_only_the_window() {
    let (server, proxy, mut host) = begun(forgetful(&["out.>"])).await;
    let stream = stream(&server).await;
    // It was in no doubt, so the next look does not miss it.
    assert!(stream.delete_message(2).await.expect("is removed"));
    let appended = dies_in_doubt((&server, &proxy, &mut host)).await;
    host.restart().await;
    assert_eq!(
        promise_after(&host, appended).await,
        Some(Promise::ReadBack)
    );
    assert_eq!(last(&server).await, 8, "nothing is sent again");

    let appended = dies_in_doubt((&server, &proxy, &mut host)).await;
    assert!(stream.delete_message(10).await.expect("is removed"));
    host.restart().await;
    assert_eq!(promise_after(&host, appended).await, Some(Promise::Window));
    assert_eq!(last(&server).await, 12, "only that one is sent again");
    let told = host.output();
    assert!(told.contains("single messages are gone"), "{told}");

    host.restart().await;
    let appended = host.client().append(&events(1, "one")).await.last_sequence;
    assert_eq!(
        promise_after(&host, appended).await,
        Some(Promise::ReadBack)
    );
}

#[tokio::test]
async fn stream_that_has_removed_the_cursor_promises_its_window_until_it_has_the_next() {
    let config = stream::Config {
        allow_atomic_publish: true,
        max_messages: 50,
        discard: stream::DiscardPolicy::Old,
        ..forgetful(&["out.>", "_fs.cursors.>", "other"])
    };
    let (server, proxy, mut host) = begun(config).await;
    let appended = dies_in_doubt((&server, &proxy, &mut host)).await;
    let jetstream = server.jetstream().await;
    for _ in 0..60 {
        let sent = jetstream.publish("other", "".into()).await;
        sent.expect("is sent").await.expect("is stored");
    }
    host.restart().await;
    assert_eq!(promise_after(&host, appended).await, Some(Promise::Window));
    host.restart().await;
    let appended = host.client().append(&events(1, "one")).await.last_sequence;
    assert_eq!(promise_after(&host, appended).await, Some(Promise::Exact));
}
