//! Parked events: set aside because they failed, or because an earlier event of their key did.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{FailureClass, Json};
pub use crate::state::catalogue::OnFailure;

/// How much is parked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkedCounts {
    /// Keys with parked events.
    pub keys: u64,
    /// Parked events.
    pub events: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// When the oldest failure was parked; absent if nothing is parked. A key whose failed event was
    /// dropped waits since the stream stored its first event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// Where the host publishes an event for each event that is parked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailureEvents {
    /// `SUBJECT@SOURCE`.
    pub to: String,
    /// Why some are not published yet, while there are some; the host tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// The failure of a parked event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkedFailure {
    /// As in Failure.
    pub kind: String,
    /// The class, as in FailureClass.
    pub class: String,
    /// What happened.
    pub message: String,
    /// How often the event was tried, in all.
    pub attempts: u32,
    /// SHA-256 of the module of the last attempt.
    pub module: String,
    /// When it was parked.
    pub first_at: String,
    /// When the last attempt failed.
    pub last_at: String,
    /// The entries that the last attempt read, as far as there is room for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<ParkedRead>,
    /// Whether it read more.
    #[serde(default)]
    pub reads_are_cut: bool,
}

/// An entry that a failed event has read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkedRead {
    /// Its key.
    pub key: String,
    /// Its value, or the beginning of it, as text; absent if there was no entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// A key with parked events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkedKey {
    /// The key; `sha256:` and its digest if it has more than 1,024 bytes. Events without a key
    /// share the empty one.
    pub key: String,
    /// Its parked events.
    pub events: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// The sequence of the first of them.
    pub first_sequence: u64,
    /// Why the first one failed; absent if it waits for its first attempt, because the one before
    /// it was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<ParkedFailure>,
}

/// The parked keys of a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkedList {
    /// What happens to further events that fail.
    pub on_failure: OnFailure,
    /// Where the host publishes failure events, as `SUBJECT@SOURCE`; absent if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_events: Option<String>,
    /// All that is parked.
    pub counts: ParkedCounts,
    /// The keys of this page, in order.
    pub keys: Vec<ParkedKey>,
    /// What to pass as `after` to continue; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A parked event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkedEvent {
    /// Its sequence.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// When the stream stored it.
    pub time: String,
    /// Its data.
    #[schema(value_type = Value)]
    pub data: Json,
    /// SHA-256 over sequence, time, subject and data, in hexadecimal.
    pub digest: String,
    /// Why it failed; absent if it waits behind an earlier event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<ParkedFailure>,
}

/// The parked events of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkedEvents {
    /// The key.
    pub key: String,
    /// How many of its events are parked.
    pub total: u64,
    /// The first of them, in order; at most 100.
    pub events: Vec<ParkedEvent>,
}

/// Which parked keys are meant: some, or all; of all, only those whose first event failed with a
/// class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ParkedSelection {
    /// These keys. At most 1,000.
    #[serde(default)]
    pub keys: Vec<String>,
    /// All keys. A request takes the first 1,000 of them; the response says whether some are left.
    #[serde(default)]
    pub all: bool,
    /// Only keys whose first event failed with this class, such as `rejected`; with `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<FailureClass>,
    /// To drop: why, for the audit log and for everyone who asks later: 1 to 500 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// To drop: all events of the keys, and not only the first of each, if it failed.
    #[serde(default)]
    pub whole_keys: bool,
    /// Change nothing, and say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// An entry that a retry would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkedChange {
    /// Its key.
    pub key: String,
    /// Its value before; absent if there is no such entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub before: Option<Json>,
    /// Its value after; absent if it would be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub after: Option<Json>,
}

/// A key that failed again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkedAgain {
    /// The key.
    pub key: String,
    /// Why.
    pub error: String,
}

/// What a retry or a drop did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkedOutcome {
    /// Events that are no longer parked.
    pub events: u64,
    /// Keys that have no parked events any more.
    pub keys: u64,
    /// Keys that failed again. The events before the failing one are applied.
    pub failed: Vec<ParkedAgain>,
    /// Why some of the keys were not tried; absent if all were. Another request continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<String>,
    /// What is parked now.
    pub left: ParkedCounts,
    /// Nothing was changed: the numbers say what would happen.
    #[serde(default)]
    pub dry_run: bool,
    /// Of a dry run: the first entries that a retry would change, at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<ParkedChange>,
    /// How many more it would change.
    #[serde(default)]
    pub more_changes: u64,
    /// Of a dry run: how many messages a handler would publish.
    #[serde(default)]
    pub messages: u64,
    /// The deployment had stopped, and the retry resumed it.
    #[serde(default)]
    pub resumed: bool,
}
