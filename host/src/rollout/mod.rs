//! Rollouts: how generations are created, take over from each other, and are removed.
//!
//! A deploy (`deploy`) is planned (`plan`). It then either inherits the existing state (`inherit`),
//! or builds a candidate alongside it (`build`), from the stream or from migrated entries
//! (`migrate`). Once it is built it takes over (`take_over`), or when an operator promotes it
//! (`promote`), if its gate lets it pass (`gate`). A cut-over (`cut_over`) holds both at one
//! position, and changes the active generation in one commit of the catalogue; a rollback
//! (`rollback`) is the same in the other direction. A handler's effects change hands in that commit
//! (`hand_over`). A lock per deployment serialises changes; reads never take it. A partial rebuild
//! (`rebuild_part`) replaces entries of the active generation with those of a side fold.

mod beginning;
mod belongings;
mod build;
mod candidate;
mod cut_over;
mod delete;
mod deploy;
mod disk_space;
mod gate;
mod hand_over;
mod inherit;
mod key_part;
mod lacks;
mod lanes;
mod migrate;
mod pausing;
mod plan;
mod promote;
mod prune;
mod rebuild_part;
mod rebuilds;
mod rollback;
mod start;
mod take_over;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::MutexGuard;

pub(crate) use cut_over::CutOver;
pub(crate) use delete::WaitingEffects;
pub use deploy::DeployOutcome;
pub(crate) use deploy::{DeployRequest, Deployed};
pub(crate) use key_part::Keys;
pub(crate) use pausing::ResumeTerms;
pub(crate) use promote::{BuildSpeed, Demand};
pub(crate) use prune::Pruned;
pub(crate) use rebuild_part::{PartialRebuild, Replacement};
pub(crate) use rollback::RollbackOptions;

use crate::config::Config;
use crate::deployment::Deployment;
use crate::deployments::{Deployments, Queue, Runners};
use crate::exceptions::Exceptions;
use crate::handlers::Handlers;
use crate::history::History;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::module::Engine;
use crate::room::Room;
use crate::source::Sources;

/// How long the response to a resume or a rollback waits for the first batch, or a failure.
const BEGIN_MAX: Duration = Duration::from_secs(8);

/// Creates, switches and retires the generations of deployments.
#[derive(Debug)]
pub struct Rollouts {
    deployments: Arc<Deployments>,
    runners: Arc<Runners>,
    /// Checks and compiles what is uploaded.
    engine: Engine,
    /// How many rebuilds run at once.
    rebuilds: Queue,
    /// What a new fold may do without, and side folds for partial rebuilds.
    history: Arc<History>,
    /// What a deploy says about events that fail.
    exceptions: Arc<Exceptions>,
    /// What a deploy says about effects.
    handlers: Arc<Handlers>,
    sources: Sources,
    config: Arc<Config>,
    room: Room,
    metrics: Metrics,
    memory: Memory,
}

/// A deployment while its lock is held.
struct Locked<'a> {
    deployment: &'a Arc<Deployment>,
    /// The lock.
    changing: MutexGuard<'a, ()>,
}

/// What rollouts ask for what is not theirs.
pub(crate) struct Others {
    pub(crate) history: Arc<History>,
    pub(crate) exceptions: Arc<Exceptions>,
    pub(crate) handlers: Arc<Handlers>,
}

impl Rollouts {
    /// Rollouts of these deployments.
    pub(crate) fn new(
        deployments: Arc<Deployments>,
        runners: Arc<Runners>,
        engine: Engine,
        others: Others,
    ) -> Self {
        Self {
            deployments,
            engine,
            rebuilds: others.history.rebuilds(),
            history: others.history,
            exceptions: others.exceptions,
            handlers: others.handlers,
            sources: runners.sources.clone(),
            config: Arc::clone(&runners.config),
            room: runners.room.clone(),
            metrics: runners.metrics.clone(),
            memory: runners.memory.clone(),
            runners,
        }
    }
}
