//! Generations, and how one takes the place of another.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Deployment, DeploymentState, Failure, ModuleInfo, SourceStatus};

/// What a generation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GenerationStatus {
    /// It is being built beside the one that serves, or waits for its turn.
    Building,
    /// It is built, follows the stream, and waits to be promoted.
    Ready,
    /// It serves.
    Active,
    /// It served last, and follows the stream so that it can serve again at once.
    Previous,
    /// It is history; its state is gone, or belongs to another generation by now.
    Retired,
    /// It did not come up to what was asked of it.
    Failed,
}

impl GenerationStatus {
    /// Whether it may still become active by itself.
    pub fn is_candidate(self) -> bool {
        matches!(self, Self::Building | Self::Ready)
    }

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Active => "active",
            Self::Previous => "previous",
            Self::Retired => "retired",
            Self::Failed => "failed",
        }
    }
}

/// How the state of a generation comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Folded from the beginning of the stream into a new file, beside the generation that serves.
    Rebuild,
    /// Taken over from the generation that serves, at a batch boundary: both store the same.
    Inherit,
    /// Mapped entry by entry from a snapshot of the generation that serves, by the module's own `migrate`.
    Migrate,
}

impl Strategy {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rebuild => "rebuild",
            Self::Inherit => "inherit",
            Self::Migrate => "migrate",
        }
    }
}

/// When a candidate takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Promotion {
    /// As soon as it has caught up, and passed its gate if it has one.
    #[default]
    Auto,
    /// When an operator promotes it.
    Manual,
}

/// What was asked for when a generation was built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildSettings {
    /// When it takes over.
    #[serde(default)]
    pub promote: Promotion,
    /// What a comparison with the active generation must show before it takes over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// Most events a second while it is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<u64>,
    /// Share of one core that it may take while it is built, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u8>,
    /// Whether it may be built without events that are gone from the stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_missing: bool,
}

/// How an entry of one state can differ from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Difference {
    /// The candidate has a key that the active generation has not.
    Added,
    /// The active generation has a key that the candidate has not.
    Removed,
    /// Both have the key, with other values.
    Changed,
}

/// What a comparison may show without keeping a candidate from taking over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Differences that are fine wherever no rule says otherwise.
    #[serde(default)]
    pub allow: Vec<Difference>,
    /// Compare about so many entries, chosen by a hash of their keys; left out, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<u64>,
    /// Rules for parts of the state; the one with the longest prefix counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// What a comparison may show under a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Keys that begin with this.
    pub prefix: String,
    /// Differences that are fine there.
    #[serde(default)]
    pub allow: Vec<Difference>,
    /// JSON pointers (RFC 6901) to what of a value does not count, such as `/updated_at`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
}

/// What a comparison of two states at one position found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Comparison {
    /// When, in RFC 3339.
    pub at: String,
    /// Number of the generation that served.
    #[serde(default)]
    pub against: u64,
    /// The position that both reflected.
    pub position: u64,
    /// Entries that were compared, each key once.
    pub compared: u64,
    /// Entries that there were in both together, each key once.
    pub entries: u64,
    /// Keys that only the candidate has.
    pub added: u64,
    /// Keys that only the active generation has.
    pub removed: u64,
    /// Keys with other values.
    pub changed: u64,
    /// Of all of these, those that the gate does not allow.
    pub refused: u64,
    /// Keys whose values differ only in what a rule of the gate ignores; not among those above.
    #[serde(default)]
    pub ignored: u64,
    /// The first differences.
    pub examples: Vec<ComparisonExample>,
    /// What the figures prove, in words.
    pub conclusion: String,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ComparisonExample {
    /// The key.
    pub key: String,
    /// How it differs.
    pub difference: Difference,
    /// The active generation's value, shortened; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// The candidate's value, shortened; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
    /// Whether the gate allows it.
    pub allowed: bool,
}

/// A generation.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Generation {
    /// Its number; numbers only rise.
    pub number: u64,
    /// What it is.
    pub status: GenerationStatus,
    /// Why, in words.
    pub reason: String,
    /// Since when it has its status.
    pub status_since: String,
    /// When it was deployed.
    pub created_at: String,
    /// How its state came to be.
    pub strategy: Strategy,
    /// Number in the name of its state file: its own, or that of the generation whose state it inherited.
    pub state_file: u64,
    /// What it is doing, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<DeploymentState>,
    /// How many rebuilds stand before it, while it waits for its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_behind: Option<u64>,
    /// The last sequence that its state reflects.
    pub position: u64,
    /// The last position that is durable.
    pub checkpoint: u64,
    /// The last sequence in the stream; absent while nobody knows, or while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<u64>,
    /// How many events that may match are still to be applied; absent while nobody knows, or while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_events: Option<u64>,
    /// Part of the way to the head that it has behind it, from 0 to 1, counted from where the build began; absent while
    /// nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    /// Events per second, over the last seconds.
    pub rate: f64,
    /// Estimated seconds until it has caught up; absent if it does not come nearer just now, or nobody can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<f64>,
    /// The source as this generation sees it, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_status: Option<SourceStatus>,
    /// Events that were gone from the stream when its state passed them, and were accepted as missing.
    #[serde(default)]
    pub missing_events: u64,
    /// Size of the state file, in bytes; 0 when it has none.
    pub file_bytes: u64,
    /// Events that its state left out, as an operator had decided.
    #[serde(default)]
    pub skipped: u64,
    /// Keys and values, in bytes.
    pub state_bytes: u64,
    /// The first error of the failing streak, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The event that its code could not apply, when it failed or gave way because of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<u64>,
    /// What was asked for when it was built.
    pub build: BuildSettings,
    /// What the last comparison with the active generation found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// Its module.
    pub module: ModuleInfo,
}

/// The generations of a deployment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GenerationList {
    /// By rising number.
    pub generations: Vec<Generation>,
}

/// The answer to a promotion or a rollback.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CutOver {
    /// The deployment as it is now.
    pub deployment: Deployment,
    /// The generation that served before.
    pub from: u64,
    /// The generation that serves now, or that is being built where that has to come first.
    pub to: u64,
    /// The position at which the one took over from the other; absent where that is still to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// How long applying was held, in milliseconds.
    pub hold_ms: f64,
    /// What was done, in words.
    pub message: String,
}

/// What a prune removed, or would remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// Numbers of the generations.
    pub generations: Vec<u64>,
    /// Bytes of their files.
    pub bytes: u64,
    /// Whether nothing was removed because only a look was asked for.
    pub dry_run: bool,
}

/// What a long piece of work on a deployment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WorkState {
    /// It waits for its turn.
    Queued,
    /// It is under way.
    Running,
    /// It came to its end.
    Done,
    /// It could not be brought to its end.
    Failed,
}

/// Whether folding the stream again gives the same state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// How far it is.
    pub state: WorkState,
    /// The generation that is verified.
    pub generation: u64,
    /// The position at which the states are compared; 0 while it is not known.
    pub position: u64,
    /// Part of the way, from 0 to 1.
    pub progress: f64,
    /// Events per second, over the last seconds.
    pub rate: f64,
    /// Estimated seconds until it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<f64>,
    /// Seed of the batch boundaries: the same seed makes the same run.
    pub seed: u64,
    /// How often the refold was stopped and started again.
    pub restarts: u64,
    /// Whether both states were the same, byte by byte; absent before the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equal: Option<bool>,
    /// What differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// The first key that differs, with the event after which it did, where that was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<Divergence>,
    /// Sequences that were left out, as the state that serves left them out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<u64>,
    /// What came of it, in words.
    pub message: String,
    /// What keeps it from getting on just now, if anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
}

/// Where two folds of the same events part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Divergence {
    /// The first key, in byte order, that differs.
    pub key: String,
    /// The first sequence after which two folds disagreed about it; absent where two further folds agreed with each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// What a partial rebuild did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartialRebuild {
    /// The key, or prefix of keys, of events that were folded again.
    pub selection: String,
    /// The position at which the entries were put in their place.
    pub position: u64,
    /// Events that were folded.
    pub events: u64,
    /// Entries that were written.
    pub written: u64,
    /// Entries that were removed.
    pub removed: u64,
    /// Entries that name the key in tables that its events did not write, at most ten of them. They were left as they are:
    /// it is not clear whose they are.
    pub left: Vec<String>,
    /// Whether the server sent only events of that key.
    pub filtered_by_server: bool,
    /// Sequences that were left out, as the state that serves left them out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<u64>,
    /// Events that were applied and are gone from the stream, in words; absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<String>,
}

/// A rebuild that runs or waits.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Rebuild {
    /// The deployment.
    pub deployment: String,
    /// Number of its place in the queue; 0 runs.
    pub place: u64,
    /// The generation.
    pub generation: Generation,
    /// What it waits for, in words.
    pub waits_for: String,
}

/// All rebuilds of a host.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RebuildList {
    /// Those that run, and then those that wait, in order.
    pub rebuilds: Vec<Rebuild>,
    /// How many may run at once.
    pub at_once: u64,
}
