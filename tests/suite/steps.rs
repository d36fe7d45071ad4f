//! The program kills itself at each named step of a rollout, as `kill -9` would. Started again,
//! exactly one generation serves, the state equals the fold, and what was begun is brought to its
//! end or is as if it had never been.

use foldstream::api::{self, GenerationStatus};
use foldstream_tests::client::Client;
use foldstream_tests::guests;
use foldstream_tests::stage::{Kind, LEDGER, Stage};

/// What leads to a step.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A deploy of another state version.
    Rebuild,
    /// A deploy of the same state version.
    Inherit,
    /// The same of a module that fails.
    InheritAndFail,
    /// A deploy that migrates.
    Migrate,
    /// A rollback to the generation before.
    Rollback,
    /// A rollback to the code that had the same state before.
    HandBack,
    /// A second rebuild, which lets go of what was kept.
    RebuildAgain,
    /// A prune of all that does not serve.
    Prune,
}

/// Every step with a way to it.
const STEPS: [(&str, Way); 19] = [
    ("deploy-module-stored", Way::Rebuild),
    ("deploy-recorded", Way::Rebuild),
    ("deploy-module-stored", Way::Inherit),
    ("deploy-recorded", Way::Inherit),
    ("inherit-recorded", Way::Inherit),
    ("inherit-put-back", Way::InheritAndFail),
    ("migrate-half", Way::Migrate),
    ("migrate-made", Way::Migrate),
    ("build-started", Way::Rebuild),
    ("build-ready", Way::Rebuild),
    ("cut-over-held", Way::Rebuild),
    ("cut-over-recorded", Way::Rebuild),
    ("cut-over-released", Way::Migrate),
    ("cut-over-held", Way::Rollback),
    ("cut-over-recorded", Way::Rollback),
    ("cut-over-released", Way::Rollback),
    ("retire-recorded", Way::RebuildAgain),
    ("prune-recorded", Way::Prune),
    ("hand-back-recorded", Way::HandBack),
];

/// Brings the deployment to where the way begins.
async fn prepare(stage: &Stage, way: Way) {
    if matches!(way, Way::Rollback | Way::RebuildAgain | Way::Prune) {
        stage.deploy_next(2, GenerationStatus::Active).await;
    }
    if matches!(way, Way::HandBack) {
        stage
            .client()
            .deploy(LEDGER, &guests::release("ledger", 5))
            .await;
    }
}

/// Goes the way; the program may die under it at any point.
async fn go(client: &Client, way: Way) {
    let (module, parameters) = match way {
        Way::Rebuild => (guests::module("ledger-next"), ""),
        Way::RebuildAgain => (guests::module("ledger"), ""),
        Way::Inherit => (guests::release("ledger", 5), ""),
        Way::InheritAndFail => (guests::module("ledger-broken"), ""),
        Way::Migrate => (guests::module("ledger-next"), "&strategy=migrate"),
        Way::Rollback | Way::HandBack | Way::Prune => {
            let action = if matches!(way, Way::Prune) {
                "prune?keep=0"
            } else {
                "rollback"
            };
            let path = format!("/v1/deployments/{LEDGER}/{action}");
            // No answer is the answer of the dead.
            let _ = client
                .try_send(client.request(reqwest::Method::POST, &path))
                .await;
            return;
        }
    };
    let request = client.request(
        reqwest::Method::POST,
        &format!("/v1/deployments?name={LEDGER}{parameters}"),
    );
    let _ = client
        .try_send(
            request
                .header("content-type", "application/wasm")
                .body(module),
        )
        .await;
}

async fn killed_at(step: &str, way: Way) {
    eprintln!("{step} by {way:?}");
    let mut stage =
        Stage::start_with(Kind::JetStream, "[state]\nflush_interval = \"20ms\"\n").await;
    stage.deploy_ledger().await;
    stage.publish(1_500).await;
    stage.assert_ledger_equals_model().await;
    prepare(&stage, way).await;
    stage.host.die_at(Some(step));
    stage.host.restart().await;
    stage.client().reached(LEDGER, stage.model.last()).await;
    go(&stage.client().clone(), way).await;
    stage.publish(300).await;
    stage.host.wait_for_death();
    stage.publish(100).await;
    stage.host.die_at(None);
    stage.host.restart().await;
    stage.assert_ledger_equals_model().await;
    settle(stage.client()).await;
    let generations = stage.client().generations(LEDGER).await;
    let active: Vec<_> = generations
        .iter()
        .filter(|generation| generation.status == GenerationStatus::Active)
        .collect();
    assert_eq!(active.len(), 1, "{step}: {generations:?}");
    assert_eq!(
        active[0].number,
        stage.client().show(LEDGER).await.generation,
        "{step}"
    );
    stage.publish(200).await;
    stage.assert_ledger_equals_model().await;
    // Nothing is left that nobody knows of.
    let state_files: std::collections::BTreeSet<String> = generations
        .iter()
        .filter(|generation| generation.status != GenerationStatus::Retired)
        .map(|generation| format!("{}.redb", generation.state_file))
        .collect();
    let folder = stage.host.data_dir().join("state").join(LEDGER);
    let files: std::collections::BTreeSet<String> = std::fs::read_dir(folder)
        .expect("the folder is there")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(
        files.is_subset(&state_files),
        "{step}: {files:?} of {state_files:?}"
    );
    assert_eq!(stage.host.stop().code(), Some(0));
}

/// Waits until nothing is being built any more.
async fn settle(client: &Client) {
    client
        .show_when(LEDGER, "come to rest", |shown: &api::Deployment| {
            shown.candidate.is_none()
        })
        .await;
}

macro_rules! quarters {
    ($($name:ident $part:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            for (step, way) in STEPS.iter().skip($part).step_by(3) {
                killed_at(step, *way).await;
            }
        }
    )*};
}

// Each test takes every third step, so that they run side by side.
quarters! {
    killed_at_a_step_of_a_rollout_one_generation_serves_and_equals_the_fold_1 0;
    killed_at_a_step_of_a_rollout_one_generation_serves_and_equals_the_fold_2 1;
    killed_at_a_step_of_a_rollout_one_generation_serves_and_equals_the_fold_3 2;
}

#[tokio::test]
async fn killed_in_a_partial_rebuild_the_part_is_right_and_the_rest_too() {
    let mut stage = Stage::start(Kind::JetStream).await;
    let last = stage.publish(1_000).await;
    for name in ["tally", "reference"] {
        stage.client().deploy(name, &guests::module("tally")).await;
        stage.client().reached(name, last).await;
    }
    stage.host.die_at(Some("partial-applied"));
    stage.host.restart().await;
    stage.client().reached("tally", last).await;
    let client = stage.client().clone();
    let path = "/v1/deployments/tally/rebuild-part?key=7";
    let _ = client
        .try_send(client.request(reqwest::Method::POST, path))
        .await;
    stage.host.wait_for_death();
    stage.host.die_at(None);
    stage.host.restart().await;
    let last = stage.publish(100).await;
    for name in ["tally", "reference"] {
        stage.client().reached(name, last).await;
    }
    assert_eq!(
        stage.client().entries("tally", "").await,
        stage.client().entries("reference", "").await
    );
}

#[tokio::test]
async fn killed_in_a_delete_nothing_of_it_is_left_for_the_next_of_that_name() {
    let config = "[rollout]\nsnapshot_events = 100\n";
    let mut stage = Stage::start_with(Kind::JetStream, config).await;
    stage.deploy_ledger().await;
    stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    let snapshots = stage.host.data_dir().join("snapshots").join(LEDGER);
    foldstream_tests::wait::until("a snapshot", || async { snapshots.exists().then_some(()) })
        .await;
    stage.host.die_at(Some("delete-recorded"));
    stage.host.restart().await;
    let client = stage.client().clone();
    let path = format!("/v1/deployments/{LEDGER}");
    let _ = client
        .try_send(client.request(reqwest::Method::DELETE, &path))
        .await;
    stage.host.wait_for_death();
    stage.host.die_at(None);
    stage.host.restart().await;
    stage.client().get(&path).await.problem(404, "not-found");
    assert!(!snapshots.exists() && !stage.host.data_dir().join("state").join(LEDGER).exists());
    stage.deploy_ledger().await;
    stage.assert_ledger_equals_model().await;
}

#[test]
fn every_step_is_among_those_that_are_tried() {
    let tried = STEPS.map(|(step, _)| step);
    // Those of a hand-over are tried with handlers.
    let apart = [
        "partial-applied",
        "delete-recorded",
        "skip-recorded",
        "hand-over-copied",
        "hand-over-prepared",
        "hand-over-confirmed",
    ];
    let missing: Vec<_> = foldstream::deployments::crash_points::STEPS
        .iter()
        .filter(|step| !tried.contains(step) && !apart.contains(step))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
