//! Every event is applied once and in order, whichever source it comes from.
//!
//! Each claim is stated once and tested on JetStream and on the embedded log.

use foldstream::api::{DeployOutcome, DeploymentState, SourceState};
use foldstream_tests::guests;
use foldstream_tests::stage::{Kind, LEDGER, Stage};

on_both_sources!(
    events_that_were_there_and_events_that_come_are_applied_once_and_in_order,
    an_empty_source_is_live_at_position_zero,
    a_batch_of_any_size_gives_the_same_state,
    a_graceful_stop_loses_nothing_and_repeats_nothing,
    a_second_deployment_gets_everything_from_the_beginning,
    a_paused_deployment_waits_and_resumes_where_it_was,
    the_same_module_again_changes_nothing_and_another_takes_over,
    a_deleted_deployment_is_gone_and_its_name_is_free,
);

async fn events_that_were_there_and_events_that_come_are_applied_once_and_in_order(kind: Kind) {
    let mut stage = Stage::start(kind).await;
    stage.publish(5_000).await;
    stage.deploy_ledger().await;
    stage.assert_ledger_equals_model().await;
    for count in [1, 2, 500, 1, 3_000] {
        stage.publish(count).await;
        stage.assert_ledger_equals_model().await;
    }
    let shown = stage.client().show(LEDGER).await;
    assert_eq!(
        (shown.events_applied, shown.head, shown.lag_events),
        (8_504, Some(8_504), Some(0))
    );
}

async fn an_empty_source_is_live_at_position_zero(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    let client = stage.client();
    let shown = client
        .show_when(LEDGER, "be live", |shown| {
            shown.state == DeploymentState::Live
        })
        .await;
    assert_eq!(
        (shown.position, shown.head, shown.lag_events),
        (0, Some(0), Some(0))
    );
    assert_eq!(shown.source_status.state, SourceState::Reading);
    assert!(
        shown.lag_seconds == Some(0.0) && shown.failure.is_none(),
        "{shown:?}"
    );
    stage.publish(1).await;
    stage.assert_ledger_equals_model().await;
}

async fn a_batch_of_any_size_gives_the_same_state(kind: Kind) {
    for events in [1, 7, 10_000] {
        let mut stage =
            Stage::start_with(kind, &format!("[pipeline]\nbatch_events = {events}\n")).await;
        stage.publish(1_000).await;
        stage.deploy_ledger().await;
        stage.assert_ledger_equals_model().await;
    }
}

async fn a_graceful_stop_loses_nothing_and_repeats_nothing(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    let last = stage.publish(2_000).await;
    stage.client().reached(LEDGER, last).await;
    let status = stage.host.stop();
    assert_eq!(status.code(), Some(0));
    stage.host.restart().await;
    stage.assert_ledger_equals_model().await;
    let shown = stage.client().show(LEDGER).await;
    assert_eq!(
        (shown.events_applied, shown.checkpoint),
        (0, last),
        "a stop flushes, so nothing is applied again"
    );
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
}

async fn a_second_deployment_gets_everything_from_the_beginning(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .deploy("second", &guests::module("ledger"))
        .await;
    stage.publish(500).await;
    stage.assert_equals_model("second").await;
    stage.assert_ledger_equals_model().await;
}

async fn a_paused_deployment_waits_and_resumes_where_it_was(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    let paused_at = stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    let path = |verb: &str| format!("/v1/deployments/{LEDGER}/{verb}");
    stage
        .client()
        .post(&path("pause"), "application/json", "")
        .await
        .expect(200);
    stage
        .client()
        .show_when(LEDGER, "pause", |shown| {
            shown.state == DeploymentState::Paused
        })
        .await;
    stage.publish(100).await;
    stage.host.restart().await;
    let shown = stage
        .client()
        .show_when(LEDGER, "be opened", |shown| {
            shown.state != DeploymentState::Opening
        })
        .await;
    assert_eq!(
        (shown.state, shown.position),
        (DeploymentState::Paused, paused_at),
        "a pause survives a restart"
    );
    stage
        .client()
        .post(&path("resume"), "application/json", "")
        .await
        .expect(200);
    stage.assert_ledger_equals_model().await;
}

async fn the_same_module_again_changes_nothing_and_another_takes_over(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    let last = stage.publish(300).await;
    stage.assert_ledger_equals_model().await;
    let again = stage.deploy_ledger().await;
    assert_eq!(
        (again.outcome, again.deployment.generation),
        (DeployOutcome::Unchanged, 1)
    );
    let other = stage
        .client()
        .deploy(LEDGER, &guests::module("ledger-next"))
        .await;
    assert_eq!(
        (other.outcome, other.generation),
        (DeployOutcome::Rebuilding, 2)
    );
    stage
        .client()
        .show_when(LEDGER, "take over", |shown| shown.generation == 2)
        .await;
    let back = stage.deploy_ledger().await;
    assert_eq!(
        (back.outcome, back.generation),
        (DeployOutcome::Rebuilding, 3)
    );
    let shown = stage
        .client()
        .show_when(LEDGER, "take over", |shown| shown.generation == 3)
        .await;
    assert_eq!(
        (shown.events_applied, shown.position),
        (300, last),
        "a new generation begins at the first event"
    );
    stage.assert_ledger_equals_model().await;
}

async fn a_deleted_deployment_is_gone_and_its_name_is_free(kind: Kind) {
    let mut stage = Stage::with_ledger(kind).await;
    stage.publish(300).await;
    stage.assert_ledger_equals_model().await;
    let client = stage.client();
    let path = format!("/v1/deployments/{LEDGER}");
    client
        .send(client.request(reqwest::Method::DELETE, &path))
        .await
        .expect(204);
    client.get(&path).await.problem(404, "not-found");
    client
        .send(client.request(reqwest::Method::DELETE, &path))
        .await
        .problem(404, "not-found");
    stage.host.restart().await;
    stage.client().get(&path).await.problem(404, "not-found");
    assert_eq!(stage.deploy_ledger().await.outcome, DeployOutcome::Created);
    stage.assert_ledger_equals_model().await;
}
