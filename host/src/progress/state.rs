//! What a deployment is doing, in one word.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a deployment is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeploymentState {
    /// Its state file is being opened or repaired.
    Opening,
    /// It is working through existing events.
    CatchingUp,
    /// It has applied all events.
    Live,
    /// A batch or the state file failed, and the host retries after a pause.
    Retrying,
    /// It would be live or catching up, but its source can't be reached or refuses access. It
    /// continues on its own.
    Disconnected,
    /// An operator paused it.
    Paused,
    /// It stopped at an error and waits for an operator.
    Failed,
    /// The host is stopping it.
    Stopping,
}

impl DeploymentState {
    /// All states, for metrics and exhaustive handling.
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
