//! Lets a candidate that is built take over, or gives it up.
//!
//! The task that built it stays with it: it compares the candidate if it has a gate, tries to cut
//! over until that works, and records the reason if the candidate fails before.

use std::sync::Arc;
use std::time::Duration;

use super::Rollouts;
use super::candidate::{Since, Stopped, check_ahead, waits_for_operator};
use super::cut_over::Switch;
use super::{build, candidate, cut_over, gate, prune};
use crate::deployment::Deployment;
use crate::deployments::{Error, crash_points};
use crate::progress::DeploymentState;
use crate::runner::Runner;
use crate::state::catalogue::{BuildSettings, Generation, GenerationStatus, Promotion};

/// How far a candidate is if a cut-over folds the rest during its hold.
const CLOSE_ENOUGH: &str = "close enough to the head to take over";
/// Pause after a missed cut-over; it doubles up to the maximum.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Records that a candidate is ready, and lets it take over as soon as it can, if it should.
pub(super) async fn bring_in(rollouts: &Rollouts, deployment: &Arc<Deployment>, number: u64) {
    let mut pause = RETRY_PAUSE.0;
    // Nothing but a retry is possible: the build is done, and only its record is missing.
    while let Err(error) = note_ready(rollouts, deployment, number).await {
        let name = deployment.name();
        tracing::error!(
            deployment = name,
            generation = number,
            %error,
            "could not record that a candidate is ready"
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_PAUSE.1);
    }
    crash_points::reached("build-ready");
    let mut refusals = Refusals::of(deployment, number);
    // The second pause is for the cut-over, and starts short again.
    pause = RETRY_PAUSE.0;
    loop {
        let Some(generation) = candidate::find(deployment, number) else {
            return;
        };
        // Looked at before each attempt: it may have failed at an event since it was ready.
        let runner = deployment.runner(generation.state_file);
        if let Some(stopped) = runner
            .as_ref()
            .and_then(|runner| Stopped::of(runner, deployment.name()))
        {
            if give_up(rollouts, deployment, number, &stopped).await {
                return;
            }
            continue;
        }
        let stops = async {
            match &runner {
                Some(runner) => runner.wait_until_stopped().await,
                None => std::future::pending().await,
            }
        };
        // Nothing to do but to watch it, for as long as the operator takes.
        if waits_for_operator(&generation) {
            refusals = Refusals::of(deployment, number);
            // It may fail, or get another gate, before anybody promotes it.
            tokio::select! {
                () = stops => {}
                () = candidate::until(deployment, number, |candidate| !waits_for_operator(candidate)) => {}
            }
            pause = RETRY_PAUSE.0;
            continue;
        }
        let done = match generation.build.promote {
            // With promotion by hand only the comparison is left to do.
            Promotion::Manual => gate::pass(rollouts, deployment, number).await,
            Promotion::Auto => try_to_take_over(rollouts, deployment, number).await,
        };
        match done {
            // It passed its gate, and is watched until somebody promotes it.
            Ok(()) if generation.build.promote == Promotion::Manual => continue,
            Ok(()) => return,
            // Another attempt would find the same; an operator accepts it, or aborts.
            Err(Error::Lacking { events, message }) => {
                deployment.note_held_back(number, Some(message.clone()));
                let lack = Lack { events, message };
                if hold_back(rollouts, deployment, number, lack).await {
                    let is_free = |candidate: &Generation| candidate.lacks_events == 0;
                    tokio::select! {
                        () = stops => {}
                        () = candidate::until(deployment, number, is_free) => {}
                    }
                    refusals = Refusals::of(deployment, number);
                    pause = RETRY_PAUSE.0;
                    continue;
                }
            }
            Err(error) => refusals.note(deployment, number, &error),
        }
        // It only observes: a failed candidate is given up at once.
        let _ = tokio::time::timeout(pause, stops).await;
        pause = (pause * 2).min(RETRY_PAUSE.1);
    }
}

/// What keeps a candidate from taking over, attempt by attempt.
#[derive(Default)]
struct Refusals {
    attempts: u64,
    /// What was logged last.
    logged: String,
}

impl Refusals {
    /// Nothing yet.
    fn of(deployment: &Deployment, number: u64) -> Self {
        deployment.note_held_back(number, None);
        Self::default()
    }

    /// Shows what the last attempt has found, and logs it when it begins.
    fn note(&mut self, deployment: &Deployment, number: u64, error: &Error) {
        self.attempts += 1;
        // A first attempt may come too early, for example during a batch; the next one follows at
        // once.
        if self.attempts == 1 || matches!(error, Error::Stopping) {
            return;
        }
        let reason = Stopped::because(error).reason;
        // Figures in it may change with each attempt.
        let without_figures = reason.replace(|character: char| character.is_ascii_digit(), "");
        if self.logged != without_figures {
            self.logged = without_figures;
            tracing::warn!(
                deployment = deployment.name(),
                generation = number,
                reason,
                "a candidate does not take over yet; the active generation keeps serving"
            );
        }
        deployment.note_held_back(number, Some(reason));
    }
}

async fn note_ready(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
) -> Result<(), Error> {
    // The host stops, or the deployment is gone: there is nothing left to record.
    let Ok(_changing) = rollouts.deployments.lock(deployment).await else {
        return Ok(());
    };
    let Some(candidate) = candidate::find(deployment, number) else {
        return Ok(());
    };
    if candidate.status == GenerationStatus::Ready {
        // It was ready before the host restarted, and the reason why it waits still applies.
        return Ok(());
    }
    let mut record = deployment.draft();
    let generation = record
        .generation_mut(number)
        .expect("it was just looked at");
    let runner = deployment.runner(generation.state_file);
    let mut reason = match runner {
        Some(runner) => how_far(deployment, generation, &runner),
        None => CLOSE_ENOUGH.to_owned(),
    };
    if generation.build.promote == Promotion::Manual {
        reason.push_str("; waits to be promoted");
    }
    generation.enter(GenerationStatus::Ready, reason);
    rollouts
        .deployments
        .commit(deployment, record, "ready", format!("generation {number}"))
        .await
}

/// How far a candidate is that is ready, in words.
fn how_far(deployment: &Deployment, candidate: &Generation, runner: &Runner) -> String {
    let now = runner.now();
    let is_with_lead = candidate::is_with_lead(deployment, candidate.number, runner);
    let is_at_end = now.begun && now.pending == 0;
    match candidate.lost_effects_after {
        _ if now.state == DeploymentState::Live || (is_with_lead && is_at_end) => {
            "caught up".to_owned()
        }
        Some(after) if is_with_lead => format!("folded up to {after}, from where it publishes"),
        None if is_with_lead => "folded as far as the active generation".to_owned(),
        _ => CLOSE_ENOUGH.to_owned(),
    }
}

/// Why a candidate does not take over.
struct Lack {
    /// How many events it lacks, at least.
    events: u64,
    message: String,
}

/// Records that a candidate is ready, and which events keep it from taking over; returns whether
/// it could.
async fn hold_back(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
    Lack { events, message }: Lack,
) -> bool {
    tracing::warn!(
        deployment = deployment.name(),
        generation = number,
        reason = message,
        "a candidate does not take over; the active generation keeps serving"
    );
    let noted = async {
        let _changing = rollouts.deployments.lock(deployment).await?;
        let mut record = deployment.draft();
        let candidate = record
            .generation_mut(number)
            .filter(|candidate| candidate.status.is_candidate());
        // Accepted, or gone, since the attempt.
        let Some(candidate) = candidate.filter(|candidate| !candidate.may_lack()) else {
            return Ok(());
        };
        candidate.lacks_events = events;
        candidate.enter(GenerationStatus::Ready, message.as_str());
        let detail = format!("generation {number}: {message}");
        rollouts
            .deployments
            .commit(deployment, record, "held-back", detail)
            .await
    };
    let noted: Result<(), Error> = noted.await;
    if let Err(error) = noted.as_ref()
        && !rollouts.deployments.is_stopping()
    {
        tracing::error!(
            deployment = deployment.name(),
            %error,
            "could not record why a candidate does not take over yet"
        );
    }
    noted.is_ok()
}

/// One attempt to take over.
async fn try_to_take_over(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
) -> Result<(), Error> {
    let Some(candidate) = candidate::find(deployment, number) else {
        return Ok(());
    };
    // A comparison counts only against the generation that is active now.
    let must_pass = |candidate: &Generation, active: u64| {
        let passed = candidate.comparison.as_ref();
        candidate.build.gate.is_some()
            && !passed
                .is_some_and(|comparison| comparison.refused == 0 && comparison.against == active)
    };
    check_moving(deployment, &candidate)?;
    if must_pass(&candidate, deployment.record().active) {
        // Without the lock, which `gate::pass` takes itself, and only for its beginning and end.
        gate::pass(rollouts, deployment, number).await?;
    }
    // Everything is checked again: during the comparison others could change the deployment.
    let _changing = rollouts.deployments.lock(deployment).await?;
    let Some(candidate) = candidate::find(deployment, number) else {
        return Ok(());
    };
    check_moving(deployment, &candidate)?;
    if must_pass(&candidate, deployment.record().active) {
        return Err(Error::Conflict(
            "another generation became active since the comparison".to_owned(),
        ));
    }
    cut_over::switch(rollouts, deployment, number, Switch::CutOver)
        .await
        .map(drop)
}

/// A candidate does not take over if it or the deployment is paused.
fn check_moving(deployment: &Deployment, candidate: &Generation) -> Result<(), Error> {
    if deployment.record().active().paused {
        let name = deployment.name();
        return Err(Error::Conflict(format!(
            "{name} is paused; it takes over after `foldstream resume {name}`, or with `foldstream \
             promote {name}`"
        )));
    }
    match deployment.runner(candidate.state_file) {
        Some(runner) if runner.is_running() => check_ahead(&deployment.active(), &runner),
        _ => Err(Error::Conflict(format!(
            "generation {} is paused or failed; `foldstream resume {name} --candidate` continues \
             it, and `foldstream abort {name}` discards it",
            candidate.number,
            name = deployment.name()
        ))),
    }
}

/// Records that a candidate has failed; returns whether the caller has nothing more to drive. It
/// has if an operator let the candidate continue before that was recorded.
pub(super) async fn give_up(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
    stopped: &Stopped,
) -> bool {
    let reason = stopped.reason.as_str();
    tracing::warn!(
        deployment = deployment.name(),
        generation = number,
        reason,
        "a candidate failed; the active generation keeps serving"
    );
    let mut pause = RETRY_PAUSE.0;
    loop {
        // Until it is recorded, the candidate would be driven again after a restart, so retry.
        match note_failed(rollouts, deployment, number, stopped).await {
            Ok(since) => return !matches!(since, Since::Continued),
            Err(error) => tracing::error!(
                deployment = deployment.name(),
                %error,
                "could not record the failure of a candidate yet"
            ),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_PAUSE.1);
    }
}

async fn note_failed(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
    stopped: &Stopped,
) -> Result<Since, Error> {
    // The host stops, or the deployment is gone. A host that starts again drives it again.
    let Ok(_changing) = rollouts.deployments.lock(deployment).await else {
        return Ok(Since::Replaced);
    };
    let Some(candidate) = candidate::find(deployment, number) else {
        return Ok(Since::Replaced);
    };
    // Seen before the lock: an operator may have resumed it meanwhile.
    let since = stopped.since(deployment.runner(candidate.state_file).as_ref());
    if matches!(since, Since::Stopped) {
        record_failure(rollouts, deployment, number, stopped).await?;
    }
    Ok(since)
}

/// Records the failure of a candidate that an event has stopped, if the task that drives it has not
/// done so yet: then it continues like every other one. The caller holds the deployment's lock.
pub(super) async fn note_stopped(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
) -> Result<(), Error> {
    let stopped = deployment.with_record(|record| {
        let candidate = record.candidate()?;
        let runner = deployment.runner(candidate.state_file)?;
        Some((candidate.number, Stopped::of(&runner, deployment.name())?))
    });
    match stopped {
        Some((number, stopped)) if stopped.sequence.is_some() => {
            record_failure(rollouts, deployment, number, &stopped).await
        }
        _ => Ok(()),
    }
}

/// The caller holds the deployment's lock.
async fn record_failure(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
    stopped: &Stopped,
) -> Result<(), Error> {
    let reason = stopped.reason.as_str();
    let mut record = deployment.draft();
    let generation = record
        .generation_mut(number)
        .expect("it was just looked at");
    generation.enter(GenerationStatus::Failed, reason);
    // Its file is removed if no event stopped it: nothing will continue it, and it may fill the
    // disk.
    generation.failed_at = stopped.sequence;
    generation.failure = deployment
        .runner(generation.state_file)
        .and_then(|runner| runner.now().failure)
        .map(Into::into);
    let (is_stopped, state_file) = (generation.is_stopped_candidate(), generation.state_file);
    rollouts
        .deployments
        .commit(
            deployment,
            record,
            "candidate-failed",
            format!("generation {number}: {reason}"),
        )
        .await?;
    // The commit comes first: if it fails, the runner still shows why it stopped.
    if is_stopped && let Some(runner) = deployment.take_runner(state_file) {
        prune::end_runner(runner).await;
    }
    prune::end_unused(rollouts, deployment).await;
    Ok(())
}

/// Continues a candidate that an event stopped, from its state. The caller holds the
/// deployment's lock.
pub(super) async fn revive(
    rollouts: &Arc<Rollouts>,
    deployment: &Arc<Deployment>,
    number: u64,
) -> Result<(), Error> {
    let mut record = deployment.draft();
    let generation = record
        .generation_mut(number)
        .expect("the caller took it from the record");
    // Both are shown again only if the event fails again.
    (generation.failure, generation.failed_at) = (None, None);
    generation.paused = false;
    generation.enter(
        GenerationStatus::Building,
        "continues at the event that stopped it",
    );
    rollouts
        .deployments
        .commit(deployment, record, "resume", format!("generation {number}"))
        .await?;
    build::drive(rollouts, deployment, number);
    Ok(())
}

/// If the same module is deployed again with another gate, gives the candidate that gate and
/// compares it again, and returns what the reason of the deploy says about that.
pub(super) async fn ask_candidate_again(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
    build: BuildSettings,
) -> Result<Option<&'static str>, Error> {
    let mut record = deployment.draft();
    let candidate = record
        .generation_mut(number)
        .filter(|generation| generation.status.is_candidate());
    let Some(candidate) = candidate.filter(|_| build.gate.is_some()) else {
        return Ok(None);
    };
    candidate.build.gate = build.gate;
    candidate.build.promote = build.promote;
    // The old comparison was made for the old gate, and would let it pass or hold it back.
    candidate.comparison = None;
    // It is tried again, whatever kept it from taking over.
    candidate.lacks_events = 0;
    rollouts
        .deployments
        .commit(
            deployment,
            record,
            "compare-again",
            format!("generation {number}"),
        )
        .await?;
    Ok(Some("; it will be compared again with the new gate"))
}
