//! Why messages wait, and why a request has to wait, as the API and the command line say it.

use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use foldstream::api;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::proxy::Proxy;
use foldstream_tests::reactor::{REACTOR, TO_STREAM, event, host_with_stream, published, stored};
use foldstream_tests::stage::{Kind, Stage};
use foldstream_tests::{cli, guests, wait};
use reqwest::Method;
use serde_json::Value;

use crate::deliveries::{plain, with_cursors};

/// Messages of others that the host reads back: enough that it is seen to do so.
const OF_OTHERS: u64 = 20_000;

/// A host whose handler publishes to a stream that takes neither large messages nor those of key 5.
async fn picky(config: Config) -> (NatsServer, Host) {
    let server = NatsServer::start().await;
    let of_keys = ["out.1.>", "out.2.>", "out.3.>"].map(str::to_owned);
    let others = config.subjects.iter().filter(|subject| *subject != "out.>");
    let config = Config {
        subjects: of_keys.iter().chain(others).cloned().collect(),
        max_message_size: 50_000,
        ..config
    };
    nats::create_stream_with(&server.jetstream().await, config).await;
    let host = host_with_stream(&server.url(), "").await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    (server, host)
}

/// The messages that wait: the event of each, and why its stream refused it.
async fn refused(host: &Host) -> Vec<(u64, Option<String>)> {
    let path = format!("/v1/deployments/{REACTOR}/outbox");
    let page = host.client().get(&path).await.expect(200).value();
    let messages = page["messages"].as_array().expect("a list").iter();
    let reason = |message: &Value| message["refused"].as_str().map(str::to_owned);
    let sequence = |message: &Value| message["sequence"].as_u64().expect("a number");
    messages
        .map(|message| (sequence(message), reason(message)))
        .collect()
}

/// The different reasons of the target.
async fn reasons(host: &Host) -> Vec<String> {
    let path = format!("/v1/deployments/{REACTOR}");
    let shown = host.client().get(&path).await.expect(200).value();
    let reasons = shown["outbox"]["targets"][0]["reasons"].as_array();
    let reasons = reasons.into_iter().flatten();
    reasons
        .map(|reason| reason.as_str().expect("a text").to_owned())
        .collect()
}

/// Waits until the reasons of the target have these words, in this order.
async fn has_reasons(host: &Host, words: &[&str]) {
    wait::until("the target to have its reasons", || async {
        let reasons = reasons(host).await;
        let fits = reasons.len() == words.len()
            && reasons
                .iter()
                .zip(words)
                .all(|(reason, words)| reason.contains(words));
        fits.then_some(())
    })
    .await;
}

async fn drop_first(host: &Host) {
    let path = format!("/v1/deployments/{REACTOR}/outbox");
    let page: api::WaitingMessages = host.client().get(&path).await.expect(200).json();
    let id = page.messages[0].id.as_str();
    cli::on(host, &["outbox", "drop", REACTOR, id, "--reason", "test"]).expect(0);
}

#[tokio::test]
async fn each_refused_message_says_why_and_the_target_names_each_kind_of_reason() {
    let (server, host) = picky(plain()).await;
    let (large, nowhere) = (
        "message size exceeds maximum allowed",
        "no stream stores subject out.5.4",
    );
    for (key, what) in [
        (1, "large"),
        (1, "one"),
        (2, "large"),
        (5, "one"),
        (3, "one"),
    ] {
        host.client().append(&[event(key, what)]).await;
    }
    has_reasons(&host, &[large, nowhere]).await;
    wait::until("what is not refused to leave", || async {
        (stored(&server).await.len() == 1).then_some(())
    })
    .await;

    let listed = refused(&host).await;
    let [
        (1, Some(first)),
        (2, None),
        (3, Some(third)),
        (4, Some(fourth)),
    ] = &listed[..]
    else {
        panic!("{listed:?}");
    };
    assert!(
        first.contains(large) && first.contains("out.1.1"),
        "{first}"
    );
    assert!(
        third.contains(large) && third.contains("out.2.3"),
        "{third}"
    );
    assert!(fourth.contains(nowhere), "{fourth}");
    let table = cli::on(&host, &["outbox", "list", REACTOR])
        .expect(0)
        .stdout;
    let rows: Vec<&str> = table.lines().skip(1).collect();
    assert!(rows[0].contains(large), "{table}");
    assert!(rows[1].ends_with("its turn"), "{table}");
    assert!(rows[3].contains(nowhere), "{table}");
    for command in [&["show", REACTOR][..], &["doctor"]] {
        let shown = cli::on(&host, command).stdout;
        assert!(shown.contains(large) && shown.contains(nowhere), "{shown}");
    }

    // What is dropped is no reason any more, and neither is what the stream takes now.
    drop_first(&host).await;
    has_reasons(&host, &[large, nowhere]).await;
    server
        .jetstream()
        .await
        .update_stream(plain())
        .await
        .expect("it is edited");
    cli::on(&host, &["outbox", "retry", REACTOR]).expect(0);
    published(host.client(), 5).await;
    has_reasons(&host, &[]).await;
}

#[tokio::test]
async fn first_message_that_a_stream_with_cursors_refuses_says_why() {
    let (_server, host) = picky(with_cursors()).await;
    for (key, what) in [(1, "large"), (2, "one"), (5, "one")] {
        host.client().append(&[event(key, what)]).await;
    }
    let large = "message size exceeds maximum allowed";
    has_reasons(&host, &[large]).await;
    let listed = refused(&host).await;
    assert!(
        matches!(&listed[..], [(1, Some(why)), (2, None), (3, None)] if why.contains(large)),
        "{listed:?}"
    );
    drop_first(&host).await;
    has_reasons(&host, &["no stream stores subject out.5.3"]).await;
    drop_first(&host).await;
    has_reasons(&host, &[]).await;
}

#[tokio::test]
async fn outbox_says_that_it_reads_back_what_its_stream_has() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream_with(&context, plain()).await;
    let proxy = Proxy::start(&server.url()).await;
    let mut host = host_with_stream(&proxy.url(), "").await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
        .await;
    host.client().append(&[event(1, "one")]).await;
    published(host.client(), 1).await;
    proxy.swallow(true);
    let last = host.client().append(&[event(1, "one")]).await;
    wait::until("a message to be stored without an answer", || async {
        (stored(&server).await.len() == 2).then_some(())
    })
    .await;
    host.kill();
    let data = Bytes::from_static(b"{}");
    let others = (0..OF_OTHERS).map(|number| (format!("out.9.{number}"), data.clone()));
    nats::publish(&context, others).await;
    proxy.break_all();
    proxy.swallow(false);

    host.restart().await;
    let path = format!("/v1/deployments/{REACTOR}");
    let read = wait::until("the outbox to say that it reads back", || async {
        let shown = host.client().get(&path).await.expect(200).value();
        let read = shown["outbox"]["targets"][0]["reads_back"].clone();
        (read["passed"].as_u64() > Some(0)).then_some(read)
    })
    .await;
    assert!(read["passed"].as_u64() <= read["of"].as_u64(), "{read}");
    assert!(read["of"].as_u64() > Some(OF_OTHERS), "{read}");
    let shown = cli::on(&host, &["show", REACTOR]).expect(0).stdout;
    assert!(shown.contains("reads back what the stream has"), "{shown}");
    published(host.client(), last.last_sequence).await;
    let shown = host.client().get(&path).await.expect(200).value();
    let target = &shown["outbox"]["targets"][0];
    assert!(target["reads_back"].is_null(), "{target}");
}

#[tokio::test]
async fn request_that_needs_a_state_which_is_not_open_says_when_to_ask_again() {
    let mut host = Host::start().await;
    let grants = "&allow-publish=out.%3E%40events";
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), grants)
        .await;
    host.stop();
    let file = host.data_dir().join("state").join(REACTOR).join("1.redb");
    std::fs::write(file, "no state").expect("the folder is ours");
    host.restart().await;
    let path = format!("/v1/deployments/{REACTOR}");
    let request = host.client().request(Method::DELETE, &path);
    let answer = host.client().send(request).await;
    assert!(answer.header("retry-after").is_some(), "{}", answer.text());
    let problem = answer.problem(503, "not-ready");
    assert!(
        problem.detail.contains("--drop-effects"),
        "{}",
        problem.detail
    );
}

#[tokio::test]
async fn skip_waits_for_a_source_that_is_away() {
    let mut stage = Stage::start(Kind::JetStream).await;
    stage.deploy_ledger().await;
    stage.client().act("ledger", "pause").await.expect(200);
    stage.publish(1).await;
    stage.server().kill();
    let request = stage
        .client()
        .request(Method::POST, "/v1/deployments/ledger/resume")
        .header("content-type", "application/json")
        .body(r#"{"skip":[1],"reason":"test"}"#);
    let answer = stage.client().send(request).await;
    assert!(answer.header("retry-after").is_some(), "{}", answer.text());
    let problem = answer.problem(503, "not-ready");
    assert!(problem.detail.contains("event 1"), "{}", problem.detail);

    let words = ["resume", "ledger", "--skip", "1", "--reason", "test"];
    let url = stage.host.url().to_owned();
    let command =
        tokio::task::spawn_blocking(move || cli::run(&[&["--url", &url], &words[..]].concat()));
    stage.server().restart().await;
    let said = command.await.expect("it does not panic").expect(0);
    assert!(said.stdout.contains("skips 1"), "{said:?}");
}
