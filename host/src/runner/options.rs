//! The options of a runner.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::effects::{Lineage, OwnerMismatch, Role};
use crate::memory::caches;
use crate::metrics::DeploymentMetrics;
use crate::module::Module;
use crate::pipeline::{Ceiling, Fold, Settings, Throttle};
use crate::position::Start;
use crate::source::{self, Source};
use crate::state::exceptions::Skips;
use crate::state::{self, Ownership};
use crate::subject::SubjectSet;

/// Why a module could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LoadError {
    /// What happened, and what to do.
    pub message: String,
    /// Whether a retry may succeed later.
    pub is_passing: bool,
}

/// Why a program has no module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLoaded {
    /// It was not tried yet, or the module is loading.
    #[error("it is being loaded")]
    Yet,
    /// It was tried.
    #[error(transparent)]
    Failed(#[from] LoadError),
}

/// Loads a module. Blocking.
pub type Load = Arc<dyn Fn() -> Result<Arc<Module>, LoadError> + Send + Sync>;

/// The module that folds, and what it reads.
#[derive(Clone)]
pub struct Program {
    /// Number of the generation: it seeds the guest's randomness, and identifies the module in
    /// logs.
    pub generation: u64,
    /// The module, or why it is not loaded.
    pub module: Result<Arc<Module>, NotLoaded>,
    /// Loads it if it is not loaded.
    pub load: Load,
    /// Name of the source.
    pub source_name: String,
    /// The source, or why there is none.
    pub source: Result<Source, source::Unknown>,
    /// Where a new state begins.
    pub start: Start,
    /// The sequence after which a new state begins, whatever `start` says.
    pub begins_after: Option<u64>,
    /// Events up to this sequence may be missing from the stream.
    pub accepts_missing_through: u64,
    /// It inherited a state, and gets few attempts.
    pub on_probation: bool,
    /// Position from which the state has the events of all its subjects; more than 0 if it was
    /// inherited from code with other subjects.
    pub subjects_from: u64,
    /// Events after this sequence are checked against the schemas of the module; none checks none.
    pub checks_events_after: Option<u64>,
    /// Fold only a part of the events that the module reads.
    pub part: Option<Arc<dyn Part>>,
    /// Which events to skip.
    pub skips: Skips,
    /// In how many lanes it folds if it is a projection with a key rule; 1 is serial.
    pub lanes: u32,
    /// Whether its effects are sent, or why nobody knows.
    pub role: Result<Role, OwnerMismatch>,
    /// Who owns the effects of the deployment, according to the catalogue; none if nobody does, and
    /// for a fold that can never become the owner.
    pub ownership: Option<Ownership>,
    /// The first lineage of the deployment, by which operators' decisions about its timers are told
    /// from those about another one of its name; none of a projection.
    pub first_lineage: Option<Lineage>,
}

/// A part of the events that a module reads.
pub trait Part: Send + Sync {
    /// The subjects that cover it.
    fn subjects(&self) -> SubjectSet;

    /// Wraps a fold so that it sees no other events.
    fn narrow(&self, fold: Box<dyn Fold>) -> Box<dyn Fold>;

    /// Whether it needs headers.
    fn needs_headers(&self) -> bool;
}

/// The options of a runner.
pub struct Options {
    /// Name of the deployment.
    pub deployment: String,
    /// Runs its reader and its releaser.
    pub runtime: Handle,
    /// The module that folds.
    pub program: Program,
    /// Path of the state file.
    pub path: PathBuf,
    /// Options of the state.
    pub state: state::Options,
    /// The share of the host's budget that the cache of the state file holds.
    pub cache: caches::Share,
    /// The sources that a handler may publish to, by name.
    pub outlets: Arc<BTreeMap<String, Source>>,
    /// Whether events that have used up their attempts are parked.
    pub parks: bool,
    /// Options of the pipeline.
    pub settings: Settings,
    /// Counters and histograms.
    pub metrics: DeploymentMetrics,
    /// Whether it starts paused.
    pub paused: bool,
    /// How far and how fast it may go.
    pub pace: (Ceiling, Throttle),
    /// The position that it must not pass, at first.
    pub leash: u64,
    /// The end of its leash is where it takes over from an owner of effects that is gone, so only
    /// an owner moves it.
    pub succeeds_lost_owner: bool,
    /// The position that readers may have seen before the process started, and that it must
    /// therefore reach; none if only the end of the stream, or a cleanly closed state, can show it.
    pub catches_up_to: Option<u64>,
    /// The position that clients are known to have seen of the deployment: no earlier one is shown.
    pub floor: u64,
}
