//! Events that are skipped, as an operator decided.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::overview::SkipState;

/// Parameters of a resume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// Sequences of events to skip: the one that fails, or later ones. At most 100.
    #[serde(default)]
    pub skip: Vec<u64>,
    /// The reason, for the audit log and for everyone who asks later: 1 to 500 bytes. Required with
    /// `skip`, and only allowed with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A skipped event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Skip {
    /// Its sequence.
    pub sequence: u64,
    /// How many later events of its key, which waited behind it, were dropped with it.
    #[serde(default)]
    pub later: u64,
    /// The effect of the decision.
    pub state: SkipState,
    /// The operator's reason.
    pub reason: String,
    /// When the operator decided.
    pub at: String,
    /// The failure at the time of the decision, as `kind: message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its subject; absent, like type, time and digest, if the source could not read the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Its type.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// When the stream stored it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// SHA-256 over sequence, time, subject and data, in hexadecimal: the decision does not apply
    /// to another event with this sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// The skipped events of a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SkipList {
    /// By rising sequence.
    pub skips: Vec<Skip>,
}
