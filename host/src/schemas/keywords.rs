//! The keywords of JSON Schema: which assert something, and which have subschemas.

use jsonschema::Draft;
use serde_json::{Map, Value};

use super::escaped;

/// How a keyword holds subschemas.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    List,
    Members,
}

/// Keywords that decide whether a value is accepted. `format` is not among them: it is an
/// annotation here, as in the current draft.
const ASSERTIONS: &[&str] = &[
    "$ref",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "contains",
    "contentEncoding",
    "contentMediaType",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "if",
    "items",
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "not",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "required",
    "then",
    "type",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// Keywords that came with draft 2019-09.
const SINCE_2019: &[&str] = &[
    "dependentRequired",
    "dependentSchemas",
    "maxContains",
    "minContains",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Whether a keyword decides in a draft whether a value is accepted.
pub(super) fn asserts(draft: Draft, keyword: &str) -> bool {
    match keyword {
        "prefixItems" => draft == Draft::Draft202012,
        "additionalItems" => draft != Draft::Draft202012,
        keyword if SINCE_2019.contains(&keyword) => draft != Draft::Draft7,
        keyword => ASSERTIONS.contains(&keyword),
    }
}

fn shape(keyword: &str, value: &Value) -> Option<Shape> {
    match keyword {
        // A list of schemas in drafts before 2020-12.
        "items" if value.is_array() => Some(Shape::List),
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Some(Shape::List),
        "properties" | "patternProperties" | "dependentSchemas" | "dependencies" => {
            Some(Shape::Members)
        }
        "items"
        | "additionalItems"
        | "additionalProperties"
        | "contains"
        | "else"
        | "if"
        | "not"
        | "propertyNames"
        | "then"
        | "unevaluatedItems"
        | "unevaluatedProperties" => Some(Shape::One),
        _ => None,
    }
}

/// Copies a schema object, with each subschema replaced by what `replace` makes of it and of its
/// place, a JSON pointer relative to the object. What is no schema where one belongs stays as it is:
/// the check against the draft finds it.
pub(super) fn with_subschemas<E>(
    node: &Map<String, Value>,
    replace: &mut dyn FnMut(&Value, &str) -> Result<Value, E>,
) -> Result<Map<String, Value>, E> {
    let mut copy = Map::new();
    for (keyword, value) in node {
        let mut one = |value: &Value, place: &str| match value {
            Value::Bool(_) | Value::Object(_) => replace(value, place),
            other => Ok(other.clone()),
        };
        let replaced = match (shape(keyword, value), value) {
            (Some(Shape::One), value) => one(value, &format!("/{keyword}"))?,
            (Some(Shape::List), Value::Array(list)) => {
                let list = list.iter().enumerate();
                let list = list.map(|(index, value)| one(value, &format!("/{keyword}/{index}")));
                Value::Array(list.collect::<Result<_, E>>()?)
            }
            (Some(Shape::Members), Value::Object(members)) => {
                let members = members.iter().map(|(name, value)| {
                    let place = format!("/{keyword}/{}", escaped(name));
                    Ok((name.clone(), one(value, &place)?))
                });
                Value::Object(members.collect::<Result<_, E>>()?)
            }
            (_, value) => value.clone(),
        };
        copy.insert(keyword.clone(), replaced);
    }
    Ok(copy)
}
