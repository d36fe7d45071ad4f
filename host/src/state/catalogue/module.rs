//! What the catalogue stores of a module. A field that changes here changes the rows of the
//! catalogue: see the test in `rows.rs`.

use serde::{Deserialize, Serialize};

use super::ModuleKind;
use crate::schemas::Direction;

/// A query that a module answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryDescription {
    /// Its name.
    pub name: String,
    /// What it returns, and which arguments it takes.
    pub description: String,
}

/// How often the host tries a failing batch, as the module asks; absent fields take the host's
/// settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    // Older records and responses lack this field and the next one.
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
    // Older records and responses lack this field.
    #[serde(default)]
    pub migrates: bool,
    /// The subjects that it publishes to; only of handlers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publishes: Vec<String>,
    /// How events are recognised that a producer published twice; absent if they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbox: Option<InboxSettings>,
    /// Whether it sets timers; only of handlers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sets_timers: bool,
    /// The events for which it carries a JSON Schema.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventVersion>,
}

/// A version of an event for which a module carries a JSON Schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventVersion {
    /// The type of the event.
    pub event: String,
    /// The version, from 1.
    pub version: u32,
    /// What the module does with it.
    pub direction: Direction,
}

/// How events are recognised that a producer published twice, as a module asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxSettings {
    /// What identifies an event: `message-id`, `header:NAME` or `data-pointer:/a/b`.
    pub id: String,
    /// How much later than the first one an event is recognised, in milliseconds between their
    /// times in the stream.
    pub window_ms: u64,
    /// Most ids that are kept.
    pub ids_max: u64,
}
