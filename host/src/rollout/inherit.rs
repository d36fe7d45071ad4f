//! Inheriting: new code continues the existing state.
//!
//! The new module takes over at a batch boundary, in one commit of the catalogue, and is on
//! probation for its first batches. If it fails in them, the previous code is restored, and
//! continues at the event at which the new one failed.

use std::sync::Arc;
use std::time::Duration;

use super::deploy::Upload;
use super::{BEGIN_MAX, Rollouts, deploy, prune};
use crate::deployment::Deployment;
use crate::deployments::{Error, Role, crash_points, owners};
use crate::pipeline::Ceiling;
use crate::runner::{NotLoaded, Runner};
use crate::state::catalogue::{EventChecks, Generation, GenerationStatus, Record};

/// Events that end a probation: more than the largest batch, so that the module has applied more
/// than one.
const PROBATION_EVENTS: u64 = 10_000;
/// A probation also ends after this many events if no more are waiting.
const PROBATION_EVENTS_LIVE: u64 = 100;
/// Pause after the end of a probation could not be recorded.
const RETRY: Duration = Duration::from_secs(1);
/// How long code with other subjects waits for the previous code to finish its batch.
const HOLD_MAX: Duration = Duration::from_secs(10);

/// A runner that is held at its position. Dropping it releases the runner.
pub(super) struct Held {
    runner: Arc<Runner>,
    pub(super) position: u64,
}

impl Held {
    pub(super) async fn at(runner: &Arc<Runner>) -> Result<Self, Error> {
        // Made before the hold, so that the ceiling is lifted if the wait fails.
        let mut held = Self {
            runner: Arc::clone(runner),
            position: 0,
        };
        let change = runner.set_ceiling(Ceiling::Position(0));
        let position = tokio::time::timeout(HOLD_MAX, runner.held_at(change)).await;
        let busy = |_| {
            Error::NotOpen(
                "the active generation did not finish its batch in time; try again".to_owned(),
            )
        };
        held.position = position.map_err(busy)?;
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.runner.set_ceiling(Ceiling::None);
    }
}

/// Puts a module on the state of the active generation. The caller holds the deployment's lock.
pub(super) async fn begin(
    rollouts: &Arc<Rollouts>,
    deployment: &Arc<Deployment>,
    upload: Upload,
    mut generation: Generation,
) -> Result<(), Error> {
    let runner = deployment.active();
    // After a start of the host, its code has yet to meet the event at which it stopped.
    runner.wait_until_begun(BEGIN_MAX).await;
    // Known only now if the host has just started.
    owners::check_owner(&deployment.record(), &runner)?;
    let now = runner.now();
    let failing_at = now.failing_at();
    let is_unknown = !now.begun && failing_at.is_none();
    let differs = deployment.record().active().module.subjects != generation.module.subjects;
    // If the subjects differ, the state has all their events from the position at which the
    // code changes. Checks begin there as well: the previous code decided about earlier events.
    let checks = generation.event_checks() == EventChecks::On;
    let held = if differs || checks {
        Some(Held::at(&runner).await?)
    } else {
        None
    };
    // Read after the hold, which may have taken a while.
    let mut record = deployment.draft();
    retire_candidates(&mut record, generation.number);
    let active = record.active_mut();
    let reason = generation.reason.clone();
    // Code that has not finished its probation is nothing to roll back to.
    let was_doubted = std::mem::take(&mut active.on_probation);
    // Remembered across restarts: whether the new code passes that event decides its probation.
    active.failed_at = failing_at.or(active.failed_at);
    let left = if was_doubted {
        GenerationStatus::Retired
    } else {
        GenerationStatus::Previous
    };
    active.enter(
        left,
        format!("generation {} inherited its state", generation.number),
    );
    generation.state_file = active.state_file;
    generation.serves_from = active.serves_from;
    generation.paused = active.paused;
    let held_at = held.as_ref().map(|held| held.position);
    generation.subjects_from = held_at.filter(|_| differs).unwrap_or(active.subjects_from);
    generation.checks_events_after = held_at.filter(|_| checks);
    generation.releases_before = releases_of(&runner);
    generation.on_probation = true;
    generation.replaced_unbegun_at = is_unknown.then(|| runner.position());
    generation.enter(GenerationStatus::Active, reason);
    let number = generation.number;
    let program = rollouts.runners.program(
        &record,
        &generation,
        Ok(upload.loaded.module),
        Role::TAKES_OVER,
    );
    record.add(generation);
    record.active = number;
    prune::limit_previous(rollouts, &mut record);
    deploy::store(rollouts, &upload.accepted, &record, "inherit").await?;
    deployment.set_record(record);
    crash_points::reached("inherit-recorded");
    deployment.active().take_over(program);
    drop(held);
    watch_probation(rollouts, deployment, number);
    prune::end_unused(rollouts, deployment).await;
    Ok(())
}

fn retire_candidates(record: &mut Record, by: u64) {
    let candidates = record.generations.iter_mut();
    for candidate in candidates.filter(|other| other.status.is_candidate()) {
        candidate.enter(
            GenerationStatus::Retired,
            format!("replaced by generation {by}"),
        );
    }
}

/// Watches the first batches of a generation that inherited its state.
pub(crate) fn watch_probation(rollouts: &Arc<Rollouts>, deployment: &Arc<Deployment>, number: u64) {
    let (rollouts, deployment) = (Arc::clone(rollouts), Arc::clone(deployment));
    tokio::spawn(async move {
        // Only events that this code applied count.
        let runner = deployment.active();
        let begun = runner.now().applied;
        loop {
            let is_over = |record: &Record| {
                let is_on_probation = record.active == number && record.active().on_probation;
                (!is_on_probation || !Arc::ptr_eq(&deployment.active(), &runner)).then_some(())
            };
            // A change of the record comes first: another task has then ended the probation.
            // A runner that is not active any more was replaced by a cut-over, which ends the
            // probation.
            let verdict = tokio::select! {
                biased;
                _ = deployment.until(is_over) => return,
                verdict = runner.until_figures(|runner| verdict(&deployment, runner, number, begun)) => verdict,
            };
            let ended = match verdict {
                Verdict::Passed => pass_probation(&rollouts, &deployment, number).await,
                Verdict::Failed(failure) => {
                    restore_previous(&rollouts, &deployment, number, &failure).await
                }
            };
            let Err(error) = ended else { return };
            let name = deployment.name();
            tracing::error!(
                deployment = name,
                generation = number,
                %error,
                "could not end the probation yet"
            );
            // The record could not be written; the verdict will be the same.
            tokio::time::sleep(RETRY).await;
        }
    });
}

async fn pass_probation(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
) -> Result<(), Error> {
    let _changing = rollouts.deployments.lock(deployment).await?;
    let mut record = deployment.draft();
    // A rollback or a cut-over came first.
    if record.active != number {
        return Ok(());
    }
    record.active_mut().on_probation = false;
    prune::limit_previous(rollouts, &mut record);
    rollouts
        .deployments
        .commit(
            deployment,
            record,
            "inherit-passed",
            format!("generation {number}"),
        )
        .await?;
    deployment.active().pass_probation();
    prune::end_unused(rollouts, deployment).await;
    Ok(())
}

/// Restores the previous code.
async fn restore_previous(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
    failure: &str,
) -> Result<(), Error> {
    let _changing = rollouts.deployments.lock(deployment).await?;
    let mut record = deployment.draft();
    if record.active != number {
        return Ok(());
    }
    let is_fix = has_mended(&record, &deployment.active());
    let Some(before) = record.to_restore().filter(|_| !is_fix).cloned() else {
        tracing::error!(
            deployment = deployment.name(),
            generation = number,
            failure,
            "failed on the state that it inherited, and there is no previous code to restore; \
             deploy a corrected module"
        );
        record.active_mut().on_probation = false;
        rollouts
            .deployments
            .commit(
                deployment,
                record,
                "inherit-kept",
                format!("generation {number}: {failure}"),
            )
            .await?;
        deployment.active().pass_probation();
        return Ok(());
    };
    let (runners, digest) = (Arc::clone(&rollouts.runners), before.module.digest.clone());
    let module = crate::actor::blocking(move || runners.load(&digest))
        .await
        .map_err(NotLoaded::Failed);
    let failed = record.active_mut();
    failed.on_probation = false;
    failed.failed_at = deployment.active().now().failing_at();
    failed.enter(
        GenerationStatus::Failed,
        format!("generation {} was restored: {failure}", before.number),
    );
    record.active = before.number;
    let reason = format!("restored, because generation {number} failed on its state: {failure}");
    if record
        .generation(number)
        .is_some_and(|failed| failed.module.subjects != before.module.subjects)
    {
        // It did not see events of its own subjects meanwhile.
        record.active_mut().subjects_from = deployment.active().position();
    }
    if let Some(after) = &mut record.active_mut().checks_events_after {
        // The failed code decided about the events until now.
        *after = deployment.active().position();
    }
    record
        .active_mut()
        .enter(GenerationStatus::Active, reason.clone());
    let program = rollouts
        .runners
        .program(&record, record.active(), module, Role::TAKES_OVER);
    rollouts
        .deployments
        .commit(deployment, record, "put-back", reason)
        .await?;
    crash_points::reached("inherit-put-back");
    let runner = deployment.active();
    runner.take_over(program);
    tracing::warn!(
        deployment = deployment.name(),
        generation = number,
        failure,
        "failed on the state that it inherited; the previous code was restored"
    );
    Ok(())
}

/// How a probation ends.
enum Verdict {
    Passed,
    /// The failure, in words.
    Failed(String),
}

/// The verdict on a generation on probation, if there is one yet; `begun` is what its runner had
/// applied before.
fn verdict(deployment: &Deployment, runner: &Runner, number: u64, begun: u64) -> Option<Verdict> {
    let now = runner.now();
    // Without a run of its own there is nothing to judge yet: the failure may be the one this
    // version fixes.
    if now.generation != number || !now.has_started() {
        return None;
    }
    let applied = now.applied - begun;
    // The new code applied an event that the previous code could not: restoring that would undo the
    // fix.
    let is_fix = deployment.with_record(|record| has_mended(record, runner));
    let has_applied =
        applied >= PROBATION_EVENTS || (applied >= PROBATION_EVENTS_LIVE && now.pending == 0);
    if is_fix || (has_applied && now.failure.is_none()) {
        return Some(Verdict::Passed);
    }
    // A failing disk or stream says nothing about the code.
    let has_failed = now.has_stopped() && now.failing_at().is_some();
    has_failed.then(|| {
        Verdict::Failed(
            now.failure
                .map(|failure| failure.message)
                .unwrap_or_default(),
        )
    })
}

/// Whether the code on probation applied an event that the previous code could not: the one at which
/// that had stopped, or one that it had parked; or any event, if nobody knows where that had stopped.
fn has_mended(record: &Record, runner: &Runner) -> bool {
    // A skipped event was not fixed by anybody.
    let is_folded = |at: &u64| !record.skips.iter().any(|skip| skip.has(*at));
    let before = record
        .to_restore()
        .and_then(|before| before.failed_at)
        .filter(is_folded);
    let position = runner.position();
    let active = record.active();
    before.is_some_and(|failed_at| position >= failed_at)
        || active.replaced_unbegun_at.is_some_and(|at| position > at)
        || releases_of(runner) > active.releases_before
}

/// How many releases of parked events its state has.
pub(super) fn releases_of(runner: &Runner) -> u64 {
    runner.store().map_or(0, |store| store.releases_count())
}
