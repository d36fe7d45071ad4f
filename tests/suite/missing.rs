//! Events that are gone from a stream: told with their number, and done without only if that is
//! meant.

use async_nats::jetstream::stream::{Config, Stream};
use foldstream::api::{self, DeploymentState, GenerationStatus, WorkState};
use foldstream_tests::client::Client;
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::orders::Orders;
use foldstream_tests::stage::{Kind, LEDGER, STREAM, Stage};
use foldstream_tests::{cli, guests, wait};

async fn stream(stage: &Stage) -> Stream {
    stage
        .context()
        .get_stream(STREAM)
        .await
        .expect("the stream is there")
}

/// Why something is refused.
async fn refused(client: &Client, action: &str) -> String {
    client
        .act(LEDGER, action)
        .await
        .problem(422, "refused")
        .detail
}

/// Verifies the ledger to the end.
async fn verified(client: &Client, parameters: &str) -> api::Verification {
    client
        .act(LEDGER, &format!("verification{parameters}"))
        .await
        .expect(200);
    wait::until("the verification to end", || async {
        let found: api::Verification = client
            .get(&format!("/v1/deployments/{LEDGER}/verification"))
            .await
            .expect(200)
            .json();
        matches!(found.state, WorkState::Done | WorkState::Failed).then_some(found)
    })
    .await
}

#[tokio::test]
async fn a_state_that_has_events_which_are_gone_is_replaced_only_if_that_is_meant() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    stream(&stage)
        .await
        .delete_message(7)
        .await
        .expect("is deleted");

    let lacks = "1 event that was applied is gone from stream";
    for action in ["rebuild", "verification", "rebuild-part?key=1"] {
        let why = refused(stage.client(), action).await;
        assert!(
            why.contains(lacks) && why.contains("--accept-missing"),
            "{action}: {why}"
        );
    }
    let path = format!("/v1/deployments/{LEDGER}/entries?as-of=50");
    let why = stage
        .client()
        .get(&path)
        .await
        .problem(422, "refused")
        .detail;
    assert!(why.contains(lacks), "{why}");
    stage
        .client()
        .get(&format!("{path}&accept-missing=true&timeout=30s"))
        .await
        .expect(200);
    let earlier = format!("/v1/deployments/{LEDGER}/entries?as-of=6&timeout=30s");
    stage.client().get(&earlier).await.expect(200);
    stage.assert_ledger_equals_model().await;

    // The verdict is about the stream, not about the state.
    let verification = verified(stage.client(), "?accept-missing=true").await;
    assert_eq!(verification.equal, Some(false));
    assert!(
        verification.message.contains(lacks) && verification.message.contains("keep it"),
        "{verification:?}"
    );

    let rebuilding: api::Deployed = stage
        .client()
        .act(LEDGER, "rebuild?accept-missing=true")
        .await
        .expect(200)
        .json();
    assert!(rebuilding.reason.contains(lacks), "{}", rebuilding.reason);
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    assert_eq!(stage.client().show(LEDGER).await.missing_events, 1);
    // What the new state never had is not asked for again, but said.
    let verification = verified(stage.client(), "").await;
    assert_eq!(
        (verification.equal, verification.missing_events),
        (Some(true), 1)
    );
    let told = "without 1 event that was gone from the stream";
    assert!(verification.message.contains(told), "{verification:?}");
    let path = format!("/v1/deployments/{LEDGER}/entries?as-of=50&timeout=30s");
    let past = stage.client().get(&path).await.expect(200);
    assert_eq!(past.header("foldstream-missing"), Some("1"));
    let waited = cli::on(&stage.host, &["rebuild", LEDGER, "--wait"]).expect(0);
    assert!(waited.stdout.contains(told), "{waited:?}");
    stage
        .client()
        .becomes(LEDGER, 3, GenerationStatus::Active)
        .await;
}

#[tokio::test]
async fn a_stream_of_another_history_answers_for_none_of_the_state_and_replaces_it_only_if_that_is_meant()
 {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    let before = stage.client().entries(LEDGER, "").await;
    // Paused, it has not noticed by itself that the stream was deleted, made again, and is longer
    // by now.
    stage.client().act(LEDGER, "pause").await.expect(200);
    stage
        .context()
        .delete_stream(STREAM)
        .await
        .expect("the stream is there");
    let context = stage.context().clone();
    nats::create_stream(&context, STREAM, "orders.>").await;
    let last = nats::publish(
        &context,
        stage.draw(300).iter().map(|order| order.message()),
    )
    .await;

    let differs = "message 100 of stream ORDERS is not the one that was read before";
    let actions = ["rebuild", "verification", "rebuild-part?key=1"];
    let accepting = [
        "verification?accept-missing=true",
        "rebuild-part?key=1&accept-missing=true",
    ];
    for action in actions.iter().chain(&accepting) {
        let why = refused(stage.client(), action).await;
        assert!(why.contains(differs), "{action}: {why}");
    }
    for rest in ["", "&accept-missing=true"] {
        let path = format!("/v1/deployments/{LEDGER}/entries?as-of=50{rest}");
        let why = stage
            .client()
            .get(&path)
            .await
            .problem(422, "refused")
            .detail;
        assert!(why.contains(differs), "{why}");
    }
    let query = format!("?name={LEDGER}&strategy=rebuild");
    let why = stage
        .client()
        .upload(guests::release("ledger", 2), &query)
        .await
        .problem(422, "refused")
        .detail;
    assert!(
        why.contains(differs) && why.contains("--accept-missing"),
        "{why}"
    );
    assert_eq!(stage.client().entries(LEDGER, "").await, before);

    let rebuilding: api::Deployed = stage
        .client()
        .act(LEDGER, "rebuild?accept-missing=true")
        .await
        .expect(200)
        .json();
    assert!(
        rebuilding
            .reason
            .contains("nothing that was applied before is in the stream"),
        "{}",
        rebuilding.reason
    );
    stage.client().act(LEDGER, "resume").await.expect(200);
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    stage.client().reached(LEDGER, last).await;
    assert_eq!(verified(stage.client(), "").await.equal, Some(true));
}

#[tokio::test]
async fn a_stream_that_is_replaced_while_a_state_is_built_does_not_take_its_place() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    let before = stage.client().entries(LEDGER, "").await;
    stage.client().act(LEDGER, "pause").await.expect(200);
    // Nobody knows what is lost while the server is away, so the rebuild begins. The server comes
    // back without the stream.
    stage.server().stop();
    stage.client().act(LEDGER, "rebuild").await.expect(200);
    std::fs::remove_dir_all(stage.server().store().join("jetstream"))
        .expect("our folder can be removed");
    stage.server().restart().await;
    let context = stage.server().jetstream().await;
    nats::create_stream(&context, STREAM, "orders.>").await;
    nats::publish(
        &context,
        stage.draw(300).iter().map(|order| order.message()),
    )
    .await;
    let given_up = stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Failed)
        .await;
    assert!(given_up.reason.contains("source-diverged"), "{given_up:?}");
    assert_eq!(
        stage.client().show(LEDGER).await.generation,
        1,
        "the active generation keeps serving"
    );
    assert_eq!(stage.client().entries(LEDGER, "").await, before);
}

#[tokio::test]
async fn a_purge_by_subject_while_paused_is_reported_and_can_be_accepted() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(50).await;
    stage.assert_ledger_equals_model().await;
    stage.client().act(LEDGER, "pause").await.expect(200);
    let context = stage.context().clone();
    let orders = stage.draw(40);
    let last = nats::publish(&context, orders.iter().map(|order| order.message())).await;
    let gone = orders[10].subject();
    stream(&stage)
        .await
        .purge()
        .filter(&gone)
        .await
        .expect("is purged");
    let missing = orders
        .iter()
        .filter(|order| order.subject() == gone)
        .count() as u64;
    stage.client().act(LEDGER, "resume").await.expect(200);
    let (shown, failure) = stage.client().failed(LEDGER).await;
    assert_eq!(
        (failure.kind.as_str(), shown.position),
        ("source-gap", 50),
        "{failure:?}"
    );
    assert!(failure.message.contains("--accept-missing"), "{failure:?}");

    stage
        .client()
        .act(LEDGER, "resume?accept-missing=true")
        .await
        .expect(200);
    let shown = stage.client().reached(LEDGER, last).await;
    assert_eq!((shown.missing_events, shown.failure), (missing, None));
    let metrics = stage.client().get("/metrics").await.expect(200).text();
    let line = format!("foldstream_missing_events{{deployment=\"{LEDGER}\"}} {missing}");
    assert!(metrics.contains(&line), "{line} is missing");
    // It lasts, and what is removed from now on is reported again.
    stage.host.restart().await;
    assert_eq!(
        stage.client().reached(LEDGER, last).await.missing_events,
        missing
    );
    stage.client().act(LEDGER, "pause").await.expect(200);
    let last = nats::publish(&context, stage.draw(2).iter().map(|order| order.message())).await;
    stream(&stage)
        .await
        .delete_message(last - 1)
        .await
        .expect("is deleted");
    stage.client().act(LEDGER, "resume").await.expect(200);
    assert_eq!(stage.client().failed(LEDGER).await.1.kind, "source-gap");
}

#[tokio::test]
async fn what_a_limit_has_removed_since_is_not_left_out_of_a_rebuild_in_silence() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let config = nats::stream_config(STREAM, "orders.>");
    nats::create_stream_with(
        &context,
        async_nats::jetstream::stream::Config {
            max_messages: 100,
            discard: async_nats::jetstream::stream::DiscardPolicy::Old,
            ..config
        },
    )
    .await;
    let host = Host::start_on(&server, STREAM).await;
    host.client()
        .deploy_with(LEDGER, &guests::module("ledger"), "&start=first-available")
        .await;
    let mut orders = Orders::new(1, 10);
    for _ in 0..4 {
        let last = nats::publish(
            &context,
            orders.by_ref().take(100).map(|order| order.message()),
        )
        .await;
        host.client().reached(LEDGER, last).await;
    }
    let lacks = "300 events that were applied are gone from stream";
    let why = refused(host.client(), "rebuild").await;
    assert!(why.contains(lacks), "{why}");
    let query = format!("?name={LEDGER}&strategy=rebuild");
    let why = host
        .client()
        .upload(guests::release("ledger", 2), &query)
        .await
        .problem(422, "refused")
        .detail;
    assert!(why.contains(lacks), "{why}");

    // What is accepted is counted, although the state began at the first available event.
    host.client()
        .act(LEDGER, "rebuild?accept-missing=true")
        .await
        .expect(200);
    host.client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    assert_eq!(host.client().show(LEDGER).await.missing_events, 300);
    let metrics = host.client().get("/metrics").await.expect(200).text();
    let line = format!("foldstream_missing_events{{deployment=\"{LEDGER}\"}} 300");
    assert!(metrics.contains(&line), "{line} is missing");
    // It is a state like others: nothing more is lost, so nothing is refused.
    assert_eq!(verified(host.client(), "").await.equal, Some(true));
}

#[tokio::test]
async fn a_state_of_the_first_available_event_is_rebuilt_from_where_it_began() {
    let mut stage = Stage::start(Kind::JetStream).await;
    stage.publish(100).await;
    let context = stage.context().clone();
    let orders = stream(&stage).await;
    orders.purge().sequence(51).await.expect("is purged");
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger"), "&start=first-available")
        .await;
    stage.client().reached(LEDGER, 100).await;
    let before = stage.client().entries(LEDGER, "").await;
    stage.client().act(LEDGER, "rebuild").await.expect(200);
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    assert_eq!(stage.client().entries(LEDGER, "").await, before);
    assert_eq!(stage.client().show(LEDGER).await.missing_events, 0);
    // What goes while it is built is noticed, too.
    let last = nats::publish(&context, stage.draw(5).iter().map(|order| order.message())).await;
    stage.client().reached(LEDGER, last).await;
    stage.server().stop();
    stage.client().act(LEDGER, "rebuild").await.expect(200);
    stage.server().restart().await;
    let again = stage.server().jetstream().await;
    let orders = again.get_stream(STREAM).await.expect("it is there");
    orders.purge().sequence(61).await.expect("is purged");
    let noticed = wait::until("the candidate to end", || async {
        let generations = stage.client().generations(LEDGER).await;
        let third = generations.into_iter().find(|known| known.number == 3)?;
        (!third.status.is_candidate()).then_some(third)
    })
    .await;
    // It may have read them before they went; otherwise it says what it lacks.
    assert!(
        noticed.status == GenerationStatus::Active || noticed.reason.contains("source-"),
        "{noticed:?}"
    );
}

#[tokio::test]
async fn a_key_that_was_rebuilt_without_lost_events_is_counted_and_the_verdict_says_so() {
    const TALLY: &str = "tally";
    let mut stage = Stage::start(Kind::JetStream).await;
    let last = stage.publish(100).await;
    stage.client().deploy(TALLY, &guests::module(TALLY)).await;
    stage.client().reached(TALLY, last).await;
    // The first customer with several events, one of which goes.
    let mut seen = std::collections::BTreeMap::new();
    let mut repeated = None;
    for sequence in 1..=last {
        let message = stream(&stage).await.get_raw_message(sequence).await;
        let subject = message.expect("is there").subject;
        let customer = subject.split('.').nth(1).expect("of an order").to_owned();
        if let Some(earlier) = seen.insert(customer.clone(), sequence) {
            repeated = Some((customer, earlier));
            break;
        }
    }
    let (customer, sequence) = repeated.expect("a hundred orders of few customers");
    stream(&stage)
        .await
        .delete_message(sequence)
        .await
        .expect("is deleted");
    let part = format!("rebuild-part?key={customer}&accept-missing=true");
    let done: api::PartialRebuild = stage.client().act(TALLY, &part).await.expect(200).json();
    assert!(done.written + done.removed > 0, "{done:?}");
    assert_eq!(done.missing_events, 1, "{done:?}");
    let shown = stage.client().show(TALLY).await;
    assert_eq!(shown.missing_events, 1);
    let path = format!("/v1/deployments/{TALLY}/entries");
    let read = stage.client().get(&path).await.expect(200);
    assert_eq!(read.header("foldstream-missing"), Some("1"));
    let metrics = stage.client().get("/metrics").await.expect(200).text();
    assert!(metrics.contains("foldstream_missing_events{deployment=\"tally\"} 1"));
    let why = stage
        .client()
        .act(TALLY, "verification")
        .await
        .problem(422, "refused")
        .detail;
    assert!(
        why.contains("1 event that was applied is gone")
            && why.contains("keys that were rebuilt since lack up to 1 of them"),
        "{why}"
    );
    stage
        .client()
        .act(TALLY, "verification?accept-missing=true")
        .await
        .expect(200);
    let verification = wait::until("the verification to end", || async {
        let path = format!("/v1/deployments/{TALLY}/verification");
        let found: api::Verification = stage.client().get(&path).await.expect(200).json();
        matches!(found.state, WorkState::Done | WorkState::Failed).then_some(found)
    })
    .await;
    assert_eq!(verification.equal, Some(true), "{verification:?}");
    assert!(
        verification
            .message
            .contains("1 event that was applied is gone"),
        "the verdict is about what is left: {verification:?}"
    );
    // It lasts.
    stage.host.restart().await;
    assert_eq!(stage.client().reached(TALLY, last).await.missing_events, 1);
}

#[tokio::test]
async fn a_stream_that_was_made_again_before_the_first_commit_is_another_one() {
    // With other events in the same places, with none, and with none of these sequences.
    for (first_sequence, again) in [(None, 30), (None, 0), (Some(11), 3)] {
        let config = "[state]\nflush_interval = \"10m\"\n";
        let mut stage = Stage::start_with(Kind::JetStream, config).await;
        stage.deploy_ledger().await;
        let last = stage.publish(10).await;
        stage.client().reached(LEDGER, last).await;
        stage.host.kill();
        let context = stage.context().clone();
        context.delete_stream(STREAM).await.expect("it is there");
        nats::create_stream_with(
            &context,
            async_nats::jetstream::stream::Config {
                first_sequence,
                ..nats::stream_config(STREAM, "orders.>")
            },
        )
        .await;
        let orders = stage.draw(again);
        nats::publish(&context, orders.iter().map(|order| order.message())).await;
        stage.host.restart().await;
        let (shown, failure) = stage.client().failed(LEDGER).await;
        assert_eq!(
            (failure.kind.as_str(), shown.events_applied),
            ("source-diverged", 0),
            "{first_sequence:?}: {failure:?}"
        );
    }
}

#[tokio::test]
async fn what_was_removed_before_the_first_commit_is_missed() {
    let config = "[state]\nflush_interval = \"10m\"\n";
    let mut stage = Stage::start_with(Kind::JetStream, config).await;
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger"), "&start=first-available")
        .await;
    let last = stage.publish(10).await;
    stage.client().reached(LEDGER, last).await;
    stage.host.kill();
    let purged = stream(&stage).await.purge().sequence(5).await;
    purged.expect("is purged");
    stage.host.restart().await;
    let (_, failure) = stage.client().failed(LEDGER).await;
    assert_eq!(failure.kind, "source-gap", "{failure:?}");
}

#[tokio::test]
async fn a_stream_that_loses_events_by_design_is_counted() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let config = nats::stream_config(STREAM, "orders.>");
    let config = async_nats::jetstream::stream::Config {
        max_messages_per_subject: 1,
        ..config
    };
    nats::create_stream_with(&context, config).await;
    let mut orders = Orders::new(1, 10);
    let orders: Vec<_> = orders.by_ref().take(200).collect();
    let last = nats::publish(&context, orders.iter().map(|order| order.message())).await;
    let kept: std::collections::BTreeSet<_> = orders.iter().map(|order| order.subject()).collect();
    let source = format!(
        "{}missing = \"count\"\n",
        jetstream_source(&server.url(), STREAM)
    );
    let host = Host::start_with(&source).await;
    let deployed = host
        .client()
        .deploy(LEDGER, &guests::module("ledger"))
        .await;
    let missing = 200 - kept.len() as u64;
    let said = deployed.reason.contains(&format!("{missing} events"))
        && deployed.reason.contains("counts them");
    assert!(
        said,
        "nothing is passed over without a word: {}",
        deployed.reason
    );
    let is_live =
        |shown: &api::Deployment| shown.state == DeploymentState::Live && shown.position >= last;
    let shown = host.client().show_when(LEDGER, "be live", is_live).await;
    assert_eq!(shown.missing_events, missing);
}

#[tokio::test]
async fn what_goes_right_after_a_limit_is_set_is_counted_for_good() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let config = Config {
        subjects: vec!["orders.>".to_owned(), "audit.>".to_owned()],
        ..nats::stream_config(STREAM, "")
    };
    nats::create_stream_with(&context, config.clone()).await;
    let source = jetstream_source(&server.url(), STREAM);
    let mut host = Host::start_with(&format!("{source}missing = \"count\"\n")).await;
    host.client()
        .deploy("tally", &guests::module("tally"))
        .await;
    let of = |customer: u64| (format!("orders.{customer}.placed"), "{}".into());
    let last = nats::publish(&context, (0..5).map(of)).await;
    host.client().reached("tally", last).await;

    let edited = Config {
        max_messages_per_subject: 1,
        ..config
    };
    context.update_stream(edited).await.expect("is edited");
    // All in one write, as a busy publisher sends them, and nothing after them.
    let client = context.client();
    for _ in 0..2_000 {
        let (subject, data) = of(7);
        client.publish(subject, data).await.expect("published");
    }
    client.flush().await.expect("the server is there");
    let has_counted = |shown: &api::Deployment| {
        shown.position == last + 2_000
            && shown.events_applied + shown.missing_events == last + 2_000
    };
    let shown = host.client().show_when("tally", "have all", has_counted);
    let missing = shown.await.missing_events;
    let path = "/v1/deployments/tally/entries/tally/7";
    let entry = host.client().get(path).await.expect(200);
    let expected = (missing > 0).then(|| missing.to_string());
    assert_eq!(entry.header("foldstream-missing"), expected.as_deref());
    // What was applied and not durable may have gone from the stream since.
    host.kill();
    host.restart().await;
    let shown = host.client().reached("tally", last + 2_000).await;
    let entry = host.client().get(path).await.expect(200);
    let applied = entry.value().as_u64().expect("it is a number");
    assert_eq!(
        applied + shown.missing_events,
        2_000,
        "none is counted twice"
    );
}

#[tokio::test]
async fn a_deployment_that_stopped_for_want_of_events_continues_when_a_deploy_accepts_that() {
    let mut stage = Stage::start(Kind::JetStream).await;
    let last = stage.publish(100).await;
    stream(&stage)
        .await
        .purge()
        .sequence(90)
        .await
        .expect("is purged");
    stage.deploy_ledger().await;
    let (_, failure) = stage.client().failed(LEDGER).await;
    assert_eq!(failure.kind, "source-incomplete", "{failure:?}");
    assert!(
        !failure.message.starts_with("source-"),
        "the kind is named once: {failure:?}"
    );
    assert!(failure.message.contains("--accept-missing"), "{failure:?}");
    // What the failure advises, in the words of the command that was used.
    let deployed = stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger"), "&accept-missing=true")
        .await;
    assert!(
        deployed
            .reason
            .contains("events missing from its stream are accepted"),
        "{}",
        deployed.reason
    );
    let is_live =
        |shown: &api::Deployment| shown.state == DeploymentState::Live && shown.position >= last;
    let shown = stage.client().show_when(LEDGER, "be live", is_live).await;
    assert_eq!(shown.missing_events, 89);
}

#[tokio::test]
async fn a_candidate_that_no_event_stopped_keeps_no_file() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(300).await;
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .act(LEDGER, "rebuild?max-rate=20")
        .await
        .expect(200);
    let building = stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Building)
        .await;
    let file = stage
        .host
        .data_dir()
        .join(format!("state/{LEDGER}/{}.redb", building.state_file));
    wait::until("the candidate to have a file", || async {
        file.is_file().then_some(())
    })
    .await;
    assert_eq!(stage.host.stop().code(), Some(0));
    stream(&stage)
        .await
        .delete_message(290)
        .await
        .expect("is deleted");
    stage.host.restart().await;
    let failed = stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Failed)
        .await;
    let failure = failed.failure.expect("it says why");
    // Which of the two depends on whether it had noted a position before the stop.
    assert!(
        ["source-gap", "source-incomplete"].contains(&failure.kind.as_str()),
        "{failure:?}"
    );
    assert_eq!(failure.sequence, None, "{failure:?}");
    wait::until("its file to be gone", || async {
        (!file.exists()).then_some(())
    })
    .await;
    let shown = stage.client().show(LEDGER).await;
    assert_eq!(
        (shown.generation, shown.state),
        (1, DeploymentState::Live),
        "the active generation keeps serving"
    );
}

#[tokio::test]
async fn a_rollback_that_rebuilds_without_lost_events_is_refused_unless_that_is_meant() {
    let mut stage =
        Stage::start_with(Kind::JetStream, "[rollout]\nkeep_previous = \"1ms\"\n").await;
    stage.deploy_ledger().await;
    stage.publish(300).await;
    stage.assert_ledger_equals_model().await;
    stage.deploy_next(2, GenerationStatus::Active).await;
    stage
        .client()
        .becomes(LEDGER, 1, GenerationStatus::Retired)
        .await;
    stream(&stage)
        .await
        .delete_message(7)
        .await
        .expect("is deleted");

    let why = refused(stage.client(), "rollback?rebuild=true").await;
    assert!(
        why.contains("1 event that was applied is gone from stream")
            && why.contains("--accept-missing"),
        "{why}"
    );
    let shown = stage.client().show(LEDGER).await;
    assert_eq!(
        (shown.generation, shown.candidate.is_some()),
        (2, false),
        "nothing is begun"
    );
    stage
        .client()
        .act(LEDGER, "rollback?rebuild=true&accept-missing=true")
        .await
        .expect(200);
    stage
        .client()
        .becomes(LEDGER, 3, GenerationStatus::Active)
        .await;
    let shown = stage.client().show(LEDGER).await;
    assert_eq!((shown.module.state_version, shown.missing_events), (1, 1));
}

#[tokio::test]
async fn a_stream_is_recognised_after_a_kill_before_the_first_commit_in_whatever_form_its_events_are()
 {
    const TALLY: &str = "tally";
    let config = "[state]\nflush_interval = \"10m\"\n";
    let mut stage = Stage::start_with(Kind::JetStream, config).await;
    let events = (0..3).map(|number| {
        let event = serde_json::json!({
            "specversion": "1.0", "id": number.to_string(), "source": "/shop",
            "type": "placed", "data": { "number": number },
        });
        (format!("orders.{number}.placed"), event.to_string().into())
    });
    let last = nats::publish(stage.context(), events.collect::<Vec<_>>()).await;
    stage.client().deploy(TALLY, &guests::module(TALLY)).await;
    stage.client().reached(TALLY, last).await;
    let before = stage.client().entries(TALLY, "").await;
    assert!(
        before.iter().any(|entry| entry.key == "kind/placed/1"),
        "they are read as CloudEvents: {before:?}"
    );
    stage.host.kill();
    stage.host.restart().await;
    stage.client().reached(TALLY, last).await;
    assert_eq!(stage.client().entries(TALLY, "").await, before);
}

#[tokio::test]
async fn a_lost_state_of_the_first_available_event_is_not_built_again_without_lost_events_in_silence()
 {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let config = async_nats::jetstream::stream::Config {
        max_messages: 100,
        discard: async_nats::jetstream::stream::DiscardPolicy::Old,
        ..nats::stream_config(STREAM, "orders.>")
    };
    nats::create_stream_with(&context, config).await;
    let mut orders = Orders::new(1, 10);
    let mut publish = async |count: usize| {
        let orders: Vec<_> = orders.by_ref().take(count).collect();
        nats::publish(&context, orders.iter().map(|order| order.message())).await
    };
    let last = publish(150).await;
    let mut host = Host::start_on(&server, STREAM).await;
    host.client()
        .deploy_with(LEDGER, &guests::module("ledger"), "&start=first-available")
        .await;
    host.client().reached(LEDGER, last).await;
    for _ in 0..4 {
        let last = publish(50).await;
        host.client().reached(LEDGER, last).await;
    }
    assert_eq!(host.stop().code(), Some(0));
    let file = host.data_dir().join(format!("state/{LEDGER}/1.redb"));
    std::fs::remove_file(file).expect("it has a state");
    host.restart().await;
    let (_, failure) = host.client().failed(LEDGER).await;
    assert_eq!(failure.kind, "source-incomplete", "{failure:?}");
    assert!(
        failure.message.contains("200 events (51 to 250)"),
        "{failure:?}"
    );
    let warned = "the state has no file and is built again from the stream";
    host.prints(warned).await;

    // A rebuild would lack the same.
    host.client().act(LEDGER, "rebuild").await.expect(200);
    let failed = host
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Failed)
        .await;
    assert!(
        failed.reason.contains("200 events (51 to 250)"),
        "{failed:?}"
    );
    host.client()
        .act(LEDGER, "resume?accept-missing=true")
        .await
        .expect(200);
    assert_eq!(host.client().reached(LEDGER, 350).await.missing_events, 200);
}

#[tokio::test]
async fn a_lost_state_whose_stream_is_shorter_than_where_it_began_is_not_begun_at_its_end() {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    let mut orders = Orders::new(1, 10);
    let mut publish = async |config: Config, count: usize| {
        nats::create_stream_with(&context, config).await;
        let orders: Vec<_> = orders.by_ref().take(count).collect();
        nats::publish(&context, orders.iter().map(|order| order.message())).await
    };
    let config = Config {
        max_messages: 100,
        discard: async_nats::jetstream::stream::DiscardPolicy::Old,
        ..nats::stream_config(STREAM, "orders.>")
    };
    let last = publish(config, 150).await;
    let mut host = Host::start_on(&server, STREAM).await;
    host.client()
        .deploy_with(LEDGER, &guests::module("ledger"), "&start=first-available")
        .await;
    host.client().reached(LEDGER, last).await;
    assert_eq!(host.stop().code(), Some(0));
    let file = host.data_dir().join(format!("state/{LEDGER}/1.redb"));
    std::fs::remove_file(file).expect("it has a state");
    context.delete_stream(STREAM).await.expect("it is there");
    publish(nats::stream_config(STREAM, "orders.>"), 20).await;

    host.restart().await;
    let (_, failure) = host.client().failed(LEDGER).await;
    assert_eq!(failure.kind, "source-truncated", "{failure:?}");
    assert!(
        failure.message.contains("ends at 20, before position 50"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_candidate_whose_losses_are_accepted_while_it_is_built_takes_over() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(300).await;
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .act(LEDGER, "rebuild?max-rate=20")
        .await
        .expect(200);
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Building)
        .await;
    stage
        .client()
        .act(LEDGER, "pause?candidate=true")
        .await
        .expect(200);
    stream(&stage)
        .await
        .delete_message(290)
        .await
        .expect("is deleted");
    stage
        .client()
        .act(LEDGER, "resume?candidate=true&accept-missing=true")
        .await
        .expect(200);
    cli::on(&stage.host, &["throttle", LEDGER, "--off"]).expect(0);
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    assert_eq!(stage.client().show(LEDGER).await.missing_events, 1);
}

#[tokio::test]
async fn what_was_accepted_for_a_candidate_stays_accepted_when_corrected_code_continues_it() {
    const NAME: &str = "notes";
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "mischief.>").await;
    let told = |text: &str| ("mischief.a".to_owned(), text.to_owned().into());
    let mut events: Vec<_> = (0..10).map(|_| told("note fine")).collect();
    events.extend([told("ill x"), told("note last")]);
    let last = nats::publish(&context, events).await;
    let host = Host::start_on(&server, STREAM).await;
    host.client()
        .deploy(NAME, &guests::module("mischief-fixed"))
        .await;
    host.client().reached(NAME, last).await;
    let notes = context.get_stream(STREAM).await.expect("it is there");
    notes.delete_message(3).await.expect("is deleted");

    let by_hand = "&promote=manual";
    let accepting = format!("{by_hand}&strategy=rebuild&accept-missing=true");
    host.client()
        .deploy_with(NAME, &guests::module("mischief"), &accepting)
        .await;
    host.client()
        .becomes(NAME, 2, GenerationStatus::Failed)
        .await;
    host.client()
        .deploy_with(NAME, &guests::release("mischief-fixed", 2), by_hand)
        .await;
    host.client()
        .becomes(NAME, 3, GenerationStatus::Ready)
        .await;
    host.client().act(NAME, "promote").await.expect(200);
    let shown = host.client().show(NAME).await;
    assert_eq!((shown.generation, shown.missing_events), (3, 1));
}
