//! What operators do with candidates: rebuild, list, throttle and abort them.

use std::sync::Arc;
use std::time::Duration;

use super::Rollouts;
use super::deploy::{DeployOutcome, Deployed, Done};
use super::{build, deploy, prune};
use crate::deployments::{Error, candidate_of, check_gate, owners, throttle};
use crate::effects::EffectsFrom;
use crate::overview;
use crate::state::catalogue::{BuildSettings, Generation, GenerationStatus};

/// How long a promotion that lifts the throttle waits until the candidate is ready.
const LIFTED_WAIT_MAX: Duration = Duration::from_secs(10);

impl Rollouts {
    /// Discards a candidate.
    pub async fn abort(&self, name: &str) -> Result<overview::Deployment, Error> {
        let deployment = self.deployments.get(name)?;
        let _changing = self.deployments.lock(&deployment).await?;
        let mut record = deployment.draft();
        let number = candidate_of(&record)?.number;
        let generation = record.generation_mut(number).expect("it was just found");
        generation.enter(GenerationStatus::Retired, "aborted by an operator");
        self.deployments
            .commit(&deployment, record, "abort", format!("generation {number}"))
            .await?;
        prune::end_unused(self, &deployment).await;
        Ok(deployment.info())
    }

    /// Rebuilds the state of the active module alongside the active generation. If the owner of its
    /// effects is gone, the new state continues them from an event on, as an operator accepts.
    pub async fn rebuild(
        self: &Arc<Self>,
        name: &str,
        build: BuildSettings,
        lost_effects_from: Option<EffectsFrom>,
    ) -> Result<Deployed, Error> {
        let deployment = self.deployments.get(name)?;
        // Before the lock: a gate that is not valid needs nothing of the deployment.
        if let Some(gate) = &build.gate {
            check_gate(gate)?;
        }
        let _changing = self.deployments.lock(&deployment).await?;
        // The record does not change any more while the lock is held.
        let record = deployment.record();
        // Before the stream is looked at, which takes a while.
        if lost_effects_from.is_none() {
            owners::check_owner(&record, &deployment.active())?;
        }
        let advice = "accept the loss with --accept-missing, or keep the existing state";
        let accepted = self
            .history
            .may_replace(
                &deployment,
                &record.active().source,
                build.accept_missing.into(),
                advice,
            )
            .await?;
        let number = record.next;
        let mut reason = accepted.explain("a rebuild was requested".to_owned());
        let mut lost_effects_after = None;
        if let Some(from) = lost_effects_from {
            let (after, given_up) = self.handlers.give_up_effects(&deployment, from).await?;
            lost_effects_after = Some(after);
            reason.push_str(&format!("; {given_up}"));
        }
        let mut generation = record.active().to_rebuild(number, build, reason.clone());
        generation.lost_effects_after = lost_effects_after;
        accepted.apply(&mut generation);
        build::add_candidate(self, &deployment, generation, "rebuild").await?;
        let done = Done {
            outcome: DeployOutcome::Rebuilding,
            generation: number,
            reason,
            compile_time: None,
        };
        Ok(deploy::deployed(self, &deployment, done).await)
    }

    /// Changes the limits on the speed of a candidate.
    pub async fn throttle(
        &self,
        name: &str,
        max_rate: Option<u64>,
        cpu_percent: Option<u8>,
    ) -> Result<overview::Deployment, Error> {
        let deployment = self.deployments.get(name)?;
        let _changing = self.deployments.lock(&deployment).await?;
        let mut record = deployment.draft();
        let number = candidate_of(&record)?.number;
        let generation = record.generation_mut(number).expect("it was just found");
        generation.build.max_rate = max_rate;
        generation.build.cpu_percent = cpu_percent;
        let (throttle, state_file) = (throttle(&generation.build), generation.state_file);
        self.deployments
            .commit(
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

    /// How many rebuilds may run at once.
    pub fn rebuilds_at_once(&self) -> usize {
        self.rebuilds.at_once()
    }
}

/// Lifts the limits of the candidate, and waits for a while until it is ready.
pub(super) async fn lift_throttle(rollouts: &Rollouts, name: &str) -> Result<(), Error> {
    rollouts.throttle(name, None, None).await?;
    let deployment = rollouts.deployments.get(name)?;
    // It is over as soon as the candidate is ready, failed, or gone.
    let built = deployment.until(|record| {
        let is_building = |candidate: &Generation| candidate.status == GenerationStatus::Building;
        (!record.candidate().is_some_and(is_building)).then_some(())
    });
    // It only observes.
    let _ = tokio::time::timeout(LIFTED_WAIT_MAX, built).await;
    Ok(())
}
