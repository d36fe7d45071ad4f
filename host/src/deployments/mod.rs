//! All deployments of a host: which there are, the lock to change one, and the commit of a change.
//!
//! What changes deployments is built on this: rollouts (`rollout/`) create, switch and retire
//! generations, exceptions (`exceptions/`) are decisions about events that fail, handlers
//! (`handlers/`) have effects, and history (`history/`) folds a stream again.

mod align;
mod choices;
mod chores;
mod compare;
pub mod crash_points;
mod ending;
mod error;
mod exact_json;
mod loader;
pub(crate) mod owners;
mod queue;
mod runners;
mod skips;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

pub(crate) use align::{Aligned, align};
pub use choices::{DryRun, GenerationChoice, MissingEvents};
pub(crate) use chores::Chore;
pub use compare::check as check_gate;
pub(crate) use compare::{compare, first_other_timer};
pub(crate) use ending::Ending;
pub use error::{Error, Impossible};
pub(crate) use loader::Loader;
pub use queue::Queue;
pub(crate) use runners::{Role, Runners, throttle};
pub(crate) use skips::{parked_remark, skipped_remark};

use crate::actor::blocking;
use crate::audit;
use crate::data_dir::DataDir;
use crate::deployment::{Deployment, View};
use crate::runner::{ReadError, Runner};
use crate::state::Store;
use crate::state::catalogue::{Catalogue, Generation, Record};

/// How long two runners may be held for a comparison or a partial rebuild, which need not be as
/// quick as a cut-over: if the server filters for a reader, the reader learns only once per second
/// that it has passed the events of others.
pub(crate) const FILTERED_HOLD_MAX: Duration = Duration::from_secs(5);
/// How much more space a copy or a new state is expected to need than the existing one, in percent:
/// files grow in steps, and versions of a module differ.
const HEADROOM_PERCENT: u64 = 25;

/// All deployments of a host.
///
/// The locks are taken in this order: `changing` of a deployment, `changing` of all, `naming`,
/// `by_name`. A task that has one of them never waits for an earlier one; the last is never held
/// across an await.
#[derive(Debug)]
pub struct Deployments {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) folder: DataDir,
    by_name: RwLock<BTreeMap<String, Arc<Deployment>>>,
    /// Serialises changes to the set of deployments; reads don't wait for it.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Names of deleted deployments whose runners have not ended yet. They cannot be created again
    /// before that.
    pub(crate) ending: tokio::sync::watch::Sender<BTreeSet<String>>,
    /// Held while a file exists that no record names yet; code that removes unnamed files waits for
    /// it.
    pub(crate) naming: tokio::sync::RwLock<()>,
    /// Housekeeping in progress: its kind, and the deployment or source.
    chores: chores::Chores,
    /// Cancelled once the host stops.
    stopping: CancellationToken,
}

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

impl Deployments {
    /// None yet, of this data folder; `stopping` is cancelled once the host stops.
    pub(crate) fn new(
        catalogue: Arc<Catalogue>,
        folder: DataDir,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            catalogue,
            folder,
            by_name: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            ending: tokio::sync::watch::Sender::default(),
            naming: tokio::sync::RwLock::default(),
            chores: chores::Chores::default(),
            stopping,
        }
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Deployment>> {
        self.by_name.read().values().cloned().collect()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.by_name.read().len()
    }

    /// One of them, if it exists.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Deployment>> {
        self.by_name.read().get(name).cloned()
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Result<Arc<Deployment>, Error> {
        self.find(name)
            .ok_or_else(|| Error::NotFound(name.to_owned()))
    }

    /// Makes a deployment of a record, whose active generation has this runner. Its row is in the
    /// catalogue already.
    pub(crate) fn add(&self, record: Record, active: Arc<Runner>) -> Arc<Deployment> {
        let name = record.name.clone();
        let deployment = Deployment::new(record, active, self.stopping.child_token());
        self.by_name.write().insert(name, Arc::clone(&deployment));
        deployment
    }

    /// Removes one, after its row.
    pub(crate) fn remove(&self, name: &str) {
        self.by_name.write().remove(name);
    }

    /// Whether the host is stopping.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
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
        match self.find(name) {
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
        let (catalogue, noted) = (Arc::clone(&self.catalogue), record.clone());
        let audit = audit::entry(action, deployment.name(), detail);
        blocking(move || catalogue.put(&noted, &audit)).await?;
        // After the commit: whatever readers see of a record is durable.
        deployment.set_record(record);
        Ok(())
    }

    /// Records that earlier reads no longer match their position.
    pub(crate) async fn note_repair(
        &self,
        deployment: &Deployment,
        action: &str,
        detail: String,
    ) -> Result<(), Error> {
        let mut record = deployment.draft();
        record.repairs += 1;
        self.commit(deployment, record, action, detail).await
    }

    /// Removes files that are no longer used: after a delete, a retirement, or a crash during one
    /// of them.
    pub(crate) async fn remove_leftovers(self: &Arc<Self>) {
        // Waits for every change whose files have no record yet.
        let _naming = self.naming.write().await;
        let deployments = Arc::clone(self);
        blocking(move || deployments.keep_only_named_files()).await;
    }

    /// Removes files that no record names. Blocking.
    pub(crate) fn keep_only_named_files(&self) {
        // Without the catalogue nobody knows what is used, so nothing is removed.
        match self.catalogue.deployments() {
            Ok(records) => self.folder.keep_only(&records),
            Err(error) => tracing::warn!(%error, "left unused files in place"),
        }
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
}

/// The candidate of a deployment.
pub(crate) fn candidate_of(record: &Record) -> Result<&Generation, Error> {
    let none = || {
        Error::Conflict(format!(
            "{} has no candidate; `foldstream deploy` creates one",
            record.name
        ))
    };
    record.candidate().ok_or_else(none)
}

/// How much space a copy or a new state of this many bytes may take.
pub(crate) fn with_headroom(bytes: u64) -> u64 {
    bytes + bytes * HEADROOM_PERCENT / 100
}

impl Deployment {
    /// The state of the active generation, if its file is open.
    pub(crate) fn open_store(&self) -> Result<Store, Error> {
        let active = self.active();
        let opening = || Error::NotOpen(active.why_not_open());
        active.store().ok_or_else(opening)
    }
}
