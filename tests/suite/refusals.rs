//! Streams and servers that refuse messages of handlers, or lose what they had: each message is
//! stored once as soon as that is possible, and what keeps it is named.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy};
use foldstream::api;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer, Version};
use foldstream_tests::proxy::Proxy;
use foldstream_tests::reactor::{
    REACTOR, TO_STREAM, event, events, host_with_stream, published, stored,
};
use foldstream_tests::{cli, guests, wait};

/// A stream whose window is shorter than any outage here.
fn plain() -> Config {
    Config {
        duplicate_window: Duration::from_millis(200),
        ..nats::stream_config("OUT", "out.>")
    }
}

/// The same with cursors.
fn with_cursors() -> Config {
    Config {
        subjects: vec!["out.>".to_owned(), "_fs.cursors.>".to_owned()],
        allow_atomic_publish: true,
        ..plain()
    }
}

/// A host that publishes to a stream of these settings.
async fn host_of(server: &NatsServer, url: &str, config: Config) -> Host {
    nats::create_stream_with(&server.jetstream().await, config).await;
    let host = host_with_stream(url, "").await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    host
}

/// Waits until this many messages wait and the trouble says why; what it says.
async fn trouble(host: &Host, entries: u64) -> String {
    let shown = host
        .client()
        .show_when(REACTOR, "name the trouble", |shown| {
            let outbox = shown.outbox.as_ref().expect("it is a handler");
            outbox.entries == entries && outbox.targets[0].trouble.is_some()
        })
        .await;
    let targets = shown.outbox.expect("it is a handler").targets;
    targets[0].trouble.clone().expect("checked above")
}

/// The events that caused what is stored, in the order of the stream.
async fn causes(server: &NatsServer) -> Vec<u64> {
    let stored = stored(server).await;
    stored.iter().map(|message| message.place.0).collect()
}

on_both_versions! {
    message_that_a_full_stream_refused_is_stored_once_there_is_room
    message_larger_than_its_server_takes_is_named_and_holds_back_no_other_key
    message_that_nobody_wanted_is_confirmed_after_a_lost_answer
    key_of_which_a_message_is_refused_keeps_no_other_waiting_however_much_of_it_waits
}

async fn message_that_a_full_stream_refused_is_stored_once_there_is_room(version: Version) {
    let server = NatsServer::start_version(version).await;
    // The window is long: a server must not recognise what it has refused.
    let full = Config {
        max_messages: 3,
        discard: DiscardPolicy::New,
        duplicate_window: Duration::from_secs(60),
        ..plain()
    };
    let mut host = host_of(&server, &server.url(), full.clone()).await;
    let appended = host.client().append(&events(8, "one")).await;
    let why = trouble(&host, 5).await;
    assert!(why.contains("maximum messages exceeded"), "{why}");
    host.kill();
    host.restart().await;
    trouble(&host, 5).await;
    let room = Config {
        max_messages: 100,
        ..full
    };
    let edited = server.jetstream().await.update_stream(room).await;
    edited.expect("the stream takes the change");
    cli::on(&host, &["outbox", "retry", REACTOR]).expect(0);
    published(host.client(), appended.last_sequence).await;
    let mut causes = causes(&server).await;
    causes.sort_unstable();
    assert_eq!(causes, appended.sequences);
}

async fn message_larger_than_its_server_takes_is_named_and_holds_back_no_other_key(
    version: Version,
) {
    let server = NatsServer::start_version_with(version, "max_payload: 50000\n").await;
    let host = host_of(&server, &server.url(), plain()).await;
    let asked = [event(1, "large"), event(2, "one")];
    host.client().append(&asked).await;
    let why = trouble(&host, 1).await;
    assert!(why.contains("larger than the server takes"), "{why}");
    let three = host.client().append(&[event(3, "one")]).await;
    wait::until("the other keys to be published", || async {
        (causes(&server).await == [2, three.last_sequence]).then_some(())
    })
    .await;
}

async fn key_of_which_a_message_is_refused_keeps_no_other_waiting_however_much_of_it_waits(
    version: Version,
) {
    let server = NatsServer::start_version_with(version, "max_payload: 50000\n").await;
    let host = host_of(&server, &server.url(), plain()).await;
    host.client().append(&[event(1, "large")]).await;
    // More than are read at once.
    let behind: Vec<_> = (0..1_300).map(|_| event(1, "one")).collect();
    for behind in behind.chunks(500) {
        host.client().append(behind).await;
    }
    let other = host.client().append(&[event(2, "one")]).await.last_sequence;
    wait::until("the other key to be published", || async {
        (causes(&server).await == [other]).then_some(())
    })
    .await;
    assert!(trouble(&host, 1_301).await.contains("larger"));
    // All of them follow the first one in their order.
    let path = format!("/v1/deployments/{REACTOR}/outbox?limit=1");
    let waiting: api::WaitingMessages = host.client().get(&path).await.expect(200).json();
    let id = &waiting.messages[0].id;
    cli::on(&host, &["outbox", "drop", REACTOR, id, "--reason", "large"]).expect(0);
    published(host.client(), other).await;
    let rest: Vec<u64> = causes(&server).await.split_off(1);
    assert_eq!(rest, (2..other).collect::<Vec<_>>());
}

#[tokio::test]
async fn message_larger_than_its_server_takes_is_named_with_cursors() {
    let server = NatsServer::start_with("max_payload: 50000\n").await;
    let host = host_of(&server, &server.url(), with_cursors()).await;
    host.client()
        .append(&[event(1, "large"), event(2, "one")])
        .await;
    let why = trouble(&host, 2).await;
    assert!(why.contains("larger than the server takes"), "{why}");
    let path = format!("/v1/deployments/{REACTOR}/outbox?limit=1");
    let waiting: api::WaitingMessages = host.client().get(&path).await.expect(200).json();
    let id = &waiting.messages[0].id;
    cli::on(&host, &["outbox", "drop", REACTOR, id, "--reason", "large"]).expect(0);
    published(host.client(), 2).await;
    assert_eq!(causes(&server).await, [2]);
}

/// A stream that keeps a message until its consumers have it, and has none: it recognises the id of a
/// message that it did not keep.
async fn message_that_nobody_wanted_is_confirmed_after_a_lost_answer(version: Version) {
    let server = NatsServer::start_version(version).await;
    let proxy = Proxy::start(&server.url()).await;
    let by_interest = Config {
        retention: RetentionPolicy::Interest,
        duplicate_window: Duration::from_secs(300),
        ..plain()
    };
    let mut host = host_of(&server, &proxy.url(), by_interest).await;
    let one = host.client().append(&[event(1, "one")]).await.last_sequence;
    published(host.client(), one).await;
    proxy.swallow(true);
    let two = host.client().append(&[event(1, "one")]).await.last_sequence;
    let context = server.jetstream().await;
    wait::until("the message to come without an answer", || async {
        let mut stream = context.get_stream("OUT").await.expect("it is there");
        let info = stream.info().await.expect("it answers");
        (info.state.last_sequence == 2).then_some(())
    })
    .await;
    host.kill();
    proxy.break_all();
    proxy.swallow(false);
    host.restart().await;
    published(host.client(), two).await;
}

/// A stream that takes one message of each subject and no other, as a set of unique names does.
#[tokio::test]
async fn message_that_a_stream_of_unique_subjects_has_is_confirmed_after_a_lost_answer() {
    let server = NatsServer::start().await;
    let proxy = Proxy::start(&server.url()).await;
    let unique = Config {
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        ..plain()
    };
    let mut host = host_of(&server, &proxy.url(), unique).await;
    let one = host.client().append(&[event(1, "one")]).await.last_sequence;
    published(host.client(), one).await;
    proxy.swallow(true);
    let two = host.client().append(&[event(1, "one")]).await.last_sequence;
    wait::until("the message to be stored without an answer", || async {
        (stored(&server).await.len() == 2).then_some(())
    })
    .await;
    host.kill();
    // Longer than the window.
    tokio::time::sleep(Duration::from_millis(500)).await;
    proxy.break_all();
    proxy.swallow(false);
    host.restart().await;
    let three = host.client().append(&[event(1, "one")]).await.last_sequence;
    published(host.client(), three).await;
    assert_eq!(causes(&server).await, [one, two, three]);
}

#[tokio::test]
async fn stream_that_is_created_again_gets_what_waits_once() {
    for config in [plain(), with_cursors()] {
        let server = NatsServer::start().await;
        let context = server.jetstream().await;
        let host = host_of(&server, &server.url(), config.clone()).await;
        let last = host
            .client()
            .append(&events(20, "three"))
            .await
            .last_sequence;
        published(host.client(), last).await;
        context.delete_stream("OUT").await.expect("it is there");
        let waits = host.client().append(&events(7, "one")).await;
        let why = trouble(&host, 7).await;
        assert!(why.contains("OUT"), "{why}");
        nats::create_stream_with(&context, config).await;
        cli::on(&host, &["outbox", "retry", REACTOR]).expect(0);
        published(host.client(), waits.last_sequence).await;
        let last = host.client().append(&events(7, "one")).await;
        published(host.client(), last.last_sequence).await;
        let mut causes = causes(&server).await;
        causes.sort_unstable();
        assert_eq!(causes, [waits.sequences, last.sequences].concat());
    }
}
