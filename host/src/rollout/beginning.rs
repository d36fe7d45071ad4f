//! Where a state began, in the record of its deployment: if its file is lost, the state that is built
//! again begins at the same place, and misses what is gone since.

use std::sync::Arc;
use std::time::Duration;

use super::Rollouts;
use crate::deployment::Deployment;
use crate::deployments::Error;
use crate::position::Start;
use crate::runner::Runner;
use crate::state::catalogue::{Generation, Record};

/// Pause before the record is written again after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Records where the active state began as soon as its file says so, if it began at the first
/// event that its stream had.
pub(super) fn note_beginning(rollouts: &Arc<Rollouts>, deployment: &Arc<Deployment>) {
    let state_file = deployment.with_record(|record| record.active().state_file);
    if deployment.with_record(|record| !is_wanted(record, state_file)) {
        return;
    }
    let (rollouts, deployment) = (Arc::clone(rollouts), Arc::clone(deployment));
    // It ends with the deployment, and there is one for each.
    tokio::spawn(async move {
        let runner = deployment.active();
        let is_over = |record: &Record| (!is_wanted(record, state_file)).then_some(());
        // Both only observe. The first ends as well if the deployment is deleted or the host
        // stops.
        let begun = tokio::select! {
            biased;
            _ = deployment.until(is_over) => return,
            begun = begun_after(&runner) => begun,
        };
        while !deployment.is_gone() {
            let Err(error) = note_begun(&rollouts, &deployment, state_file, begun).await else {
                break;
            };
            tracing::warn!(
                deployment = deployment.name(),
                %error,
                "could not record yet where the state began"
            );
            tokio::time::sleep(RETRY).await;
        }
        runner.set_begins_after(begun);
    });
}

/// Warns of an active state without a file, which is built again from the stream.
pub(super) fn warn_of_lost_file(rollouts: &Rollouts, record: &Record, active: &Generation) {
    let path = rollouts
        .deployments
        .folder
        .state(&record.name, active.state_file);
    if !path.exists() {
        tracing::warn!(
            deployment = record.name,
            generation = active.number,
            file = %path.display(),
            after = active.begins_after,
            "the state has no file and is built again from the stream"
        );
    }
}

async fn note_begun(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    state_file: u64,
    begun: u64,
) -> Result<(), Error> {
    let _changing = rollouts.deployments.lock(deployment).await?;
    let mut record = deployment.draft();
    if !is_wanted(&record, state_file) {
        return Ok(());
    }
    begin_at(&mut record, state_file, begun);
    let detail = format!("after {begun}");
    rollouts
        .deployments
        .commit(deployment, record, "begun", detail)
        .await
}

/// Copies to a record where the state of a runner began, as far as that is durable in its file.
pub(super) fn copy(runner: &Runner, state_file: u64, record: &mut Record) {
    let durable = runner.store().and_then(|store| store.checkpoint());
    if let Some(begun) = durable.and_then(|known| known.begins_after) {
        begin_at(record, state_file, begun);
    }
}

/// Sets in a record where a state began, for all generations that share it.
fn begin_at(record: &mut Record, state_file: u64, begun: u64) {
    let began_there = record.generations.iter_mut().filter(|generation| {
        generation.state_file == state_file && generation.start == Start::FirstAvailable
    });
    for generation in began_there {
        generation.begins_after.get_or_insert(begun);
    }
}

/// Whether the record of the active generation lacks where its state began.
fn is_wanted(record: &Record, state_file: u64) -> bool {
    let active = record.active();
    active.state_file == state_file
        && active.start == Start::FirstAvailable
        && active.begins_after.is_none()
}

/// The sequence after which a state began, once that is durable in its file. Cancel-safe: it only
/// observes.
async fn begun_after(runner: &Runner) -> u64 {
    loop {
        // Without the store itself, which could not be opened again while somebody holds it.
        let mut checkpoints = runner
            .until(|runner| Some(runner.store()?.checkpoints()))
            .await;
        let begun = checkpoints
            .wait_for(|durable| {
                let begun = durable.as_ref().and_then(|known| known.begins_after);
                begun.is_some()
            })
            .await
            .map(|durable| durable.as_ref().and_then(|known| known.begins_after));
        // The store was closed: the runner opens it again.
        if let Ok(Some(begun)) = begun {
            return begun;
        }
    }
}
