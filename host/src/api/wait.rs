//! Appends that wait until deployments have applied the events.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What became of appended events in a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WaitOutcome {
    /// Its state reflects all of them, and reads show that.
    Applied,
    /// The same, but it skipped some of them, as an operator decided.
    Skipped,
    /// It is past them, but some of them are parked: they failed, or wait behind an event of their
    /// key that did.
    Parked,
    /// It is paused, or stopped at a failure before the last of them, or the host stops. They are
    /// stored, and it applies them when it continues.
    Stopped,
    /// It has not applied them yet. They are stored, and it will.
    TimedOut,
    /// The token was withdrawn during the wait, or no longer covers the deployment. The events are
    /// stored.
    NotAllowed,
}

impl WaitOutcome {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Skipped => "skipped",
            Self::Parked => "parked",
            Self::Stopped => "stopped",
            Self::TimedOut => "timed-out",
            Self::NotAllowed => "not-allowed",
        }
    }
}

/// A deployment that an append waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Waited {
    /// Its name.
    pub deployment: String,
    /// What became of the events.
    pub outcome: WaitOutcome,
    /// The last sequence that its state reflects; 0 if `outcome` is `not-allowed`.
    pub position: u64,
}
