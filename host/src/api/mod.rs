//! What goes over HTTP: requests and answers of `/v1`, shared by the server and
//! by the command line, which is a client like any other.
//!
//! Times are RFC 3339 text in UTC with nanoseconds; sizes are bytes; payloads
//! that are JSON text travel as JSON, other text as a string, bytes as
//! `{"$bytes": "<base64>"}`.

mod process;
mod rollout;
mod skips;
mod sources;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use process::*;
pub use rollout::*;
pub use skips::*;
pub use sources::*;

/// The contract between host and modules.
pub const CONTRACT: &str = "foldstream:module@0.1.0";

/// An error, as of RFC 9457 (`application/problem+json`).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What kind of problem, as a name that never changes: `not-found`, `behind`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time, and what to do next.
    pub detail: String,
    /// The position that the deployment had, where one was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
}

/// What a deployment is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeploymentState {
    /// Its state file is being opened or repaired.
    Opening,
    /// It is working through events that were there before.
    CatchingUp,
    /// It has applied all there is.
    Live,
    /// A batch or the state file failed and is tried again after a pause.
    Retrying,
    /// It would be live or catching up, but its source can't be reached or refuses it. It continues by itself.
    Disconnected,
    /// An operator paused it.
    Paused,
    /// It stopped at an error and waits for an operator.
    Failed,
    /// The host is stopping it.
    Stopping,
}

impl DeploymentState {
    /// Every state, for metrics and for whoever must visit them all.
    pub const ALL: [Self; 8] = [
        Self::Opening,
        Self::CatchingUp,
        Self::Live,
        Self::Retrying,
        Self::Disconnected,
        Self::Paused,
        Self::Failed,
        Self::Stopping,
    ];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::CatchingUp => "catching-up",
            Self::Live => "live",
            Self::Retrying => "retrying",
            Self::Disconnected => "disconnected",
            Self::Paused => "paused",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
        }
    }
}

/// An error that stopped or delays a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// A name that never changes: `rejected`, `retry`, `trap`, `deadline`, `limit`, `state`, `source-diverged`, …
    pub kind: String,
    /// What happened, and what to do next.
    pub message: String,
    /// The sequence of the event at which it happened, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// When it happened first in this streak.
    pub first_at: String,
    /// How often it was tried.
    pub attempts: u32,
}

/// A query that a module answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueryDescription {
    /// Its name.
    pub name: String,
    /// What it answers, and with which arguments.
    pub description: String,
}

/// How often a failing batch is tried, as a module asks for it; what is left out takes the host's setting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorPolicy {
    /// Attempts in all, the first included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Pause before the second attempt, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_backoff_ms: Option<u64>,
    /// Longest pause, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backoff_ms: Option<u64>,
}

/// Limits that a module asks for; what is left out takes the host's setting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModuleLimits {
    /// Linear memory of one instance, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Longest time of one call, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Most events in one batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_events: Option<u32>,
    /// Size of all keys and values together, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_bytes: Option<u64>,
}

/// A module, as its manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModuleInfo {
    /// SHA-256 of its bytes, in hexadecimal.
    pub digest: String,
    /// Size of the component, in bytes.
    pub size: u64,
    /// What it is: `projection`.
    pub kind: String,
    /// The name that it gives itself.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The subjects that it wants.
    pub subjects: Vec<String>,
    /// Whether it asks for headers.
    pub wants_headers: bool,
    /// How the key of an event is found: `none`, `subject`, `subject-token:2`, `header:NAME`, `data-pointer:/a/b`.
    pub key_rule: String,
    /// Version of what it stores.
    pub state_version: u32,
    /// How often a failing batch is tried.
    // What was stored and sent before modules told this has no such field, and so none of the next.
    #[serde(default)]
    pub error_policy: ErrorPolicy,
    /// The limits that it asks for.
    #[serde(default)]
    pub limits: ModuleLimits,
    /// The queries that it answers.
    pub queries: Vec<QueryDescription>,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
    /// Whether it can migrate the state of an older version.
    // What was stored and sent before there were migrations has no such field.
    #[serde(default)]
    pub migrates: bool,
}

/// A deployment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Deployment {
    /// Its name.
    pub name: String,
    /// Number of the generation that serves.
    pub generation: u64,
    /// What it is doing.
    pub state: DeploymentState,
    /// The source that it reads.
    pub source: String,
    /// The stream that it reads, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// How the source is, as this deployment sees it.
    pub source_status: SourceStatus,
    /// The last sequence that its state reflects.
    pub position: u64,
    /// The last position that is durable.
    pub checkpoint: u64,
    /// The last sequence in the stream; absent while nobody knows, as the source can't be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<u64>,
    /// How many events that may match are still to be applied; absent while nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_events: Option<u64>,
    /// Age of the oldest event that is not yet applied, in seconds; 0 if there is none, absent while nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<f64>,
    /// Events that were gone from the stream when its state passed them, and were accepted as missing.
    #[serde(default)]
    pub missing_events: u64,
    /// Events applied since the process started.
    pub events_applied: u64,
    /// Whether its module has applied something since it began to fold, was replaced or resumed, or found, with the source
    /// reached, that there is nothing to apply.
    #[serde(default = "yes")]
    pub begun: bool,
    /// Events per second, over the last seconds.
    pub rate: f64,
    /// Estimated seconds until it has caught up; absent if it is not catching up, or nobody can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<f64>,
    /// Percentage of the state file that is repaired, while it is being opened after an unclean stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair_percent: Option<f64>,
    /// Keys and values, in bytes.
    pub state_bytes: u64,
    /// The part of the state that is in memory only, with its overhead, in bytes.
    #[serde(default)]
    pub memtable_bytes: u64,
    /// Memory that is held only because a reader still looks at an older state, in bytes.
    #[serde(default)]
    pub pinned_bytes: u64,
    /// Size of the state file, in bytes.
    pub file_bytes: u64,
    /// Linear memory of its instances, in bytes.
    #[serde(default)]
    pub guest_memory_bytes: u64,
    /// Instances of its module that are alive.
    #[serde(default)]
    pub instances: u64,
    /// When it was deployed.
    pub deployed_at: String,
    /// Why the generation that serves does, in words.
    #[serde(default)]
    pub reason: String,
    /// The first error of the failing streak, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Events that its state left out, as an operator had decided.
    #[serde(default)]
    pub skipped: u64,
    /// The last decisions about events to leave out, by rising sequence; `/v1/deployments/{name}/skips` has all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skips: Vec<Skip>,
    /// Its module.
    pub module: ModuleInfo,
    /// The generation that is being built or waits to take over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Box<Generation>>,
    /// The generation that served last and can serve again at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Box<Generation>>,
}

/// What a host of before says of what it does not know.
fn yes() -> bool {
    true
}

/// All deployments.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeploymentList {
    /// Ordered by name.
    pub deployments: Vec<Deployment>,
}

/// Where a new deployment begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// At sequence 1; refused where the stream no longer has it.
    #[default]
    Beginning,
    /// At the first event that the stream still has: the state lacks what came before.
    FirstAvailable,
}

/// The answer to a deployment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Deployed {
    /// The deployment as it is now.
    pub deployment: Deployment,
    /// What was done: `created`, `unchanged`, `inherited`, `rebuilding`, `migrating`.
    pub outcome: DeployOutcome,
    /// The generation that the module runs or will run as.
    pub generation: u64,
    /// Why that was done, in words.
    pub reason: String,
    /// Milliseconds spent compiling; 0 when the compiled module was in the cache.
    pub compile_ms: u64,
    /// What keeps it from being built just now, in words, such as a source that can't be reached.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What a deployment did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeployOutcome {
    /// The name is new.
    Created,
    /// This module already runs under the name.
    Unchanged,
    /// The module took over the state of the one before it.
    Inherited,
    /// A new generation is built from the beginning of the stream, beside the one that serves.
    Rebuilding,
    /// A new generation is made from the entries of the one that serves.
    Migrating,
}

/// One entry of a read model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its value.
    #[schema(value_type = Value)]
    pub value: serde_json::Value,
}

/// A part of a scan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EntryPage {
    /// Entries in the order of the scan.
    pub entries: Vec<Entry>,
    /// Pass as `after` for the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The position that the page reflects.
    pub position: u64,
    /// The generation that it came from. Pass it along for pages of the same, also when another one serves meanwhile.
    #[serde(default)]
    pub generation: u64,
}

/// One change, as the watch sends it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// The key that changed.
    pub key: String,
    /// Its value now; `null` with `deleted` when it is gone.
    #[schema(value_type = Value)]
    pub value: serde_json::Value,
    /// Whether the key is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// The position that the value reflects.
    pub position: u64,
}

/// A position, as `event: position` and `event: reset` of a watch or tail carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PositionMark {
    /// The position up to which everything was sent.
    pub position: u64,
}

/// An event to append to the embedded log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewEvent {
    /// Subject: tokens joined by dots, no wildcards.
    pub subject: String,
    /// Type; left out, it is the last token of the subject.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Message id: an event whose id was appended within the duplicate window is not stored again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Time in RFC 3339; left out, it is now. The log never goes back in time: an earlier time than that of the last event is raised to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Headers by name.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub headers: std::collections::BTreeMap<String, String>,
    /// Data: any JSON value, a string for text, `{"$bytes": "<base64>"}` for bytes.
    #[serde(default)]
    #[schema(value_type = Value)]
    pub data: serde_json::Value,
}

/// A request to append events, all or none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Append {
    /// The events, in order; 1 to 10,000.
    pub events: Vec<NewEvent>,
    /// Refuse unless the log's last sequence is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_last_sequence: Option<u64>,
    /// Refuse unless the last sequence under `expected_subject` is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_last_subject_sequence: Option<u64>,
    /// The subject, or pattern, of `expected_last_subject_sequence`; left out, the first event's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_subject: Option<String>,
}

/// What happens to an event that asks for a time before that of the event before it. The times of a log never go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Times {
    /// It gets the time of the event before it, and the answer counts it.
    #[default]
    Raise,
    /// The whole append is refused.
    Refuse,
    /// No event gets the time that it asks for: all get the time of the append.
    Ignore,
}

/// The answer to an append.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Appended {
    /// One per event, in order: where it stands.
    pub sequences: Vec<u64>,
    /// How many of them were there before, recognised by their ids.
    pub duplicates: u64,
    /// How many asked for a time before that of the event before them, and got that event's time instead: the times of
    /// a log never go back.
    #[serde(default)]
    pub times_raised: u64,
    /// The log's last sequence now.
    pub last_sequence: u64,
}

/// A CloudEvent 1.0 in JSON. Extension attributes are further members: strings, integers of 32 bits, booleans.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CloudEvent {
    /// `1.0`.
    pub specversion: String,
    /// Unique among the events of its source.
    pub id: String,
    /// Where it comes from: a URI reference.
    pub source: String,
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is about, in the words of its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// When it happened, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Media type of the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacontenttype: Option<String>,
    /// Absolute URI of the schema of the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataschema: Option<String>,
    /// Data as JSON, or as text of another media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub data: Option<serde_json::Value>,
    /// Data as octets, in base64; not together with `data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<String>,
    /// Extension attributes.
    #[serde(flatten)]
    #[schema(value_type = std::collections::BTreeMap<String, Value>)]
    pub extensions: std::collections::BTreeMap<String, serde_json::Value>,
}

/// An event as the API shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoredEvent {
    /// Place in the stream.
    pub sequence: u64,
    /// When the stream stored it, in RFC 3339.
    pub time: String,
    /// Subject.
    pub subject: String,
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Headers by name.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub headers: std::collections::BTreeMap<String, String>,
    /// Data.
    #[schema(value_type = Value)]
    pub data: serde_json::Value,
}

/// A part of a stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    /// Events in order.
    pub events: Vec<StoredEvent>,
    /// Pass as `after` for the next page; absent when the end was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// The stream's last sequence.
    pub last_sequence: u64,
}

/// The host itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Version of foldstream.
    pub version: String,
    /// Version of the contract, `foldstream:module@…`.
    pub contract: String,
    /// When the process started, in RFC 3339.
    pub started_at: String,
    /// Number of deployments.
    pub deployments: u64,
    /// What its process may use, and uses.
    #[serde(default)]
    pub process: ProcessInfo,
    /// What is wrong with the host itself, such as a data folder that was moved away from under it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
}

/// The answer of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Probe {
    /// Whether all is well; the status is 200 then, else 503.
    pub ok: bool,
    /// What is not, in words.
    pub reasons: Vec<String>,
    /// What does not work while reads are answered all the same, in words: sources that can't be reached, deployments
    /// that failed. It never changes the status.
    #[serde(default)]
    pub degraded: Vec<String>,
}

/// Something that was done to a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// When.
    pub at: String,
    /// What: `deploy`, `cut-over`, `rollback`, `abort`, `prune`, `pause`, `resume`, `delete`, …
    pub action: String,
    /// To which deployment.
    pub deployment: String,
    /// More, in words.
    pub detail: String,
    /// Name of the token with which it was asked for; none for what the host did by itself, where no token is wanted, and
    /// in entries of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// IP address from which it was asked for, which may be that of a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// What was done, as far as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditLog {
    /// Newest first.
    pub entries: Vec<AuditEntry>,
}
