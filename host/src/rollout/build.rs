//! Builds a candidate alongside the active generation, until it can take over (`take_over.rs`).
//!
//! One task drives a candidate: it waits for its turn, starts the runner, and checks its progress.
//! It records each step in the catalogue, so that a restarted host continues from there.

use std::sync::Arc;
use std::time::Duration;

use super::Rollouts;
use super::candidate::{Built, Pace, Stopped};
use super::{candidate, disk_space, migrate, prune, take_over};
use crate::actor::blocking;
use crate::deployment::Deployment;
use crate::deployments::{Error, Role, crash_points, owners};
use crate::module::{Accepted, Module};
use crate::position::Start;
use crate::progress::DeploymentState;
use crate::runner::Runner;
use crate::state::catalogue::{
    BuildSettings, EventChecks, Generation, GenerationStatus, Promotion, Record, Strategy,
};

/// How often a candidate checks for room on a full disk, which nobody announces.
const ROOM_LOOK: Duration = Duration::from_secs(2);
/// Pause before another check of a stream that seems to be another one.
const RECHECK_PAUSE: Duration = Duration::from_secs(3);
/// How long an owner may be lost before a candidate that waits behind it is given up: a full
/// disk, or too few open files, may pass.
const LOST_MAX: Duration = Duration::from_secs(15);

/// Records a candidate with its module, and starts to build it. The caller holds the
/// deployment's lock.
pub(super) async fn begin_candidate(
    rollouts: &Arc<Rollouts>,
    deployment: &Arc<Deployment>,
    accepted: &Accepted,
    generation: Generation,
) -> Result<(), Error> {
    // Checked before the module is stored, so that a full disk does not get that as well.
    disk_space::check(rollouts, deployment).await?;
    // A shared hold on naming: the removal of unnamed files must not see the module's file
    // between its creation and the commit that names it.
    let naming = rollouts.deployments.naming.read().await;
    let (deployments, room) = (Arc::clone(&rollouts.deployments), rollouts.room.clone());
    let accepted = accepted.clone();
    blocking(move || disk_space::store_module(&deployments.folder, &room, &accepted)).await?;
    // After a crash here, the module's file has no row, and the next start removes it.
    crash_points::reached("deploy-module-stored");
    let number = generation.number;
    note_candidate(rollouts, deployment, generation, "deploy").await?;
    drop(naming);
    // The commit above retired older candidates; their runners end only now that it is durable.
    prune::end_unused(rollouts, deployment).await;
    drive(rollouts, deployment, number);
    Ok(())
}

/// The same for a module that is already stored.
pub(super) async fn add_candidate(
    rollouts: &Arc<Rollouts>,
    deployment: &Arc<Deployment>,
    generation: Generation,
    action: &str,
) -> Result<(), Error> {
    disk_space::check(rollouts, deployment).await?;
    let number = generation.number;
    note_candidate(rollouts, deployment, generation, action).await?;
    prune::end_unused(rollouts, deployment).await;
    drive(rollouts, deployment, number);
    Ok(())
}

/// Records a candidate. An older candidate is retired.
async fn note_candidate(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    generation: Generation,
    action: &str,
) -> Result<(), Error> {
    let mut record = deployment.draft();
    // A lost owner may be replaced only by a candidate that says from where it publishes.
    let active = deployment.active();
    owners::refuse_lost(&record, &active, &generation)?;
    let says_nothing = record.handler.is_some() && generation.lost_effects_after.is_none();
    if says_nothing && active.has_diverged() {
        return Err(owners::of_another_history(&record.name));
    }
    let (number, reason) = (generation.number, generation.reason.clone());
    // A deployment has one candidate at most, and a failed one keeps its file until it is
    // replaced.
    for other in &mut record.generations {
        if other.status.is_candidate() || other.status == GenerationStatus::Failed {
            other.enter(
                GenerationStatus::Retired,
                format!("replaced by generation {number}"),
            );
        }
    }
    record.add(generation);
    rollouts
        .deployments
        .commit(
            deployment,
            record,
            action,
            format!("generation {number}: {reason}"),
        )
        .await?;
    // After a crash here, the start of the host drives the candidate from the catalogue.
    crash_points::reached("deploy-recorded");
    Ok(())
}

/// Drives a candidate to its end, in a separate task.
pub(crate) fn drive(rollouts: &Arc<Rollouts>, deployment: &Arc<Deployment>, number: u64) {
    let (rollouts, deployment) = (Arc::clone(rollouts), Arc::clone(deployment));
    // Not awaited: a build may take days, and the request that began it returns at once.
    tokio::spawn(async move {
        loop {
            let stopped = match build(&rollouts, &deployment, number).await {
                Built::Ready => match check_origin(&rollouts, &deployment, number).await {
                    Ok(()) => return take_over::bring_in(&rollouts, &deployment, number).await,
                    Err(error) => Stopped::because(&error),
                },
                Built::Failed(stopped) => stopped,
                // `build` waits through a pause itself, and a candidate that is gone needs nothing.
                Built::Paused | Built::Gone => return,
            };
            if take_over::give_up(&rollouts, &deployment, number, &stopped).await {
                return;
            }
        }
    });
}

/// Refuses a candidate that was folded from another stream than the active generation, unless
/// that was accepted: the stream may have been replaced since it was allowed.
async fn check_origin(
    rollouts: &Rollouts,
    deployment: &Deployment,
    number: u64,
) -> Result<(), Error> {
    let Some(candidate) = candidate::find(deployment, number) else {
        return Ok(());
    };
    let is_of_one = candidate.source == deployment.record().active().source;
    // Only a fold of the same source from its beginning must be of the same history.
    let may_differ =
        candidate.strategy != Strategy::Rebuild || candidate.build.accept_missing || !is_of_one;
    if may_differ || rollouts.history.check_history(deployment).await.is_ok() {
        return Ok(());
    }
    // Once more, as a reader does: a server that has just started may not have the whole stream
    // yet.
    tokio::time::sleep(RECHECK_PAUSE).await;
    rollouts.history.check_history(deployment).await
}

async fn build(rollouts: &Rollouts, deployment: &Arc<Deployment>, number: u64) -> Built {
    loop {
        let Some(generation) = candidate::find(deployment, number) else {
            return Built::Gone;
        };
        if generation.paused {
            // Without a place in the queue: others need not wait for an operator.
            candidate::until(deployment, number, |candidate| !candidate.paused).await;
            continue;
        }
        // Entered again in every round, so that a resumed candidate queues behind those that
        // waited.
        let ticket = rollouts.rebuilds.enter();
        let turn = ticket.turn(|place| deployment.set_place(generation.state_file, Some(place)));
        // Dropping the turn that lost loses nothing: the ticket keeps the place in the queue.
        let has_turn = tokio::select! {
            () = turn => true,
            () = candidate::until(deployment, number, |candidate| candidate.paused) => false,
        };
        let built = if has_turn {
            build_now(rollouts, deployment, number).await
        } else {
            Built::Paused
        };
        deployment.set_place(generation.state_file, None);
        drop(ticket);
        if !matches!(built, Built::Paused) {
            return built;
        }
    }
}

async fn build_now(rollouts: &Rollouts, deployment: &Arc<Deployment>, number: u64) -> Built {
    // A runner that exists was paused before; it continues where it stopped.
    let runner = match candidate::find(deployment, number)
        .and_then(|known| deployment.runner(known.state_file))
    {
        Some(paused) => {
            paused.resume();
            paused
        }
        None => match begin(rollouts, deployment, number).await {
            Ok(runner) => runner,
            Err(built) => return built,
        },
    };
    // The rate is measured from here on, without what earlier runs of this host applied.
    let (pace, hold) = (Pace::of(&runner.now()), rollouts.config.rollout.hold_max);
    let outcome = |_: &Runner| {
        if let Some(stopped) = Stopped::of(&runner, deployment.name()) {
            return Some(Built::Failed(stopped));
        }
        let now = runner.now();
        let is_automatic = || {
            candidate::find(deployment, number)
                .is_some_and(|candidate| candidate.build.promote == Promotion::Auto)
        };
        let is_ready = match now.state {
            // It may be live without having read anything since it was resumed.
            DeploymentState::Live => now.begun,
            // Before a manual promotion, a candidate is reported as ready only after it has
            // applied all events. One that must not pass the active generation has caught up
            // once it is where that is.
            DeploymentState::CatchingUp => {
                (pace.is_within_reach(&now, hold) && is_automatic())
                    || candidate::is_with_lead(deployment, number, &runner)
            }
            _ => false,
        };
        is_ready.then_some(Built::Ready)
    };
    // A pause or an abort comes first, so that nothing takes over that was just stopped.
    tokio::select! {
        biased;
        () = candidate::until(deployment, number, |candidate| candidate.paused) => {
            candidate::find(deployment, number).map_or(Built::Gone, |_| Built::Paused)
        }
        built = runner.until_figures(outcome) => built,
        // It would wait behind it without end, with its place in the queue.
        () = owner_is_lost(deployment, number) => {
            let lost = owners::lost(deployment.name(), &deployment.active());
            Built::Failed(Stopped::because(&lost))
        }
    }
}

/// Waits until the owner of effects that a candidate must not pass has been lost for a while.
/// Cancel-safe: it only observes.
async fn owner_is_lost(deployment: &Deployment, number: u64) {
    // With `lost_effects_after` the candidate succeeds a lost owner, so it waits for none.
    let needs_owner = candidate::find(deployment, number)
        .is_some_and(|candidate| candidate.lost_effects_after.is_none())
        && deployment.with_record(|record| record.handler.is_some());
    if !needs_owner {
        return std::future::pending().await;
    }
    let mut actives = deployment.actives();
    // A cut-over may replace the active runner while this waits, so each round takes the
    // newest.
    loop {
        let owner = Arc::clone(&actives.borrow_and_update());
        let is_lost =
            |owner: &Runner| deployment.with_record(|record| owners::is_owner_lost(record, owner));
        let lost = async {
            owner.until(|owner| is_lost(owner).then_some(())).await;
            let back = owner.until(|owner| (!is_lost(owner)).then_some(()));
            // It must stay lost for all of `LOST_MAX`: a file that could be opened again is no
            // reason.
            tokio::time::timeout(LOST_MAX, back).await.is_err()
        };
        // Both arms only observe.
        let is_lost = tokio::select! {
            is_lost = lost => is_lost,
            changed = actives.changed() => {
                // The deployment is gone; other arms of the caller see that.
                if changed.is_err() {
                    return std::future::pending().await;
                }
                false
            }
        };
        if is_lost {
            return;
        }
    }
}

async fn begin(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
) -> Result<Arc<Runner>, Built> {
    // In this order: the file of a migration is made only once there is room for it.
    wait_for_room(rollouts, deployment, number).await?;
    prepare_file(rollouts, deployment, number).await?;
    let runner = start_candidate(rollouts, deployment, number).await?;
    crash_points::reached("build-started");
    Ok(runner)
}

/// Waits until the disk has room for a candidate: earlier rebuilds have used some since the
/// deploy.
async fn wait_for_room(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
) -> Result<(), Built> {
    // One warning per wait, not one per look.
    let mut is_logged = false;
    while let Err(error) = disk_space::check(rollouts, deployment).await {
        if !std::mem::replace(&mut is_logged, true) {
            tracing::warn!(
                deployment = deployment.name(),
                generation = number,
                %error,
                "a candidate waits for room"
            );
        }
        // Nobody announces free space, so the pause ends at the next look at the disk, or
        // earlier if the candidate changes.
        let paused = candidate::until(deployment, number, |candidate| candidate.paused);
        // It only observes.
        let _ = tokio::time::timeout(ROOM_LOOK, paused).await;
        match candidate::find(deployment, number) {
            None => return Err(Built::Gone),
            Some(candidate) if candidate.paused => return Err(Built::Paused),
            Some(_) => {}
        }
    }
    Ok(())
}

/// Creates the file of a candidate that does not start with an empty one.
async fn prepare_file(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
) -> Result<(), Built> {
    let Some(generation) = candidate::find(deployment, number) else {
        return Err(Built::Gone);
    };
    if generation.strategy != Strategy::Migrate {
        return Ok(());
    }
    // Without the lock: converting a large state takes long, and must not keep other changes
    // out.
    let made = migrate::prepare(rollouts, deployment, &generation)
        .await
        .map_err(|error| Built::Failed(Stopped::because(&error)))?;
    // `u64::MAX` means that this migration decides from where the state has its subjects.
    if let Some(position) = made.filter(|_| generation.subjects_from == u64::MAX) {
        let _changing = rollouts
            .deployments
            .lock(deployment)
            .await
            .map_err(|_| Built::Gone)?;
        let mut record = deployment.draft();
        // It may have been aborted during the conversion.
        if let Some(candidate) = record
            .generation_mut(number)
            .filter(|known| known.status.is_candidate())
        {
            candidate.subjects_from = position;
            let noted = rollouts
                .deployments
                .commit(
                    deployment,
                    record,
                    "migrated",
                    format!("generation {number}"),
                )
                .await;
            noted.map_err(|error| Built::Failed(Stopped::because(&error)))?;
        }
    }
    Ok(())
}

/// Starts the runner, unless the candidate was removed meanwhile.
async fn start_candidate(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    number: u64,
) -> Result<Arc<Runner>, Built> {
    let _changing = rollouts
        .deployments
        .lock(deployment)
        .await
        .map_err(|_| Built::Gone)?;
    // Looked up under the lock, so that an abort is either seen here or sees the runner.
    let Some(generation) = candidate::find(deployment, number) else {
        return Err(Built::Gone);
    };
    let runner = rollouts
        .runners
        .start(&deployment.record(), &generation, Role::Build);
    deployment.add_runner(generation.state_file, Arc::clone(&runner));
    Ok(runner)
}

/// What a generation is built from, and how.
pub(super) struct Recipe<'a> {
    pub(super) module: &'a Module,
    pub(super) source: String,
    pub(super) start: Start,
    pub(super) strategy: Strategy,
    pub(super) build: BuildSettings,
    pub(super) checks: EventChecks,
}

/// A new generation that is to be built.
pub(super) fn new_generation(number: u64, recipe: Recipe<'_>) -> Generation {
    let Recipe {
        module,
        source,
        start,
        strategy,
        build,
        checks,
    } = recipe;
    let now = jiff::Timestamp::now().to_string();
    Generation {
        number,
        module: module.info().clone(),
        source,
        start,
        // A rebuild and a migration have a file of their own, named by the generation.
        state_file: number,
        strategy,
        status: GenerationStatus::Building,
        reason: String::new(),
        created_at: now.clone(),
        status_since: now,
        paused: false,
        serves_from: 0,
        has_served: false,
        on_probation: false,
        failed_at: None,
        replaced_unbegun_at: None,
        subjects_from: 0,
        releases_before: 0,
        accepts_lost: false,
        lacks_events: 0,
        build,
        comparison: None,
        accepts_missing_through: 0,
        begins_after: None,
        failure: None,
        lost_effects_after: None,
        checks_events_after: (checks == EventChecks::On).then_some(0),
    }
}

/// Sets the state file that a new generation starts with, if it continues one, and the position
/// from which it has the events of its subjects.
pub(super) fn set_beginning(
    generation: &mut Generation,
    record: &Record,
    continued: Option<&Generation>,
) {
    let active = record.active();
    // A candidate that an event stopped is continued in its own file, with corrected code.
    if let Some(stopped) = continued {
        (generation.state_file, generation.subjects_from) =
            (stopped.state_file, stopped.subjects_from);
        // The event at which it stopped is the first that this code meets.
        if let Some(after) = &mut generation.checks_events_after {
            *after = stopped.failed_at.map_or(0, |at| at.saturating_sub(1));
        }
        // What was accepted for its state stays accepted.
        generation.accepts_lost = stopped.may_lack();
        generation.lost_effects_after = stopped.lost_effects_after;
    } else if generation.strategy == Strategy::Migrate {
        // Until the entries are migrated, the position from which it has other events is unknown.
        let is_same = generation.module.subjects == active.module.subjects;
        generation.subjects_from = if is_same {
            active.subjects_from
        } else {
            u64::MAX
        };
    }
}
