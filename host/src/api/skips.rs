//! Events that are left out, as an operator decided.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Failure;

/// How a deployment is to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// Sequences of events to leave out: that at which it fails, or later ones. At most 100.
    #[serde(default)]
    pub skip: Vec<u64>,
    /// Why, for the audit log and for everyone who asks later: 1 to 500 bytes. Needed with `skip`, and only with that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What became of a decision to leave out an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SkipState {
    /// The state that serves has not reached the event.
    Ahead,
    /// The state that serves left it out, and so do states that are built from scratch.
    Skipped,
    /// The state that serves folded it before that was decided, or does not want it; states that are built from scratch
    /// leave it out.
    Folded,
    /// The state that serves left it out, but the decision was taken back: states that are built from scratch fold it.
    Withdrawn,
}

impl SkipState {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ahead => "ahead",
            Self::Skipped => "skipped",
            Self::Folded => "folded",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// An event that is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Skip {
    /// The event.
    pub sequence: u64,
    /// What became of the decision.
    pub state: SkipState,
    /// Why, in the words of the operator.
    pub reason: String,
    /// When it was decided.
    pub at: String,
    /// What the event failed with when it was decided, as `kind: message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its subject; absent, with type, time and digest, where the source could not read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Its type.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// When the stream stored it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// SHA-256 over sequence, time, subject and data, in hexadecimal: no other event in its place is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// The events that a deployment leaves out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SkipList {
    /// By rising sequence.
    pub skips: Vec<Skip>,
}

/// Kinds of failures of one event alone, which a deployment passes when it is left out.
const OF_AN_EVENT: [&str; 6] = ["rejected", "retry", "trap", "deadline", "limit", "source-unreadable"];

impl Failure {
    /// The command that gets past the event at which it failed, where leaving that out would help.
    pub fn way_past(&self, deployment: &str, is_candidate: bool) -> Option<String> {
        let sequence = self.sequence.filter(|_| OF_AN_EVENT.contains(&self.kind.as_str()))?;
        let candidate = if is_candidate { " --candidate" } else { "" };
        Some(format!("foldstream resume {deployment}{candidate} --skip {sequence} --reason TEXT"))
    }

    /// The same failure with a message that names that command.
    pub fn with_way_past(mut self, deployment: &str, is_candidate: bool) -> Self {
        if let Some(command) = self.way_past(deployment, is_candidate) {
            self.message = format!("{}; deploy a corrected module, or leave the event out: `{command}`", self.message);
        }
        self
    }
}
