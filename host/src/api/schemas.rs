//! The JSON Schemas of events that a module carries.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Direction;

/// A version of an event for which a module carries a JSON Schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventVersion {
    /// The type of the event.
    pub event: String,
    /// The version, from 1.
    pub version: u32,
    /// What the module does with it.
    pub direction: Direction,
}

/// The schemas that the module of a deployment carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModuleSchemas {
    /// SHA-256 of the module, in hexadecimal.
    pub digest: String,
    /// By direction, type and version.
    pub schemas: Vec<EventSchema>,
}

/// The JSON Schema of a version of an event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventSchema {
    /// The type of the event.
    pub event: String,
    /// The version, from 1.
    pub version: u32,
    /// What the module does with it.
    pub direction: Direction,
    /// The JSON Schema.
    #[schema(value_type = Object)]
    pub schema: Value,
}
