//! Sagas: which instances there are, and what they wait for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::sagas::SagaStatus;

/// A saga of a handler, in figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Saga {
    /// Its name.
    pub name: String,
    /// Instances that have not ended, by status and step.
    pub waiting: Vec<SagaGroup>,
    /// Instances that ended, by status, with those that are not kept any more.
    pub ended: BTreeMap<String, u64>,
    /// Events and timers that changed nothing, by what they were: `duplicate`, `late`, `early`,
    /// `unknown`, `ended`, `stale-timer`.
    pub ignored: BTreeMap<String, u64>,
}

/// Instances of a saga that wait for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SagaGroup {
    /// Their status.
    pub status: SagaStatus,
    /// The step that they carry out or undo, or at which they are stuck.
    pub step: String,
    /// How many they are.
    pub instances: u64,
    /// Since when the oldest of them has waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// An instance of a saga.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SagaInstance {
    /// The saga.
    pub saga: String,
    /// Its correlation key.
    pub key: String,
    /// How far it is.
    pub status: SagaStatus,
    /// The step that it carries out or undoes, or at which it is stuck; absent after its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Since when it has had this status in this step.
    pub since: String,
    /// When it was started.
    pub started: String,
    /// Which attempt of the current command it is, from 1; 0 after its end.
    #[serde(default)]
    pub attempt: u32,
    /// When its timer fires: a time-out, the next attempt, or its removal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<String>,
    /// Why it compensates or is stuck.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Instances of the sagas of a handler; in each status and step, those that have waited longest come
/// first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SagaInstances {
    /// The position that they reflect.
    pub position: u64,
    /// The instances.
    pub instances: Vec<SagaInstance>,
    /// Pass this as `after` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
