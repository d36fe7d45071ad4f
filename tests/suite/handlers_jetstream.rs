//! Handlers that publish to JetStream: once within the window, in the order of each key, through
//! kills, lost acknowledgements and servers that are away.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream;
use foldstream::api::{self, Promise};
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::proxy::Proxy;
use foldstream_tests::reactor::{
    self, REACTOR, Stored, TO_STREAM, events, host_with_stream, published, stored,
};
use foldstream_tests::{cli, guests, wait};

async fn server() -> NatsServer {
    let server = NatsServer::start().await;
    nats::create_stream(&server.jetstream().await, "OUT", "out.>").await;
    server
}

/// Appends events whose messages are stored while the host hears nothing of it. Returns the last
/// sequence.
async fn append_unanswered(host: &Host, proxy: &Proxy, server: &NatsServer) -> u64 {
    let before = stored(server).await.len();
    proxy.swallow(true);
    let events = events(30, "three");
    let last = host.client().append(&events).await.last_sequence;
    wait::until("messages to be stored without an answer", || async {
        (stored(server).await.len() > before).then_some(())
    })
    .await;
    last
}

/// Each of `wanted` messages is there once, and those of one key are in order.
fn assert_exactly_once(messages: &[Stored], wanted: usize) {
    let ids: BTreeSet<&str> = messages.iter().map(|message| message.id.as_str()).collect();
    assert_eq!(
        (messages.len(), ids.len()),
        (wanted, wanted),
        "(stored, different ids)"
    );
    reactor::assert_in_order(
        messages
            .iter()
            .map(|message| (message.key.clone(), message.place)),
    );
}

#[tokio::test]
async fn killed_again_and_again_each_message_is_stored_once_within_the_window() {
    let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
    let server = server().await;
    let mut host = host_with_stream(&server.url(), "[state]\nflush_interval = \"50ms\"\n").await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    let (mut last, mut count) = (0, 0);
    for _ in 0..8 {
        for _ in 0..3 {
            last = host
                .client()
                .append(&events(150, "three"))
                .await
                .last_sequence;
            count += 450;
        }
        tokio::time::sleep(Duration::from_micros(random.u64(0..300_000))).await;
        host.kill();
        host.restart().await;
    }
    published(host.client(), last).await;
    assert_exactly_once(&stored(&server).await, count);
}

#[tokio::test]
async fn message_whose_acknowledgement_is_lost_is_sent_again_and_stored_once() {
    let server = server().await;
    let proxy = Proxy::start(&server.url()).await;
    let host = host_with_stream(&proxy.url(), "").await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    let last = host.client().append(&events(20, "one")).await.last_sequence;
    published(host.client(), last).await;
    for _ in 0..3 {
        let last = append_unanswered(&host, &proxy, &server).await;
        proxy.break_all();
        proxy.swallow(false);
        published(host.client(), last).await;
    }
    let last = host.client().append(&events(1, "one")).await.last_sequence;
    let shown = published(host.client(), last).await;
    assert_exactly_once(&stored(&server).await, 20 + 3 * 90 + 1);
    let target = &shown.outbox.expect("it is a handler").targets[0];
    assert_eq!(
        (target.promise, target.window_seconds),
        (Some(Promise::ReadBack), Some(120.0))
    );
    assert!(
        target.resent > 0,
        "some were found or sent twice: {target:?}"
    );
}

/// A stream whose window is far shorter than any outage here.
async fn forgetful_server(max_messages_per_subject: i64) -> NatsServer {
    let server = NatsServer::start().await;
    let config = async_nats::jetstream::stream::Config {
        max_messages_per_subject,
        ..forgetful()
    };
    nats::create_stream_with(&server.jetstream().await, config).await;
    server
}

fn forgetful() -> async_nats::jetstream::stream::Config {
    async_nats::jetstream::stream::Config {
        duplicate_window: Duration::from_millis(200),
        ..nats::stream_config("OUT", "out.>")
    }
}

/// The same stream, which takes cursors.
fn with_cursors() -> async_nats::jetstream::stream::Config {
    async_nats::jetstream::stream::Config {
        subjects: vec!["out.>".to_owned(), "_fs.cursors.>".to_owned()],
        allow_atomic_publish: true,
        ..forgetful()
    }
}

async fn server_with_cursors() -> NatsServer {
    let server = NatsServer::start().await;
    nats::create_stream_with(&server.jetstream().await, with_cursors()).await;
    server
}

#[tokio::test]
async fn what_the_stream_has_stored_is_read_back_where_its_window_has_forgotten() {
    outlast_the_window(forgetful_server(-1).await, Promise::ReadBack).await;
}

#[tokio::test]
async fn cursor_says_what_is_stored_where_the_window_has_forgotten() {
    outlast_the_window(server_with_cursors().await, Promise::Exact).await;
}

async fn outlast_the_window(server: NatsServer, promise: Promise) {
    let proxy = Proxy::start(&server.url()).await;
    let mut host = host_with_stream(&proxy.url(), "").await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    let last = host.client().append(&events(20, "one")).await.last_sequence;
    published(host.client(), last).await;
    for _ in 0..3 {
        // Then a crash that lasts longer than the window.
        let last = append_unanswered(&host, &proxy, &server).await;
        host.kill();
        proxy.break_all();
        proxy.swallow(false);
        tokio::time::sleep(Duration::from_millis(500)).await;
        host.restart().await;
        published(host.client(), last).await;
    }
    let last = host.client().append(&events(1, "one")).await.last_sequence;
    let shown = published(host.client(), last).await;
    assert_exactly_once(&stored(&server).await, 20 + 3 * 90 + 1);
    assert_eq!(
        shown.outbox.expect("it is a handler").targets[0].promise,
        Some(promise)
    );
}

/// Two hosts with copies of one data folder get the same events, one after the other.
#[tokio::test]
async fn second_owner_with_a_copy_of_the_data_folder_stores_nothing_twice() {
    let server = server_with_cursors().await;
    let mut first = host_with_stream(&server.url(), "").await;
    first
        .client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    let last = first
        .client()
        .append(&events(20, "one"))
        .await
        .last_sequence;
    published(first.client(), last).await;
    first.stop();
    let second = first.copy().await;
    first.restart().await;
    // Both have started, and neither is in doubt.
    for host in [&first, &second] {
        published(host.client(), last).await;
    }
    let mut count = 20;
    for round in 0..4 {
        let (one, other) = if round % 2 == 0 {
            (&first, &second)
        } else {
            (&second, &first)
        };
        for host in [one, other] {
            let last = host.client().append(&events(30, "three")).await;
            published(host.client(), last.last_sequence).await;
            // Longer than the window.
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        count += 90;
        assert_exactly_once(&stored(&server).await, count);
    }
    // At the same time, with one of them killed in between.
    let many = events(200, "three");
    let (one, other) = tokio::join!(first.client().append(&many), second.client().append(&many));
    assert_eq!(one.last_sequence, other.last_sequence);
    first.kill();
    first.restart().await;
    for host in [&first, &second] {
        published(host.client(), one.last_sequence).await;
    }
    assert_exactly_once(&stored(&server).await, count + 600);
}

#[tokio::test]
async fn handler_that_published_without_cursors_continues_with_them_and_without_again() {
    let server = forgetful_server(-1).await;
    let mut host = host_with_stream(&server.url(), "").await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    let mut count = 0;
    for config in [forgetful(), with_cursors(), forgetful(), with_cursors()] {
        let edited = server.jetstream().await.update_stream(config).await;
        edited.expect("the stream takes the change");
        for kills in [false, true] {
            let appended = host.client().append(&events(40, "three")).await;
            count += 120;
            if kills {
                host.kill();
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            host.restart().await;
            published(host.client(), appended.last_sequence).await;
        }
        assert_exactly_once(&stored(&server).await, count);
    }
}

#[tokio::test]
async fn message_that_a_stream_with_cursors_refuses_holds_back_later_ones_until_it_is_dropped() {
    let server = NatsServer::start().await;
    let config = async_nats::jetstream::stream::Config {
        max_message_size: 50_000,
        ..with_cursors()
    };
    nats::create_stream_with(&server.jetstream().await, config).await;
    let host = host_with_stream(&server.url(), "").await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    client.append(&events(5, "one")).await;
    client.append(&events(1, "large")).await;
    let last = client.append(&events(7, "one")).await.last_sequence;
    let shown = client
        .show_when(REACTOR, "name the trouble", |shown| {
            let outbox = shown.outbox.as_ref().expect("it is a handler");
            outbox.targets[0].trouble.is_some() && outbox.entries == 8
        })
        .await;
    let trouble = shown.outbox.expect("it is a handler").targets[0]
        .trouble
        .clone()
        .expect("checked above");
    assert!(trouble.contains("exceeds maximum"), "{trouble}");
    let path = format!("/v1/deployments/{REACTOR}/outbox?limit=1");
    let waiting: api::WaitingMessages = client.get(&path).await.expect(200).json();
    dropped(&host, &[&waiting.messages[0].id], "too large").expect(0);
    cli::on(&host, &["outbox", "retry", REACTOR]).expect(0);
    published(client, last).await;
    assert_exactly_once(&stored(&server).await, 12);
}

#[tokio::test]
async fn stream_that_forgets_messages_promises_its_window_alone() {
    let server = forgetful_server(1_000).await;
    let host = host_with_stream(&server.url(), "").await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    let last = host.client().append(&events(5, "one")).await.last_sequence;
    let shown = published(host.client(), last).await;
    let target = &shown.outbox.expect("it is a handler").targets[0];
    assert_eq!(
        (target.promise, target.window_seconds),
        (Some(Promise::Window), Some(0.2))
    );
}

#[tokio::test]
async fn server_that_is_away_holds_messages_back_and_a_full_outbox_holds_the_handler() {
    let mut server = server().await;
    let host = host_with_stream(
        &server.url(),
        "[state]\noutbox_entries_max = 200\n[pipeline]\nbatch_events = 50\n",
    )
    .await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    let last = host.client().append(&events(10, "one")).await.last_sequence;
    published(host.client(), last).await;
    server.kill();
    let last = host
        .client()
        .append(&events(2_000, "one"))
        .await
        .last_sequence;
    let full = host
        .client()
        .show_when(REACTOR, "have a full outbox", |deployment| {
            let outbox = deployment.outbox.as_ref();
            outbox.is_some_and(|outbox| outbox.full && outbox.targets[0].trouble.is_some())
        })
        .await;
    let outbox = full.outbox.clone().expect("it is a handler");
    assert!((200..=250).contains(&outbox.entries), "{outbox:?}");
    assert!(
        full.position < last
            && full
                .failure
                .as_ref()
                .is_some_and(|failure| failure.kind == "outbox"),
        "{full:?}"
    );
    let metrics = host.client().get("/metrics").await.expect(200).text();
    assert!(
        metrics.contains("foldstream_outbox_troubled{deployment=\"reactor\",target=\"out\"} 1"),
        "{metrics}"
    );

    server.restart().await;
    let shown = published(host.client(), last).await;
    assert!(shown.failure.is_none(), "{:?}", shown.failure);
    assert_exactly_once(&stored(&server).await, 2_010);
}

#[tokio::test]
async fn waiting_messages_keep_a_handler_from_being_deleted() {
    let mut server = server().await;
    let host = host_with_stream(&server.url(), "").await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    server.kill();
    let last = client.append(&events(5, "one")).await.last_sequence;
    client.reached(REACTOR, last).await;
    let delete = |query: &str| {
        client.request(
            reqwest::Method::DELETE,
            &format!("/v1/deployments/{REACTOR}{query}"),
        )
    };
    let refused = client.send(delete("")).await.problem(409, "conflict");
    assert!(
        refused.detail.starts_with("5 messages of reactor"),
        "{}",
        refused.detail
    );
    client.send(delete("?drop-effects=true")).await.expect(204);
}

#[tokio::test]
async fn withdrawn_grant_holds_messages_back_until_it_is_given_again() {
    let mut server = server().await;
    let host = host_with_stream(&server.url(), "").await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    server.kill();
    let last = client.append(&events(5, "one")).await.last_sequence;
    client.reached(REACTOR, last).await;
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), "&allow-publish=")
        .await;
    server.restart().await;
    let held = client
        .show_when(REACTOR, "hold its messages", |deployment| {
            let targets = deployment.outbox.iter().flat_map(|outbox| &outbox.targets);
            targets
                .filter_map(|target| target.trouble.as_deref())
                .any(|trouble| trouble.contains("no longer publish"))
        })
        .await;
    assert_eq!(held.outbox.expect("it is a handler").entries, 5);
    assert_eq!(stored(&server).await.len(), 0);
    client
        .deploy_with(
            REACTOR,
            &guests::module(REACTOR),
            "&allow-publish=out.%3E%40out",
        )
        .await;
    published(host.client(), last).await;
    assert_exactly_once(&stored(&server).await, 5);
}

#[tokio::test]
async fn stream_without_a_duplicate_window_or_of_another_subject_is_named() {
    let server = NatsServer::start().await;
    nats::create_stream(&server.jetstream().await, "OUT", "other.>").await;
    let host = host_with_stream(&server.url(), "").await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    client.append(&events(1, "one")).await;
    let shown = client
        .show_when(REACTOR, "name the trouble", |deployment| {
            deployment
                .outbox
                .as_ref()
                .is_some_and(|outbox| outbox.targets[0].trouble.is_some())
        })
        .await;
    let trouble = shown.outbox.expect("it is a handler").targets[0]
        .trouble
        .clone()
        .expect("checked above");
    assert!(
        trouble.contains("no stream stores subject out."),
        "{trouble}"
    );
}

#[tokio::test]
async fn message_that_its_stream_refuses_is_dropped_with_a_reason_and_those_behind_it_leave() {
    let server = NatsServer::start().await;
    let config = async_nats::jetstream::stream::Config {
        max_message_size: 50_000,
        ..nats::stream_config("OUT", "out.>")
    };
    nats::create_stream_with(&server.jetstream().await, config).await;
    let host = host_with_stream(&server.url(), "").await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    client.append(&events(1, "large")).await;
    let last = client.append(&events(7, "one")).await.last_sequence;
    let large = first_of_two_that_wait(&host, last).await;
    nothing_is_dropped_if_anything_is_wrong(&host, &large.id).await;

    dropped(&host, &[&large.id], "too large").expect(0);
    cli::on(&host, &["outbox", "retry", REACTOR]).expect(0);
    published(host.client(), last).await;
    let stored = stored(&server).await;
    assert_eq!(stored.len(), 7, "all but the one that was dropped");
    let audit = client.get("/v1/audit?limit=5").await.expect(200).text();
    for part in ["\"drop-messages\"", &large.id, "too large"] {
        assert!(audit.contains(part), "{part} is missing in {audit}");
    }
    let listed = cli::on(&host, &["outbox", "list", REACTOR]).expect(0);
    assert!(listed.stderr.contains("no messages wait"), "{listed:?}");
    let projection = client.get("/v1/deployments/nobody/outbox").await;
    projection.problem(404, "not-found");
}

/// The message that the stream refuses, after everything else is published but the message behind
/// it. Lists both page by page.
async fn first_of_two_that_wait(host: &Host, last: u64) -> api::WaitingMessage {
    let client = host.client();
    let only_two_wait = |deployment: &api::Deployment| {
        let outbox = deployment.outbox.as_ref().expect("it is a handler");
        deployment.position >= last && outbox.entries == 2 && outbox.targets[0].trouble.is_some()
    };
    client
        .show_when(REACTOR, "publish what is not behind it", only_two_wait)
        .await;
    let path = format!("/v1/deployments/{REACTOR}/outbox");
    let first = client.get(&format!("{path}?limit=1")).await.expect(200);
    let mut page: api::WaitingMessages = first.json();
    let (large, next) = (page.messages.remove(0), page.next.expect("there is more"));
    assert_eq!((large.sequence, large.bytes), (1, 100_000), "{large:?}");
    assert_eq!(large.key, "0", "{large:?}");
    let second = client
        .get(&format!("{path}?after={next}"))
        .await
        .expect(200);
    let page: api::WaitingMessages = second.json();
    assert_eq!((page.messages.len(), page.next), (1, None));
    assert_eq!(page.messages[0].sequence, 2);
    large
}

fn dropped(host: &Host, ids: &[&str], reason: &str) -> cli::Output {
    let words = [&["outbox", "drop", REACTOR][..], ids, &["--reason", reason]];
    cli::on(host, &words.concat())
}

async fn nothing_is_dropped_if_anything_is_wrong(host: &Host, id: &str) {
    let other = id.replace(".1.0.0", ".9.0.0");
    let refused = dropped(host, &[id, &other], "too large").expect(3);
    assert!(
        refused.stderr.contains("nothing was dropped"),
        "{refused:?}"
    );
    let refused = dropped(host, &[id], " ");
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("reason"), "{refused:?}");
    let outbox = host.client().show(REACTOR).await.outbox;
    assert_eq!(outbox.expect("it is a handler").entries, 2);
}

/// A host that reads the stream `IN`, and publishes to one that forgets ids at once.
async fn reading_a_stream() -> (NatsServer, Host) {
    let server = forgetful_server(-1).await;
    nats::create_stream(&server.jetstream().await, "IN", "in.>").await;
    let url = server.url();
    let source =
        format!("[sources.in]\nkind = \"jetstream\"\nstream = \"IN\"\nservers = [{url:?}]\n");
    let host = host_with_stream(&url, &source).await;
    (server, host)
}

/// Publishes events of seven keys that ask for one message each.
async fn publish_in(context: &jetstream::Context, count: u64) {
    let one = |number: u64| (format!("in.{}.one", number % 7), bytes::Bytes::new());
    nats::publish(context, (0..count).map(one)).await;
}

#[tokio::test]
async fn stream_that_is_made_again_is_handled_from_where_an_operator_says() {
    for (from, wanted) in [("beginning", 18 + 5), ("11", 8 + 5), ("now", 5)] {
        let (server, mut host) = reading_a_stream().await;
        let context = server.jetstream().await;
        let client = host.client();
        let grants = "&source=in&allow-publish=out.%3E%40out&effects-from=beginning";
        client
            .deploy_with(REACTOR, &guests::module(REACTOR), grants)
            .await;
        publish_in(&context, 15).await;
        published(client, 15).await;
        context.delete_stream("IN").await.expect("deleted");
        nats::create_stream(&context, "IN", "in.>").await;
        publish_in(&context, 18).await;
        let (_, failure) = client.failed(REACTOR).await;
        assert_eq!(failure.kind, "source-diverged", "{}", failure.message);

        // Nobody has said for which of the new events it publishes.
        let refused = client.act(REACTOR, "rebuild?accept-missing=true").await;
        let refused = refused.problem(409, "conflict");
        assert!(
            refused.detail.contains("--effects-from"),
            "{}",
            refused.detail
        );

        let path = format!(
            "rebuild?accept-missing=true&accept-lost-effects=true&effects-from={from}&promote=manual"
        );
        let answer = client.act(REACTOR, &path).await.expect(200);
        let number = answer.json::<api::Deployed>().generation;
        client
            .becomes(REACTOR, number, api::GenerationStatus::Ready)
            .await;
        // Right after a start nobody knows yet that the stream was made again.
        host.restart().await;
        let client = host.client();
        client.failed(REACTOR).await;
        client
            .becomes(REACTOR, number, api::GenerationStatus::Ready)
            .await;
        client.act(REACTOR, "promote").await.expect(200);
        client
            .becomes(REACTOR, number, api::GenerationStatus::Active)
            .await;
        publish_in(&context, 5).await;
        published(client, 18 + 5).await;
        // The generation that was replaced stays stopped: its runner is gone, and so is its state.
        let replaced = client
            .becomes(REACTOR, 1, api::GenerationStatus::Retired)
            .await;
        assert_eq!(replaced.reason, "its stream was made again");
        let entries = format!("/v1/deployments/{REACTOR}/entries?generation=1");
        let gone = client.get(&entries).await.problem(409, "conflict");
        assert!(gone.detail.contains("no longer runs"), "{}", gone.detail);
        // Both histories have events of the same numbers, and their messages other ids.
        let stored = stored(&server).await;
        let (before, after) = stored.split_at(15);
        assert_exactly_once(before, 15);
        assert_exactly_once(after, wanted);
        let ids: BTreeSet<&str> = stored.iter().map(|message| message.id.as_str()).collect();
        assert_eq!(ids.len(), stored.len());
    }
}

#[tokio::test]
async fn paused_owner_whose_stream_was_made_again_hands_over_only_once_an_operator_says_from_where()
{
    let (server, host) = reading_a_stream().await;
    let context = server.jetstream().await;
    let client = host.client();
    let grants = "&source=in&allow-publish=out.%3E%40out&effects-from=beginning";
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), grants)
        .await;
    publish_in(&context, 15).await;
    published(client, 15).await;
    // It does not notice, because it reads nothing.
    client.act(REACTOR, "pause").await.expect(200);
    context.delete_stream("IN").await.expect("deleted");
    nats::create_stream(&context, "IN", "in.>").await;
    publish_in(&context, 15).await;

    let rebuild = "rebuild?accept-missing=true&promote=manual";
    let answer = client.act(REACTOR, rebuild).await.expect(200);
    let number = answer.json::<api::Deployed>().generation;
    client
        .becomes(REACTOR, number, api::GenerationStatus::Ready)
        .await;
    let refused = async |why: &str| {
        let refused = client.act(REACTOR, "promote").await;
        let refused = refused.problem(409, "conflict");
        assert!(refused.detail.contains(why), "{}", refused.detail);
    };
    // Whenever the candidate is promoted: while the owner is paused, once it has noticed, and paused
    // again.
    refused("resume it").await;
    client.act(REACTOR, "resume").await.expect(200);
    client.failed(REACTOR).await;
    refused("--effects-from").await;
    client.act(REACTOR, "pause").await.expect(200);
    refused("resume it").await;
    assert_exactly_once(&stored(&server).await, 15);

    client.act(REACTOR, "resume").await.expect(200);
    client.failed(REACTOR).await;
    let from = "rebuild?accept-missing=true&accept-lost-effects=true&effects-from=beginning";
    client.act(REACTOR, from).await.expect(200);
    wait::until("what the new stream caused", || async {
        (stored(&server).await.len() >= 30).then_some(())
    })
    .await;
    published(client, 15).await;
    assert_exactly_once(&stored(&server).await[15..], 15);
}
