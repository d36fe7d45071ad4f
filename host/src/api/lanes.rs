//! The lanes of a deployment.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// In how many lanes a deployment folds large batches, and what became of them since its module
/// started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeploymentLanes {
    /// How many lanes were asked for.
    pub count: u32,
    /// Batches that were folded in lanes.
    pub split: u64,
    /// Batches that were folded again in one lane, because lanes touched the same entries.
    pub collided: u64,
    /// Batches that were folded again in one lane for another reason, such as an event that failed.
    pub failed: u64,
    /// Too many batches collided: everything is folded in one lane until the module starts again.
    pub gave_up: bool,
    /// Some keys of entries that lanes had in common.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
}
