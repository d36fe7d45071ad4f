//! Goes back to the previous generation: to its own state by a cut-over, to its code alone if the
//! state was inherited, or by a rebuild if its state is gone.

use std::sync::Arc;
use std::time::Duration;

use super::Rollouts;
use super::cut_over::{CutOver, Switch};
use super::inherit::{Held, releases_of};
use super::{build, cut_over};
use crate::actor::blocking;
use crate::deployment::Deployment;
use crate::deployments::{Error, MissingEvents, Role, crash_points};
use crate::exceptions::{failure_events, parked_rules};
use crate::state::catalogue::{BuildSettings, EventChecks, Generation, GenerationStatus};

/// What a rollback may do if the state of the previous generation is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RollbackOptions {
    /// Rebuild it.
    pub may_rebuild: bool,
    /// Rebuild it even from a stream that has lost events.
    pub missing: MissingEvents,
}

impl Rollouts {
    /// Makes the previous generation active again.
    pub async fn rollback(
        self: &Arc<Self>,
        name: &str,
        options: RollbackOptions,
    ) -> Result<CutOver, Error> {
        let deployment = self.deployments.get(name)?;
        let _changing = self.deployments.lock(&deployment).await?;
        let record = deployment.record();
        // Whether the previous code has a state of its own decides how it comes back.
        match record.previous().cloned() {
            Some(previous) if previous.state_file == record.active().state_file => {
                roll_back_code(self, &deployment, previous).await
            }
            Some(previous) => {
                cut_over::switch(self, &deployment, previous.number, Switch::Rollback).await
            }
            None => rebuild_previous(self, &deployment, options).await,
        }
    }

    /// The same, and waits briefly until the active generation has shown that it works.
    pub async fn rollback_and_look(
        self: &Arc<Self>,
        name: &str,
        options: RollbackOptions,
    ) -> Result<CutOver, Error> {
        let mut cut_over = self.rollback(name, options).await?;
        let deployment = self.deployments.get(name)?;
        if cut_over.position.is_some() {
            deployment.active().wait_until_begun(super::BEGIN_MAX).await;
        }
        cut_over.deployment = deployment.info();
        Ok(cut_over)
    }
}

/// A rollback of code that inherited its state: the previous code continues with the current
/// state.
async fn roll_back_code(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    previous: Generation,
) -> Result<CutOver, Error> {
    let (runners, digest) = (
        Arc::clone(&rollouts.runners),
        previous.module.digest.clone(),
    );
    // Loaded before anything is changed: code that cannot be loaded is nothing to go back to.
    let module = blocking(move || runners.load(&digest)).await?;
    let runner = deployment.active();
    let mut record = deployment.draft();
    parked_rules::check_same_rule(deployment, &previous)?;
    failure_events::check_generation(record.parking.events.as_ref(), &previous)?;
    if let Some(handler) = &record.handler {
        rollouts
            .handlers
            .check_grants_of(&handler.grants, &previous)?;
    }
    let differs = record.active().module.subjects != previous.module.subjects;
    // The previous code did not see events of its own subjects meanwhile.
    let checks = previous.event_checks() == EventChecks::On;
    let held = if differs || checks {
        Some(Held::at(&runner).await?)
    } else {
        None
    };
    let position = runner.position();
    let from = record.active;
    let has_released = releases_of(&runner) > record.active().releases_before;
    record.active_mut().on_probation = false;
    record.active_mut().enter(
        GenerationStatus::Previous,
        format!("rolled back to generation {}", previous.number),
    );
    record.active = previous.number;
    let mut reason = format!("rolled back from generation {from}, whose state it inherited");
    if let Some(failed_at) = previous
        .failed_at
        .filter(|failed_at| *failed_at <= position)
    {
        reason.push_str(&format!(
            "; its code stopped at event {failed_at}, which the state now contains, so it \
             can't rebuild that state"
        ));
    }
    if has_released {
        reason.push_str(
            "; the state now contains events that its code had parked, so it may not be able \
             to rebuild that state",
        );
    }
    let serving = record.active_mut();
    if let Some(held) = &held {
        if differs {
            serving.subjects_from = held.position;
        }
        // The other code decided about the events until now.
        serving.checks_events_after = checks.then_some(held.position);
    }
    serving.enter(GenerationStatus::Active, reason.clone());
    let program = rollouts
        .runners
        .program(&record, record.active(), Ok(module), Role::TAKES_OVER);
    rollouts
        .deployments
        .commit(
            deployment,
            record,
            Switch::Rollback.action(),
            reason.clone(),
        )
        .await?;
    crash_points::reached("hand-back-recorded");
    // After the commit, and while it still is held, so that not one event is applied in
    // between.
    runner.take_over(program);
    drop(held);
    Ok(CutOver {
        deployment: deployment.info(),
        from,
        to: previous.number,
        position: Some(position),
        held: Duration::ZERO,
        message: reason,
    })
}

/// A rollback to a generation whose state is gone: rebuilds it, if requested.
async fn rebuild_previous(
    rollouts: &Arc<Rollouts>,
    deployment: &Arc<Deployment>,
    RollbackOptions {
        may_rebuild,
        missing,
    }: RollbackOptions,
) -> Result<CutOver, Error> {
    let record = deployment.record();
    let served = |generation: &&Generation| {
        // A generation that never served, for example a failed candidate, is no target of a
        // rollback.
        generation.status == GenerationStatus::Retired && generation.has_served
    };
    let Some(last) = record
        .generations
        .iter()
        .filter(served)
        .max_by(|one, other| one.status_since.cmp(&other.status_since))
    else {
        return Err(Error::Conflict(format!(
            "{} has no previous generation",
            deployment.name()
        )));
    };
    if !may_rebuild {
        let head = deployment.overview().head;
        let up_to = head
            .map(|head| format!(" (up to {head} events)"))
            .unwrap_or_default();
        return Err(Error::Conflict(format!(
            "the state of generation {} was removed at {} ({}); `foldstream rollback {} \
             --rebuild` rebuilds it from the stream{up_to} and then lets it serve",
            last.number,
            last.status_since,
            last.reason,
            deployment.name()
        )));
    }
    let advice =
        "accept the loss with --accept-missing, or deploy with --strategy inherit or migrate";
    let accepted = rollouts
        .history
        .may_replace(deployment, &last.source, missing, advice)
        .await?;
    let number = record.next;
    let reason = accepted.explain(format!(
        "rolling back: generation {} is rebuilt",
        last.number
    ));
    let build = BuildSettings {
        accept_missing: missing == MissingEvents::Accept,
        ..BuildSettings::default()
    };
    let mut generation = last.to_rebuild(number, build, reason.clone());
    accepted.apply(&mut generation);
    build::add_candidate(rollouts, deployment, generation, "rollback").await?;
    Ok(CutOver {
        deployment: deployment.info(),
        from: record.active,
        to: number,
        position: None,
        held: Duration::ZERO,
        message: reason,
    })
}
