//! Retries what earlier code has parked, after a deploy that asks for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Exceptions;
use super::parked::{KEYS_MAX, ParkedAction, ParkedSelection};
use crate::deployment::{Deployment, parked_counts as counts};
use crate::deployments::{DryRun, Error};
use crate::progress::DeploymentState;
use crate::runner::Runner;
use crate::state::ParkedKey;

/// Most requests of one retry after a deploy: each is limited in time and keys.
const RETRIES_MAX: u32 = 10_000;
/// Pause after a request of it that could not be carried out.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Whether a retry after a deploy is complete.
enum Retried {
    More,
    All,
}

impl Exceptions {
    /// Has a generation retry what earlier ones have parked, now or after a restart; returns how
    /// many keys. The caller holds the deployment's lock.
    pub(crate) async fn want_retry(
        self: &Arc<Self>,
        deployment: &Arc<Deployment>,
        generation: u64,
    ) -> Result<u64, Error> {
        let mut record = deployment.draft();
        let module = record
            .generation(generation)
            .map_or_else(String::new, |generation| generation.module.digest.clone());
        let store = deployment.active().store();
        let parked = store.map(|store| store.parked_keys()).unwrap_or_default();
        let untried = parked.values().filter(|key| is_untried(key, &module));
        let keys = untried.count() as u64;
        if keys == 0 {
            return Ok(0);
        }
        record.parking.retry_by = Some(generation);
        self.deployments
            .commit(
                deployment,
                record,
                "parked-retry-wanted",
                format!("by generation {generation}"),
            )
            .await?;
        self.retry_what_is_parked(deployment);
        Ok(keys)
    }

    /// Retries everything that other code has parked, as a deploy asked.
    pub(crate) fn retry_what_is_parked(self: &Arc<Self>, deployment: &Arc<Deployment>) {
        let (exceptions, deployment) = (Arc::clone(self), Arc::clone(deployment));
        let name = deployment.name().to_owned();
        self.deployments.chore("parked-retry", &name, async move {
            for _ in 0..RETRIES_MAX {
                // A paused deployment retries when it is resumed.
                let is_paused = |runner: &Runner| runner.now().state == DeploymentState::Paused;
                deployment
                    .active()
                    .until(|runner| (!is_paused(runner)).then_some(()))
                    .await;
                outbox_has_room(&deployment).await;
                let begun = Instant::now();
                match exceptions.retry_some(&deployment).await {
                    // The deployment was held meanwhile: other keys get as much time.
                    Ok(Retried::More) => tokio::time::sleep(begun.elapsed()).await,
                    Ok(Retried::All) => break,
                    Err(error) => {
                        tracing::warn!(
                            deployment = deployment.name(),
                            %error,
                            "parked events could not be retried yet"
                        );
                        // A paused deployment, or a state that is still opening.
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                }
                if deployment.is_gone() {
                    return;
                }
            }
            if let Err(error) = exceptions.retried_all(&deployment).await {
                tracing::warn!(
                    deployment = deployment.name(),
                    %error,
                    "the end of a retry could not be recorded"
                );
            }
        });
    }

    async fn retry_some(&self, deployment: &Arc<Deployment>) -> Result<Retried, Error> {
        let record = deployment.record();
        // The deploy that asked for it was rolled back, or another came after it.
        if record.parking.retry_by != Some(record.active) {
            return Ok(Retried::All);
        }
        let digest = record.active().module.digest.clone();
        let store = deployment.open_store()?;
        let keys: Vec<String> = store
            .parked_keys()
            .into_iter()
            .filter(|(_, parked)| is_untried(parked, &digest))
            .map(|(key, _)| key)
            .take(KEYS_MAX)
            .collect();
        if keys.is_empty() {
            return Ok(Retried::All);
        }
        let selection = ParkedSelection {
            keys,
            ..ParkedSelection::default()
        };
        let action = ParkedAction::Retry;
        let changed = self
            .change_parked(deployment.name(), action, selection, DryRun::No)
            .await?;
        tracing::info!(
            deployment = deployment.name(),
            events = changed.outcome.events,
            failed = changed.outcome.failed.len(),
            "parked events were retried by newer code"
        );
        Ok(Retried::More)
    }

    async fn retried_all(&self, deployment: &Arc<Deployment>) -> Result<(), Error> {
        let _changing = self.deployments.lock(deployment).await?;
        let mut record = deployment.draft();
        // Nothing to record: an earlier run of this did.
        if record.parking.retry_by.take().is_none() {
            return Ok(());
        }
        let left = counts(deployment.active().store().as_ref()).events;
        let detail = format!("{left} parked events left");
        self.deployments
            .commit(deployment, record, "parked-retry-done", detail)
            .await
    }
}

/// Waits until the outbox takes messages again, or the deployment is gone: until then a retry would
/// get no further. Cancel-safe: it only observes.
async fn outbox_has_room(deployment: &Deployment) {
    // Taken again each time: another state may have become active.
    while let Some(store) = deployment.active().store()
        && !deployment.is_gone()
    {
        let mut changes = store.outbox_changes();
        changes.borrow_and_update();
        if !store.is_outbox_full() {
            return;
        }
        let _ = tokio::time::timeout(RETRY_PAUSE, changes.changed()).await;
    }
}

/// Whether a module has not tried the first event of a parked key.
fn is_untried(parked: &ParkedKey, module: &str) -> bool {
    let failure = parked.failure.as_ref();
    failure.is_none_or(|failure| failure.module != module)
}
