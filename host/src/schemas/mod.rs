//! The JSON Schemas of events that a module carries: their form, their limits, the check of an
//! event, and the question whether one schema can take the place of another.
//!
//! A schema here is bounded: it refers only to itself, never in a circle, and has a limited number
//! of subschemas once its references are inlined. So a check of an event takes time in proportion
//! to schema and event, and a comparison ends. Nothing is ever fetched.

mod carried;
pub(crate) mod compare;
mod document;
mod folder;
mod keywords;
mod live;
mod strict;
mod validate;
mod version;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

pub(crate) use carried::{CARRIED_BYTES_MAX, SECTION, attach, parse, to_bytes};
pub(crate) use document::Schema;
pub(crate) use folder::{FOLDER, FileError, of_file, of_folder};
pub(crate) use live::{LiveChecks, Uncompiled};
pub(crate) use validate::{Checks, Violation};

/// Most schemas of one module.
pub(crate) const SCHEMAS_MAX: usize = 128;
/// Largest schema, in bytes.
pub(crate) const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Longest type of an event, in bytes: as the log accepts it.
const EVENT_BYTES_MAX: usize = 256;

/// What a module does with events of a type.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// It reads them.
    Reads,
    /// It publishes them.
    Publishes,
}

impl Direction {
    /// As in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Publishes => "publishes",
        }
    }
}

/// The schema of a version of an event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventSchema {
    /// The type of the event.
    pub event: String,
    /// Its version, from 1.
    pub version: u32,
    /// What the module does with it.
    pub direction: Direction,
    /// The JSON Schema.
    #[serde(deserialize_with = "strict::value")]
    pub schema: Value,
}

impl EventSchema {
    /// Its name, for people.
    pub(crate) fn name(&self) -> String {
        name(&self.event, self.version)
    }
}

/// The name of a version of an event.
pub(crate) fn name(event: &str, version: u32) -> String {
    match version {
        1 => event.to_owned(),
        version => format!("{event} v{version}"),
    }
}

/// Why schemas are refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// A schema is not valid, or beyond a limit.
    #[error("the schema of {name}{at}: {message}")]
    Unsound {
        /// Which one.
        name: String,
        /// Where, as words; empty if as a whole.
        at: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// Together they are not valid.
    #[error("{0}")]
    All(String),
}

/// Why one schema is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Unsound {
    /// Where, as a JSON pointer.
    pub at: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Unsound {
    fn new(at: &str, message: impl Into<String>) -> Self {
        Self {
            at: at.to_owned(),
            message: message.into(),
        }
    }

    /// The same, of a schema with a name.
    pub(crate) fn of(self, name: &str) -> Error {
        let at = match self.at.as_str() {
            "" => String::new(),
            at => format!(" at {at}"),
        };
        Error::Unsound {
            name: name.to_owned(),
            at,
            message: self.message,
        }
    }
}

/// Checks each schema, and that none is there twice.
pub(crate) fn check(all: &[EventSchema]) -> Result<(), Error> {
    check_names(all)?;
    for schema in all {
        Schema::check(&schema.schema).map_err(|unsound| unsound.of(&schema.name()))?;
    }
    Ok(())
}

/// Checks everything but the schemas themselves.
fn check_names(all: &[EventSchema]) -> Result<(), Error> {
    if all.len() > SCHEMAS_MAX {
        let count = all.len();
        return Err(Error::All(format!(
            "there are {count} schemas; a module carries at most {SCHEMAS_MAX}"
        )));
    }
    let mut known = std::collections::HashSet::new();
    for schema in all {
        let event = &schema.event;
        let is_sound = (1..=EVENT_BYTES_MAX).contains(&event.len())
            && !event.chars().any(char::is_control)
            && schema.version > 0;
        if !is_sound {
            return Err(Error::All(format!(
                "a schema names an event whose type is empty, longer than {EVENT_BYTES_MAX} bytes \
                 or has control characters, or a version 0"
            )));
        }
        if let Some(why) = version::misplaced(event) {
            return Err(Error::All(why));
        }
        if !known.insert((event, schema.version, schema.direction)) {
            return Err(Error::All(format!(
                "there are two schemas of {} that the module {}; keep one",
                schema.name(),
                schema.direction.name()
            )));
        }
    }
    Ok(())
}

/// About how many bytes of memory some schemas take.
pub(crate) fn memory_bytes(all: &[EventSchema]) -> u64 {
    let schemas = all.iter();
    let schemas = schemas.map(|schema| schema.event.len() + memory_of(&schema.schema));
    let bytes = schemas.sum::<usize>() + size_of_val(all);
    u64::try_from(bytes).expect("what is in memory has a size")
}

/// What a value has on the heap. The nodes of a map are at worst half empty.
fn memory_of(value: &Value) -> usize {
    match value {
        Value::String(text) => text.capacity(),
        Value::Array(items) => {
            let inner: usize = items.iter().map(memory_of).sum();
            items.capacity() * size_of::<Value>() + inner
        }
        Value::Object(members) => {
            let inner = members.iter();
            let inner = inner.map(|(name, value)| name.capacity() + memory_of(value));
            2 * members.len() * size_of::<(String, Value)>() + inner.sum::<usize>()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// A part of a JSON pointer.
pub(crate) fn escaped(part: &str) -> String {
    part.replace('~', "~0").replace('/', "~1")
}

/// The schemas of events by direction and type, with the versions in order.
pub(crate) fn by_event(
    all: &[EventSchema],
) -> std::collections::BTreeMap<(Direction, &str), Vec<&EventSchema>> {
    let mut found: std::collections::BTreeMap<_, Vec<&EventSchema>> = Default::default();
    for schema in all {
        let key = (schema.direction, schema.event.as_str());
        found.entry(key).or_default().push(schema);
    }
    for versions in found.values_mut() {
        versions.sort_by_key(|schema| schema.version);
    }
    found
}
