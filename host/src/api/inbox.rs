//! How events are recognised that a producer published twice.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a module asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Inbox {
    /// What identifies an event: `message-id`, `header:NAME` or `data-pointer:/a/b`.
    pub id: String,
    /// How much later than the first one an event is recognised, in milliseconds between their
    /// times in the stream.
    pub window_ms: u64,
    /// Most ids that are kept.
    pub ids_max: u64,
}

/// The inbox of a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeploymentInbox {
    /// Ids that are kept, with some that are about to be removed.
    pub ids: u64,
    /// Events that the state left out, because an event with the same id came before.
    pub duplicates: u64,
}
