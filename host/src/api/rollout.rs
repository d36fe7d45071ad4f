//! Generations, and how one replaces another.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Deployment, DeploymentState, Failure, ModuleInfo, ParkedCounts, SourceStatus};
pub use crate::overview::WorkState;
pub use crate::state::catalogue::{Difference, GenerationStatus, Promotion, Strategy};

/// The options with which a generation is built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildSettings {
    /// When it takes over.
    #[serde(default)]
    pub promote: Promotion,
    /// The gate: which differences from the active generation are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// Most events per second while it is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<u64>,
    /// Share of one core that it may use while it is built, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u8>,
    /// Whether it may be built without events that are gone from the stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_missing: bool,
}

/// Which differences a candidate may have and still take over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Differences that are allowed unless a rule says otherwise.
    #[serde(default)]
    pub allow: Vec<Difference>,
    /// Compare about this many entries, chosen by a hash of their keys; default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<u64>,
    /// Rules for parts of the state; the rule with the longest matching prefix applies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// The allowed differences under a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Keys that begin with this prefix.
    pub prefix: String,
    /// Allowed differences.
    #[serde(default)]
    pub allow: Vec<Difference>,
    /// JSON pointers (RFC 6901) to parts of a value that are ignored, such as `/updated_at`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
}

/// The result of comparing two states at one position.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Comparison {
    /// When, in RFC 3339.
    pub at: String,
    /// Number of the active generation.
    #[serde(default)]
    pub against: u64,
    /// The position that both reflected.
    pub position: u64,
    /// Entries compared, each key once.
    pub compared: u64,
    /// Entries in both states together, each key once.
    pub entries: u64,
    /// Keys that only the candidate has.
    pub added: u64,
    /// Keys that only the active generation has.
    pub removed: u64,
    /// Keys with different values.
    pub changed: u64,
    /// How many of these differences the gate does not allow.
    pub refused: u64,
    /// Keys whose values differ only in parts that a rule of the gate ignores; not counted above.
    #[serde(default)]
    pub ignored: u64,
    /// The first differences.
    pub examples: Vec<ComparisonExample>,
    /// What the figures prove.
    pub conclusion: String,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ComparisonExample {
    /// The key.
    pub key: String,
    /// How it differs.
    pub difference: Difference,
    /// The first parts in which two JSON values differ. None for other values, and if both say the
    /// same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<DifferingPart>,
    /// The active generation's value, shortened; absent if it has none. Of two values without
    /// `parts`, it begins shortly before the first difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// The candidate's value, shortened; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
    /// Whether the gate allows it.
    pub allowed: bool,
}

/// A part of a JSON value that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DifferingPart {
    /// Where it is, as a JSON pointer; empty for the whole value.
    pub pointer: String,
    /// What the active generation has there, as JSON text, shortened; absent if it has nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// What the candidate has there, as JSON text, shortened; absent if it has nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
}

/// A generation.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Generation {
    /// Its number; numbers only rise.
    pub number: u64,
    /// Its role.
    pub status: GenerationStatus,
    /// Why it has this status.
    pub reason: String,
    /// When it got its status.
    pub status_since: String,
    /// When it was deployed.
    pub created_at: String,
    /// How its state was created.
    pub strategy: Strategy,
    /// Number in the name of its state file: its own, or that of the generation whose state it
    /// inherited.
    pub state_file: u64,
    /// What it is doing, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<DeploymentState>,
    /// How many rebuilds are ahead of it while it waits for its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_behind: Option<u64>,
    /// The last sequence that its state reflects.
    pub position: u64,
    /// The last durable position.
    pub checkpoint: u64,
    /// The last sequence in the stream; absent while unknown, or while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<u64>,
    /// How many events that may match are not applied yet; absent while unknown, or while it does
    /// not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_events: Option<u64>,
    /// Progress towards the head, from 0 to 1, counted from the start of the build; absent while
    /// unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    /// Events per second, over the last seconds.
    pub rate: f64,
    /// Estimated seconds until it has caught up; absent if it makes no progress at the moment, or
    /// unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<f64>,
    /// The state of the source as this generation sees it, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_status: Option<SourceStatus>,
    /// Events that were already gone from the stream when its state passed them, and were accepted
    /// as missing.
    #[serde(default)]
    pub missing_events: u64,
    /// How many events of the active generation it lacks because they are gone from the stream, if
    /// that keeps it from taking over until an operator accepts it; otherwise 0.
    #[serde(default)]
    pub lacks_events: u64,
    /// Why it does not take over although it is ready, and what to do, as the last attempt found;
    /// absent if nothing keeps it, or if it waits to be promoted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<String>,
    /// Disk space of the state file, in bytes; 0 if it has none.
    pub file_bytes: u64,
    /// Events that its state skipped, as an operator decided.
    #[serde(default)]
    pub skipped: u64,
    /// What its state has parked: it lacks the effects of these events.
    #[serde(default)]
    pub parked: ParkedCounts,
    /// Keys and values, in bytes.
    pub state_bytes: u64,
    /// The first error of the current streak of failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The event that its code could not apply, if it failed or was replaced because of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<u64>,
    /// Events after this sequence are checked against the schemas that its module carries; absent if
    /// none are checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks_events_after: Option<u64>,
    /// The options with which it was built.
    pub build: BuildSettings,
    /// The result of the last comparison with the active generation.
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

/// The response to a promotion or a rollback.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CutOver {
    /// The updated deployment.
    pub deployment: Deployment,
    /// The generation that was active before.
    pub from: u64,
    /// The generation that is active now, or that has to be built first.
    pub to: u64,
    /// The position of the cut-over; absent if it is yet to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// How long applying was held, in milliseconds.
    pub hold_ms: f64,
    /// What was done.
    pub message: String,
}

/// What a prune removed or would remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// Numbers of the generations.
    pub generations: Vec<u64>,
    /// Bytes of their files.
    pub bytes: u64,
    /// Whether this was a dry run, which removes nothing.
    pub dry_run: bool,
}

/// Whether folding the stream again gives the same state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// Its state.
    pub state: WorkState,
    /// The generation that is verified.
    pub generation: u64,
    /// The position at which the states are compared; 0 while unknown.
    pub position: u64,
    /// Progress, from 0 to 1.
    pub progress: f64,
    /// Events per second, over the last seconds.
    pub rate: f64,
    /// Estimated seconds until it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<f64>,
    /// Seed of the batch boundaries: the same seed repeats the run.
    pub seed: u64,
    /// How often the second fold was restarted.
    pub restarts: u64,
    /// Whether both states were equal, byte by byte; absent before the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equal: Option<bool>,
    /// What differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// The first key that differs, and the event after which it did, if that was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<Divergence>,
    /// Sequences that were skipped, because the active state skipped them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<u64>,
    /// Events that were gone from the stream before the active state could have them, and were
    /// accepted as missing: both states lack them.
    #[serde(default)]
    pub missing_events: u64,
    /// What the active state has parked: both states lack the effects of these events.
    #[serde(default)]
    pub parked: ParkedCounts,
    /// The result, for people.
    pub message: String,
    /// What keeps it from getting on just now, if anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
}

/// Where two folds of the same events diverge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Divergence {
    /// The first key, in byte order, that differs.
    pub key: String,
    /// The first sequence after which two folds disagreed about it; absent if two further folds
    /// agreed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// The result of a partial rebuild.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartialRebuild {
    /// The key, or prefix of keys, whose events were folded again.
    pub selection: String,
    /// The position at which the entries were replaced.
    pub position: u64,
    /// Events that were folded.
    pub events: u64,
    /// Entries that were written.
    pub written: u64,
    /// Entries that were removed.
    pub removed: u64,
    /// Entries that name the key in tables that its events did not write, at most ten of them. They
    /// were not changed, because it is not clear to which key they belong.
    pub left: Vec<String>,
    /// Whether the server sent only events of that key.
    pub filtered_by_server: bool,
    /// Sequences that were skipped, because the active state skipped them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<u64>,
    /// Events that were applied and are gone from the stream; absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<String>,
    /// Events that were gone from the stream before the active state could have them, and were
    /// accepted as missing: of this key or of others.
    #[serde(default)]
    pub missing_events: u64,
    /// What the state has parked of other keys: it still lacks the effects of these events. A key
    /// with parked events is not rebuilt.
    #[serde(default)]
    pub parked: ParkedCounts,
}

/// A running or waiting rebuild.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Rebuild {
    /// The deployment.
    pub deployment: String,
    /// Its place in the queue; 0 if it runs.
    pub place: u64,
    /// The generation.
    pub generation: Generation,
    /// What it waits for.
    pub waits_for: String,
}

/// All rebuilds of a host.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RebuildList {
    /// Running ones first, then waiting ones in order.
    pub rebuilds: Vec<Rebuild>,
    /// How many may run at once.
    pub at_once: u64,
}
