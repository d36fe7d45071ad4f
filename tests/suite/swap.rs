//! Generations: new versions are built, take over, and are rolled back, with nobody noticing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use foldstream::api::{self, DeployOutcome, GenerationStatus, Strategy};
use foldstream_tests::client::Client;
use foldstream_tests::guests;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::wait;
use reqwest::Method;

on_both_sources! {
    a_new_version_is_built_alongside_the_old_one_and_takes_over
    the_same_state_version_inherits_the_state
    a_module_that_fails_on_the_state_it_inherited_is_put_back
    a_migration_gives_what_a_fold_would_give
    a_rollback_is_immediate_and_loses_nothing
    a_candidate_waits_for_its_promotion
    rebuilds_resume_after_a_kill
}

async fn a_new_version_is_built_alongside_the_old_one_and_takes_over(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    stage.publish(3_000).await;
    let deployed = stage
        .client()
        .deploy(LEDGER, &guests::module("ledger-next"))
        .await;
    assert_eq!(
        (
            deployed.outcome,
            deployed.generation,
            deployed.deployment.generation
        ),
        (DeployOutcome::Rebuilding, 2, 1)
    );
    assert!(
        deployed.reason.contains("state version 2 instead of 1"),
        "{}",
        deployed.reason
    );
    let next = stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    assert!(
        next.reason.contains("took over from generation 1"),
        "{}",
        next.reason
    );
    stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    let generations = stage.client().generations(LEDGER).await;
    assert_eq!(generations[0].status, GenerationStatus::Previous);
    let last = stage.model.last();
    let client = stage.client();
    wait::until("the previous generation to follow", || async {
        (client.generations(LEDGER).await[0].position >= last).then_some(())
    })
    .await;
}

async fn the_same_state_version_inherits_the_state(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    stage.publish(1_000).await;
    stage.assert_ledger_equals_model().await;
    let deployed = stage
        .client()
        .deploy(LEDGER, &guests::release("ledger", 2))
        .await;
    assert_eq!(
        (deployed.outcome, deployed.generation),
        (DeployOutcome::Inherited, 2)
    );
    stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    let shown = stage.client().show(LEDGER).await;
    assert_eq!(shown.events_applied, 1_500, "no event is folded twice");
    let again = stage
        .client()
        .deploy(LEDGER, &guests::release("ledger", 2))
        .await;
    assert_eq!(
        (again.outcome, again.generation),
        (DeployOutcome::Unchanged, 2)
    );
    stage.host.kill();
    stage.host.restart().await;
    stage.assert_ledger_equals_model().await;
    assert_eq!(stage.client().show(LEDGER).await.generation, 2);
}

async fn a_module_that_fails_on_the_state_it_inherited_is_put_back(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    stage.publish(1_000).await;
    stage.assert_ledger_equals_model().await;
    let deployed = stage
        .client()
        .deploy(LEDGER, &guests::module("ledger-broken"))
        .await;
    assert_eq!(deployed.outcome, DeployOutcome::Inherited);
    stage.publish(500).await;
    let failed = stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Failed)
        .await;
    assert!(
        failed.reason.contains("cannot apply event 1001"),
        "{}",
        failed.reason
    );
    stage.assert_ledger_equals_model().await;
    assert_eq!(stage.client().show(LEDGER).await.generation, 1);
}

async fn a_migration_gives_what_a_fold_would_give(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    stage.publish(3_000).await;
    stage.assert_ledger_equals_model().await;
    let next = guests::module("ledger-next");
    let deployed = stage
        .client()
        .deploy_with(LEDGER, &next, "&strategy=migrate")
        .await;
    assert_eq!(deployed.outcome, DeployOutcome::Migrating);
    stage.publish(700).await;
    let generation = stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    assert_eq!(generation.strategy, Strategy::Migrate);
    stage.assert_ledger_equals_model().await;
    // The old state is still there, and has followed.
    stage.client().act(LEDGER, "rollback").await.expect(200);
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    assert_eq!(stage.client().show(LEDGER).await.generation, 1);
}

async fn a_rollback_is_immediate_and_loses_nothing(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    stage.publish(1_000).await;
    stage.deploy_next(2, GenerationStatus::Active).await;
    for number in [1, 2, 1] {
        stage.publish(200).await;
        let cut: api::CutOver = stage
            .client()
            .act(LEDGER, "rollback")
            .await
            .expect(200)
            .json();
        assert_eq!(
            (cut.to, cut.deployment.generation),
            (number, number),
            "{}",
            cut.message
        );
        stage.assert_ledger_equals_model().await;
    }
    stage.host.kill();
    stage.host.restart().await;
    assert_eq!(
        stage.client().show(LEDGER).await.generation,
        1,
        "a rollback survives a kill"
    );
    stage.assert_ledger_equals_model().await;
    // Over a state that was inherited it is the code alone that goes back.
    stage
        .client()
        .deploy(LEDGER, &guests::release("ledger", 3))
        .await;
    stage.publish(300).await;
    let cut: api::CutOver = stage
        .client()
        .act(LEDGER, "rollback")
        .await
        .expect(200)
        .json();
    assert_eq!(cut.to, 1, "{}", cut.message);
    stage.publish(300).await;
    stage.assert_ledger_equals_model().await;
}

async fn a_candidate_waits_for_its_promotion(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    stage.publish(1_000).await;
    let next = guests::module("ledger-next");
    stage
        .client()
        .deploy_with(LEDGER, &next, "&promote=manual&max-rate=100")
        .await;
    stage
        .client()
        .act(LEDGER, "promote")
        .await
        .problem(409, "conflict");
    stage
        .client()
        .act(LEDGER, "pause?candidate=true")
        .await
        .expect(200);
    let paused = stage
        .client()
        .show_when(LEDGER, "pause its candidate", |shown| {
            let candidate = shown.candidate.as_ref();
            candidate.is_some_and(|candidate| candidate.state == Some(api::DeploymentState::Paused))
        });
    let paused = paused.await;
    assert!(
        paused.candidate.expect("checked").progress < Some(1.0),
        "it is throttled"
    );
    stage.host.kill();
    stage.host.restart().await;
    stage.client().act(LEDGER, "throttle").await.expect(200);
    stage
        .client()
        .act(LEDGER, "resume?candidate=true")
        .await
        .expect(200);
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Ready)
        .await;
    stage.publish(100).await;
    assert_eq!(stage.client().show(LEDGER).await.generation, 1);
    let cut: api::CutOver = stage
        .client()
        .act(LEDGER, "promote")
        .await
        .expect(200)
        .json();
    assert_eq!((cut.from, cut.to), (1, 2));
    assert!(
        cut.position.is_some_and(|position| position >= 1_000),
        "{cut:?}"
    );
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .act(LEDGER, "promote")
        .await
        .problem(409, "conflict");
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger"), "&promote=manual")
        .await;
    stage.client().act(LEDGER, "abort").await.expect(200);
    let generations = stage.client().generations(LEDGER).await;
    assert_eq!(
        generations.last().map(|generation| generation.status),
        Some(GenerationStatus::Retired)
    );
    stage.assert_ledger_equals_model().await;
}

async fn rebuilds_resume_after_a_kill(kind: Kind) {
    let mut stage = Stage::start_with(kind, "[state]\nflush_interval = \"20ms\"\n").await;
    stage.deploy_ledger().await;
    stage.publish(4_000).await;
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger-next"), "&max-rate=1000")
        .await;
    let client = stage.client();
    let reached = wait::until("a durable part of the rebuild", || async {
        let candidate = client.show(LEDGER).await.candidate?;
        (candidate.checkpoint > 200).then_some(candidate.checkpoint)
    })
    .await;
    stage.host.kill();
    stage.host.restart().await;
    let client = stage.client();
    let candidate = wait::until("the rebuild to continue", || async {
        client.show(LEDGER).await.candidate
    })
    .await;
    assert_eq!(candidate.number, 2);
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    let applied = stage.client().show(LEDGER).await.events_applied;
    assert!(
        applied <= 4_000 - reached,
        "it went on at its checkpoint: {applied} applied, {reached} were durable"
    );
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_candidate_that_fails_changes_nothing_for_readers() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(500).await;
    stage
        .client()
        .deploy_with(
            LEDGER,
            &guests::module("ledger-broken"),
            "&strategy=rebuild",
        )
        .await;
    let failed = stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Failed)
        .await;
    assert!(
        failed.reason.contains("cannot apply event 1"),
        "{}",
        failed.reason
    );
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    assert_eq!(stage.client().show(LEDGER).await.generation, 1);
}

#[tokio::test]
async fn strategies_that_do_not_fit_are_refused_with_a_reason() {
    let stage = Stage::with_ledger(Kind::Embedded).await;
    let upload = async |module: &str, strategy: &str| {
        stage
            .client()
            .upload(
                guests::module(module),
                &format!("?name={LEDGER}&strategy={strategy}"),
            )
            .await
    };
    let problem = upload("ledger-next", "inherit")
        .await
        .problem(422, "refused");
    assert!(
        problem.detail.contains("state version 2 is not 1"),
        "{}",
        problem.detail
    );
    let problem = upload("ledger-broken", "migrate")
        .await
        .problem(422, "refused");
    assert!(
        problem.detail.contains("exports no `migrate`"),
        "{}",
        problem.detail
    );
    for parameters in [
        "&strategy=all",
        "&cpu-percent=0",
        "&max-rate=0",
        "&gate=%7B%22alow%22%3A%5B%5D%7D",
        "&promote=never",
    ] {
        stage
            .client()
            .upload(vec![0], &format!("?name={LEDGER}{parameters}"))
            .await
            .problem(400, "invalid");
    }
    assert_eq!(stage.client().generations(LEDGER).await.len(), 1);
}

/// A gate as a parameter.
fn gate(json: &str) -> String {
    let encoded: String = json.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("&gate={encoded}")
}

#[tokio::test]
async fn a_gate_keeps_back_what_differs_and_lets_pass_what_is_allowed() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(1_000).await;
    let next = guests::module("ledger-next");
    stage
        .client()
        .deploy_with(LEDGER, &next, &gate(r#"{"allow":[]}"#))
        .await;
    let client = stage.client();
    let kept = wait::until("the gate to judge", || async {
        client
            .show(LEDGER)
            .await
            .candidate
            .filter(|candidate| candidate.comparison.is_some())
    })
    .await;
    let comparison = kept.comparison.expect("checked");
    let customers = comparison.removed;
    assert_eq!(
        (comparison.added, comparison.changed),
        (customers, 1),
        "every customer is renamed, and head differs"
    );
    assert_eq!(comparison.refused, customers * 2 + 1);
    assert!(
        !comparison.examples.is_empty()
            && comparison.examples.iter().all(|example| !example.allowed)
    );
    assert_eq!(kept.status, GenerationStatus::Ready);
    assert_eq!(
        client.show(LEDGER).await.generation,
        1,
        "a failed gate promotes nothing"
    );
    // It can be looked at.
    let entry = client
        .get(&format!(
            "/v1/deployments/{LEDGER}/entries/head?generation=2"
        ))
        .await
        .expect(200);
    assert_eq!(entry.header("foldstream-generation"), Some("2"));
    client.act(LEDGER, "promote").await.problem(409, "conflict");
    client.act(LEDGER, "promote?force=true").await.expect(200);
    stage.assert_ledger_equals_model().await;
    // The same module built again is the same.
    let client = stage.client();
    let query = format!(
        "rebuild?{}",
        gate(r#"{"allow":[]}"#).trim_start_matches('&')
    );
    client.act(LEDGER, &query).await.expect(200);
    let rebuilt = client.becomes(LEDGER, 3, GenerationStatus::Active).await;
    let comparison = rebuilt.comparison.expect("it was compared");
    assert_eq!(
        (comparison.refused, comparison.compared),
        (0, comparison.entries)
    );
    assert!(
        comparison.conclusion.starts_with("all "),
        "{}",
        comparison.conclusion
    );
    // Rules know what to expect of a change.
    let rules = r#"{"allow":[],"rules":[{"prefix":"account/","allow":["removed"]},{"prefix":"customer/","allow":["added"]},
        {"prefix":"head","allow":[],"ignore":["/chain","/count","/events"]}]}"#;
    client
        .deploy_with(LEDGER, &guests::module("ledger"), &gate(rules))
        .await;
    let back = client.becomes(LEDGER, 4, GenerationStatus::Active).await;
    assert_eq!(back.comparison.expect("it was compared").refused, 0);
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn what_is_promoted_by_hand_is_compared_before() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(300).await;
    let parameters = format!(
        "&promote=manual{}",
        gate(r#"{"allow":["added","removed","changed"]}"#)
    );
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger-next"), &parameters)
        .await;
    let client = stage.client();
    let compared = wait::until("the comparison", || async {
        client
            .show(LEDGER)
            .await
            .candidate
            .and_then(|candidate| candidate.comparison)
    })
    .await;
    assert_eq!((compared.refused, compared.changed), (0, 1));
    assert_eq!(
        client.show(LEDGER).await.generation,
        1,
        "nobody has promoted it"
    );
    client.act(LEDGER, "promote").await.expect(200);
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_sample_states_what_it_proves() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(2_000).await;
    let query = format!(
        "rebuild?{}",
        gate(r#"{"allow":[],"sample":30}"#).trim_start_matches('&')
    );
    stage.client().act(LEDGER, &query).await.expect(200);
    let rebuilt = stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    let comparison = rebuilt.comparison.expect("it was compared");
    assert!(
        (5..90).contains(&comparison.compared) && comparison.entries > 90,
        "{comparison:?}"
    );
    assert!(
        comparison.conclusion.contains("with 95 % confidence"),
        "{}",
        comparison.conclusion
    );
}

#[tokio::test]
async fn a_rollback_beyond_its_time_says_so_and_rebuilds_when_asked() {
    let mut stage = Stage::start_with(Kind::Embedded, "[rollout]\nkeep_previous = \"1ms\"\n").await;
    stage.deploy_ledger().await;
    stage.publish(300).await;
    stage
        .client()
        .act(LEDGER, "rollback")
        .await
        .problem(409, "conflict");
    stage.deploy_next(2, GenerationStatus::Active).await;
    stage
        .client()
        .becomes(LEDGER, 1, GenerationStatus::Retired)
        .await;
    let problem = stage
        .client()
        .act(LEDGER, "rollback")
        .await
        .problem(409, "conflict");
    assert!(
        problem.detail.contains("rollback ledger --rebuild"),
        "{}",
        problem.detail
    );
    let files = std::fs::read_dir(stage.host.data_dir().join("state").join(LEDGER))
        .expect("the folder is there")
        .count();
    assert_eq!(files, 1, "the file of a retired generation is gone");
    stage
        .client()
        .act(LEDGER, "rollback?rebuild=true")
        .await
        .expect(200);
    stage
        .client()
        .becomes(LEDGER, 3, GenerationStatus::Active)
        .await;
    assert_eq!(stage.client().show(LEDGER).await.module.state_version, 1);
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn prune_removes_what_is_not_kept_and_says_first_what_that_is() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(500).await;
    for (number, module) in [(2, "ledger-next"), (3, "ledger"), (4, "ledger-next")] {
        stage
            .client()
            .deploy_with(LEDGER, &guests::module(module), "&strategy=rebuild")
            .await;
        stage
            .client()
            .becomes(LEDGER, number, GenerationStatus::Active)
            .await;
    }
    let look: api::Pruned = stage
        .client()
        .act(LEDGER, "prune?keep=0&dry-run=true")
        .await
        .expect(200)
        .json();
    assert_eq!(
        (look.generations.clone(), look.dry_run),
        (vec![1, 2, 3], true)
    );
    assert!(look.bytes > 0, "generation 3 still has its file");
    assert_eq!(stage.client().generations(LEDGER).await.len(), 4);
    let pruned: api::Pruned = stage
        .client()
        .act(LEDGER, "prune?keep=1")
        .await
        .expect(200)
        .json();
    assert_eq!(pruned.generations, [1, 2]);
    let pruned: api::Pruned = stage
        .client()
        .act(LEDGER, "prune?keep=0")
        .await
        .expect(200)
        .json();
    assert_eq!(pruned.generations, [3]);
    let folder = stage.host.data_dir().join("state").join(LEDGER);
    let files: Vec<_> = std::fs::read_dir(folder)
        .expect("it is there")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(files, ["4.redb"]);
    stage
        .client()
        .act(LEDGER, "rollback")
        .await
        .problem(409, "conflict");
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn prune_counts_a_file_once_that_generations_share() {
    let keeps = "[rollout]\nkeep_previous_generations = 5\n";
    let mut stage = Stage::start_with(Kind::Embedded, keeps).await;
    stage.deploy_ledger().await;
    stage.publish(500).await;
    let active = GenerationStatus::Active;
    // The third generation inherits the file of the first, and the second has one of its own.
    stage.client().act(LEDGER, "rebuild").await.expect(200);
    stage.client().becomes(LEDGER, 2, active).await;
    stage.client().act(LEDGER, "rollback").await.expect(200);
    let next = guests::release("ledger", 3);
    stage.client().deploy(LEDGER, &next).await;
    stage.publish(500).await;
    stage.client().passed_probation(3).await;
    stage.client().act(LEDGER, "rebuild").await.expect(200);
    stage.client().becomes(LEDGER, 4, active).await;

    let folder = stage.host.data_dir().join("state").join(LEDGER);
    // The files of followers may still grow.
    wait::until("each file to count once", || async {
        let path = "prune?keep=0&dry-run=true";
        let look: api::Pruned = stage.client().act(LEDGER, path).await.expect(200).json();
        assert_eq!(look.generations, [1, 2, 3]);
        let size = |file: &str| {
            std::fs::metadata(folder.join(file))
                .expect("is there")
                .len()
        };
        (look.bytes == size("1.redb") + size("2.redb")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_rebuild_that_can_not_fit_is_refused_before_it_starts() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(2_000).await;
    stage.assert_ledger_equals_model().await;
    stage.host.stop();
    stage.host.restart().await;
    // Room for the state once more, but not with its reserve.
    let used = foldstream::usage::allocated(&stage.host.data_dir(), 4);
    let limit = (used + stage.client().show(LEDGER).await.file_bytes) * 20 / 19;
    stage.host.stop();
    stage
        .host
        .configure(&format!("[limits]\ndisk_bytes = {limit}\n"));
    stage.host.restart().await;
    let answer = stage
        .client()
        .upload(guests::module("ledger-next"), &format!("?name={LEDGER}"))
        .await;
    let problem = answer.problem(507, "no-room");
    assert!(
        problem.detail.contains("limits.disk_bytes"),
        "{}",
        problem.detail
    );
    assert_eq!(stage.client().generations(LEDGER).await.len(), 1);
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn pages_of_one_generation_stay_of_it_while_another_takes_over() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(2_000).await;
    stage.assert_ledger_equals_model().await;
    let client = stage.client();
    let path = format!("/v1/deployments/{LEDGER}/entries");
    let first: api::EntryPage = client
        .get(&format!("{path}?limit=10"))
        .await
        .expect(200)
        .json();
    client.deploy(LEDGER, &guests::module("ledger-next")).await;
    client.becomes(LEDGER, 2, GenerationStatus::Active).await;
    let next = first.next.expect("there are more");
    let rest: api::EntryPage = client
        .get(&format!(
            "{path}?limit=1000&after={next}&generation={}",
            first.generation
        ))
        .await
        .expect(200)
        .json();
    let keys: Vec<_> = first
        .entries
        .iter()
        .chain(&rest.entries)
        .map(|entry| entry.key.clone())
        .collect();
    let wanted: Vec<_> = stage
        .model
        .entries()
        .into_iter()
        .map(|entry| entry.key)
        .collect();
    assert_eq!(keys, wanted);
    client.act(LEDGER, "prune?keep=0").await.expect(200);
    client
        .get(&format!("{path}?generation=1"))
        .await
        .problem(404, "not-found");
    client
        .get(&format!("{path}?generation=9"))
        .await
        .problem(404, "not-found");
}

#[tokio::test]
async fn a_watch_is_asked_to_begin_again_when_another_generation_takes_over() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let last = stage.publish(500).await;
    stage.client().reached(LEDGER, last).await;
    let mut watch = stage
        .client()
        .events(
            &format!("/v1/deployments/{LEDGER}/changes?prefix=pair/"),
            None,
        )
        .await;
    stage
        .client()
        .deploy(LEDGER, &guests::module("ledger-next"))
        .await;
    let reset = watch.next_of("reset").await;
    let mark: api::PositionMark = serde_json::from_str(&reset.data).expect("a mark");
    assert!(
        mark.position >= last,
        "positions never go back: {}",
        mark.position
    );
    stage.publish(1).await;
    assert!(watch.change().await.position > last);
    // Code that inherits a state changes nothing for a watcher.
    stage
        .client()
        .deploy(LEDGER, &guests::release("ledger-next", 9))
        .await;
    stage.publish(1).await;
    let event = watch.next_of_any(&["change", "reset"]).await;
    assert_eq!(event.event, "change");
}

/// Reads as fast as it can and checks every answer, until told to stop; how many answers there
/// were.
fn reader(client: Client, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
    tokio::spawn(async move {
        let (mut seen, mut answers) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            let answer = client.entry(LEDGER, "head").await.expect(200);
            let position = answer.position();
            assert!(position >= seen, "went back from {seen} to {position}");
            seen = position;
            let head = answer.value();
            // Every event of the stream is an order: the head is the fold at exactly the answer's
            // position.
            let count = head
                .get("count")
                .or(head.get("events"))
                .and_then(serde_json::Value::as_u64);
            assert_eq!(
                (count, head["last"].as_u64()),
                (Some(position), Some(position)),
                "{head}"
            );
            let pair = client
                .query(LEDGER, "pair", &serde_json::Value::Null)
                .await
                .expect(200);
            assert!(
                pair.position() >= seen,
                "went back from {seen} to {}",
                pair.position()
            );
            seen = pair.position();
            assert_eq!(
                pair.value(),
                serde_json::json!({ "left": seen, "right": seen })
            );
            answers += 2;
        }
        answers
    })
}

/// How many swaps the long test makes.
const SWAPS: u8 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_swaps_under_load_are_noticed_by_nobody() {
    let mut stage = Stage::start_with(Kind::JetStream, "[rollout]\nhold_max = \"2s\"\n").await;
    stage.deploy_ledger().await;
    stage.publish(2_000).await;
    stage.assert_ledger_equals_model().await;
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| reader(stage.client().clone(), Arc::clone(&stop)))
        .collect();
    let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
    let client = stage.client().clone();
    let swapping = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&swapping);
    let swaps = tokio::spawn(async move {
        for number in 0..SWAPS {
            swap(&client, &mut random, number).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    // A steady rate of writes during all swaps; low, because each rebuild reads all of them again.
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(50));
    while !swaps.is_finished() {
        tick.tick().await;
        stage.publish(5).await;
    }
    swaps.await.expect("every swap does what it should");
    assert_eq!(swapping.load(Ordering::Relaxed), u64::from(SWAPS));
    stage.assert_ledger_equals_model().await;
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        let answers = reader.await.expect("no answer was wrong");
        assert!(answers > 200, "only {answers} answers were checked");
    }
}

/// One swap of a kind that chance chooses; returns once it came to its end.
async fn swap(client: &Client, random: &mut fastrand::Rng, number: u8) {
    let before = client.show(LEDGER).await;
    let is_next = before.module.state_version == 2;
    let (own, other) = if is_next {
        ("ledger-next", "ledger")
    } else {
        ("ledger", "ledger-next")
    };
    let taken_over = async |deployed: api::Deployed| {
        client
            .becomes(LEDGER, deployed.generation, GenerationStatus::Active)
            .await;
    };
    match random.u8(..7) {
        0 => {
            taken_over(
                client
                    .deploy_with(LEDGER, &guests::release(own, number), "&strategy=inherit")
                    .await,
            )
            .await;
        }
        1 => {
            taken_over(
                client
                    .deploy_with(LEDGER, &guests::release(own, number), "&strategy=rebuild")
                    .await,
            )
            .await;
        }
        2 if !is_next => {
            taken_over(
                client
                    .deploy_with(LEDGER, &guests::release(other, number), "&strategy=migrate")
                    .await,
            )
            .await;
        }
        2 | 3 => taken_over(client.deploy(LEDGER, &guests::release(other, number)).await).await,
        4 if !is_next => {
            let deployed = client
                .deploy(LEDGER, &guests::release("ledger-broken", number))
                .await;
            client
                .becomes(LEDGER, deployed.generation, GenerationStatus::Failed)
                .await;
        }
        4 | 5 => {
            let broken = guests::release("ledger-broken", number);
            let deployed = client
                .deploy_with(LEDGER, &broken, "&strategy=rebuild")
                .await;
            client
                .becomes(LEDGER, deployed.generation, GenerationStatus::Failed)
                .await;
        }
        _ => {
            let answer = client.act(LEDGER, "rollback").await;
            // After a put-back there may be nothing to go back to.
            assert!(
                [200, 409].contains(&answer.status.as_u16()),
                "{}",
                answer.text()
            );
        }
    }
}

#[tokio::test]
async fn fifty_rollouts_at_once_stay_orderly() {
    const DEPLOYMENTS: usize = 50;
    let mut stage = Stage::start_with(Kind::Embedded, "[rollout]\nrebuilds_max = 2\n").await;
    stage.publish(1_000).await;
    let client = stage.client().clone();
    let names: Vec<String> = (0..DEPLOYMENTS)
        .map(|number| format!("ledger-{number:02}"))
        .collect();
    for name in &names {
        client.deploy(name, &guests::module("ledger")).await;
    }
    let next = guests::module("ledger-next");
    let deploys = names
        .iter()
        .map(|name| client.deploy_with(name, &next, "&max-rate=2000"));
    futures_util::future::join_all(deploys).await;
    let list: api::RebuildList = client.get("/v1/rebuilds").await.expect(200).json();
    assert_eq!(list.at_once, 2);
    let building = list
        .rebuilds
        .iter()
        .filter(|rebuild| rebuild.place == 0 && rebuild.generation.state.is_some());
    let building = building
        .filter(|rebuild| rebuild.generation.status == GenerationStatus::Building)
        // One that can read the rest while it takes over has given its place to another: at 2,000 events
        // a second and a hold of 250 ms, from event 500 on.
        .filter(|rebuild| rebuild.generation.position < 500)
        .count();
    assert!(building <= 2, "{building} are being built at once");
    let places: Vec<u64> = list.rebuilds.iter().map(|rebuild| rebuild.place).collect();
    assert!(
        places.is_sorted() && list.rebuilds.len() > 10,
        "the queue shows its order: {places:?}"
    );
    let waiting = list.rebuilds.iter().filter(|rebuild| rebuild.place > 0);
    assert!(
        waiting
            .clone()
            .all(|rebuild| rebuild.waits_for.ends_with("ahead of it"))
    );
    assert_eq!(
        waiting.map(|rebuild| rebuild.place).max(),
        list.rebuilds.iter().map(|rebuild| rebuild.place).max()
    );
    for name in &names {
        client.becomes(name, 2, GenerationStatus::Active).await;
        stage.assert_equals_model(name).await;
    }
    let rollbacks = names.iter().map(|name| client.act(name, "rollback"));
    for answer in futures_util::future::join_all(rollbacks).await {
        answer.expect(200);
    }
    stage.publish(100).await;
    for name in &names {
        stage.assert_equals_model(name).await;
        assert_eq!(client.show(name).await.generation, 1);
    }
}

#[tokio::test]
async fn a_deployment_that_is_deleted_while_it_is_rebuilt_is_gone() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(1_000).await;
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger-next"), "&max-rate=100")
        .await;
    let client = stage.client();
    client
        .send(client.request(Method::DELETE, &format!("/v1/deployments/{LEDGER}")))
        .await
        .expect(204);
    client
        .get(&format!("/v1/deployments/{LEDGER}/generations"))
        .await
        .problem(404, "not-found");
    assert!(
        !stage.host.data_dir().join("state").join(LEDGER).exists(),
        "its files are gone"
    );
    stage.deploy_ledger().await;
    stage.assert_ledger_equals_model().await;
}
