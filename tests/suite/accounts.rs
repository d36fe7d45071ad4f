//! Targets of handlers behind a JetStream domain, a mapping of subjects, or an import of another
//! account: each message is stored once, whatever answers get lost.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::stream::Config;
use foldstream::api::Promise;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::proxy::Proxy;
use foldstream_tests::reactor::{
    REACTOR, TO_STREAM, event, events, host_with_stream, published, stored,
};
use foldstream_tests::{cli, guests, wait};
use serde_json::Value;

use crate::deliveries::plain;
use crate::targets::{domain, hub_and_leaf};

/// Longer than the window in which the streams here recognise ids.
const OUTSIDE_THE_WINDOW: Duration = Duration::from_millis(300);

/// A stream in which nothing but what it has stored recognises a message.
fn forgetful(subjects: &str) -> Config {
    Config {
        subjects: vec![subjects.to_owned()],
        duplicate_window: Duration::from_millis(100),
        ..plain()
    }
}

/// A handler publishes through a server to a stream of another one, or of another account, whose
/// answers get lost before each of two crashes; `more` says how the stream is reached.
async fn each_is_stored_once(through: &NatsServer, at: &NatsServer, more: &str) {
    let proxy = Proxy::start(&through.url()).await;
    let mut host = host_with_stream(&proxy.url(), more).await;
    // It declares no other subjects: for those of the reactor, the host looks under all.
    host.client()
        .deploy_with(REACTOR, &guests::module("answers"), TO_STREAM)
        .await;
    // Only now does the host know the stream: without answers it would send nothing.
    let first = host.client().append(&[event(1, "three")]).await;
    published(host.client(), first.last_sequence).await;
    for round in 0..2 {
        proxy.swallow(true);
        let before = stored(at).await.len();
        let last = host.client().append(&events(10, "three")).await;
        wait::until("messages to be stored without an answer", || async {
            (stored(at).await.len() > before).then_some(())
        })
        .await;
        host.kill();
        proxy.swallow(false);
        tokio::time::sleep(OUTSIDE_THE_WINDOW).await;
        host.restart().await;
        published(host.client(), last.last_sequence).await;
        // From here on the host knows under which subjects the stream has its messages.
        let last = host.client().append(&[event(1, "three")]).await;
        published(host.client(), last.last_sequence).await;
        let messages = stored(at).await;
        let ids: BTreeSet<&str> = messages.iter().map(|stored| stored.id.as_str()).collect();
        let wanted = 3 + 33 * (round + 1);
        assert_eq!(
            (messages.len(), ids.len()),
            (wanted, wanted),
            "round {round}"
        );
        let shown = host.client().show(REACTOR).await;
        let targets = shown.outbox.expect("it has an outbox").targets;
        assert_eq!(targets[0].promise, Some(Promise::ReadBack));
    }
}

#[tokio::test]
async fn messages_whose_subjects_the_account_maps_are_stored_once() {
    let server = NatsServer::start_with("mappings = { \"out.>\": \"moved.>\" }\n").await;
    nats::create_stream_with(&server.jetstream().await, forgetful("moved.>")).await;
    each_is_stored_once(&server, &server, "").await;
}

#[tokio::test]
async fn messages_for_another_domain_whose_subjects_the_account_maps_are_stored_once() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [listens, remotes] = hub_and_leaf();
    let hub = domain("hub", folders[0].path(), &listens).await;
    let maps = format!("{remotes}\nmappings = {{ \"out.>\": \"moved.>\" }}\n");
    let leaf = domain("leaf", folders[1].path(), &maps).await;
    let moved = forgetful("moved.>");
    let context = hub.jetstream().await;
    context.update_stream(moved).await.expect("it is edited");
    each_is_stored_once(&leaf, &hub, "domain = \"hub\"\n").await;
}

#[tokio::test]
async fn messages_that_an_import_renames_are_stored_once() {
    let server = NatsServer::start_with(
        "accounts {
           A: { jetstream: enabled, users: [ { user: a, password: a } ], exports: [
             { service: \"stored.out.>\" }, { service: \"$JS.API.>\", response_type: stream } ] }
           B: { users: [ { user: b, password: b } ], imports: [
             { service: { account: A, subject: \"stored.out.>\" }, to: \"out.>\" },
             { service: { account: A, subject: \"$JS.API.>\" }, to: \"$JS.A.API.>\" } ] }
         }
         no_auth_user: a",
    )
    .await;
    nats::create_stream_with(&server.jetstream().await, forgetful("stored.out.>")).await;
    let more = "api_prefix = \"$JS.A.API\"\nuser = \"b\"\npassword = \"b\"\n";
    each_is_stored_once(&server, &server, more).await;
}

/// What `doctor` says of the outbox: how it judges it, and its words.
fn judged(host: &Host) -> (String, String) {
    let checks = cli::on(host, &["doctor", "-o", "json"]).json();
    let checks = checks.as_array().expect("a list");
    let name = format!("outbox of {REACTOR}");
    let check = checks.iter().find(|check| check["check"] == *name);
    let check = check.unwrap_or_else(|| panic!("no {name} in {checks:?}"));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    (text(&check["status"]), text(&check["finding"]))
}

#[tokio::test]
async fn doctor_judges_the_stream_of_the_other_domain_and_not_its_namesake() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [listens, remotes] = hub_and_leaf();
    let mut hub = domain("hub", folders[0].path(), &listens).await;
    let leaf = domain("leaf", folders[1].path(), &remotes).await;
    // What the host would promise for the stream of its own domain.
    let forgets = Config {
        max_messages_per_subject: 1,
        ..plain()
    };
    let context = leaf.jetstream().await;
    context.update_stream(forgets).await.expect("it is edited");
    let host = host_with_stream(&leaf.url(), "domain = \"hub\"\n").await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    let first = host.client().append(&[event(1, "one")]).await;
    published(host.client(), first.last_sequence).await;
    let (status, finding) = judged(&host);
    assert_eq!(status, "ok", "{finding}");
    assert!(finding.starts_with("read-back: out stores"), "{finding}");

    hub.kill();
    host.client().append(&events(7, "one")).await;
    wait::until("doctor to name the stream that answers", || async {
        let (status, finding) = judged(&host);
        let names = finding.contains("is stored by stream OUT of domain leaf");
        (status == "warn" && names).then_some(())
    })
    .await;
}
