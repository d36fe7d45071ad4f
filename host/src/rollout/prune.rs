//! Removes generations: those kept for a rollback, and old rows of the record.

use std::sync::Arc;
use std::time::Duration;

use super::Rollouts;
use crate::actor::blocking;
use crate::deployment::Deployment;
use crate::deployments::{DryRun, Error, crash_points};
use crate::runner::Runner;
use crate::state::catalogue::{Generation, GenerationStatus, Record};

/// What a prune removes.
#[derive(Clone, Debug)]
pub struct Pruned {
    /// Numbers of the generations.
    pub generations: Vec<u64>,
    /// Bytes of their files.
    pub bytes: u64,
    /// Whether this was a dry run, which removes nothing.
    pub dry_run: DryRun,
}

impl Rollouts {
    /// Retires previous generations that were kept for long enough. `now_ns` is the time of the
    /// clock, in nanoseconds since the Unix epoch.
    pub(crate) fn retire_previous(self: &Arc<Self>, now_ns: u64) {
        let keep = self.config.rollout.keep_previous;
        for deployment in self.deployments.all() {
            // A look without the lock; `retire` looks again with it.
            if deployment.with_record(|record| over(record, keep, now_ns).is_empty()) {
                continue;
            }
            let rollouts = Arc::clone(self);
            // The lock of the deployment may take long to get.
            let name = deployment.name().to_owned();
            self.deployments.chore("retire", &name, async move {
                retire(&rollouts, &deployment, now_ns).await;
            });
        }
    }

    /// Removes all but the newest `keep` inactive generations, and their files. A candidate stays.
    pub async fn prune(&self, name: &str, keep: usize, dry_run: DryRun) -> Result<Pruned, Error> {
        let deployment = self.deployments.get(name)?;
        let _changing = self.deployments.lock(&deployment).await?;
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
            .map(|file| size(&self.deployments.folder.state(name, *file)))
            .sum();
        // A dry run reports the same figures, and changes nothing.
        if dry_run == DryRun::No && !gone.is_empty() {
            record
                .generations
                .retain(|generation| !gone.contains(&generation.number));
            self.deployments
                .commit(
                    &deployment,
                    record,
                    "prune",
                    format!("generations {gone:?}"),
                )
                .await?;
            crash_points::reached("prune-recorded");
            end_unused(self, &deployment).await;
        }
        Ok(Pruned {
            generations: gone,
            bytes,
            dry_run,
        })
    }
}

/// Retires previous generations beyond the number that is kept; returns whether anything
/// changed.
pub(super) fn limit_previous(rollouts: &Rollouts, record: &mut Record) -> bool {
    let keep = rollouts.config.rollout.keep_previous_generations;
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
pub(super) async fn end_unused(rollouts: &Rollouts, deployment: &Arc<Deployment>) {
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
            end_runner(runner).await;
        }
    }
    rollouts.deployments.remove_leftovers().await;
}

async fn retire(rollouts: &Rollouts, deployment: &Arc<Deployment>, now_ns: u64) {
    let Ok(_changing) = rollouts.deployments.lock(deployment).await else {
        return;
    };
    let mut record = deployment.draft();
    let keep = rollouts.config.rollout.keep_previous;
    let over = over(&record, keep, now_ns);
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
    match rollouts
        .deployments
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
    end_unused(rollouts, deployment).await;
}

/// Previous generations that were kept for long enough.
fn over(record: &Record, keep: Duration, now_ns: u64) -> Vec<u64> {
    let over = record
        .generations
        .iter()
        .filter(|generation| is_over(generation, keep, now_ns) && !is_needed(record, generation));
    over.map(|generation| generation.number).collect()
}

/// Whether a generation would be restored if the one on probation failed.
fn is_needed(record: &Record, generation: &Generation) -> bool {
    record
        .to_restore()
        .is_some_and(|needed| needed.number == generation.number)
}

fn is_over(generation: &Generation, keep: Duration, now_ns: u64) -> bool {
    // A time that cannot be read keeps the generation.
    let since = generation.status_since.parse::<jiff::Timestamp>().ok();
    generation.status == GenerationStatus::Previous
        && since.is_some_and(|since| {
            let kept_ns = i128::from(now_ns) - since.as_nanosecond();
            u128::try_from(kept_ns).is_ok_and(|kept_ns| kept_ns > keep.as_nanos())
        })
}

fn size(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

pub(crate) async fn end_runner(runner: Arc<Runner>) {
    runner.ask_to_stop();
    blocking(move || runner.join()).await;
}
