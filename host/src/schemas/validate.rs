//! Events, checked against the schemas that a module carries.

use std::collections::HashMap;

use jsonschema::Validator;
use serde_json::Value;

use super::version::version_named;
use super::{Direction, Error, EventSchema, Schema, by_event, name};
use crate::event::Payload;

/// Most characters of what a violation says.
const MESSAGE_CHARS_MAX: usize = 400;

/// What is said of data that is no JSON.
pub(super) const NOT_JSON: &str = "the data is no JSON";

/// The compiled schemas of a module.
pub(crate) struct Checks {
    /// By direction and type; the versions of each, the newest last.
    events: HashMap<(Direction, String), Vec<Check>>,
}

struct Check {
    name: String,
    schema: Value,
    validator: Validator,
}

/// Why an event does not fit its schema.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Violation {
    /// The schema.
    pub schema: String,
    /// What it demands, as a JSON pointer into the schema.
    pub keyword: String,
    /// The place in the data, as a JSON pointer.
    pub pointer: String,
    /// In words.
    pub message: String,
    /// What the keyword says.
    pub expected: Option<Value>,
    /// The value at that place.
    pub found: Value,
}

impl Checks {
    /// Compiles the schemas of a module.
    pub(crate) fn new(schemas: &[EventSchema]) -> Result<Self, Error> {
        let mut events: HashMap<_, Vec<Check>> = HashMap::new();
        for ((direction, event), versions) in by_event(schemas) {
            for version in versions {
                let schema = Schema::check(&version.schema);
                let validator = schema.and_then(|schema| schema.validator());
                let validator = validator.map_err(|unsound| unsound.of(&version.name()))?;
                let check = Check {
                    name: name(event, version.version),
                    schema: version.schema.clone(),
                    validator,
                };
                let key = (direction, event.to_owned());
                events.entry(key).or_default().push(check);
            }
        }
        Ok(Self { events })
    }

    /// Whether there is nothing to check.
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// How the data of an event violates its schema; none if it fits one of the versions, or has no
    /// schema.
    pub(crate) fn violation(
        &self,
        direction: Direction,
        kind: &str,
        data: &Payload,
    ) -> Option<Violation> {
        let versions = self.versions(direction, kind)?;
        // The newest one is what people have in mind.
        let newest = versions.last()?;
        let value: Value = match data.as_str().map(serde_json::from_str) {
            Some(Ok(value)) => value,
            _ => {
                return Some(Violation {
                    schema: newest.name.clone(),
                    keyword: String::new(),
                    pointer: String::new(),
                    message: NOT_JSON.to_owned(),
                    expected: None,
                    found: data.to_json(),
                });
            }
        };
        if versions
            .iter()
            .any(|check| check.validator.is_valid(&value))
        {
            return None;
        }
        let error = newest.validator.validate(&value).err()?;
        let mut message: String = error.to_string();
        if versions.len() > 1 {
            let count = versions.len();
            message = format!("it fits none of {count} versions; for the newest: {message}");
        }
        let keyword = error.schema_path().to_string();
        Some(Violation {
            schema: newest.name.clone(),
            expected: newest.schema.pointer(&keyword).cloned(),
            keyword,
            pointer: error.instance_path().to_string(),
            message: message.chars().take(MESSAGE_CHARS_MAX).collect(),
            found: error.instance().clone().into_owned(),
        })
    }

    /// The versions for a type. A type may also name one version, as in `placed.v2`.
    fn versions(&self, direction: Direction, kind: &str) -> Option<&[Check]> {
        let of = |event: &str| self.events.get(&(direction, event.to_owned()));
        if let Some(versions) = of(kind) {
            return Some(versions);
        }
        let (event, version) = version_named(kind)?;
        let wanted = name(event, version);
        let at = of(event)?.iter().position(|check| check.name == wanted)?;
        Some(&of(event)?[at..=at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(event: &str, version: u32, schema: Value) -> EventSchema {
        EventSchema {
            event: event.to_owned(),
            version,
            direction: Direction::Reads,
            schema,
        }
    }

    #[test]
    fn an_event_fits_one_of_the_versions_or_the_violation_has_its_place() {
        let cents = |name: &str| json!({ "required": [name], "properties": { name: { "type": "integer" } } });
        let checks = Checks::new(&[
            schema("placed", 1, cents("cents")),
            schema("placed", 2, cents("total_cents")),
        ]);
        let checks = checks.expect("are sound");
        let look =
            |kind: &str, data: &str| checks.violation(Direction::Reads, kind, &Payload::from(data));
        assert_eq!(look("placed", r#"{"cents": 1}"#), None);
        assert_eq!(look("placed", r#"{"total_cents": 1}"#), None);
        assert_eq!(look("cancelled", "anything"), None, "it has no schema");
        let found = look("placed", r#"{"total_cents": "1"}"#).expect("fits none");
        assert_eq!(
            (
                found.schema.as_str(),
                found.pointer.as_str(),
                found.keyword.as_str()
            ),
            ("placed v2", "/total_cents", "/properties/total_cents/type")
        );
        assert!(
            found.message.starts_with("it fits none of 2 versions"),
            "{}",
            found.message
        );
        assert!(
            look("placed.v2", r#"{"cents": 1}"#).is_some(),
            "only that version"
        );
        assert!(look("placed.v1", r#"{"cents": 1}"#).is_none());
        for other in ["placed.v02", "placed.v+2", "placed.v2.v2"] {
            assert_eq!(look(other, "{}"), None, "{other} is another type");
        }
        assert!(
            look("placed.v3", "{}").is_none(),
            "an event without a schema"
        );
        assert_eq!(
            look("placed", "no JSON").expect("is none").message,
            "the data is no JSON"
        );
        let published = checks.violation(Direction::Publishes, "placed", &Payload::from("{}"));
        assert_eq!(published, None, "that is for events that are read");
    }
}
