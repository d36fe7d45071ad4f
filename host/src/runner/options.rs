//! What a runner is made of.

use std::path::PathBuf;
use std::sync::Arc;

use crate::api::Start;
use crate::memory::caches;
use crate::metrics::DeploymentMetrics;
use crate::module::Module;
use crate::pipeline::{Ceiling, Fold, Settings, Throttle};
use crate::source::Source;
use crate::state;
use crate::state::exceptions::Skips;
use crate::subject::SubjectSet;

/// Why a module could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LoadError {
    /// What happened, and what to do.
    pub message: String,
    /// Whether the same may succeed later by itself.
    pub is_passing: bool,
}

/// Why a program has no module yet that nobody has tried to load, or that is being loaded.
pub const BEING_LOADED: &str = "it is being loaded";

/// Loads a module. Blocking.
pub type Load = Arc<dyn Fn() -> Result<Arc<Module>, LoadError> + Send + Sync>;

/// The module that folds, and what it reads.
#[derive(Clone)]
pub struct Program {
    /// Number of the generation: seeds the guest's randomness, and names it in logs.
    pub generation: u64,
    /// The module, or why it is not loaded.
    pub module: Result<Arc<Module>, String>,
    /// Loads it where it is not loaded.
    pub load: Load,
    /// Name of the source.
    pub source_name: String,
    /// The source, or why there is none.
    pub source: Result<Source, String>,
    /// Where a new state begins.
    pub start: Start,
    /// Events up to this sequence may be missing from the stream.
    pub accepts_missing_through: u64,
    /// It took over a state, and gets few attempts.
    pub on_probation: bool,
    /// Position from which on the state holds the events of all its subjects; more than 0 where it was taken over from
    /// code with others.
    pub subjects_from: u64,
    /// Fold only a part of what the module wants.
    pub part: Option<Arc<dyn Part>>,
    /// Which events are left out.
    pub skips: Skips,
}

/// A part of the events that a module wants.
pub trait Part: Send + Sync {
    /// The subjects that cover it.
    fn subjects(&self) -> SubjectSet;

    /// Puts in front of a fold what leaves out all other events.
    fn narrow(&self, fold: Box<dyn Fold>) -> Box<dyn Fold>;

    /// Whether it must see headers.
    fn needs_headers(&self) -> bool;
}

/// What a runner is made of.
pub struct Parts {
    /// Name of the deployment.
    pub deployment: String,
    /// What folds.
    pub program: Program,
    /// Path of the state file.
    pub path: PathBuf,
    /// How the state behaves.
    pub state: state::Options,
    /// What the cache of the state file holds of the host's budget.
    pub cache: caches::Share,
    /// How the pipeline behaves.
    pub settings: Settings,
    /// Counters and histograms.
    pub metrics: DeploymentMetrics,
    /// Whether it begins paused.
    pub paused: bool,
    /// How far and how fast it may go.
    pub pace: (Ceiling, Throttle),
    /// The position that it may have shown before the process started, and so has to reach; none where only the end of the
    /// stream, or a state that was closed in good order, can tell.
    pub catches_up_to: Option<u64>,
    /// The position that clients are known to have seen of the deployment: nothing before it is shown.
    pub floor: u64,
}
