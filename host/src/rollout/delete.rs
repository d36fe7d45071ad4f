//! Deleting: a deployment ends, and its state is removed.

use std::sync::Arc;

use super::ending::Ending;
use super::{Error, Rollouts, crash_points};
use crate::actor::blocking;
use crate::audit;
use crate::deployment::Deployment;
use crate::runner::Runner;

impl Rollouts {
    /// Stops a deployment and removes its state. Messages that wait to be published are lost with
    /// it, so they keep it from being deleted unless `drop_effects` is set.
    pub async fn delete(&self, name: &str, drop_effects: bool) -> Result<(), Error> {
        let deployment = self.deployment(name)?;
        // In this order: work on the deployment may take a while, and other deployments need not
        // wait for it.
        let _changing = self.lock(&deployment).await?;
        let dropped = check_effects(&deployment, drop_effects)?;
        let all = self.inner.changing.lock().await;
        // The audit entry is in the same commit: what was dropped is recorded exactly if it is
        // gone.
        let (catalogue, gone) = (Arc::clone(&self.inner.catalogue), name.to_owned());
        blocking(move || catalogue.remove(&gone, &audit::entry("delete", &gone, dropped))).await?;
        crash_points::reached("delete-recorded");
        // From here on nobody can create the name again before its runners have ended.
        let _ending = Ending::begin(&self.inner.ending, name);
        self.inner.deployments.write().remove(name);
        // Waiting readers and watches end now instead of at their time limits.
        deployment.leave();
        // A guest call may take as long as its deadline. Other deployments need not wait for it.
        drop(all);
        let runners = deployment.runners();
        // All are asked before the first is awaited, so that they end side by side.
        runners.iter().for_each(|runner| runner.ask_to_stop());
        for runner in runners {
            self.end(runner).await;
        }
        self.inner.past_states.forget(name);
        // Their files have no row any more.
        self.remove_leftovers().await;
        self.inner.metrics.forget(name);
        tracing::info!(deployment = name, "deleted");
        Ok(())
    }

    /// Ends a runner.
    pub(crate) async fn end(&self, runner: Arc<Runner>) {
        runner.ask_to_stop();
        blocking(move || runner.join()).await;
    }
}

/// Whether effects that wait may be dropped; returns what is dropped, for the audit log.
fn check_effects(deployment: &Deployment, drop: bool) -> Result<String, Error> {
    if deployment.record().handler.is_none() {
        return Ok(String::new());
    }
    let name = deployment.name();
    // Rows of the outbox are durable, so the count is exact while the state is open.
    let waiting = deployment
        .active()
        .store()
        .map(|store| store.waiting_effects().entries);
    match (waiting, drop) {
        (Some(0), _) => Ok(String::new()),
        (Some(count), true) => Ok(format!("{count} messages were not published")),
        (None, true) => {
            Ok("its state was not open; messages may not have been published".to_owned())
        }
        (Some(count), false) => Err(Error::Conflict(format!(
            "{count} messages of {name} are not published yet and would be lost; wait until they \
             are (`foldstream show {name}`), or delete it with --drop-effects"
        ))),
        (None, false) => Err(Error::Conflict(format!(
            "the state of {name} is not open, so nobody knows whether messages wait in it; try \
             again, or delete it with --drop-effects"
        ))),
    }
}
