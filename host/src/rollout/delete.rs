//! Deleting: a deployment ends, and its state is removed.

use std::sync::Arc;

use super::{Rollouts, prune};
use crate::actor::blocking;
use crate::audit;
use crate::deployment::Deployment;
use crate::deployments::{Ending, Error, crash_points, owners};

/// What a deletion does with messages that wait to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitingEffects {
    /// They keep the deployment from being deleted.
    Keep,
    /// They are dropped with it.
    Drop,
}

impl Rollouts {
    /// Stops a deployment and removes its state. Messages that wait to be published are lost with
    /// it, so they keep it from being deleted unless `waiting` says that they are dropped.
    pub async fn delete(&self, name: &str, waiting: WaitingEffects) -> Result<(), Error> {
        let deployment = self.deployments.get(name)?;
        // In this order: work on the deployment may take a while, and other deployments need not
        // wait for it.
        let _changing = self.deployments.lock(&deployment).await?;
        let dropped = check_effects(&deployment, waiting)?;
        let all = self.deployments.changing.lock().await;
        // The audit entry is in the same commit: what was dropped is recorded exactly if it is
        // gone.
        let (catalogue, gone) = (Arc::clone(&self.deployments.catalogue), name.to_owned());
        blocking(move || catalogue.remove(&gone, &audit::entry("delete", &gone, dropped))).await?;
        crash_points::reached("delete-recorded");
        // From here on nobody can create the name again before its runners have ended.
        let _ending = Ending::begin(&self.deployments.ending, name);
        self.deployments.remove(name);
        // Waiting readers and watches end now instead of at their time limits.
        deployment.leave();
        // A guest call may take as long as its deadline. Other deployments need not wait for it.
        drop(all);
        let runners = deployment.runners();
        // All are asked before the first is awaited, so that they end side by side.
        runners.iter().for_each(|runner| runner.ask_to_stop());
        for runner in runners {
            prune::end_runner(runner).await;
        }
        self.history.forget(name);
        // Their files have no row any more.
        self.deployments.remove_leftovers().await;
        self.metrics.forget(name);
        tracing::info!(deployment = name, "deleted");
        Ok(())
    }
}

/// Whether effects that wait may be dropped; returns what is dropped, for the audit log.
fn check_effects(deployment: &Deployment, wanted: WaitingEffects) -> Result<String, Error> {
    if deployment.record().handler.is_none() {
        return Ok(String::new());
    }
    let (name, active) = (deployment.name(), deployment.active());
    let is_lost = owners::is_owner_lost(&deployment.record(), &active);
    // Rows of the outbox are durable, so the count is exact while the state is open. Another file
    // knows nothing of what waited.
    let waiting = active
        .store()
        .filter(|_| !is_lost)
        .map(|store| store.waiting_effects().entries);
    match (waiting, wanted) {
        (Some(0), _) => Ok(String::new()),
        (Some(count), WaitingEffects::Drop) => Ok(format!("{count} messages were not published")),
        (None, WaitingEffects::Drop) => {
            Ok("its state was not open, or lost; messages may not have been published".to_owned())
        }
        (Some(count), WaitingEffects::Keep) => Err(Error::Conflict(format!(
            "{count} messages of {name} are not published yet and would be lost; wait until they \
             are (`foldstream show {name}`), or delete it with --drop-effects"
        ))),
        (None, WaitingEffects::Keep) if is_lost => Err(Error::Conflict(format!(
            "the state of {name}, which owned its effects, is lost, so nobody knows whether \
             messages waited in it; restore it from a backup, or delete {name} with --drop-effects"
        ))),
        (None, WaitingEffects::Keep) => Err(Error::NotOpen(format!(
            "the state of {name} is not open, so it is unknown whether messages wait in it; try \
             again, or delete it with --drop-effects"
        ))),
    }
}
