//! Generations in trouble: bad releases, streams that lost something, wishes that contradict each
//! other.

use foldstream::api::{self, DeployOutcome, GenerationStatus};
use foldstream_tests::guests;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::wait;

#[tokio::test]
async fn of_several_bad_releases_each_is_put_back_to_the_good_code() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    for (number, release) in [(2, 1), (3, 2)] {
        stage
            .client()
            .deploy(LEDGER, &guests::release("ledger-broken", release))
            .await;
        stage.publish(50).await;
        stage
            .client()
            .becomes(LEDGER, number, GenerationStatus::Failed)
            .await;
        stage.assert_ledger_equals_model().await;
        assert_eq!(stage.client().show(LEDGER).await.generation, 1);
    }
    // A bad release that has not failed yet is no code to go back to either.
    stage
        .client()
        .deploy(LEDGER, &guests::release("ledger-broken", 3))
        .await;
    stage.client().act(LEDGER, "prune?keep=0").await.expect(200);
    stage
        .client()
        .deploy(LEDGER, &guests::release("ledger-broken", 4))
        .await;
    stage.publish(50).await;
    stage
        .client()
        .becomes(LEDGER, 5, GenerationStatus::Failed)
        .await;
    stage.assert_ledger_equals_model().await;
    assert_eq!(stage.client().show(LEDGER).await.generation, 1);
    stage.deploy_next(6, GenerationStatus::Active).await;
    stage.client().act(LEDGER, "prune?keep=0").await.expect(200);
    let folder = stage.host.data_dir().join("state").join(LEDGER);
    let files: Vec<_> = std::fs::read_dir(folder)
        .expect("it is there")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(files, ["6.redb"], "what failed keeps no file");
}

#[tokio::test]
async fn a_rollback_goes_to_what_served_last() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(200).await;
    for release in [2, 3] {
        stage
            .client()
            .deploy(LEDGER, &guests::release("ledger", release))
            .await;
        stage.publish(200).await;
        stage.assert_ledger_equals_model().await;
        let client = stage.client();
        wait::until("the probation to pass", || async {
            let audit = client.generations(LEDGER).await;
            let previous = audit
                .iter()
                .filter(|generation| generation.status == GenerationStatus::Previous)
                .count();
            (previous == 1).then_some(())
        })
        .await;
    }
    let cut: api::CutOver = stage
        .client()
        .act(LEDGER, "rollback")
        .await
        .expect(200)
        .json();
    assert_eq!((cut.from, cut.to), (3, 2), "{}", cut.message);
    // Numbers are given once, also when the last one was forgotten.
    stage.client().act(LEDGER, "prune?keep=0").await.expect(200);
    let deployed = stage
        .client()
        .deploy(LEDGER, &guests::release("ledger", 4))
        .await;
    assert_eq!(deployed.generation, 4);
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn the_last_deploy_counts_and_not_a_candidate_from_before() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(1_000).await;
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger-next"), "&max-rate=200")
        .await;
    let deployed = stage
        .client()
        .deploy(LEDGER, &guests::release("ledger", 4))
        .await;
    assert_eq!(deployed.outcome, DeployOutcome::Inherited);
    let generations = stage.client().generations(LEDGER).await;
    assert_eq!(
        generations[1].status,
        GenerationStatus::Retired,
        "{}",
        generations[1].reason
    );
    // The module that serves, deployed again, changes nothing, and says what will.
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger-next"), "&promote=manual")
        .await;
    let again = stage
        .client()
        .deploy(LEDGER, &guests::release("ledger", 4))
        .await;
    assert_eq!(again.outcome, DeployOutcome::Unchanged);
    assert!(
        again.reason.contains("generation 4 still takes over"),
        "{}",
        again.reason
    );
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn another_source_wants_another_name() {
    let config = "[sources.one]\nkind = \"embedded\"\n[sources.two]\nkind = \"embedded\"\n";
    let host = foldstream_tests::host::Host::start_with(config).await;
    let deployed = host
        .client()
        .deploy_with(LEDGER, &guests::module("ledger"), "&source=one")
        .await;
    assert_eq!(deployed.outcome, DeployOutcome::Created);
    let answer = host
        .client()
        .upload(
            guests::module("ledger-next"),
            &format!("?name={LEDGER}&source=two"),
        )
        .await;
    assert!(
        answer
            .problem(422, "refused")
            .detail
            .contains("under another name")
    );
    let kept = host
        .client()
        .deploy(LEDGER, &guests::module("ledger-next"))
        .await;
    assert_eq!(
        kept.deployment.source, "one",
        "a deployment keeps its source"
    );
}

#[tokio::test]
async fn events_for_others_do_not_hold_up_a_cut_over() {
    let server = foldstream_tests::nats::NatsServer::start().await;
    let context = server.jetstream().await;
    let subjects = vec!["orders.>".to_owned(), "noise.>".to_owned()];
    let config = async_nats::jetstream::stream::Config {
        name: "MIXED".to_owned(),
        subjects,
        ..Default::default()
    };
    context
        .create_stream(config)
        .await
        .expect("the stream is made");
    let host = foldstream_tests::host::Host::start_on(&server, "MIXED").await;
    let mut orders = foldstream_tests::orders::Orders::new(1, 50);
    let messages: Vec<_> = orders
        .by_ref()
        .take(300)
        .map(|order| order.message())
        .collect();
    let last = foldstream_tests::nats::publish(&context, messages).await;
    host.client()
        .deploy(LEDGER, &guests::module("ledger"))
        .await;
    host.client().reached(LEDGER, last).await;
    let client = server.client().await;
    let noise = tokio::spawn(async move {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(5));
        loop {
            tick.tick().await;
            client
                .publish("noise.a", "{}".into())
                .await
                .expect("the connection stays");
        }
    });
    let deployed = host
        .client()
        .deploy(LEDGER, &guests::module("ledger-next"))
        .await;
    host.client()
        .becomes(LEDGER, deployed.generation, GenerationStatus::Active)
        .await;
    for _ in 0..8 {
        let seen = host.client().show(LEDGER).await.position;
        let cut: api::CutOver = host
            .client()
            .act(LEDGER, "rollback")
            .await
            .expect(200)
            .json();
        assert!(
            cut.position.is_some_and(|position| position >= seen),
            "{cut:?} after {seen}"
        );
        let more: Vec<_> = orders
            .by_ref()
            .take(10)
            .map(|order| order.message())
            .collect();
        let last = foldstream_tests::nats::publish(&context, more).await;
        host.client().reached(LEDGER, last).await;
    }
    noise.abort();
    let head = host
        .client()
        .entry(LEDGER, "head")
        .await
        .expect(200)
        .value();
    assert_eq!(
        head.get("count").or(head.get("events")),
        Some(&serde_json::json!(380)),
        "{head}"
    );
}

#[tokio::test]
async fn a_stream_that_lost_its_beginning_is_not_folded_from_there() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    let mut stream = stage
        .context()
        .get_stream(foldstream_tests::stage::STREAM)
        .await
        .expect("the stream is there");
    stream.purge().sequence(100).await.expect("purged");
    stream.info().await.expect("it answers");
    let query = format!("?name={LEDGER}");
    let problem = stage
        .client()
        .upload(guests::module("ledger-next"), &query)
        .await
        .problem(422, "refused");
    assert!(
        problem
            .detail
            .contains("99 events that were applied are gone")
            && problem.detail.contains("--strategy"),
        "{}",
        problem.detail
    );
    stage
        .client()
        .act(LEDGER, "rebuild")
        .await
        .problem(422, "refused");
    stage
        .client()
        .act(LEDGER, "verification")
        .await
        .problem(422, "refused");
    assert_eq!(
        stage.client().generations(LEDGER).await.len(),
        1,
        "nothing was changed"
    );
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger-next"), "&strategy=migrate")
        .await;
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    stage.publish(50).await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_deployment_that_was_paused_when_another_took_over_can_be_rolled_back_to() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(300).await;
    stage.assert_ledger_equals_model().await;
    stage.client().act(LEDGER, "pause").await.expect(200);
    stage.publish(300).await;
    stage.deploy_next(2, GenerationStatus::Ready).await;
    // A pause is an operator's wish: no candidate undoes it by itself.
    assert_eq!(stage.client().show(LEDGER).await.generation, 1);
    stage.client().act(LEDGER, "promote").await.expect(200);
    stage.assert_ledger_equals_model().await;
    let last = stage.model.last();
    let client = stage.client();
    wait::until("the paused one to follow", || async {
        client
            .show(LEDGER)
            .await
            .previous
            .filter(|previous| previous.position >= last)
    })
    .await;
    stage.client().act(LEDGER, "rollback").await.expect(200);
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_paused_candidate_keeps_no_other_from_its_turn() {
    let mut stage = Stage::start_with(Kind::Embedded, "[rollout]\nrebuilds_max = 1\n").await;
    stage.publish(1_000).await;
    for name in ["a", "b"] {
        stage.client().deploy(name, &guests::module("ledger")).await;
        stage.client().reached(name, stage.model.last()).await;
    }
    stage
        .client()
        .deploy_with("a", &guests::module("ledger-next"), "&max-rate=100")
        .await;
    stage
        .client()
        .act("a", "pause?candidate=true")
        .await
        .expect(200);
    stage
        .client()
        .deploy("b", &guests::module("ledger-next"))
        .await;
    stage
        .client()
        .becomes("b", 2, GenerationStatus::Active)
        .await;
    stage.client().act("a", "throttle").await.expect(200);
    stage
        .client()
        .act("a", "resume?candidate=true")
        .await
        .expect(200);
    stage
        .client()
        .becomes("a", 2, GenerationStatus::Active)
        .await;
    stage.assert_equals_model("a").await;
}

#[tokio::test]
async fn a_stream_that_was_created_again_is_folded_again_and_served() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    stage
        .context()
        .delete_stream(foldstream_tests::stage::STREAM)
        .await
        .expect("deleted");
    foldstream_tests::nats::create_stream(
        stage.context(),
        foldstream_tests::stage::STREAM,
        "orders.>",
    )
    .await;
    stage.model = Default::default();
    stage.publish(100).await;
    stage.client().failed(LEDGER).await;
    stage.client().act(LEDGER, "rebuild").await.expect(200);
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    stage.publish(50).await;
    stage.assert_ledger_equals_model().await;
}
