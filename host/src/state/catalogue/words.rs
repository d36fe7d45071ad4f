//! The words of the catalogue: closed sets that its rows, the API and the command line share.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The role of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GenerationStatus {
    /// It is being built alongside the active generation, or waits for its turn.
    Building,
    /// It is built, follows the stream, and waits to take over.
    Ready,
    /// It answers reads.
    Active,
    /// It was active before, and follows the stream so that it can become active again at once.
    Previous,
    /// It is history; its state is removed, or belongs to another generation.
    Retired,
    /// It failed, or did not meet its requirements.
    Failed,
}

impl GenerationStatus {
    /// Whether it may still become active on its own.
    pub fn is_candidate(self) -> bool {
        matches!(self, Self::Building | Self::Ready)
    }

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Active => "active",
            Self::Previous => "previous",
            Self::Retired => "retired",
            Self::Failed => "failed",
        }
    }
}

/// How the state of a generation is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Folded from the beginning of the stream into a new file, alongside the active generation.
    Rebuild,
    /// Inherited from the active generation at a batch boundary; both have the same state version
    /// and subjects.
    Inherit,
    /// Converted entry by entry from a snapshot of the active generation, by the module's own
    /// `migrate`.
    Migrate,
}

impl Strategy {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rebuild => "rebuild",
            Self::Inherit => "inherit",
            Self::Migrate => "migrate",
        }
    }
}

/// When a candidate takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Promotion {
    /// As soon as it has caught up and passed its gate, if it has one.
    #[default]
    Auto,
    /// When an operator promotes it.
    Manual,
}

/// How an entry of one state can differ from another.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Difference {
    /// Only the candidate has the key.
    Added,
    /// Only the active generation has the key.
    Removed,
    /// Both have the key, with different values.
    Changed,
}

/// What happens to an event that has used up its attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The deployment stops at the event.
    #[default]
    Stop,
    /// The event is parked, later events of its key wait behind it, and other keys continue. A
    /// deadline and a full state stop the deployment in any case.
    Park,
}

impl OnFailure {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Park => "park",
        }
    }
}

/// Whether events are checked against the schemas that a module carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventChecks {
    /// They are not.
    #[default]
    Off,
    /// An event that fits no version of its schema fails, and so does one whose message fits none.
    On,
}

impl EventChecks {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
        }
    }
}

/// What a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ModuleKind {
    /// Folds events into a read model.
    Projection,
    /// Also publishes messages.
    Handler,
}

impl ModuleKind {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Projection => "projection",
            Self::Handler => "handler",
        }
    }
}
