//! Removes generations: those kept for a rollback, and old rows of the record.

use std::sync::Arc;
use std::time::Duration;

use super::crash_points;
use super::{Error, Rollouts};
use crate::api::{self, GenerationStatus};
use crate::deployment::Deployment;
use crate::state::catalogue::{Generation, Record};

impl Rollouts {
    /// Retires previous generations beyond the number that is kept; returns whether anything
    /// changed.
    pub(super) fn limit_previous(&self, record: &mut Record) -> bool {
        let keep = self.inner.config.rollout.keep_previous_generations;
        let mut previous: Vec<(String, u64)> = record
            .generations
            .iter()
            .filter(|generation| {
                generation.status == GenerationStatus::Previous && !is_needed(record, generation)
            })
            .map(|generation| (generation.status_since.clone(), generation.number))
            .collect();
        // By time and not by number: a rollback makes an older number the newer previous
        // generation.
        previous.sort();
        let surplus = previous.len().saturating_sub(keep);
        for (_, number) in &previous[..surplus] {
            let generation = record.generation_mut(*number).expect("it was just found");
            generation.enter(
                GenerationStatus::Retired,
                format!("of the previous generations, {keep} may stay for a rollback"),
            );
        }
        surplus > 0
    }

    /// Ends runners whose files no generation uses any more, and removes those files.
    pub(super) async fn end_unused(&self, deployment: &Arc<Deployment>) {
        let record = deployment.record();
        // The record decides, and was committed by the caller: no file goes that a restart would
        // look for.
        let unused: Vec<u64> = deployment
            .running_files()
            .into_iter()
            .filter(|state_file| !record.uses_file(*state_file))
            .collect();
        for state_file in unused {
            if let Some(runner) = deployment.take_runner(state_file) {
                self.end(runner).await;
            }
        }
        self.remove_leftovers().await;
    }

    /// Retires previous generations that were kept for long enough.
    pub(crate) fn retire_previous(&self) {
        let keep = self.inner.config.rollout.keep_previous;
        for deployment in self.deployments() {
            // A look without the lock; `retire` looks again with it.
            if deployment.with_record(|record| over(record, keep).is_empty()) {
                continue;
            }
            let host = self.clone();
            // The lock of the deployment may take long to get.
            let name = deployment.name().to_owned();
            self.chore("retire", &name, async move {
                host.retire(&deployment, keep).await;
            });
        }
    }

    async fn retire(&self, deployment: &Arc<Deployment>, keep: Duration) {
        let Ok(_changing) = self.lock(deployment).await else {
            return;
        };
        let mut record = deployment.draft();
        let over = over(&record, keep);
        if over.is_empty() {
            return;
        }
        for number in over {
            let kept = humantime::format_duration(keep);
            let generation = record.generation_mut(number).expect("it was just found");
            generation.enter(
                GenerationStatus::Retired,
                format!("was kept for a rollback for {kept}"),
            );
        }
        match self
            .commit(
                deployment,
                record,
                "retire",
                "rollout.keep_previous has passed".to_owned(),
            )
            .await
        {
            Ok(()) => crash_points::reached("retire-recorded"),
            Err(error) => {
                tracing::error!(
                    deployment = deployment.name(),
                    %error,
                    "could not retire a generation"
                );
            }
        }
        self.end_unused(deployment).await;
    }

    /// Removes all but the newest `keep` inactive generations, and their files. A candidate stays.
    pub async fn prune(
        &self,
        name: &str,
        keep: usize,
        dry_run: bool,
    ) -> Result<api::Pruned, Error> {
        let deployment = self.deployment(name)?;
        let _changing = self.lock(&deployment).await?;
        let mut record = deployment.draft();
        let may_go = |generation: &Generation| {
            let serves = generation.number == record.active || generation.status.is_candidate();
            !serves && !is_needed(&record, generation)
        };
        let mut gone: Vec<u64> = record
            .generations
            .iter()
            .filter(|generation| may_go(generation))
            .map(|generation| generation.number)
            .collect();
        // The newest ones are at the end, because numbers only rise.
        gone.truncate(gone.len().saturating_sub(keep));
        let goes = |generation: &Generation| gone.contains(&generation.number);
        let stays = |state_file: u64| {
            let mut others = record
                .generations
                .iter()
                .filter(|generation| !goes(generation));
            // A file goes only with the last generation that uses it.
            others.any(|other| other.has_file() && other.state_file == state_file)
        };
        let mut files: Vec<u64> = record
            .generations
            .iter()
            .filter(|generation| {
                goes(generation) && generation.has_file() && !stays(generation.state_file)
            })
            .map(|generation| generation.state_file)
            .collect();
        // Generations that share a file count its bytes once.
        files.sort_unstable();
        files.dedup();
        let bytes = files
            .iter()
            .map(|file| size(&self.inner.folder.state(name, *file)))
            .sum();
        // A dry run reports the same figures, and changes nothing.
        if !dry_run && !gone.is_empty() {
            record
                .generations
                .retain(|generation| !gone.contains(&generation.number));
            self.commit(
                &deployment,
                record,
                "prune",
                format!("generations {gone:?}"),
            )
            .await?;
            crash_points::reached("prune-recorded");
            self.end_unused(&deployment).await;
        }
        Ok(api::Pruned {
            generations: gone,
            bytes,
            dry_run,
        })
    }
}

/// Previous generations that were kept for long enough.
fn over(record: &Record, keep: Duration) -> Vec<u64> {
    let over = record
        .generations
        .iter()
        .filter(|generation| is_over(generation, keep) && !is_needed(record, generation));
    over.map(|generation| generation.number).collect()
}

/// Whether a generation would be restored if the one on probation failed.
fn is_needed(record: &Record, generation: &Generation) -> bool {
    record
        .to_put_back()
        .is_some_and(|needed| needed.number == generation.number)
}

fn is_over(generation: &Generation, keep: Duration) -> bool {
    // A time that cannot be read keeps the generation.
    let since = generation.status_since.parse::<jiff::Timestamp>().ok();
    generation.status == GenerationStatus::Previous
        && since.is_some_and(|since| {
            jiff::Timestamp::now().duration_since(since)
                > jiff::SignedDuration::try_from(keep).unwrap_or(jiff::SignedDuration::MAX)
        })
}

fn size(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}
