//! Messages that are no sound events, and streams that are no event streams.

use async_nats::jetstream::stream::{Config, RetentionPolicy};
use bytes::Bytes;
use foldstream::api::{DeploymentState, GenerationStatus, SourceState};
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::stage::{LEDGER, STREAM};
use foldstream_tests::{cli, guests};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Publishes over a raw socket, as client libraries refuse such header blocks, and waits until the
/// server has taken it.
async fn publish_raw(server: &NatsServer, headers: &[u8]) {
    let address = server.url().trim_start_matches("nats://").to_owned();
    let mut socket = tokio::net::TcpStream::connect(address)
        .await
        .expect("the server listens");
    let data = br#"{"order":"x","amount":1}"#;
    let line = format!(
        "HPUB orders.ada.placed {} {}\r\n",
        headers.len(),
        headers.len() + data.len()
    );
    let hello = b"CONNECT {\"headers\":true,\"verbose\":false}\r\n";
    let message = [&hello[..], line.as_bytes(), headers, data, b"\r\nPING\r\n"].concat();
    socket.write_all(&message).await.expect("the server reads");
    let mut answer = Vec::new();
    while !answer.ends_with(b"PONG\r\n") {
        assert!(
            socket
                .read_buf(&mut answer)
                .await
                .expect("the server writes")
                > 0,
            "the server hung up"
        );
    }
}

#[tokio::test]
async fn broken_header_blocks_stop_no_deployment_live_or_from_scratch() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "orders.>").await;
    let host = Host::start_on(&server, STREAM).await;
    host.client()
        .deploy(LEDGER, &guests::module("ledger"))
        .await;
    host.client()
        .show_when(LEDGER, "be live", |shown| {
            shown.state == DeploymentState::Live
        })
        .await;
    let order = (
        "orders.bob.placed".to_owned(),
        Bytes::from_static(br#"{"order":"y","amount":1}"#),
    );
    for headers in [
        &b"NATS/1.0\r\nuser: a\rb\r\n\r\n"[..],
        b"NATS/1.0\r\nuser: Jos\xe9\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
    ] {
        publish_raw(&server, headers).await;
    }
    let last = nats::publish(&context, [order]).await;
    assert_eq!(last, 4);
    let shown = host.client().reached(LEDGER, last).await;
    assert_eq!(shown.events_applied, 4);
    assert_eq!(
        (shown.source_status.repaired, shown.source_status.state),
        (3, SourceState::Reading)
    );

    // From scratch, next to it.
    host.client()
        .deploy("second", &guests::module("ledger"))
        .await;
    host.client().reached("second", last).await;
    let (one, two) = (
        host.client().entry(LEDGER, "head").await.value(),
        host.client().entry("second", "head").await.value(),
    );
    assert_eq!(one, two);
    let text = cli::on(&host, &["show", LEDGER]).expect(0).stdout;
    assert!(
        text.contains("repaired") && text.contains("3 messages"),
        "{text}"
    );
    let metrics = host.client().get("/metrics").await.text();
    let line =
        format!("foldstream_source_repaired_total{{deployment=\"{LEDGER}\",source=\"orders\"}} 3");
    assert!(
        metrics.lines().any(|found| found == line),
        "{line} is missing in:\n{metrics}"
    );
}

#[tokio::test]
async fn streams_that_drop_what_others_acknowledge_are_refused_before_anything_is_changed() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let host = Host::start_on(&server, STREAM).await;
    for (retention, word) in [
        (RetentionPolicy::Interest, "interest"),
        (RetentionPolicy::WorkQueue, "workqueue"),
    ] {
        let config = Config {
            retention,
            ..nats::stream_config(STREAM, "orders.>")
        };
        nats::create_stream_with(&context, config).await;
        let answer = host
            .client()
            .upload(guests::module("ledger"), &format!("?name={LEDGER}"))
            .await;
        assert!(
            answer.status.is_client_error(),
            "{}: {}",
            answer.status,
            answer.text()
        );
        let text = answer.text();
        assert!(
            text.contains("cannot be read") && text.contains(word) && text.contains("limits"),
            "{text}"
        );
        host.client()
            .get(&format!("/v1/deployments/{LEDGER}"))
            .await
            .expect(404);
        let found = cli::on(&host, &["doctor"]).expect(1).stdout;
        assert!(
            found
                .lines()
                .any(|line| line.starts_with("FAIL") && line.contains(word)),
            "{found}"
        );
        context.delete_stream(STREAM).await.expect("deletion");
    }
}

#[tokio::test]
async fn a_message_that_was_no_event_is_no_loss_when_it_is_gone() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let stream = nats::create_stream(&context, STREAM, "orders.>").await;
    let host = Host::start_on(&server, STREAM).await;
    let order = || {
        (
            "orders.bob.placed".to_owned(),
            Bytes::from_static(br#"{"order":"y","amount":1}"#),
        )
    };
    nats::publish(&context, [order()]).await;
    publish_raw(&server, b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n").await;
    nats::publish(&context, [order()]).await;
    host.client()
        .deploy(LEDGER, &guests::module("ledger"))
        .await;
    assert_eq!(
        host.client()
            .reached(LEDGER, 3)
            .await
            .source_status
            .passed_over,
        1
    );

    stream.delete_message(2).await.expect("deletion");
    host.client().act(LEDGER, "rebuild").await.expect(200);
    host.client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    assert_eq!(host.client().reached(LEDGER, 3).await.events_applied, 2);

    stream.delete_message(1).await.expect("deletion");
    let refused = host.client().act(LEDGER, "rebuild").await.text();
    assert!(
        refused.contains("1 event that was applied is gone from stream"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_server_that_lets_little_wait_for_a_client_is_asked_for_less_and_named() {
    // Less than the host requests at once: the server cuts it off, and says nothing.
    let server = NatsServer::start_with("max_pending: 300000\nmax_payload: 200000\n").await;
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "orders.>").await;
    let data = format!(
        r#"{{"order":"x","amount":1,"note":"{}"}}"#,
        "n".repeat(1_000)
    );
    let orders = (0..20_000).map(|number| {
        let subject = format!("orders.{}.placed", number % 10);
        (subject, Bytes::from(data.clone()))
    });
    let last = nats::publish(&context, orders).await;
    let host = Host::start_on(&server, STREAM).await;
    host.client()
        .deploy(LEDGER, &guests::module("ledger"))
        .await;
    let shown = host.client().reached(LEDGER, last).await;
    // One cut for each halving, and a few that have other reasons.
    assert!(
        shown.source_status.reconnects < 12,
        "{:?}",
        shown.source_status
    );
    host.prints("max_pending").await;
}
