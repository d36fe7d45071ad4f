//! What operators do with candidates: rebuild, list, throttle and abort them.

use std::sync::Arc;
use std::time::Duration;

use super::Rollouts;
use super::{build, deploy, prune};
use crate::api;
use crate::deployment::Deployment;
use crate::deployments::{Error, candidate_of, check_gate, throttle};
use crate::effects::EffectsFrom;
use crate::progress::DeploymentState;
use crate::state::catalogue::{BuildSettings, Generation, GenerationStatus, Promotion};

/// How long a promotion that lifts the throttle waits until the candidate is ready.
const LIFTED_WAIT_MAX: Duration = Duration::from_secs(10);

impl Rollouts {
    /// Discards a candidate.
    pub async fn abort(&self, name: &str) -> Result<api::Deployment, Error> {
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
    ) -> Result<api::Deployed, Error> {
        let deployment = self.deployments.get(name)?;
        // Before the lock: a gate that is not valid needs nothing of the deployment.
        if let Some(gate) = &build.gate {
            check_gate(gate)?;
        }
        let _changing = self.deployments.lock(&deployment).await?;
        // The record does not change any more while the lock is held.
        let record = deployment.record();
        let advice = "accept the loss with --accept-missing, or keep the existing state";
        let accepted = self
            .history
            .may_refold(
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
        Ok(deploy::deployed(
            self,
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

    /// All rebuilds: running ones first, then waiting ones in order.
    pub fn rebuilds(&self) -> api::RebuildList {
        let mut rebuilds: Vec<_> = self
            .deployments
            .all()
            .iter()
            .filter_map(|deployment| rebuild_of(deployment))
            .collect();
        // Place 0 means that it runs; those that wait follow in their order.
        rebuilds.sort_by(|one, other| {
            (one.place, &one.deployment).cmp(&(other.place, &other.deployment))
        });
        api::RebuildList {
            rebuilds,
            at_once: self.rebuilds.at_once() as u64,
        }
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

fn rebuild_of(deployment: &Deployment) -> Option<api::Rebuild> {
    let info = deployment.info();
    let generation = *info.candidate?;
    let place = generation.queued_behind.unwrap_or(0);
    let waits_for = match (generation.status, generation.build.promote) {
        _ if place == 1 => "1 rebuild ahead of it".to_owned(),
        _ if place > 0 => format!("{place} rebuilds ahead of it"),
        (GenerationStatus::Ready, Promotion::Manual) => generation.reason.clone(),
        (GenerationStatus::Ready, _) if generation.lacks_events > 0 => generation.reason.clone(),
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
