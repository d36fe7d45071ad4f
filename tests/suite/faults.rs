//! What goes wrong with a stream has a name, and progress is never silent.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream;
use bytes::Bytes;
use foldstream::api::{self, DeploymentState, SourceState};
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::stage::{Kind, LEDGER, STREAM, Stage};
use foldstream_tests::{cli, guests, wait};

async fn resume(stage: &Stage) {
    stage
        .client()
        .post(
            &format!("/v1/deployments/{LEDGER}/resume"),
            "application/json",
            "",
        )
        .await
        .expect(200);
}

async fn pause(stage: &Stage) {
    stage
        .client()
        .post(
            &format!("/v1/deployments/{LEDGER}/pause"),
            "application/json",
            "",
        )
        .await
        .expect(200);
    stage
        .client()
        .show_when(LEDGER, "pause", |shown| {
            shown.state == DeploymentState::Paused
        })
        .await;
}

async fn source_state(stage: &Stage, state: SourceState) {
    let what = format!("have its source {state:?}");
    stage
        .client()
        .show_when(LEDGER, &what, |shown| shown.source_status.state == state)
        .await;
}

#[tokio::test]
async fn a_restart_of_the_server_is_survived_without_loss_or_repetition() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(1_000).await;
    stage.assert_ledger_equals_model().await;
    for _ in 0..2 {
        stage.server().kill();
        source_state(&stage, SourceState::Reconnecting).await;
        let answer = stage.client().entry(LEDGER, "head").await.expect(200);
        assert_eq!(
            answer.value(),
            stage.model.head(),
            "reads are served while the server is away"
        );
        stage.server().restart().await;
        stage.publish(1_000).await;
        stage.assert_ledger_equals_model().await;
    }
    let shown = stage.client().show(LEDGER).await;
    assert_eq!(
        (shown.state, shown.events_applied),
        (DeploymentState::Live, 3_000)
    );
    assert!(
        shown.source_status.reconnects >= 2,
        "{:?}",
        shown.source_status
    );
}

#[tokio::test]
async fn a_server_killed_in_the_middle_of_a_replay_is_survived() {
    let mut stage = Stage::start_with(Kind::JetStream, "[pipeline]\nbatch_events = 50\n").await;
    stage.publish(30_000).await;
    stage.deploy_ledger().await;
    stage.applied(1).await;
    stage.server().kill();
    stage.server().restart().await;
    stage.assert_ledger_equals_model().await;
    assert_eq!(stage.client().show(LEDGER).await.events_applied, 30_000);
}

#[tokio::test]
async fn a_host_that_starts_before_its_server_waits_for_it() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    stage.server().kill();
    stage.host.restart().await;
    stage
        .client()
        .show_when(LEDGER, "say that it waits", |shown| {
            matches!(
                shown.source_status.state,
                SourceState::Connecting | SourceState::Reconnecting
            ) && shown.state != DeploymentState::Opening
        })
        .await;
    stage.server().restart().await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_missing_stream_is_said_to_be_missing_until_it_is_created() {
    let server = NatsServer::start().await;
    let host = Host::start_on(&server, STREAM).await;
    host.client()
        .deploy(LEDGER, &guests::module("ledger"))
        .await;
    let shown = host
        .client()
        .show_when(LEDGER, "miss its stream", |shown| {
            shown.source_status.state == SourceState::StreamMissing
        })
        .await;
    let message = shown
        .source_status
        .message
        .expect("it says which stream is missing");
    assert!(message.contains(STREAM), "{message}");
    assert_eq!(shown.position, 0);
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "orders.>").await;
    let order = r#"{"order":"o-1","amount":5}"#;
    let last = nats::publish(
        &context,
        [("orders.1.placed".to_owned(), Bytes::from(order))],
    )
    .await;
    host.client().reached(LEDGER, last).await;
}

#[tokio::test]
async fn a_stream_deleted_and_created_again_is_another_history() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let last = stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    let before = stage.model.head();
    stage
        .context()
        .delete_stream(STREAM)
        .await
        .expect("the stream is there");
    source_state(&stage, SourceState::StreamMissing).await;
    let context = stage.context().clone();
    nats::create_stream(&context, STREAM, "orders.>").await;
    let orders = stage.draw(1_000);
    nats::publish(&context, orders.iter().map(|order| order.message())).await;
    let (shown, failure) = stage.client().failed(LEDGER).await;
    assert_eq!(
        (failure.kind.as_str(), shown.position),
        ("source-diverged", last),
        "{failure:?}"
    );
    assert_eq!(shown.source_status.state, SourceState::Stopped);
    assert_eq!(
        (shown.head, shown.lag_events),
        (None, None),
        "the end of another stream says nothing: {shown:?}"
    );
    let told = cli::on(&stage.host, &["show", LEDGER]).expect(0).stdout;
    assert!(
        told.contains("unknown, because the stream does not have what the state was built from"),
        "{told}"
    );
    let answer = stage.client().entry(LEDGER, "head").await.expect(200);
    assert_eq!(
        answer.value(),
        before,
        "the state stays as it was, and can be read"
    );
    stage.host.restart().await;
    let (shown, failure) = stage.client().failed(LEDGER).await;
    assert_eq!(
        (failure.kind.as_str(), shown.position),
        ("source-diverged", last),
        "a restart does not hide it"
    );
}

#[tokio::test]
async fn a_purge_of_applied_events_changes_nothing() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    let stream = stage
        .context()
        .get_stream(STREAM)
        .await
        .expect("the stream is there");
    stream.purge().await.expect("a stream can be purged");
    let last = stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    // From here on the stream alone could not build this state again.
    stage
        .client()
        .show_when(LEDGER, "be durable", |shown| shown.checkpoint == last)
        .await;
    stage.host.restart().await;
    stage.publish(10).await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_purge_of_events_not_yet_applied_stops_at_the_gap() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let applied = stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    pause(&stage).await;
    stage.publish(100).await;
    let stream = stage
        .context()
        .get_stream(STREAM)
        .await
        .expect("the stream is there");
    stream
        .purge()
        .sequence(151)
        .await
        .expect("a stream can be purged");
    resume(&stage).await;
    let (shown, failure) = stage.client().failed(LEDGER).await;
    assert_eq!(
        (failure.kind.as_str(), shown.position),
        ("source-gap", applied),
        "{failure:?}"
    );
    assert!(
        failure.message.contains("101") && failure.message.contains("150"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_stream_that_lost_its_tail_stops_as_truncated() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(200).await;
    stage.assert_ledger_equals_model().await;
    stage.server().stop();
    let backup = stage.server().back_up();
    stage.server().restart().await;
    let last = stage.publish(200).await;
    stage.assert_ledger_equals_model().await;
    stage.server().stop();
    stage.server().restore(backup.path());
    stage.server().restart().await;
    let (shown, failure) = stage.client().failed(LEDGER).await;
    assert_eq!(
        (failure.kind.as_str(), shown.position),
        ("source-truncated", last),
        "{failure:?}"
    );
    assert_eq!(
        (shown.head, shown.lag_events, shown.lag_seconds),
        (None, None, None),
        "it is not 0 behind: {shown:?}"
    );
}

#[tokio::test]
async fn a_stream_that_lost_its_tail_and_grew_again_is_another_history() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(200).await;
    stage.assert_ledger_equals_model().await;
    stage.server().stop();
    let backup = stage.server().back_up();
    stage.server().restart().await;
    let last = stage.publish(200).await;
    stage.assert_ledger_equals_model().await;
    // While the host is away, the tail is lost and other events take its place.
    assert_eq!(stage.host.stop().code(), Some(0));
    stage.server().stop();
    stage.server().restore(backup.path());
    stage.server().restart().await;
    let context = stage.context().clone();
    let orders = stage.draw(500);
    nats::publish(&context, orders.iter().map(|order| order.message())).await;
    stage.host.restart().await;
    let (shown, failure) = stage.client().failed(LEDGER).await;
    assert_eq!(
        (failure.kind.as_str(), shown.position),
        ("source-diverged", last),
        "{failure:?}"
    );
}

#[tokio::test]
async fn events_deleted_one_by_one_are_missed_until_that_is_accepted() {
    let mut stage = Stage::start(Kind::JetStream).await;
    let context = stage.context().clone();
    let orders = stage.draw(100);
    nats::publish(&context, orders.iter().map(|order| order.message())).await;
    let stream = context
        .get_stream(STREAM)
        .await
        .expect("the stream is there");
    for sequence in [2, 50, 51, 99] {
        stream
            .delete_message(sequence)
            .await
            .expect("an event can be deleted");
    }
    for (sequence, order) in (1..).zip(&orders) {
        if ![2, 50, 51, 99].contains(&sequence) {
            stage
                .model
                .apply(sequence, &order.subject(), order.data().as_bytes());
        }
    }
    stage.deploy_ledger().await;
    let (_, failure) = stage.client().failed(LEDGER).await;
    assert_eq!(failure.kind, "source-incomplete");
    assert!(
        failure
            .message
            .starts_with("4 events (between 2 and 99) are gone"),
        "{failure:?}"
    );
    stage
        .client()
        .act(LEDGER, "resume?accept-missing=true")
        .await
        .expect(200);
    stage.assert_ledger_equals_model().await;
    assert_eq!(stage.client().show(LEDGER).await.missing_events, 4);
    let again = stage
        .client()
        .upload(guests::module("ledger"), "?name=again&accept-missing=true")
        .await;
    again.expect(201);
    stage.assert_equals_model("again").await;
}

#[tokio::test]
async fn what_is_still_missing_fails_a_resume_and_the_same_deploy_can_accept_it() {
    let mut stage = Stage::start(Kind::JetStream).await;
    let context = stage.context().clone();
    nats::publish(&context, stage.draw(10).iter().map(|order| order.message())).await;
    context
        .get_stream(STREAM)
        .await
        .expect("it is there")
        .delete_message(4)
        .await
        .expect("deletion");
    stage.deploy_ledger().await;
    stage.client().failed(LEDGER).await;
    let resumed: api::Deployment = stage
        .client()
        .act(LEDGER, "resume")
        .await
        .expect(200)
        .json();
    assert_eq!(
        resumed.state,
        DeploymentState::Failed,
        "the second look is waited for: {resumed:?}"
    );
    let query = format!("?name={LEDGER}&accept-missing=true");
    let deployed: api::Deployed = stage
        .client()
        .upload(guests::module("ledger"), &query)
        .await
        .expect(200)
        .json();
    assert_eq!(deployed.outcome, api::DeployOutcome::Unchanged);
    assert_eq!(stage.client().reached(LEDGER, 10).await.missing_events, 1);
}

#[tokio::test]
async fn a_stream_that_lacks_its_beginning_is_refused_unless_that_is_accepted() {
    let mut stage = Stage::start(Kind::JetStream).await;
    let context = stage.context().clone();
    let orders = stage.draw(100);
    nats::publish(&context, orders.iter().map(|order| order.message())).await;
    let stream = context
        .get_stream(STREAM)
        .await
        .expect("the stream is there");
    stream
        .purge()
        .sequence(41)
        .await
        .expect("a stream can be purged");
    stage.deploy_ledger().await;
    let (shown, failure) = stage.client().failed(LEDGER).await;
    assert_eq!(
        (failure.kind.as_str(), shown.position),
        ("source-incomplete", 0),
        "{failure:?}"
    );
    let answer = stage
        .client()
        .upload(guests::module("ledger"), "?name=late&start=first-available")
        .await;
    answer.expect(201);
    for (sequence, order) in (1..).zip(&orders).skip(40) {
        stage
            .model
            .apply(sequence, &order.subject(), order.data().as_bytes());
    }
    stage.assert_equals_model("late").await;
}

#[tokio::test]
async fn events_of_other_subjects_are_left_out_and_passed() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let mut config = nats::stream_config(STREAM, "orders.>");
    config.subjects.push("other.>".to_owned());
    nats::create_stream_with(&context, config).await;
    // Only its host and its model are used: the stream is ours.
    let mut stage = Stage::start(Kind::Embedded).await;
    stage
        .host
        .configure(&jetstream_source(&server.url(), STREAM));
    stage.host.restart().await;
    stage.deploy_ledger().await;
    let orders = stage.draw(200);
    for (number, order) in (0u64..).zip(&orders) {
        let (subject, data) = order.message();
        let sequence = nats::publish(
            &context,
            [
                ("other.thing".to_owned(), Bytes::from("x")),
                (subject, data),
            ],
        )
        .await;
        assert_eq!(sequence, number * 2 + 2);
        stage
            .model
            .apply(sequence, &order.subject(), order.data().as_bytes());
    }
    stage.assert_ledger_equals_model().await;
    let last = nats::publish(&context, [("other.thing".to_owned(), Bytes::from("x"))]).await;
    let shown = stage
        .client()
        .show_when(LEDGER, "know the head", |shown| shown.head >= Some(last))
        .await;
    assert_eq!(
        shown.lag_events,
        Some(0),
        "what does not match is no lag: {shown:?}"
    );
}

#[tokio::test]
async fn a_message_of_several_megabytes_arrives_whole() {
    let server = NatsServer::start_with("max_payload: 8MB").await;
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "mischief.>").await;
    let host = Host::start_on(&server, STREAM).await;
    host.client()
        .deploy("mischief", &guests::module("mischief"))
        .await;
    let big = format!("note {}", "é".repeat(500_000));
    let events = [
        "note before".to_owned(),
        big.clone(),
        "note after".to_owned(),
    ];
    let last = nats::publish(
        &context,
        events.map(|data| ("mischief.a".to_owned(), Bytes::from(data))),
    )
    .await;
    host.client().reached("mischief", last).await;
    let entry = host
        .client()
        .entry("mischief", "note/00000002")
        .await
        .expect(200);
    assert_eq!(entry.text().len(), big.len() - "note ".len());
    let huge = Bytes::from(vec![b'x'; 7 << 20]);
    nats::publish(&context, [("mischief.a".to_owned(), huge)]).await;
    let (_, failure) = host.client().failed("mischief").await;
    assert_eq!(
        (failure.kind.as_str(), failure.sequence),
        ("rejected", Some(4)),
        "it arrives: {failure:?}"
    );
}

#[tokio::test]
async fn events_that_come_slowly_are_each_applied_at_once() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(1).await;
    stage.assert_ledger_equals_model().await;
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let begin = Instant::now();
        let last = stage.publish(1).await;
        stage.client().reached(LEDGER, last).await;
        slowest = slowest.max(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        slowest < Duration::from_secs(2),
        "an event waited for {slowest:?}"
    );
}

#[tokio::test]
async fn refused_credentials_have_a_state_of_their_own_and_are_never_printed() {
    let server = NatsServer::start_with("authorization { user: fold, password: stream }").await;
    let config = jetstream_source(&server.url(), STREAM);
    let mut host = Host::start_with(&format!(
        "{config}user = \"fold\"\npassword = \"wrong-secret\"\n"
    ))
    .await;
    host.client()
        .deploy(LEDGER, &guests::module("ledger"))
        .await;
    let shown = host
        .client()
        .show_when(LEDGER, "be unauthorized", |shown| {
            shown.source_status.state == SourceState::Unauthorized
        })
        .await;
    assert!(!format!("{shown:?}").contains("wrong-secret"));
    assert!(!host.process().output().contains("wrong-secret"));
    host.configure(&format!("{config}user = \"fold\"\npassword = \"stream\"\n"));
    host.restart().await;
    let state = SourceState::StreamMissing;
    host.client()
        .show_when(LEDGER, "be let in", |shown| {
            shown.source_status.state == state
        })
        .await;
}

#[tokio::test]
async fn a_stream_in_memory_is_warned_about() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let mut config = nats::stream_config(STREAM, "orders.>");
    config.storage = stream::StorageType::Memory;
    config.max_age = Duration::from_secs(3_600);
    nats::create_stream_with(&context, config).await;
    let host = Host::start_on(&server, STREAM).await;
    let warnings = wait::until("the source to be reachable", || async {
        let list: foldstream::api::SourceList =
            host.client().get("/v1/sources").await.expect(200).json();
        let source = list
            .sources
            .into_iter()
            .next()
            .expect("one source is configured");
        source.reachable.then_some(source.warnings)
    })
    .await;
    let text = warnings.join("\n");
    assert!(
        text.contains("memory") && text.contains("age"),
        "{warnings:?}"
    );
}
