//! Rollouts: how generations are created, take over from each other, and are removed.
//!
//! A deploy (`deploy`) is planned (`plan`). It then either inherits the existing state (`inherit`),
//! or builds a candidate alongside it (`build`), from the stream or from migrated entries
//! (`migrate`). Once it is built it takes over (`take_over`), or when an operator promotes it
//! (`promote`), if its gate lets it pass (`gate`). A cut-over (`cut_over`) holds both at one position
//! (`align`) and changes the active generation in one commit of the catalogue; a rollback
//! (`rollback`) is the same in the other direction. A handler's effects change hands in that commit
//! (`hand_over`). A lock per deployment serialises changes; reads never
//! take it. Scratch runners (`side_fold`) fold the same stream for an as-of read (`as_of`), a
//! verification (`verify`) or a partial rebuild (`rebuild_part`).

mod align;
mod as_of;
mod beginning;
mod belongings;
mod build;
mod candidate;
mod chores;
mod compare;
pub mod crash_points;
mod cut_over;
mod delete;
mod deploy;
mod disk_space;
mod ending;
mod error;
mod failure_events;
mod failure_policy;
mod gate;
mod hand_over;
mod history;
mod inherit;
mod key_part;
mod loader;
mod migrate;
mod outlet;
mod owners;
mod parked;
mod parked_retry;
mod parked_rules;
mod pausing;
mod plan;
mod promote;
mod prune;
mod queue;
mod rebuild_part;
mod rebuilds;
mod rollback;
mod rollouts;
mod sagas;
mod side_fold;
mod skips;
mod snapshots;
mod take_over;
mod timers;
mod verify;
mod waiting;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use as_of::PastStates;
pub use as_of::{AsOfError, Moment};
pub(crate) use chores::OnDrop;
pub use compare::check as check_gate;
pub use deploy::DeployRequest;
pub use error::Error;
pub use key_part::Keys;
pub(crate) use loader::Loader;
pub use parked::ParkedAction;
pub use pausing::GenerationChoice;
pub use promote::{BuildSpeed, Demand};
pub use queue::Queue;
pub use rollback::RollbackOptions;
pub use rollouts::Rollouts;
pub(crate) use rollouts::{Role, Shared};
pub use skips::Wanted as WantedSkips;
pub(crate) use snapshots::Snapshots;
pub use timers::TimerAction;

use crate::actor::blocking;
use crate::api;
use crate::audit;
use crate::deployment::{Deployment, View};
use crate::runner::{NotLoaded, ReadError, Runner};
use crate::state::catalogue::{Generation, Record};

/// How long two runners may be held for a comparison or a partial rebuild, which need not be as
/// quick as a cut-over: if the server filters for a reader, the reader learns only once per second
/// that it has passed the events of others.
const FILTERED_HOLD_MAX: Duration = Duration::from_secs(5);
/// How long the response to a resume or a rollback waits for the first batch, or a failure.
const BEGIN_MAX: Duration = Duration::from_secs(8);

/// Why there is no view of a generation.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// There is no such generation, or it does not run.
    #[error(transparent)]
    Host(#[from] Error),
    /// It can't be read at the moment.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Rollouts {
    /// Starts all deployments of the catalogue in their last state. A module that can't be loaded
    /// does not keep the others from starting.
    pub(crate) async fn resume_deployments(&self) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        let records = blocking(move || {
            // Before any runner starts: a file that no record names could be in the way.
            inner.remove_leftovers();
            inner.catalogue.deployments()
        })
        .await?;
        for record in records {
            self.resume_deployment(record);
        }
        Ok(())
    }

    fn resume_deployment(&self, record: Record) {
        let active = record.active().clone();
        self.warn_of_lost_file(&record, &active);
        // What readers saw before the restart is unknown here; the state or the stream will say.
        let serve = self.start_runner(
            &record,
            &active,
            Role::Serve {
                catches_up_to: None,
            },
        );
        let deployment = Deployment::new(record, serve, self.inner.stopping.child_token());
        let record = deployment.record();
        self.inner
            .deployments
            .write()
            .insert(record.name.clone(), Arc::clone(&deployment));
        let files: BTreeSet<u64> = record
            .generations
            .iter()
            .map(|generation| generation.state_file)
            .collect();
        // Generations share a file if one inherited the state of the other; one runner serves both.
        for state_file in files
            .into_iter()
            .filter(|state_file| *state_file != active.state_file)
        {
            if let Some(follower) = record.follower(state_file) {
                let runner = self.start_runner(&record, follower, Role::Follow);
                deployment.add_runner(state_file, runner);
            }
        }
        if active.on_probation {
            // All of this runs in tasks, so that one deployment does not delay the start of the
            // others.
            self.watch_probation(&deployment, active.number);
        }
        if let Some(candidate) = record.candidate() {
            self.drive(&deployment, candidate.number);
        }
        self.publish_failures(&deployment);
        self.note_beginning(&deployment);
        if record.parking.retry_by.is_some() {
            self.retry_what_is_parked(&deployment);
        }
    }

    /// Starts a runner for a generation. The runner loads the module from the data folder itself,
    /// so that nobody waits for a slow one.
    pub(crate) fn start_runner(
        &self,
        record: &Record,
        generation: &Generation,
        role: Role,
    ) -> Arc<Runner> {
        let module = Err(NotLoaded::Yet);
        let runner = Runner::start(self.inner.runner_options(record, generation, module, role));
        match role {
            Role::Serve { .. } => runner.start_serving(),
            Role::Follow => runner.follow(),
            Role::Build => runner.stop_serving(),
        }
        runner
    }

    /// The lock to change a deployment, unless it was deleted meanwhile.
    pub(crate) async fn lock<'a>(
        &self,
        deployment: &'a Arc<Deployment>,
    ) -> Result<tokio::sync::MutexGuard<'a, ()>, Error> {
        let guard = deployment.changing.lock().await;
        // In this order, because `stop` sets the flag without this lock.
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        let name = deployment.name();
        // It may have been deleted, and created again, while this waited.
        let current = self.inner.deployments.read().get(name).cloned();
        match current {
            Some(current) if Arc::ptr_eq(&current, deployment) => Ok(guard),
            _ => Err(Error::NotFound(name.to_owned())),
        }
    }

    /// Writes a changed record, and passes it to the deployment.
    pub(crate) async fn commit(
        &self,
        deployment: &Deployment,
        mut record: Record,
        action: &str,
        detail: String,
    ) -> Result<(), Error> {
        // Old rows beyond the limit of a record go with the next change.
        record.trim();
        let (catalogue, noted) = (Arc::clone(&self.inner.catalogue), record.clone());
        let audit = audit::entry(action, deployment.name(), detail);
        blocking(move || catalogue.put(&noted, &audit)).await?;
        // After the commit: whatever readers see of a record is durable.
        deployment.set_record(record);
        Ok(())
    }

    fn chosen<'a>(
        &self,
        record: &'a Record,
        choice: GenerationChoice,
    ) -> Result<&'a Generation, Error> {
        match choice {
            GenerationChoice::Active => Ok(record.active()),
            GenerationChoice::Candidate => self.candidate_of(record),
        }
    }

    fn candidate_of<'a>(&self, record: &'a Record) -> Result<&'a Generation, Error> {
        let none = || {
            Error::Conflict(format!(
                "{} has no candidate; `foldstream deploy` creates one",
                record.name
            ))
        };
        record.candidate().ok_or_else(none)
    }

    /// Removes files that are no longer used.
    pub(crate) async fn remove_leftovers(&self) {
        // Waits for every change whose files have no record yet.
        let _naming = self.inner.naming.write().await;
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.remove_leftovers()).await;
    }

    /// A view of one generation, active or not.
    pub async fn view_of(
        &self,
        deployment: &Deployment,
        generation: u64,
        at_least: Option<u64>,
        timeout: Duration,
    ) -> Result<View, ViewError> {
        let record = deployment.record();
        let Some(known) = record.generation(generation) else {
            return Err(Error::Missing(format!(
                "{} has no generation {generation}",
                deployment.name()
            ))
            .into());
        };
        // A generation without a file of its own answers nothing.
        let runner = deployment
            .runner(known.state_file)
            .filter(|_| known.has_file());
        // The file may belong to code that came later: the generation itself no longer runs.
        let Some(runner) = runner.filter(|runner| runner.program().generation == generation) else {
            return Err(Error::Conflict(format!(
                "generation {generation} of {} no longer runs ({}: {}); generation {} is active, \
                 start again with it",
                deployment.name(),
                known.status.name(),
                known.reason,
                record.active
            ))
            .into());
        };
        Ok(deployment.view_of(runner, at_least, timeout).await?)
    }

    /// The generations of a deployment.
    pub fn generations(&self, name: &str) -> Result<api::GenerationList, Error> {
        let deployment = self.deployment(name)?;
        let record = deployment.record();
        let generations = record
            .generations
            .iter()
            .map(|generation| deployment.generation_info(generation))
            .collect();
        Ok(api::GenerationList { generations })
    }
}
