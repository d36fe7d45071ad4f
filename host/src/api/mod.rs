//! The types of the HTTP API: requests and responses of `/v1`, shared by the
//! server and the command line, which is a client like any other.
//!
//! Times are RFC 3339 text in UTC with nanoseconds; sizes are bytes; payloads
//! that are JSON text appear as JSON, other text as a string, bytes as
//! `{"$bytes": "<base64>"}`.
//!
//! The structs are JSON and nothing else: `conversion` makes them of what the host knows. The words,
//! such as the state of a deployment, are one vocabulary of code, files and API, so each closed set
//! of them is one enum, which is re-exported here from where it is decided.

mod failures;
mod handler;
mod inbox;
mod json;
mod lanes;
mod parked;
mod process;
mod rollout;
mod sagas;
mod schemas;
mod skips;
mod sources;
mod wait;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::position::Start;
pub use crate::progress::DeploymentState;
pub use crate::rollout::DeployOutcome;
pub use crate::schemas::Direction;
pub use crate::state::catalogue::{EventChecks, ModuleKind};
pub use failures::*;
pub use handler::*;
pub use inbox::*;
pub use json::Json;
pub use lanes::*;
pub use parked::*;
pub use process::*;
pub use rollout::*;
pub use sagas::*;
pub use schemas::*;
pub use skips::*;
pub use sources::*;
pub use wait::*;

/// An error, according to RFC 9457 (`application/problem+json`).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The kind of problem, a name that never changes: `not-found`, `behind`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The title of the kind.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, and what to do next.
    pub detail: String,
    /// The position of the deployment, if one was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
}

/// A query that a module answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueryDescription {
    /// Its name.
    pub name: String,
    /// What it returns, and which arguments it takes.
    pub description: String,
}

/// How often the host tries a failing batch, as the module asks; absent fields take the host's
/// settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorPolicy {
    /// Total attempts, including the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Pause before the second attempt, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_backoff_ms: Option<u64>,
    /// Longest pause, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backoff_ms: Option<u64>,
}

/// Limits that the module asks for; absent fields take the host's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModuleLimits {
    /// Linear memory of one instance, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Longest duration of one call, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Most events in one batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_events: Option<u32>,
    /// Total size of all keys and values, in bytes.
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
    /// What it is.
    pub kind: ModuleKind,
    /// Its own name.
    pub name: String,
    /// Its purpose.
    pub description: String,
    /// The subjects that it reads.
    pub subjects: Vec<String>,
    /// Whether it asks for headers.
    pub wants_headers: bool,
    /// How the host finds the key of an event: `none`, `subject`, `subject-token:2`, `header:NAME`,
    /// `data-pointer:/a/b`.
    pub key_rule: String,
    /// Version of its stored entries.
    pub state_version: u32,
    /// How often the host tries a failing batch.
    // Older responses lack this field and the next one.
    #[serde(default)]
    pub error_policy: ErrorPolicy,
    /// The limits that the module asks for.
    #[serde(default)]
    pub limits: ModuleLimits,
    /// The queries that it answers.
    pub queries: Vec<QueryDescription>,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
    /// Whether it can migrate the state of an older version.
    // Older responses lack this field.
    #[serde(default)]
    pub migrates: bool,
    /// The subjects that it publishes to; only of handlers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publishes: Vec<String>,
    /// How events are recognised that a producer published twice; absent if they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbox: Option<Inbox>,
    /// Whether it sets timers; only of handlers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sets_timers: bool,
    /// The events for which it carries a JSON Schema.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventVersion>,
}

/// A deployment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Deployment {
    /// Its name.
    pub name: String,
    /// Number of the active generation.
    pub generation: u64,
    /// What it is doing.
    pub state: DeploymentState,
    /// The source that it reads.
    pub source: String,
    /// The stream that it reads, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// The state of the source, as this deployment sees it.
    pub source_status: SourceStatus,
    /// The last sequence that its state reflects.
    pub position: u64,
    /// The last durable position.
    pub checkpoint: u64,
    /// The last sequence in the stream; absent while unknown, because the source can't be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<u64>,
    /// How many events that may match are not applied yet; absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_events: Option<u64>,
    /// Age of the oldest event that is not applied yet, in seconds; 0 if there is none, absent
    /// while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<f64>,
    /// Events that were already gone from the stream when the state, or a part of it, was built
    /// without them, as accepted.
    #[serde(default)]
    pub missing_events: u64,
    /// Events applied since the host started.
    pub events_applied: u64,
    /// Whether its module has applied an event since it started, was replaced or was resumed, or
    /// found, with the source connected, that there is nothing to apply.
    #[serde(default = "yes")]
    pub begun: bool,
    /// Events per second, over the last seconds.
    pub rate: f64,
    /// Estimated seconds until it has caught up; absent if it is not catching up, or unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<f64>,
    /// How much of the state file is repaired, in percent, while it is opened after an unclean
    /// stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair_percent: Option<f64>,
    /// Keys and values, in bytes.
    pub state_bytes: u64,
    /// The part of the state that is only in memory, including overhead, in bytes.
    #[serde(default)]
    pub memtable_bytes: u64,
    /// Memory held only because a reader still uses an older state, in bytes.
    #[serde(default)]
    pub pinned_bytes: u64,
    /// Disk space of the state file, in bytes.
    pub file_bytes: u64,
    /// Linear memory of its instances, in bytes.
    #[serde(default)]
    pub guest_memory_bytes: u64,
    /// Number of instances of its module.
    #[serde(default)]
    pub instances: u64,
    /// When it was deployed.
    pub deployed_at: String,
    /// Why this generation is active.
    #[serde(default)]
    pub reason: String,
    /// The first error of the current streak of failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Events that its state skipped, as an operator decided.
    #[serde(default)]
    pub skipped: u64,
    /// What happens to an event that has used up its attempts.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Where the host publishes an event for each event that is parked; absent if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_events: Option<FailureEvents>,
    /// Events after this sequence are checked against the schemas that its module carries; absent if
    /// none are checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks_events_after: Option<u64>,
    /// What the active state has parked: it lacks the effects of these events.
    #[serde(default)]
    pub parked: ParkedCounts,
    /// The latest decisions to skip events, by rising sequence; `/v1/deployments/{name}/skips` has
    /// all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skips: Vec<Skip>,
    /// Its outbox, if it is a handler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbox: Option<Outbox>,
    /// Its inbox, if its module asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbox: Option<DeploymentInbox>,
    /// Its lanes, if it is a projection with several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<DeploymentLanes>,
    /// Its timers, if it is a handler that sets any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<Timers>,
    /// Its sagas, if it is a handler that has any; only when one deployment is requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sagas: Vec<Saga>,
    /// Its module.
    pub module: ModuleInfo,
    /// The generation that is being built, or waits to take over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Box<Generation>>,
    /// The generation that was active before and can become active again at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Box<Generation>>,
}

/// The value that an older host sends for something unknown.
fn yes() -> bool {
    true
}

/// All deployments.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeploymentList {
    /// Ordered by name.
    pub deployments: Vec<Deployment>,
}

/// The response to a deploy.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Deployed {
    /// The updated deployment.
    pub deployment: Deployment,
    /// What was done: `created`, `unchanged`, `inherited`, `rebuilding`, `migrating`.
    pub outcome: DeployOutcome,
    /// The generation that the module runs or will run as.
    pub generation: u64,
    /// Why.
    pub reason: String,
    /// Milliseconds spent compiling; 0 when the compiled module was in the cache.
    pub compile_ms: u64,
    /// What keeps it from being built at the moment, such as a source that can't be reached.
    #[serde(default)]
    pub warnings: Vec<String>,
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

/// One page of a scan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EntryPage {
    /// Entries in the order of the scan.
    pub entries: Vec<Entry>,
    /// Pass as `after` for the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The position that the page reflects.
    pub position: u64,
    /// The generation that the page came from. Send it with the requests for further pages to read
    /// them from the same generation.
    #[serde(default)]
    pub generation: u64,
}

/// One change, as a watch sends it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// The key that changed.
    pub key: String,
    /// Its current value; `null` with `deleted` if the key was deleted.
    #[schema(value_type = Value)]
    pub value: serde_json::Value,
    /// Whether the key was deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// The position that the value reflects.
    pub position: u64,
}

/// A position, as in `event: position` and `event: reset` of a watch or tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PositionMark {
    /// The position up to which everything was sent.
    pub position: u64,
}

/// Why the host closes a watch or tail, as in `event: end`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndMark {
    /// `stalled` if the client read nothing for too long, `host-memory` if the host has no memory
    /// for it, `not-allowed` if its token was withdrawn or no longer covers it.
    pub reason: String,
}

/// An event to append to the embedded log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewEvent {
    /// Subject: tokens joined by dots, no wildcards.
    pub subject: String,
    /// Type; default: the last token of the subject.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Message id: an event whose id was appended within the duplicate window is not stored again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Time in RFC 3339; default: now. The times of a log never go back: a time earlier than that
    /// of the last event is raised to it.
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
    /// Refuse the append unless the log's last sequence is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_last_sequence: Option<u64>,
    /// Refuse the append unless the last sequence under `expected_subject` is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_last_subject_sequence: Option<u64>,
    /// The subject, or pattern, of `expected_last_subject_sequence`; default: the first event's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_subject: Option<String>,
}

/// What to do with an event whose time is earlier than that of the previous event. The times of a
/// log never go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Times {
    /// It gets the time of the previous event, and the response counts it.
    #[default]
    Raise,
    /// Refuse the whole append.
    Refuse,
    /// Ignore the times of the events: all get the time of the append.
    Ignore,
}

/// The response to an append.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Appended {
    /// The sequence of each event, in order.
    pub sequences: Vec<u64>,
    /// How many of them were already stored, recognised by their ids.
    pub duplicates: u64,
    /// How many had a time earlier than that of the previous event, and got that event's time
    /// instead: the times of a log never go back.
    #[serde(default)]
    pub times_raised: u64,
    /// The log's last sequence now.
    pub last_sequence: u64,
    /// What became of the events in the deployments that `wait` names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waited: Vec<Waited>,
}

/// A CloudEvent 1.0 in JSON. Extension attributes are further members: strings, integers of 32
/// bits, booleans.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CloudEvent {
    /// `1.0`.
    pub specversion: String,
    /// Unique among the events of its source.
    pub id: String,
    /// The origin of the event: a URI reference.
    pub source: String,
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The subject of the event in its source.
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
    /// Data as bytes, in base64; excludes `data`.
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
    /// Sequence in the stream.
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

/// One page of a stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    /// Events in order.
    pub events: Vec<StoredEvent>,
    /// Pass as `after` for the next page; absent at the end.
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
    /// Limits and usage of its process.
    #[serde(default)]
    pub process: ProcessInfo,
    /// What is wrong with the host itself, such as a data folder that was moved away from under it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
}

/// The response of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Probe {
    /// Whether all is well; the status is then 200, otherwise 503.
    pub ok: bool,
    /// What is not well.
    pub reasons: Vec<String>,
    /// What does not work although the host answers reads: sources that can't be reached,
    /// deployments that have failed. It never changes the status.
    #[serde(default)]
    pub degraded: Vec<String>,
}

/// A change to a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// When.
    pub at: String,
    /// The action: `deploy`, `cut-over`, `rollback`, `abort`, `prune`, `pause`, `resume`, `delete`,
    /// …
    pub action: String,
    /// The deployment.
    pub deployment: String,
    /// Details.
    pub detail: String,
    /// Name of the token that requested it; absent for actions of the host itself, on a host
    /// without tokens, and in entries of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// IP address from which it was requested, which may be that of a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// The audit log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditLog {
    /// Newest first.
    pub entries: Vec<AuditEntry>,
}
