//! Builds a candidate alongside the active generation, until it can take over.
//!
//! One task drives a candidate: it waits for its turn, starts the runner, and checks its progress.
//! It records each step in the catalogue, so that a restarted host continues from there.

use std::sync::Arc;
use std::time::Duration;

use super::candidate::{Built, Pace, Stopped, check_ahead, waits_for_operator};
use super::cut_over::Switch;
use super::{Error, Role, Rollouts, crash_points, owners};
use crate::actor::blocking;
use crate::api::{self, DeploymentState, GenerationStatus, Promotion, Strategy};
use crate::deployment::Deployment;
use crate::module::{Accepted, Module};
use crate::runner::Runner;
use crate::state::catalogue::{Generation, Record};

/// How often a candidate checks for room on a full disk, which nobody announces.
const ROOM_LOOK: Duration = Duration::from_secs(2);
/// Pause after a missed cut-over; it doubles up to the maximum.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Pause before another check of a stream that seems to be another one.
const RECHECK_PAUSE: Duration = Duration::from_secs(3);
/// How long an owner may be unreadable before a candidate that waits behind it is given up: a full
/// disk, or too few open files, may pass.
const LOST_MAX: Duration = Duration::from_secs(15);
/// How long a promotion that lifts the throttle waits until the candidate is ready.
const LIFTED_WAIT_MAX: Duration = Duration::from_secs(10);

impl Rollouts {
    /// Records a candidate with its module, and starts to build it. The caller holds the
    /// deployment's lock.
    pub(super) async fn begin_candidate(
        &self,
        deployment: &Arc<Deployment>,
        accepted: &Accepted,
        generation: Generation,
    ) -> Result<(), Error> {
        // Checked before the module is stored, so that a full disk does not get that as well.
        self.check_room(deployment).await?;
        // A shared hold on naming: the removal of unnamed files must not see the module's file
        // between its creation and the commit that names it.
        let naming = self.inner.naming.read().await;
        let (inner, accepted) = (Arc::clone(&self.inner), accepted.clone());
        blocking(move || inner.store_module(&accepted)).await?;
        // After a crash here, the module's file has no row, and the next start removes it.
        crash_points::reached("deploy-module-stored");
        let number = generation.number;
        self.note_candidate(deployment, generation, "deploy")
            .await?;
        drop(naming);
        // The commit above retired older candidates; their runners end only now that it is durable.
        self.end_unused(deployment).await;
        self.drive(deployment, number);
        Ok(())
    }

    /// The same for a module that is already stored.
    pub(super) async fn add_candidate(
        &self,
        deployment: &Arc<Deployment>,
        generation: Generation,
        action: &str,
    ) -> Result<(), Error> {
        self.check_room(deployment).await?;
        let number = generation.number;
        self.note_candidate(deployment, generation, action).await?;
        self.end_unused(deployment).await;
        self.drive(deployment, number);
        Ok(())
    }

    /// Records a candidate. An older candidate is retired.
    async fn note_candidate(
        &self,
        deployment: &Arc<Deployment>,
        generation: Generation,
        action: &str,
    ) -> Result<(), Error> {
        let mut record = deployment.record();
        // A lost owner may be replaced only by a candidate that says from where it publishes.
        if deployment.active().is_lost() {
            owners::refuse_lost(&record, &generation)?;
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
        self.commit(
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
    pub(crate) fn drive(&self, deployment: &Arc<Deployment>, number: u64) {
        let (host, deployment) = (self.clone(), Arc::clone(deployment));
        // Not awaited: a build may take days, and the request that began it returns at once.
        tokio::spawn(async move {
            match host.build(&deployment, number).await {
                Built::Ready => match host.check_origin(&deployment, number).await {
                    Ok(()) => host.bring_in(&deployment, number).await,
                    Err(error) => {
                        host.give_up(&deployment, number, &Stopped::because(&error))
                            .await;
                    }
                },
                Built::Failed(stopped) => host.give_up(&deployment, number, &stopped).await,
                // `build` waits through a pause itself, and a candidate that is gone needs nothing.
                Built::Paused | Built::Gone => {}
            }
        });
    }

    /// Refuses a candidate that was folded from another stream than the active generation, unless
    /// that was accepted: the stream may have been replaced since it was allowed.
    async fn check_origin(&self, deployment: &Deployment, number: u64) -> Result<(), Error> {
        let Some(candidate) = self.candidate(deployment, number) else {
            return Ok(());
        };
        let is_of_one = candidate.source == deployment.record().active().source;
        // Only a fold of the same source from its beginning must be of the same history.
        let may_differ =
            candidate.strategy != Strategy::Rebuild || candidate.build.accept_missing || !is_of_one;
        if may_differ || self.check_history(deployment).await.is_ok() {
            return Ok(());
        }
        // Once more, as a reader does: a server that has just started may not have the whole stream
        // yet.
        tokio::time::sleep(RECHECK_PAUSE).await;
        self.check_history(deployment).await
    }

    /// The candidate with this number, as long as it is a candidate.
    fn candidate(&self, deployment: &Deployment, number: u64) -> Option<Generation> {
        if deployment.is_gone() {
            return None;
        }
        // This is called often, so it copies only this generation.
        deployment.with_record(|record| {
            record
                .generation(number)
                .filter(|generation| generation.status.is_candidate())
                .cloned()
        })
    }

    /// Waits until a candidate is as wanted, or no longer a candidate. Cancel-safe: it only
    /// observes.
    async fn candidate_until(
        &self,
        deployment: &Deployment,
        number: u64,
        is_wanted: impl Fn(&Generation) -> bool,
    ) {
        let is_over = |record: &Record| {
            let candidate = record
                .generation(number)
                .filter(|generation| generation.status.is_candidate());
            candidate.is_none_or(&is_wanted).then_some(())
        };
        deployment.until(is_over).await;
    }

    async fn build(&self, deployment: &Arc<Deployment>, number: u64) -> Built {
        loop {
            let Some(generation) = self.candidate(deployment, number) else {
                return Built::Gone;
            };
            if generation.paused {
                // Without a place in the queue: others need not wait for an operator.
                self.candidate_until(deployment, number, |candidate| !candidate.paused)
                    .await;
                continue;
            }
            // Entered again in every round, so that a resumed candidate queues behind those that
            // waited.
            let ticket = self.inner.rebuilds.enter();
            let turn =
                ticket.turn(|place| deployment.set_place(generation.state_file, Some(place)));
            // Dropping the turn that lost loses nothing: the ticket keeps the place in the queue.
            let has_turn = tokio::select! {
                () = turn => true,
                () = self.candidate_until(deployment, number, |candidate| candidate.paused) => false,
            };
            let built = if has_turn {
                self.build_now(deployment, number).await
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

    async fn build_now(&self, deployment: &Arc<Deployment>, number: u64) -> Built {
        // A runner that exists was paused before; it continues where it stopped.
        let runner = match self
            .candidate(deployment, number)
            .and_then(|known| deployment.runner(known.state_file))
        {
            Some(paused) => {
                paused.resume();
                paused
            }
            None => match self.begin(deployment, number).await {
                Ok(runner) => runner,
                Err(built) => return built,
            },
        };
        // The rate is measured from here on, without what earlier runs of this host applied.
        let (pace, hold) = (Pace::of(&runner.now()), self.inner.config.rollout.hold_max);
        let outcome = |runner: &Runner| {
            let now = runner.now();
            if let Some(stopped) = Stopped::of(&now, deployment.name()) {
                return Some(Built::Failed(stopped));
            }
            let is_automatic = || {
                self.candidate(deployment, number)
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
                        || self.is_with_lead(deployment, number, runner)
                }
                _ => false,
            };
            is_ready.then_some(Built::Ready)
        };
        // A pause or an abort comes first, so that nothing takes over that was just stopped.
        tokio::select! {
            biased;
            () = self.candidate_until(deployment, number, |candidate| candidate.paused) => {
                self.candidate(deployment, number).map_or(Built::Gone, |_| Built::Paused)
            }
            built = runner.until_figures(outcome) => built,
            // It would wait behind it without end, with its place in the queue.
            () = self.owner_is_lost(deployment, number) => {
                Built::Failed(Stopped::because(&owners::lost(deployment.name())))
            }
        }
    }

    /// Waits until the owner of effects that a candidate must not pass has been unreadable for a
    /// while. Cancel-safe: it only observes.
    async fn owner_is_lost(&self, deployment: &Deployment, number: u64) {
        // With `lost_effects_after` the candidate succeeds a lost owner, so it waits for none.
        let needs_owner = self
            .candidate(deployment, number)
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
            let lost = async {
                owner.until(|owner| owner.is_lost().then_some(())).await;
                let back = owner.until(|owner| (!owner.is_lost()).then_some(()));
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

    /// Whether a candidate has applied everything that it may as long as it owns no effects.
    fn is_with_lead(&self, deployment: &Deployment, number: u64, runner: &Runner) -> bool {
        if !runner.is_on_leash() || !runner.now().has_started() {
            return false;
        }
        // Position and row are two reads; a wrong answer in between is corrected at the next
        // figures.
        let active = deployment.active();
        let continues_after = deployment.with_record(|record| {
            owners::continues_after(record, &active, record.generation(number)?)
        });
        match continues_after {
            Some(after) => runner
                .store()
                .is_some_and(|store| store.position() >= after),
            None => runner.is_as_far_as(&active),
        }
    }

    async fn begin(&self, deployment: &Arc<Deployment>, number: u64) -> Result<Arc<Runner>, Built> {
        // In this order: the file of a migration is made only once there is room for it.
        self.wait_for_room(deployment, number).await?;
        self.prepare_file(deployment, number).await?;
        let runner = self.start_candidate(deployment, number).await?;
        crash_points::reached("build-started");
        Ok(runner)
    }

    /// Waits until the disk has room for a candidate: earlier rebuilds have used some since the
    /// deploy.
    async fn wait_for_room(&self, deployment: &Arc<Deployment>, number: u64) -> Result<(), Built> {
        // One warning per wait, not one per look.
        let mut is_logged = false;
        while let Err(error) = self.check_room(deployment).await {
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
            let paused = self.candidate_until(deployment, number, |candidate| candidate.paused);
            // It only observes.
            let _ = tokio::time::timeout(ROOM_LOOK, paused).await;
            match self.candidate(deployment, number) {
                None => return Err(Built::Gone),
                Some(candidate) if candidate.paused => return Err(Built::Paused),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Creates the file of a candidate that does not start with an empty one.
    async fn prepare_file(&self, deployment: &Arc<Deployment>, number: u64) -> Result<(), Built> {
        let Some(generation) = self.candidate(deployment, number) else {
            return Err(Built::Gone);
        };
        if generation.strategy != Strategy::Migrate {
            return Ok(());
        }
        // Without the lock: converting a large state takes long, and must not keep other changes
        // out.
        let made = self
            .migrate(deployment, &generation)
            .await
            .map_err(|error| Built::Failed(Stopped::because(&error)))?;
        // `u64::MAX` means that this migration decides from where the state has its subjects.
        if let Some(position) = made.filter(|_| generation.subjects_from == u64::MAX) {
            let _changing = self.lock(deployment).await.map_err(|_| Built::Gone)?;
            let mut record = deployment.record();
            // It may have been aborted during the conversion.
            if let Some(candidate) = record
                .generation_mut(number)
                .filter(|known| known.status.is_candidate())
            {
                candidate.subjects_from = position;
                let noted = self
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
        &self,
        deployment: &Arc<Deployment>,
        number: u64,
    ) -> Result<Arc<Runner>, Built> {
        let _changing = self.lock(deployment).await.map_err(|_| Built::Gone)?;
        // Looked up under the lock, so that an abort is either seen here or sees the runner.
        let Some(generation) = self.candidate(deployment, number) else {
            return Err(Built::Gone);
        };
        let runner = self.start_runner(&deployment.record(), &generation, Role::Build);
        deployment.add_runner(generation.state_file, Arc::clone(&runner));
        Ok(runner)
    }

    /// Records that a candidate is ready, and lets it take over as soon as it can, if it should.
    async fn bring_in(&self, deployment: &Arc<Deployment>, number: u64) {
        let mut pause = RETRY_PAUSE.0;
        // Nothing but a retry is possible: the build is done, and only its record is missing.
        while let Err(error) = self.note_ready(deployment, number).await {
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
        // The second pause is for the cut-over, and starts short again.
        pause = RETRY_PAUSE.0;
        loop {
            let Some(generation) = self.candidate(deployment, number) else {
                return;
            };
            // Looked at before each attempt: it may have failed at an event since it was ready.
            let runner = deployment.runner(generation.state_file);
            if let Some(stopped) = runner
                .as_ref()
                .and_then(|runner| Stopped::of(&runner.now(), deployment.name()))
            {
                return self.give_up(deployment, number, &stopped).await;
            }
            let stops = async {
                match &runner {
                    Some(runner) => runner.stopped().await,
                    None => std::future::pending().await,
                }
            };
            // Nothing to do but to watch it, for as long as the operator takes.
            if waits_for_operator(&generation) {
                // It may fail, or get another gate, before anybody promotes it.
                tokio::select! {
                    () = stops => {}
                    () = self.candidate_until(deployment, number, |candidate| !waits_for_operator(candidate)) => {}
                }
                pause = RETRY_PAUSE.0;
                continue;
            }
            let done = match generation.build.promote {
                // With promotion by hand only the comparison is left to do.
                Promotion::Manual => self.pass_gate(deployment, number).await,
                Promotion::Auto => self.try_to_take_over(deployment, number).await,
            };
            match done {
                // It passed its gate, and is watched until somebody promotes it.
                Ok(()) if generation.build.promote == Promotion::Manual => continue,
                Ok(()) => return,
                // Another attempt would find the same.
                Err(error @ Error::Lacking(_)) => {
                    let stopped = Stopped::because(&error);
                    return self.give_up(deployment, number, &stopped).await;
                }
                Err(error) => {
                    tracing::info!(
                        deployment = deployment.name(),
                        generation = number,
                        %error,
                        "not taken over yet"
                    );
                }
            }
            // It only observes: a failed candidate is given up at once.
            let _ = tokio::time::timeout(pause, stops).await;
            pause = (pause * 2).min(RETRY_PAUSE.1);
        }
    }

    async fn note_ready(&self, deployment: &Arc<Deployment>, number: u64) -> Result<(), Error> {
        // The host stops, or the deployment is gone: there is nothing left to record.
        let Ok(_changing) = self.lock(deployment).await else {
            return Ok(());
        };
        let Some(candidate) = self.candidate(deployment, number) else {
            return Ok(());
        };
        if candidate.status == GenerationStatus::Ready {
            // It was ready before the host restarted, and the reason why it waits still applies.
            return Ok(());
        }
        let mut record = deployment.record();
        let generation = record
            .generation_mut(number)
            .expect("it was just looked at");
        let has_caught_up = deployment
            .runner(generation.state_file)
            .is_some_and(|runner| {
                runner.now().state == DeploymentState::Live
                    || self.is_with_lead(deployment, number, &runner)
            });
        // A cut-over folds the rest during its hold, so "close enough" is ready too.
        let mut reason = if has_caught_up {
            "caught up"
        } else {
            "close enough to the head to take over"
        }
        .to_owned();
        if generation.build.promote == Promotion::Manual {
            reason.push_str("; waits to be promoted");
        }
        generation.enter(GenerationStatus::Ready, reason);
        self.commit(deployment, record, "ready", format!("generation {number}"))
            .await
    }

    /// One attempt to take over.
    async fn try_to_take_over(
        &self,
        deployment: &Arc<Deployment>,
        number: u64,
    ) -> Result<(), Error> {
        let Some(candidate) = self.candidate(deployment, number) else {
            return Ok(());
        };
        // A comparison counts only against the generation that is active now.
        let must_pass = |candidate: &Generation, active: u64| {
            let passed = candidate.comparison.as_ref();
            candidate.build.gate.is_some()
                && !passed.is_some_and(|comparison| {
                    comparison.refused == 0 && comparison.against == active
                })
        };
        self.check_moving(deployment, &candidate)?;
        if must_pass(&candidate, deployment.record().active) {
            // Without the lock, which `pass_gate` takes itself, and only for its beginning and end.
            self.pass_gate(deployment, number).await?;
        }
        // Everything is checked again: during the comparison others could change the deployment.
        let _changing = self.lock(deployment).await?;
        let Some(candidate) = self.candidate(deployment, number) else {
            return Ok(());
        };
        self.check_moving(deployment, &candidate)?;
        if must_pass(&candidate, deployment.record().active) {
            return Err(Error::Conflict(
                "another generation became active since the comparison".to_owned(),
            ));
        }
        self.switch(deployment, number, Switch::CutOver)
            .await
            .map(drop)
    }

    /// A candidate does not take over if it or the deployment is paused.
    fn check_moving(&self, deployment: &Deployment, candidate: &Generation) -> Result<(), Error> {
        if deployment.record().active().paused {
            return Err(Error::Conflict(
                "the deployment is paused; resume or promote it".to_owned(),
            ));
        }
        match deployment.runner(candidate.state_file) {
            Some(runner) if runner.is_running() => check_ahead(&deployment.active(), &runner),
            _ => Err(Error::Conflict(
                "the candidate is paused or failed; resume or abort it".to_owned(),
            )),
        }
    }

    async fn give_up(&self, deployment: &Arc<Deployment>, number: u64, stopped: &Stopped) {
        let reason = stopped.reason.as_str();
        tracing::warn!(
            deployment = deployment.name(),
            generation = number,
            reason,
            "a candidate failed; the active generation keeps serving"
        );
        let mut pause = RETRY_PAUSE.0;
        // Until it is recorded, the candidate would be driven again after a restart, so retry.
        while let Err(error) = self.note_failed(deployment, number, stopped).await {
            tracing::error!(
                deployment = deployment.name(),
                %error,
                "could not record the failure of a candidate yet"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE.1);
        }
    }

    async fn note_failed(
        &self,
        deployment: &Arc<Deployment>,
        number: u64,
        stopped: &Stopped,
    ) -> Result<(), Error> {
        let reason = stopped.reason.as_str();
        // The host stops, or the deployment is gone. A host that starts again drives it again.
        let Ok(_changing) = self.lock(deployment).await else {
            return Ok(());
        };
        if self.candidate(deployment, number).is_none() {
            return Ok(());
        }
        let mut record = deployment.record();
        let generation = record
            .generation_mut(number)
            .expect("it was just looked at");
        generation.enter(GenerationStatus::Failed, reason);
        // Its file is removed if no event stopped it: nothing will continue it, and it may fill the
        // disk.
        generation.failed_at = stopped.sequence;
        generation.failure = deployment
            .runner(generation.state_file)
            .and_then(|runner| runner.now().failure);
        let (is_stopped, state_file) = (generation.is_stopped_candidate(), generation.state_file);
        self.commit(
            deployment,
            record,
            "candidate-failed",
            format!("generation {number}: {reason}"),
        )
        .await?;
        // The commit comes first: if it fails, the runner still shows why it stopped.
        if is_stopped && let Some(runner) = deployment.take_runner(state_file) {
            self.end(runner).await;
        }
        self.end_unused(deployment).await;
        Ok(())
    }

    /// Continues a candidate that an event stopped, from its state. The caller holds the
    /// deployment's lock.
    pub(super) async fn revive(
        &self,
        deployment: &Arc<Deployment>,
        number: u64,
    ) -> Result<api::Deployment, Error> {
        let mut record = deployment.record();
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
        self.commit(deployment, record, "resume", format!("generation {number}"))
            .await?;
        self.drive(deployment, number);
        Ok(deployment.info())
    }

    /// If the same module is deployed again with another gate, gives the candidate that gate and
    /// compares it again; otherwise returns why nothing changes.
    pub(super) async fn ask_candidate_again(
        &self,
        deployment: &Arc<Deployment>,
        number: u64,
        build: api::BuildSettings,
        mut reason: String,
    ) -> Result<String, Error> {
        let mut record = deployment.record();
        let candidate = record
            .generation_mut(number)
            .filter(|generation| generation.status.is_candidate());
        let Some(candidate) = candidate.filter(|_| build.gate.is_some()) else {
            return Ok(reason);
        };
        candidate.build.gate = build.gate;
        candidate.build.promote = build.promote;
        // The old comparison was made for the old gate, and would let it pass or hold it back.
        candidate.comparison = None;
        reason.push_str("; it will be compared again with the new gate");
        self.commit(
            deployment,
            record,
            "compare-again",
            format!("generation {number}"),
        )
        .await?;
        Ok(reason)
    }

    /// Discards a candidate.
    pub async fn abort(&self, name: &str) -> Result<api::Deployment, Error> {
        let deployment = self.deployment(name)?;
        let _changing = self.lock(&deployment).await?;
        let mut record = deployment.record();
        let number = self.candidate_of(&record)?.number;
        let generation = record.generation_mut(number).expect("it was just found");
        generation.enter(GenerationStatus::Retired, "aborted by an operator");
        self.commit(&deployment, record, "abort", format!("generation {number}"))
            .await?;
        self.end_unused(&deployment).await;
        Ok(deployment.info())
    }

    /// Rebuilds the state of the active module alongside the active generation. If the owner of its
    /// effects is gone, the new state continues them from an event on, as an operator accepts.
    pub async fn rebuild(
        &self,
        name: &str,
        build: api::BuildSettings,
        lost_effects_from: Option<api::EffectsFrom>,
    ) -> Result<api::Deployed, Error> {
        let deployment = self.deployment(name)?;
        // Before the lock: a gate that is not valid needs nothing of the deployment.
        if let Some(gate) = &build.gate {
            super::check_gate(gate)?;
        }
        let _changing = self.lock(&deployment).await?;
        // The record does not change any more while the lock is held.
        let record = deployment.record();
        let advice = "accept the loss with --accept-missing, or keep the existing state";
        let accepted = self
            .may_refold(
                &deployment,
                &record.active().source,
                build.accept_missing,
                advice,
            )
            .await?;
        let number = record.next;
        let mut reason = accepted.explain("a rebuild was requested".to_owned());
        let mut lost_effects_after = None;
        if let Some(from) = lost_effects_from {
            let (after, given_up) = self.give_up_effects(&deployment, from).await?;
            lost_effects_after = Some(after);
            reason.push_str(&format!("; {given_up}"));
        }
        let mut generation = record.active().to_rebuild(number, build, reason.clone());
        generation.lost_effects_after = lost_effects_after;
        accepted.apply(&mut generation);
        self.add_candidate(&deployment, generation, "rebuild")
            .await?;
        Ok(self
            .deployed(
                &deployment,
                api::DeployOutcome::Rebuilding,
                number,
                reason,
                0,
            )
            .await)
    }

    /// Changes the limits on the speed of a candidate.
    pub async fn throttle(
        &self,
        name: &str,
        max_rate: Option<u64>,
        cpu_percent: Option<u8>,
    ) -> Result<api::Deployment, Error> {
        let deployment = self.deployment(name)?;
        let _changing = self.lock(&deployment).await?;
        let mut record = deployment.record();
        let number = self.candidate_of(&record)?.number;
        let generation = record.generation_mut(number).expect("it was just found");
        generation.build.max_rate = max_rate;
        generation.build.cpu_percent = cpu_percent;
        let (throttle, state_file) = (
            super::rollouts::throttle(&generation.build),
            generation.state_file,
        );
        self.commit(
            &deployment,
            record,
            "throttle",
            format!("generation {number}"),
        )
        .await?;
        // After the commit, so that a restart and the runner agree on the limits.
        if let Some(runner) = deployment.runner(state_file) {
            runner.set_throttle(throttle);
        }
        Ok(deployment.info())
    }

    /// Lifts the limits of the candidate, and waits for a while until it is ready.
    pub(super) async fn lift_throttle(&self, name: &str) -> Result<(), Error> {
        self.throttle(name, None, None).await?;
        let deployment = self.deployment(name)?;
        // It is over as soon as the candidate is ready, failed, or gone.
        let built = deployment.until(|record| {
            let is_building =
                |candidate: &Generation| candidate.status == GenerationStatus::Building;
            (!record.candidate().is_some_and(is_building)).then_some(())
        });
        // It only observes.
        let _ = tokio::time::timeout(LIFTED_WAIT_MAX, built).await;
        Ok(())
    }

    /// All rebuilds: running ones first, then waiting ones in order.
    pub fn rebuilds(&self) -> api::RebuildList {
        let mut rebuilds: Vec<_> = self
            .deployments()
            .iter()
            .filter_map(|deployment| rebuild_of(deployment))
            .collect();
        // Place 0 means that it runs; those that wait follow in their order.
        rebuilds.sort_by(|one, other| {
            (one.place, &one.deployment).cmp(&(other.place, &other.deployment))
        });
        api::RebuildList {
            rebuilds,
            at_once: self.inner.rebuilds.at_once() as u64,
        }
    }
}

/// A new generation that is to be built.
pub(super) fn new_generation(
    number: u64,
    module: &Module,
    source: String,
    start: api::Start,
    strategy: Strategy,
    build: api::BuildSettings,
) -> Generation {
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
        subjects_from: 0,
        releases_before: 0,
        build,
        comparison: None,
        accepts_missing_through: 0,
        begins_after: None,
        failure: None,
        lost_effects_after: None,
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

fn rebuild_of(deployment: &Deployment) -> Option<api::Rebuild> {
    let info = deployment.info();
    let generation = *info.candidate?;
    let place = generation.queued_behind.unwrap_or(0);
    let waits_for = match (generation.status, generation.build.promote) {
        _ if place == 1 => "1 rebuild ahead of it".to_owned(),
        _ if place > 0 => format!("{place} rebuilds ahead of it"),
        (GenerationStatus::Ready, Promotion::Manual) => generation.reason.clone(),
        (GenerationStatus::Ready, Promotion::Auto) => "its turn to take over".to_owned(),
        _ if generation.state == Some(DeploymentState::Paused) => {
            "`foldstream resume --candidate`".to_owned()
        }
        _ if info.outbox.is_some() => {
            "the end of what the active generation has handled".to_owned()
        }
        _ => "the end of the stream".to_owned(),
    };
    Some(api::Rebuild {
        deployment: info.name,
        place,
        generation,
        waits_for,
    })
}
