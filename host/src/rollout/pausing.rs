//! Pausing and resuming: an operator stops a generation, or lets it continue.

use std::sync::Arc;
use std::time::Duration;

use super::{BEGIN_MAX, Locked, Rollouts, take_over};
use crate::deployment::Deployment;
use crate::deployments::{Error, GenerationChoice};
use crate::exceptions::{WantedSkips, failure_noted};
use crate::overview;
use crate::progress::DeploymentState;
use crate::state::catalogue::GenerationStatus;

/// How long the response to a pause or a resume waits until it can confirm the new state.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// What happens to applying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PauseChange {
    Pause,
    Resume,
}

/// On which terms a generation continues.
#[derive(Debug)]
pub(crate) struct ResumeTerms {
    /// Events that it skips from now on.
    pub skips: Option<WantedSkips>,
    /// Continue without events that are gone from the stream.
    pub accept_missing: bool,
}

/// Waits briefly until the candidate has begun, or its failure is recorded. One that is queued
/// behind other rebuilds is not waited for. Cancel-safe: it only observes.
async fn candidate_begins(deployment: &Deployment) {
    let begun = async {
        let runner = deployment.until(|record| {
            let state_file = record.candidate().map(|candidate| candidate.state_file);
            let runner = state_file.and_then(|file| deployment.runner(file));
            let is_over = state_file.is_none_or(|file| deployment.is_queued(file));
            (runner.is_some() || is_over).then_some(runner)
        });
        if let Some(runner) = runner.await.flatten() {
            // The task that drives it lets it continue.
            let before = runner.now();
            if before.state == DeploymentState::Paused {
                runner.wait_until_settled(&before, SETTLE_MAX).await;
            }
            runner.wait_until_begun(BEGIN_MAX).await;
            failure_noted(deployment).await;
        }
    };
    let _ = tokio::time::timeout(BEGIN_MAX, begun).await;
}

impl Rollouts {
    /// Pauses the deployment, or its candidate. It keeps answering reads, and stays paused across
    /// restarts.
    pub async fn pause(
        &self,
        name: &str,
        choice: GenerationChoice,
    ) -> Result<overview::Deployment, Error> {
        let deployment = self.deployments.get(name)?;
        let _changing = self.deployments.lock(&deployment).await?;
        note_pause(self, &deployment, choice, PauseChange::Pause).await
    }

    /// Continues after a pause or a failure.
    pub(crate) async fn resume(
        self: &Arc<Self>,
        name: &str,
        choice: GenerationChoice,
        terms: ResumeTerms,
    ) -> Result<overview::Deployment, Error> {
        let deployment = self.deployments.get(name)?;
        // Before the lock: the task that records the failure needs it.
        if choice == GenerationChoice::Candidate {
            failure_noted(&deployment).await;
        }
        let changing = self.deployments.lock(&deployment).await?;
        let locked = Locked {
            deployment: &deployment,
            changing,
        };
        resume_locked(self, locked, choice, terms).await?;
        Ok(deployment.info())
    }
}

/// Continues a generation under the deployment's lock. All of it under one: a candidate whose
/// losses are accepted would take over before it was resumed.
pub(super) async fn resume_locked(
    rollouts: &Arc<Rollouts>,
    locked: Locked<'_>,
    choice: GenerationChoice,
    terms: ResumeTerms,
) -> Result<(), Error> {
    let Locked {
        deployment,
        changing,
    } = locked;
    // First, because it may be refused: then no loss is accepted either.
    if let Some(wanted) = terms.skips {
        // Boxed, because a request without skips should not carry its large future.
        Box::pin(rollouts.exceptions.decide(deployment, choice, &wanted)).await?;
    }
    // Before the rest, which reads what was accepted.
    if terms.accept_missing {
        accept_missing(rollouts, deployment, choice).await?;
    }
    let is_candidate = choice == GenerationChoice::Candidate;
    if is_candidate {
        // It may have stopped since the wait before the lock.
        take_over::note_stopped(rollouts, deployment).await?;
    }
    // One that an event stopped has no runner any more, and continues from its file.
    if is_candidate && let Some(stopped) = deployment.record().stopped_candidate() {
        take_over::revive(rollouts, deployment, stopped.number).await?;
    } else {
        note_pause(rollouts, deployment, choice, PauseChange::Resume).await?;
    }
    // Without the lock: the first batch may take as long as its deadline.
    drop(changing);
    match choice {
        GenerationChoice::Active => deployment.active().wait_until_begun(BEGIN_MAX).await,
        GenerationChoice::Candidate => candidate_begins(deployment).await,
    }
    Ok(())
}

/// Records that events missing from the stream up to its current head may be passed over. A
/// candidate may also take over without events of the active generation that are gone. The caller
/// holds the deployment's lock.
pub(super) async fn accept_missing(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    choice: GenerationChoice,
) -> Result<(), Error> {
    let mut record = deployment.draft();
    let number = match (choice, record.stopped_candidate()) {
        // It continues from its file.
        (GenerationChoice::Candidate, Some(stopped)) => stopped.number,
        _ => choice.of(&record)?.number,
    };
    let generation = record.generation_mut(number).expect("it was just found");
    // The head of now: what goes missing later stops it again.
    let through = rollouts
        .history
        .end_of(&generation.source)
        .await?
        .max(generation.accepts_missing_through);
    generation.accepts_missing_through = through;
    if choice == GenerationChoice::Candidate {
        (generation.accepts_lost, generation.lacks_events) = (true, 0);
    }
    let state_file = generation.state_file;
    let detail = format!("generation {number}: events up to {through} may be missing");
    rollouts
        .deployments
        .commit(deployment, record, "accept-missing", detail)
        .await?;
    // After the commit: what it passes over must be accepted by the record as well.
    if let Some(runner) = deployment.runner(state_file) {
        runner.accept_missing(through);
    }
    Ok(())
}

/// The caller holds the deployment's lock.
async fn note_pause(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    choice: GenerationChoice,
    change: PauseChange,
) -> Result<overview::Deployment, Error> {
    let paused = change == PauseChange::Pause;
    let mut record = deployment.draft();
    let number = choice.of(&record)?.number;
    let generation = record.generation_mut(number).expect("it was just found");
    generation.paused = paused;
    // A candidate continues when its turn in the queue comes; the task that drives it takes
    // care of that.
    let has_driver = !paused && generation.status == GenerationStatus::Building;
    let runner = deployment
        .runner(generation.state_file)
        .filter(|_| !has_driver);
    let action = if paused { "pause" } else { "resume" };
    // Read before the request, so that `settles` can see the change.
    let before = runner.as_ref().map(|runner| runner.now());
    // What readers saw is made durable before the pause is: a restart finds no older state to
    // rest at.
    if let Some((runner, before)) = runner.as_ref().zip(before.as_ref()).filter(|_| paused) {
        runner.pause();
        runner.wait_until_settled(before, SETTLE_MAX).await;
    }
    let committed = rollouts
        .deployments
        .commit(deployment, record, action, format!("generation {number}"))
        .await;
    if let Some((runner, before)) = runner.as_ref().zip(before.as_ref()) {
        // A pause that could not be recorded is not a pause.
        if committed.is_ok() != paused {
            runner.resume();
            runner.wait_until_settled(before, SETTLE_MAX).await;
        }
    }
    // The runner is as it was before.
    committed?;
    Ok(deployment.info())
}
