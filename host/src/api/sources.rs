//! API types for sources.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::source::SourceState;

/// A source as one deployment sees it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SourceStatus {
    /// Its state.
    pub state: SourceState,
    /// The reason, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it entered this state, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// When it last answered, in RFC 3339; absent before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heard: Option<String>,
    /// How often it had to reconnect or to recreate its consumer.
    pub reconnects: u64,
    /// Messages that are not events (delete markers, tombstones, schedules), passed over since the
    /// reader started.
    #[serde(default)]
    pub passed_over: u64,
    /// Messages that were not valid, and were delivered without the unusable parts, since the
    /// reader started.
    #[serde(default)]
    pub repaired: u64,
}

/// A source and its stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SourceInfo {
    /// Its name in the configuration.
    pub name: String,
    /// `embedded` or `jetstream`.
    pub kind: String,
    /// Name of the stream.
    pub stream: String,
    /// Whether it can be reached.
    pub reachable: bool,
    /// Why not, by name: `reconnecting`, `unauthorized`, `stream-missing`; absent if it could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<SourceState>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Why it can't be read although it can be reached: a refused permission, or a kind of stream
    /// that loses events; absent if it can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
    /// First sequence that is still there; 0 when the stream is empty, absent if it could not be
    /// reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_sequence: Option<u64>,
    /// Whether it still has its first event, as far as known; absent if it could not be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_complete: Option<bool>,
    /// Last sequence; absent if it could not be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sequence: Option<u64>,
    /// Number of events; absent if it could not be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
    /// Bytes stored; absent if it could not be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How its first events are interpreted: as CloudEvents of some form, or as plain events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_events: Option<String>,
    /// What the settings of the stream may lose or slow down.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl SourceInfo {
    /// Whether it is a log of the host, and not a stream of a server.
    pub fn is_log(&self) -> bool {
        self.kind == "embedded"
    }
}

/// All sources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SourceList {
    /// Ordered by name.
    pub sources: Vec<SourceInfo>,
}
