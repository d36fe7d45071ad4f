//! What is shown is true: what nobody knows is shown as unknown, and trouble is visible wherever a
//! deployment is.

use std::time::Duration;

use foldstream::api::{self, DeploymentState, NewEvent, SourceState};
use foldstream_tests::client::Client;
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::stage::{Kind, LEDGER, STREAM, Stage};
use foldstream_tests::{cli, guests};
use rustix::process::Signal;
use serde_json::json;

/// How soon a source that is lost has to be noticed, on a busy machine.
const SOON: Duration = Duration::from_secs(15);

async fn live_at(client: &Client, name: &str, position: u64) {
    client
        .show_when(name, "be live with no lag", |shown| {
            shown.state == DeploymentState::Live
                && shown.position >= position
                && shown.lag_events == Some(0)
        })
        .await;
}

/// Waits until a deployment says that it can't read its source, and checks that nothing claims to
/// know more.
async fn disconnected(client: &Client, name: &str) -> api::Deployment {
    let begin = std::time::Instant::now();
    let shown = client
        .show_when(name, "be disconnected", |shown| {
            shown.state == DeploymentState::Disconnected
        })
        .await;
    assert!(
        begin.elapsed() < SOON,
        "it was noticed after {:?}",
        begin.elapsed()
    );
    assert!(shown.position > 0, "{shown:?}");
    let shown = client
        .show_when(name, "know no lag", |shown| shown.lag_events.is_none())
        .await;
    assert_eq!(
        (shown.head, shown.lag_events, shown.lag_seconds),
        (None, None, None),
        "{shown:?}"
    );
    assert_eq!(shown.remaining_seconds, None);
    assert!(
        shown.source_status.since.is_some() && shown.source_status.message.is_some(),
        "{shown:?}"
    );
    shown
}

async fn page(client: &Client) -> String {
    client.get("/metrics").await.expect(200).text()
}

fn has(page: &str, line: &str) -> bool {
    page.lines().any(|found| found == line)
}

const LOST: &str = "the source can't be read";
const FOUND: &str = "the source can be read again";

#[tokio::test]
async fn a_server_that_is_away_makes_lag_unknown_wherever_it_is_shown() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let last = stage.publish(5).await;
    live_at(stage.client(), LEDGER, last).await;

    stage.server().kill();
    let shown = disconnected(stage.client(), LEDGER).await;
    assert_eq!(shown.position, last, "the position is known");
    assert!(shown.source_status.last_heard.is_some());
    let head = stage.client().entry(LEDGER, "head").await.expect(200);
    assert_eq!(head.value(), stage.model.head());
    lag_is_unknown_to_probes_and_metrics(stage.client()).await;
    lag_is_unknown_to_commands(&stage.host);
    stage.host.prints(LOST).await;

    // A pause ends the reading, which does not mean that the source answers again.
    stage.client().act(LEDGER, "pause").await.expect(200);
    let is_paused = |shown: &api::Deployment| shown.state == DeploymentState::Paused;
    let paused = stage
        .client()
        .show_when(LEDGER, "be paused", is_paused)
        .await;
    assert!(paused.source_status.state.is_trouble(), "{paused:?}");
    stage.client().act(LEDGER, "resume").await.expect(200);
    disconnected(stage.client(), LEDGER).await;

    stage.server().restart().await;
    let last = stage.publish(5).await;
    live_at(stage.client(), LEDGER, last).await;
    stage.host.prints(FOUND).await;
    the_loss_is_logged_once(&stage.host.process().output());
}

async fn lag_is_unknown_to_probes_and_metrics(client: &Client) {
    let ready: api::Probe = client.get("/readyz").await.expect(200).json();
    let is_named = |text: &String| text.contains("source orders");
    assert!(ready.ok && ready.degraded.iter().any(is_named), "{ready:?}");
    let page = page(client).await;
    for line in [
        "foldstream_lag_events{deployment=\"ledger\"} NaN",
        "foldstream_lag_seconds{deployment=\"ledger\"} NaN",
        "foldstream_head{deployment=\"ledger\"} NaN",
        "foldstream_position{deployment=\"ledger\"} 5",
        "foldstream_deployment_state{deployment=\"ledger\",state=\"disconnected\"} 1",
        "foldstream_deployment_state{deployment=\"ledger\",state=\"live\"} 0",
        "foldstream_source_reachable{source=\"orders\",stream=\"ORDERS\"} 0",
    ] {
        assert!(has(&page, line), "{line} is missing in\n{page}");
    }
}

fn lag_is_unknown_to_commands(host: &Host) {
    let listed = cli::on(host, &["list"]).expect(0).stdout;
    assert!(
        listed.contains("disconnected") && listed.contains("unknown  unknown"),
        "{listed}"
    );
    let told = cli::on(host, &["show", LEDGER]).expect(0).stdout;
    assert!(
        told.contains("lag            unknown") && told.contains("5 of unknown"),
        "{told}"
    );
    let doctor = cli::on(host, &["doctor", "-o", "json"]).expect(1).json();
    let checks = doctor.as_array().expect("a list of checks");
    let check = checks
        .iter()
        .find(|check| check["check"] == "deployment ledger")
        .expect("it is checked");
    assert_eq!(check["status"], "fail", "{check}");
}

fn the_loss_is_logged_once(log: &str) {
    assert_eq!(log.matches(LOST).count(), 1, "once is enough");
    let is_warning = |line: &&str| line.contains(LOST);
    let warning = log.lines().find(is_warning).expect("it was said");
    for name in ["WARN", "orders", STREAM, "127.0.0.1:", LEDGER] {
        assert!(warning.contains(name), "{name} is missing in {warning}");
    }
    assert!(
        !log.contains("event: disconnected") && !log.contains("connected successfully"),
        "{log}"
    );
}

#[tokio::test]
async fn a_server_that_answers_nothing_any_more_is_noticed() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let last = stage.publish(5).await;
    live_at(stage.client(), LEDGER, last).await;
    stage.server().process().signal(Signal::STOP);
    disconnected(stage.client(), LEDGER).await;
    stage.server().process().signal(Signal::CONT);
    live_at(stage.client(), LEDGER, last).await;
}

#[tokio::test]
async fn a_paused_deployment_knows_its_lag_only_while_its_source_answers() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let last = stage.publish(5).await;
    live_at(stage.client(), LEDGER, last).await;
    stage.client().act(LEDGER, "pause").await.expect(200);
    stage.publish(3).await;
    let shown = stage
        .client()
        .show_when(LEDGER, "lag", |shown| shown.lag_events == Some(3))
        .await;
    assert_eq!(
        shown.source_status.state,
        SourceState::Idle,
        "nobody reads it"
    );
    assert_eq!(shown.remaining_seconds, None, "it does not come nearer");
    stage.server().kill();
    let shown = stage
        .client()
        .show_when(LEDGER, "know no lag", |shown| {
            shown.lag_events.is_none() && shown.source_status.state.is_trouble()
        })
        .await;
    assert_eq!(
        (shown.state, shown.position, shown.head),
        (DeploymentState::Paused, 5, None)
    );
    stage.server().restart().await;
    stage
        .client()
        .show_when(LEDGER, "know its lag", |shown| shown.lag_events == Some(3))
        .await;
}

/// A deployment that has applied nothing, paused before three events.
async fn paused_before_three_events() -> Stage {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    live_at(stage.client(), LEDGER, 0).await;
    stage.client().act(LEDGER, "pause").await.expect(200);
    stage.publish(3).await;
    stage
        .client()
        .show_when(LEDGER, "lag", |shown| shown.lag_events == Some(3))
        .await;
    stage
}

#[tokio::test]
async fn a_paused_deployment_waits_for_no_events_that_were_purged() {
    let stage = paused_before_three_events().await;
    let stream = stage.context().get_stream(STREAM).await;
    let purged = stream.expect("it is there").purge().await;
    assert_eq!(purged.expect("it answers").purged, 3);
    stage
        .client()
        .show_when(LEDGER, "wait for nothing", |shown| {
            (shown.head, shown.lag_events) == (Some(3), Some(0))
        })
        .await;
}

#[tokio::test]
async fn a_stream_that_was_made_again_leaves_no_lag_of_the_former_one() {
    let stage = paused_before_three_events().await;
    let deleted = stage.context().delete_stream(STREAM).await;
    deleted.expect("it was there");
    nats::create_stream(stage.context(), STREAM, "orders.>").await;
    // For a while it may be a server that lags.
    let known = |shown: &api::Deployment| (shown.head, shown.lag_events);
    stage
        .client()
        .show_when(LEDGER, "know no lag", |shown| known(shown) == (None, None))
        .await;
    stage.client().act(LEDGER, "resume").await.expect(200);
    stage
        .client()
        .show_when(LEDGER, "be live at 0", |shown| {
            assert_ne!(shown.lag_events, Some(3), "{shown:?}");
            shown.state == DeploymentState::Live && known(shown) == (Some(0), Some(0))
        })
        .await;
}

#[tokio::test]
async fn a_refused_permission_is_no_live_deployment() {
    let users = |permissions: &str| {
        format!(
            "accounts {{ A: {{ jetstream: enabled, users: [ {{ user: admin, password: a }}, {{ \
             user: fold, password: f, permissions: {permissions} }} ] }} }}\nno_auth_user: admin"
        )
    };
    let mut server = NatsServer::start_with(&users("{ publish: \">\", subscribe: \">\" }")).await;
    nats::create_stream(&server.jetstream().await, STREAM, "orders.>").await;
    let config = jetstream_source(&server.url(), STREAM);
    let host = Host::start_with(&format!("{config}user = \"fold\"\npassword = \"f\"\n")).await;
    host.client()
        .deploy(LEDGER, &guests::module("ledger"))
        .await;
    let order = bytes::Bytes::from(r#"{"order":"o-1","amount":5}"#);
    let last = nats::publish(
        &server.jetstream().await,
        [("orders.1.placed".to_owned(), order)],
    )
    .await;
    live_at(host.client(), LEDGER, last).await;

    let denied = "{ publish: { deny: \"$JS.API.>\" }, subscribe: \">\" }";
    server.configure(&users(denied));
    server.restart().await;
    let shown = host
        .client()
        .show_when(LEDGER, "be refused", |shown| {
            shown.source_status.state == SourceState::Unauthorized
        })
        .await;
    assert_eq!(shown.state, DeploymentState::Disconnected, "{shown:?}");
    disconnected(host.client(), LEDGER).await;
}

#[tokio::test]
async fn a_deploy_while_the_source_is_away_says_so() {
    let mut stage = Stage::start(Kind::JetStream).await;
    stage.server().kill();
    let file = guests::path("ledger").display().to_string();
    let deployed = cli::on(
        &stage.host,
        &["deploy", &file, "--name", "one", "-o", "json"],
    )
    .expect(0)
    .json();
    assert_eq!(deployed["outcome"], "created");
    assert!(
        deployed["warnings"][0]
            .as_str()
            .is_some_and(|text| text.contains("source orders")),
        "{deployed}"
    );
    let deployed = cli::on(&stage.host, &["deploy", &file, "--name", "two"]).expect(0);
    assert!(
        deployed
            .stderr
            .contains("warning: source orders (stream ORDERS) can't be read"),
        "{deployed:?}"
    );
    // It waits in vain, and says for what.
    let waited = cli::on(
        &stage.host,
        &[
            "deploy",
            &file,
            "--name",
            "three",
            "--wait",
            "--timeout",
            "3s",
        ],
    )
    .expect(6);
    assert!(waited.stderr.contains("source"), "{waited:?}");
    stage.server().restart().await;
    stage
        .client()
        .show_when("one", "be live", |shown| {
            shown.state == DeploymentState::Live
        })
        .await;
}

fn told(time: Option<jiff::Timestamp>) -> NewEvent {
    NewEvent {
        subject: "mischief.a".to_owned(),
        kind: None,
        id: None,
        time: time.map(|time| time.to_string()),
        headers: std::collections::BTreeMap::new(),
        data: json!("note it"),
    }
}

#[tokio::test]
async fn lag_in_seconds_is_the_age_of_the_oldest_event_that_waits() {
    let mut stage = Stage::start(Kind::Embedded).await;
    stage
        .client()
        .deploy("mischief", &guests::module("mischief"))
        .await;
    let ago =
        |minutes: i64| Some(jiff::Timestamp::now() - jiff::SignedDuration::from_mins(minutes));
    let last = stage.client().append(&[told(ago(600))]).await.last_sequence;
    live_at(stage.client(), "mischief", last).await;
    stage.client().act("mischief", "pause").await.expect(200);
    stage.client().append(&[told(ago(60)), told(ago(10))]).await;
    let is_true = |shown: &api::Deployment| {
        shown.lag_events == Some(2)
            && shown
                .lag_seconds
                .is_some_and(|seconds| (3_600.0..3_900.0).contains(&seconds))
    };
    stage
        .client()
        .show_when("mischief", "be an hour behind", is_true)
        .await;
    stage.host.restart().await;
    stage
        .client()
        .show_when("mischief", "be an hour behind after a restart", is_true)
        .await;
}

#[tokio::test]
async fn events_for_others_are_no_lag_of_a_deployment_that_is_paused() {
    let stage = Stage::start(Kind::Embedded).await;
    stage
        .client()
        .deploy("mischief", &guests::module("mischief"))
        .await;
    let ago = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(600);
    let last = stage
        .client()
        .append(&[told(Some(ago))])
        .await
        .last_sequence;
    live_at(stage.client(), "mischief", last).await;
    stage.client().act("mischief", "pause").await.expect(200);
    let others = [NewEvent {
        subject: "others.a".to_owned(),
        ..told(None)
    }];
    stage.client().append(&others).await;
    let head = stage.client().append(&others).await.last_sequence;
    stage
        .client()
        .show_when("mischief", "lag behind nothing", |shown| {
            shown.head == Some(head)
                && (shown.lag_events, shown.lag_seconds) == (Some(0), Some(0.0))
        })
        .await;
}

#[tokio::test]
async fn progress_of_a_build_is_counted_from_where_the_stream_begins() {
    let mut stage = Stage::start(Kind::JetStream).await;
    stage
        .context()
        .delete_stream(STREAM)
        .await
        .expect("the stream is there");
    let mut config = nats::stream_config(STREAM, "orders.>");
    config.first_sequence = Some(900_001);
    nats::create_stream_with(stage.context(), config).await;
    let context = stage.context().clone();
    let orders = stage.draw(2_000);
    let last = nats::publish(&context, orders.iter().map(|order| order.message())).await;
    stage.deploy_ledger().await;
    live_at(stage.client(), LEDGER, last).await;
    stage
        .client()
        .deploy_with(
            LEDGER,
            &guests::module("ledger-next"),
            "&strategy=rebuild&max-rate=50",
        )
        .await;
    let shown = stage
        .client()
        .show_when(LEDGER, "build", |shown| {
            shown
                .candidate
                .as_ref()
                .is_some_and(|candidate| candidate.remaining_seconds.is_some())
        })
        .await;
    let candidate = shown.candidate.expect("checked above");
    let (progress, remaining) = (
        candidate.progress.expect("known"),
        candidate.remaining_seconds.expect("known"),
    );
    assert!(
        progress < 0.5,
        "{progress} of the way at position {}",
        candidate.position
    );
    assert!(
        remaining > 5.0,
        "{remaining} s for {:?} events",
        candidate.lag_events
    );
    stage
        .client()
        .act(LEDGER, "pause?candidate=true")
        .await
        .expect(200);
    let paused = stage
        .client()
        .show_when(LEDGER, "pause its candidate", |shown| {
            shown
                .candidate
                .as_ref()
                .is_some_and(|candidate| candidate.state == Some(DeploymentState::Paused))
        })
        .await;
    let candidate = paused.candidate.expect("checked above");
    assert_eq!(
        (candidate.remaining_seconds, candidate.rate),
        (None, 0.0),
        "it does not come nearer"
    );
    let page = page(stage.client()).await;
    for line in [
        "foldstream_rebuild_remaining_seconds{deployment=\"ledger\"} NaN",
        "foldstream_candidate_state{deployment=\"ledger\",state=\"paused\"} 1",
    ] {
        assert!(has(&page, line), "{line} is missing in\n{page}");
    }
}

#[tokio::test]
async fn a_panic_is_reported_with_its_message_and_place() {
    let stage = Stage::start(Kind::Embedded).await;
    stage
        .client()
        .deploy("stumbling", &guests::module("stumbling"))
        .await;
    let item = |data| NewEvent {
        subject: "items.a".to_owned(),
        data,
        ..told(None)
    };
    stage
        .client()
        .append(&[item(json!({ "category": "toys" })), item(json!({}))])
        .await;
    let shown = stage
        .client()
        .show_when("stumbling", "fail", |shown| shown.failure.is_some())
        .await;
    let failure = shown.failure.expect("checked above");
    assert_eq!((failure.kind.as_str(), failure.sequence), ("trap", Some(2)));
    assert!(failure.message.starts_with("panicked at "), "{failure:?}");
    assert!(failure.message.contains("src/lib.rs:"), "{failure:?}");
    assert!(
        failure
            .message
            .contains(": an item has a category; deploy a corrected module"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_source_that_is_no_longer_configured_is_named_and_read_on_when_it_is_there_again() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "orders.>").await;
    let config = jetstream_source(&server.url(), STREAM);
    let mut host = Host::start_with(&config).await;
    host.client()
        .deploy(LEDGER, &guests::module("ledger"))
        .await;
    let mut orders = foldstream_tests::orders::Orders::new(1, 10);
    let last = nats::publish(
        &context,
        orders.by_ref().take(5).map(|order| order.message()),
    )
    .await;
    live_at(host.client(), LEDGER, last).await;
    assert_eq!(host.stop().code(), Some(0));

    host.configure(&config.replace("[sources.orders]", "[sources.shop]"));
    host.restart().await;
    let (shown, failure) = host.client().failed(LEDGER).await;
    assert_eq!(
        (failure.kind.as_str(), shown.position),
        ("source", last),
        "{failure:?}"
    );
    assert_eq!((shown.head, shown.lag_events), (None, None), "{shown:?}");
    assert_eq!(
        shown.source_status.state,
        SourceState::Stopped,
        "nobody connects: {shown:?}"
    );
    let told = cli::on(&host, &["show", LEDGER]).expect(0).stdout;
    assert!(
        told.contains("unknown, because the host has no such source"),
        "{told}"
    );
    assert!(
        told.contains("there is no source orders; the configuration has: shop"),
        "{told}"
    );
    host.client().entry(LEDGER, "head").await.expect(200);

    host.configure(&config);
    host.restart().await;
    let last = nats::publish(&context, orders.take(5).map(|order| order.message())).await;
    live_at(host.client(), LEDGER, last).await;
}

#[tokio::test]
async fn a_host_that_has_just_started_refuses_neither_watches_nor_commands() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let last = stage.publish(2_000).await;
    live_at(stage.client(), LEDGER, last).await;
    let file = guests::path("ledger").display().to_string();
    for _ in 0..4 {
        stage.host.restart().await;
        let mut events = stage
            .client()
            .events(&format!("/v1/deployments/{LEDGER}/changes"), None)
            .await;
        cli::on(
            &stage.host,
            &[
                "deploy",
                &file,
                "--name",
                LEDGER,
                "--wait",
                "--timeout",
                "30s",
            ],
        )
        .expect(0);
        events.next_of_any(&["position", "change", "reset"]).await;
    }
}

#[tokio::test]
async fn a_watch_of_a_deployment_that_can_not_be_read_yet_is_held_open() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let last = stage.publish(100).await;
    live_at(stage.client(), LEDGER, last).await;
    stage.host.kill();
    stage.server().kill();
    stage.host.restart().await;
    let answer = stage
        .client()
        .get(&format!("/v1/deployments/{LEDGER}/entries/head?timeout=0s"))
        .await;
    assert_eq!(
        answer.status, 503,
        "nobody knows yet what it has shown before"
    );
    let ready: api::Probe = stage.client().get("/readyz").await.expect(503).json();
    assert!(
        ready.degraded.iter().any(|text| text.contains(LEDGER)),
        "{ready:?}"
    );
    let mut events = stage
        .client()
        .events(&format!("/v1/deployments/{LEDGER}/changes"), None)
        .await;
    stage.server().restart().await;
    events.next_of_any(&["position", "change", "reset"]).await;
}

#[tokio::test]
async fn credentials_that_are_refused_make_lag_unknown_at_once() {
    let users = |name: &str| {
        format!(
            "authorization {{ users = [ {{ user: {name}, password: secret-of-some-length }} ] }}\n"
        )
    };
    let mut server = NatsServer::start_with(&users("reader")).await;
    let url = server.url();
    let options = async_nats::ConnectOptions::with_user_and_password(
        "reader".to_owned(),
        "secret-of-some-length".to_owned(),
    );
    let client = options.connect(&url).await.expect("it may connect");
    let context = async_nats::jetstream::new(client);
    nats::create_stream(&context, STREAM, "orders.>").await;
    let source = jetstream_source(&url, STREAM);
    let host = Host::start_with(&format!(
        "{source}user = \"reader\"\npassword = \"secret-of-some-length\"\n"
    ))
    .await;
    host.client().deploy(LEDGER, &guests::module(LEDGER)).await;
    let mut orders = foldstream_tests::orders::Orders::new(1, 10);
    let orders: Vec<_> = orders.by_ref().take(5).collect();
    let last = nats::publish(&context, orders.iter().map(|order| order.message())).await;
    live_at(host.client(), LEDGER, last).await;
    server.reload_with(&users("somebody"));
    let begin = std::time::Instant::now();
    loop {
        let shown = host.client().show(LEDGER).await;
        if shown.state == DeploymentState::Disconnected {
            assert_eq!(
                (shown.head, shown.lag_events, shown.lag_seconds),
                (None, None, None),
                "{shown:?}"
            );
            if shown.source_status.state == SourceState::Unauthorized {
                break;
            }
        }
        assert!(begin.elapsed() < SOON, "{shown:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
