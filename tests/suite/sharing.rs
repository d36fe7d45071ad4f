//! Deployments of one stream read it together once they have caught up, and each gets what it would
//! get alone.

use foldstream::api::{self, DeploymentState};
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer, free_port};
use foldstream_tests::stage::{Kind, LEDGER, STREAM, Stage};
use foldstream_tests::{guests, wait};

use async_nats::jetstream;
use serde_json::{Value, json};

const COUNT: usize = 5;

async fn has_consumers(context: &jetstream::Context, stream: &str, count: usize) {
    wait::until("as many consumers as expected", || async {
        let mut stream = context.get_stream(stream).await.ok()?;
        let found = stream.info().await.ok()?.state.consumer_count;
        (found == count).then_some(())
    })
    .await;
}

fn names() -> Vec<String> {
    let others = (1..COUNT).map(|number| format!("{LEDGER}-{number}"));
    std::iter::once(LEDGER.to_owned()).chain(others).collect()
}

async fn deploy_all(stage: &Stage) {
    for name in names() {
        stage.client().deploy(&name, &guests::module(LEDGER)).await;
    }
}

async fn assert_all_equal_model(stage: &Stage) {
    for name in names() {
        stage.assert_equals_model(&name).await;
    }
}

#[tokio::test]
async fn what_deployments_share_equals_the_fold_whatever_stops_and_starts() {
    let mut stage = Stage::start(Kind::JetStream).await;
    stage.publish(2_000).await;
    deploy_all(&stage).await;
    assert_all_equal_model(&stage).await;
    has_consumers(stage.context(), STREAM, 1).await;

    // One is away while the others continue.
    let paused = format!("{LEDGER}-1");
    stage.client().act(&paused, "pause").await.expect(200);
    stage
        .client()
        .show_when(&paused, "pause", |shown| {
            shown.state == DeploymentState::Paused
        })
        .await;
    stage.publish(3_000).await;
    stage.assert_ledger_equals_model().await;
    stage.client().act(&paused, "resume").await.expect(200);
    assert_all_equal_model(&stage).await;
    has_consumers(stage.context(), STREAM, 1).await;

    stage.server().kill();
    stage.server().restart().await;
    stage.publish(1_000).await;
    assert_all_equal_model(&stage).await;
    has_consumers(stage.context(), STREAM, 1).await;

    stage.host.kill();
    stage.publish(1_000).await;
    stage.host.restart().await;
    stage.publish(1_000).await;
    assert_all_equal_model(&stage).await;

    // A candidate reads alone until it has caught up, and so does the generation before.
    stage.deploy_next(2, api::GenerationStatus::Active).await;
    stage.publish(1_000).await;
    assert_all_equal_model(&stage).await;
    has_consumers(stage.context(), STREAM, 1).await;
}

#[tokio::test]
async fn deployments_that_share_have_the_connections_of_one() {
    let monitor = free_port();
    let server = NatsServer::start_with(&format!("http: \"127.0.0.1:{monitor}\"\n")).await;
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "orders.>").await;
    let host = Host::start_on(&server, STREAM).await;
    let order = r#"{"order":"o-1","amount":5}"#;
    let publish = async || {
        let message = ("orders.1.placed".to_owned(), order.into());
        nats::publish(&context, [message]).await
    };
    let connections = async || {
        let url = format!("http://127.0.0.1:{monitor}/connz");
        let answer = reqwest::get(url).await.expect("the server answers");
        let text = answer.text().await.expect("it has a body");
        let answer: Value = serde_json::from_str(&text).expect("it is JSON");
        answer["num_connections"].as_u64().expect("it has them")
    };
    let modules = guests::module(LEDGER);
    host.client().deploy(LEDGER, &modules).await;
    let last = publish().await;
    host.client().reached(LEDGER, last).await;
    has_consumers(&context, STREAM, 1).await;
    let of_one = connections().await;
    for name in names().iter().skip(1) {
        host.client().deploy(name, &modules).await;
        host.client().reached(name, last).await;
    }
    wait::until("the connections of one", || async {
        (connections().await <= of_one).then_some(())
    })
    .await;
    let last = publish().await;
    for name in names() {
        host.client().reached(&name, last).await;
    }
}

#[tokio::test]
async fn an_event_that_one_parks_and_another_stops_at_concerns_nobody_else() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, "MISCHIEF", "mischief.>").await;
    let host = Host::start_with(&jetstream_source(&server.url(), "MISCHIEF")).await;
    let client = host.client();
    let tell = async |events: &[(&str, &'static str)]| {
        let messages = events
            .iter()
            .map(|(key, verb)| (format!("mischief.{key}"), (*verb).into()));
        nats::publish(&context, messages.collect::<Vec<_>>()).await
    };
    let mischief = guests::module("mischief");
    client
        .deploy_with("parks", &mischief, "&on-failure=park")
        .await;
    client.deploy("stops", &mischief).await;
    client
        .deploy("fixed", &guests::module("mischief-fixed"))
        .await;
    let last = tell(&[("a", "note 1"), ("b", "note 2")]).await;
    for name in ["parks", "stops", "fixed"] {
        client.reached(name, last).await;
    }
    has_consumers(&context, "MISCHIEF", 1).await;
    let last = tell(&[("a", "ill 3"), ("b", "note 4"), ("a", "note 5")]).await;
    client.reached("parks", last).await;
    client.reached("fixed", last).await;
    let (_, failure) = client.failed("stops").await;
    assert_eq!(failure.sequence, Some(3), "{failure:?}");
    let notes = async |name| {
        let answer = client.query(name, "notes", &json!(null)).await.expect(200);
        answer.text().trim_matches('"').to_owned()
    };
    assert_eq!(notes("parks").await, "1,2,4");
    assert_eq!(notes("fixed").await, "1,2,3,4,5");
    assert_eq!(notes("stops").await, "1,2");
    client
        .deploy_with(
            "stops",
            &guests::module("mischief-fixed"),
            "&strategy=inherit",
        )
        .await;
    let last = tell(&[("b", "note 6")]).await;
    for name in ["parks", "stops", "fixed"] {
        client.reached(name, last).await;
    }
    assert_eq!(notes("stops").await, "1,2,3,4,5,6");
    has_consumers(&context, "MISCHIEF", 1).await;
}
