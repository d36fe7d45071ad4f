use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::shape::{Field, Presence, Shape, Sign, Type};
use super::*;
use crate::schemas::Direction;

fn event(event: &str, version: u32, schema: Value) -> EventSchema {
    EventSchema {
        event: event.to_owned(),
        version,
        direction: Direction::Reads,
        schema,
    }
}

fn targets() -> [Target; 4] {
    let package = "events".to_owned();
    [
        Target::Rust,
        Target::TypeScript,
        Target::Python,
        Target::Go { package },
    ]
}

fn made(schemas: &[EventSchema], target: &Target) -> String {
    let made = generate(schemas, target, Inexpressible::Refuse, Formats::Typed);
    made.unwrap_or_else(|error| panic!("{error}")).code
}

/// The places of a schema that no type says.
fn loose(schema: Value) -> Vec<(String, String)> {
    let schemas = [event("a", 1, schema)];
    let made = generate(
        &schemas,
        &Target::Rust,
        Inexpressible::AnyJson,
        Formats::Typed,
    );
    let places = made.expect("is sound").loose.into_iter();
    places.map(|place| (place.pointer, place.reason)).collect()
}

fn order() -> Value {
    json!({
        "title": "An order was placed",
        "type": "object",
        "required": ["order", "type", "payment", "lines"],
        "properties": {
            "order": { "type": "string", "minLength": 1 },
            "type": { "enum": ["in-store", "online"], "description": "Where." },
            "total-cents": { "type": "integer", "minimum": 0 },
            "placedAt": { "type": "string", "format": "date-time" },
            "note": { "type": ["string", "null"] },
            "priority": { "type": "integer", "default": 3 },
            "lines": { "type": "array", "items": { "$ref": "#/$defs/line" } },
            "payment": { "oneOf": [{ "$ref": "#/$defs/card" }, { "$ref": "#/$defs/cash" }] },
        },
        "$defs": {
            "line": {
                "type": "object", "required": ["sku"],
                "properties": { "sku": { "type": "string" }, "labels": {
                    "type": "object", "additionalProperties": { "type": "number" },
                } },
            },
            "card": { "type": "object", "required": ["kind", "digits"], "properties": {
                "kind": { "const": "card" }, "digits": { "type": "string" },
            } },
            "cash": { "type": "object", "required": ["kind"], "properties": {
                "kind": { "const": "cash" }, "change": { "type": "integer" },
            } },
        },
    })
}

#[test]
fn types_are_those_of_each_language() {
    let schemas = [event("placed", 2, order())];
    for (target, name) in targets().iter().zip(["rs", "ts", "py", "go"]) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/generate/samples/placed.");
        let path = format!("{path}{name}");
        let code = made(&schemas, target);
        if std::env::var_os("FOLDSTREAM_WRITE_SAMPLES").is_some() {
            std::fs::write(&path, &code).expect("the folder can be written");
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            code, expected,
            "FOLDSTREAM_WRITE_SAMPLES=1 writes {path} again"
        );
    }
}

#[test]
fn what_no_type_says_is_refused_with_its_place() {
    for (schema, pointer, reason) in [
        (
            json!({ "type": ["string", "integer"] }),
            "",
            "a number or a string",
        ),
        (
            json!({ "properties": { "a/b": { "anyOf": [{ "type": "string" }, { "type": "object" }] } } }),
            "/properties/a~1b/anyOf",
            "a string or an object",
        ),
        (
            json!({ "oneOf": [{ "type": "object" }, { "properties": { "kind": { "const": "a" } } }] }),
            "/oneOf",
            "tells them apart",
        ),
        (
            json!({ "items": { "properties": { "a": {} }, "additionalProperties": { "type": "string" } } }),
            "/items/additionalProperties",
            "an object of their own",
        ),
        (
            json!({ "type": "array", "prefixItems": [{ "type": "string" }] }),
            "/prefixItems",
            "a fixed length",
        ),
        (json!({ "enum": ["a", 1] }), "", "a number or a string"),
        (json!({ "enum": [[1]] }), "", "an array"),
        (json!({ "type": "string", "enum": [1] }), "", "no value"),
        (
            json!({ "properties": { "a": false }, "required": ["a"] }),
            "/properties/a",
            "nothing",
        ),
        (json!({ "type": "integer", "maximum": 1e30 }), "", "64 bits"),
        (
            json!({ "type": "integer", "maximum": u64::MAX }),
            "",
            "64 bits",
        ),
        (
            json!({ "type": "integer", "minimum": -1e30 }),
            "",
            "64 bits",
        ),
    ] {
        let places = loose(schema.clone());
        assert_eq!(places.len(), 1, "{schema}: {places:?}");
        assert_eq!(places[0].0, pointer, "{schema}");
        assert!(places[0].1.contains(reason), "{places:?}");
        let schemas = [event("a", 1, schema)];
        let refused = generate(
            &schemas,
            &Target::Rust,
            Inexpressible::Refuse,
            Formats::Typed,
        );
        let refused = refused.expect_err("is refused").to_string();
        assert!(
            refused.contains("accept any JSON there with --any"),
            "{refused}"
        );
    }
}

#[test]
fn what_go_alone_does_not_say_is_refused_there_alone() {
    let many: serde_json::Map<String, Value> = (0..65)
        .map(|number| (format!("m{number}"), json!(true)))
        .collect();
    for (schema, reason) in [
        (json!({ "properties": many }), "at most 64"),
        (
            json!({ "properties": { "a,b": true } }),
            "no member with the name \"a,b\"",
        ),
        (
            json!({ "properties": { "-": true } }),
            "no member with the name \"-\"",
        ),
        (
            json!({ "properties": { "": true } }),
            "no member with the name \"\"",
        ),
    ] {
        let schemas = [event("a", 1, schema)];
        let [others @ .., go] = targets();
        for target in others {
            made(&schemas, &target);
        }
        let refused = generate(&schemas, &go, Inexpressible::Refuse, Formats::Typed);
        let refused = refused.expect_err("is refused").to_string();
        assert!(refused.contains(reason), "{refused}");
    }
}

#[test]
fn alternatives_that_are_no_choice_have_plain_types() {
    for (schema, kind) in [
        (
            json!({ "anyOf": [{ "type": "string" }, { "type": "null" }] }),
            "Option<String>",
        ),
        (
            json!({ "anyOf": [{ "type": "integer" }, { "type": "number" }] }),
            "f64",
        ),
        (
            json!({ "oneOf": [{ "format": "date" }, { "type": "string", "pattern": "^x" }] }),
            "String",
        ),
        (json!({ "type": "integer", "exclusiveMinimum": -1 }), "u64"),
        (
            json!({ "type": "integer", "minimum": i64::MIN, "maximum": i64::MAX }),
            "i64",
        ),
        (
            json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX }),
            "u64",
        ),
        (json!({ "enum": [1, 2.5] }), "f64"),
        (json!({ "const": null }), "()"),
        (json!({ "description": "anything" }), "Value"),
        (json!({ "type": "object" }), "BTreeMap<String, Value>"),
        (
            json!({ "prefixItems": [{ "type": "string" }, { "type": "integer" }], "minItems": 2, "items": false }),
            "(String, i64)",
        ),
        (json!({ "maxItems": 3 }), "Vec<Value>"),
        (
            json!({ "type": "object", "anyOf": [{ "required": ["a"] }, { "required": ["b"] }] }),
            "BTreeMap<String, Value>",
        ),
    ] {
        let code = made(&[event("a", 1, schema.clone())], &Target::Rust);
        let wanted = format!("pub type A = {kind};\n");
        assert!(code.ends_with(&wanted), "{schema}: {code}");
    }
}

#[test]
fn one_event_in_both_directions_has_one_type_unless_its_schemas_differ() {
    let published = |schema: Value| EventSchema {
        direction: Direction::Publishes,
        ..event("a", 1, schema)
    };
    let record = json!({ "properties": { "a": { "type": "string" } } });
    let names = |schemas: &[EventSchema]| {
        let made = generate(
            schemas,
            &Target::Rust,
            Inexpressible::Refuse,
            Formats::Typed,
        );
        let events = made.expect("is sound").events.into_iter();
        events.map(|(_, name)| name).collect::<Vec<_>>()
    };
    assert_eq!(
        names(&[published(record.clone()), event("a", 1, record.clone())]),
        ["A", "A"]
    );
    let other = json!({ "properties": { "b": { "type": "string" } } });
    assert_eq!(
        names(&[published(other), event("a", 1, record)]),
        ["A", "APublished"]
    );
}

#[test]
fn hostile_names_and_notes_stay_names_and_notes() {
    let evil = "*/ \"\"\" `+`\\\r\n#[x]\u{2028}\u{202e}\u{0}'''{}${}";
    let names = [
        "type",
        "self",
        "class",
        "None",
        "str",
        "Placed",
        "a-b",
        "a_b",
        "a.b",
        "__proto__",
        "__a",
        "a_",
        "1",
        "ß",
        "注文",
        "String",
        "Option",
        "constructor",
        "default",
        evil,
    ];
    let properties: serde_json::Map<String, Value> = names
        .iter()
        .map(|name| {
            (
                (*name).to_owned(),
                json!({ "type": "string", "description": evil, "default": evil }),
            )
        })
        .collect();
    let schema = json!({ "title": evil, "properties": properties });
    let values = json!({ "enum": names, "title": evil });
    let schemas = [event("placed", 1, schema), event("values", 1, values)];
    for target in targets() {
        let code = made(&schemas, &target);
        let harmful = code
            .chars()
            .find(|c| *c != '\n' && *c != '\t' && text::is_harmful(*c));
        assert_eq!(harmful, None, "{code}");
    }
}

#[test]
fn schemas_that_would_take_long_end() {
    let properties = |name: fn(usize) -> String| -> Value {
        let all = (0..3_000).map(|number| (name(number), json!(true)));
        json!({ "properties": all.collect::<serde_json::Map<_, _>>() })
    };
    let nested = (0..31).fold(
        json!({ "type": "string" }),
        |inner, _| json!({ "properties": { "a": inner } }),
    );
    // Each definition has two members of the next one.
    let mut shared = json!({ "$ref": "#/$defs/0", "$defs": { "10": { "type": "string" } } });
    for level in 0..10 {
        let next = json!({ "$ref": format!("#/$defs/{}", level + 1) });
        shared["$defs"][level.to_string()] = json!({ "properties": { "a": next, "b": next } });
    }
    let doubling = json!({ "allOf": vec![json!({ "$ref": "#/$defs/a" }); 50], "$defs": {
        "a": { "allOf": vec![json!({ "$ref": "#/$defs/b" }); 50] },
        "b": { "properties": { "a": { "type": "string" } } },
    } });
    for schema in [
        properties(|number| format!("m{number}")),
        properties(|number| "é".repeat(1 + number % 7) + &"_".repeat(number % 3)),
        nested,
        shared,
        doubling,
    ] {
        let schemas = [event("a", 1, schema)];
        for target in targets() {
            let made = generate(&schemas, &target, Inexpressible::AnyJson, Formats::Typed);
            assert!(made.expect("is sound").code.len() < 4 << 20);
        }
    }
    let circle =
        json!({ "$ref": "#/$defs/a", "$defs": { "a": { "items": { "$ref": "#/$defs/a" } } } });
    let refused = generate(
        &[event("a", 1, circle)],
        &Target::Rust,
        Inexpressible::AnyJson,
        Formats::Typed,
    );
    assert!(
        refused
            .expect_err("is a circle")
            .to_string()
            .contains("refers to itself")
    );
}

/// Draws schemas, and values near them.
struct Draw(fastrand::Rng);

const NAMES: [&str; 8] = ["a", "b", "a-b", "a_b", "type", "Self", "é", "kind"];

impl Draw {
    fn name(&mut self) -> &'static str {
        NAMES[self.0.usize(0..NAMES.len())]
    }

    fn schema(&mut self, depth: usize) -> Value {
        let mut schema = match self.0.u8(if depth == 0 { 0..6 } else { 0..12 }) {
            0 => json!({ "type": "string" }),
            1 => json!({ "type": "integer", "minimum": self.0.i8(-2..3) }),
            2 => json!({ "type": ["number", "null"] }),
            3 => json!({ "type": "boolean" }),
            4 => json!({ "enum": ["a", "a-b", "A B"] }),
            5 => json!({ "enum": [1, null] }),
            6 => json!({ "type": "array", "items": self.schema(depth - 1) }),
            7 => json!({ "type": "object", "additionalProperties": self.schema(depth - 1) }),
            8 => json!({ "anyOf": [self.schema(depth - 1), { "type": "null" }] }),
            9 => json!({ "oneOf": [self.variant("x", depth), self.variant("y", depth)] }),
            10 => json!({ "allOf": [self.record(depth), self.record(depth)] }),
            _ => self.record(depth),
        };
        if self.0.u8(0..6) == 0 {
            schema["default"] = json!("a");
        }
        schema
    }

    fn record(&mut self, depth: usize) -> Value {
        let mut properties = serde_json::Map::new();
        for _ in 0..self.0.usize(0..5) {
            properties.insert(self.name().to_owned(), self.schema(depth - 1));
        }
        let required: HashSet<&str> = (0..self.0.usize(0..3)).map(|_| self.name()).collect();
        let required: Vec<&str> = required.into_iter().collect();
        json!({ "type": "object", "properties": properties, "required": required })
    }

    fn variant(&mut self, tag: &str, depth: usize) -> Value {
        let mut record = self.record(depth);
        record["properties"]["kind"] = json!({ "const": tag });
        let required = record["required"].as_array_mut().expect("a list");
        if !required.contains(&json!("kind")) {
            required.push(json!("kind"));
        }
        record
    }

    /// A value that mostly fits.
    fn value(&mut self, schema: &Value) -> Value {
        if let Some(values) = schema["enum"].as_array() {
            return values[self.0.usize(0..values.len())].clone();
        }
        if let Some(value) = schema.get("const") {
            return value.clone();
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(all) = schema[keyword].as_array() {
                let chosen = all[self.0.usize(0..all.len())].clone();
                return self.value(&chosen);
            }
        }
        if let Some(all) = schema["allOf"].as_array() {
            let mut merged = serde_json::Map::new();
            for part in all {
                let part = self.value(part);
                merged.extend(part.as_object().cloned().unwrap_or_default());
            }
            return Value::Object(merged);
        }
        match schema["type"].as_str() {
            Some("string") => json!("text"),
            Some("integer") => json!(self.0.i64(0..9)),
            Some("boolean") => json!(self.0.bool()),
            Some("array") => (0..self.0.usize(0..3))
                .map(|_| self.value(&schema["items"]))
                .collect(),
            Some("object") => self.object(schema),
            _ if self.0.bool() => Value::Null,
            _ => json!(1.5),
        }
    }

    fn object(&mut self, schema: &Value) -> Value {
        let mut object = serde_json::Map::new();
        if let Some(value) = schema.get("additionalProperties") {
            object.insert(self.name().to_owned(), self.value(value));
        }
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for name in required.iter().filter_map(Value::as_str) {
            object.insert(name.to_owned(), json!(true));
        }
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            if required.contains(&json!(name)) || self.0.bool() {
                object.insert(name.clone(), self.value(member));
            }
        }
        Value::Object(object)
    }
}

/// Whether a type accepts a value, as all SDKs do.
fn accepts(document: &Document, kind: &Type, value: &Value) -> bool {
    match kind {
        Type::Json => true,
        Type::Null => value.is_null(),
        Type::Bool => value.is_boolean(),
        Type::Integer(Sign::Signed) => value.is_i64(),
        Type::Integer(Sign::Unsigned) => value.is_u64(),
        Type::Number => value.is_number(),
        Type::Text | Type::Date | Type::Time => value.is_string(),
        Type::Constant(text) => value == text.as_str(),
        Type::List(item) => value
            .as_array()
            .is_some_and(|list| list.iter().all(|value| accepts(document, item, value))),
        Type::Map(item) => value
            .as_object()
            .is_some_and(|map| map.values().all(|value| accepts(document, item, value))),
        Type::Tuple(items) => value.as_array().is_some_and(|list| {
            let mut pairs = items.iter().zip(list);
            list.len() == items.len() && pairs.all(|(item, value)| accepts(document, item, value))
        }),
        Type::Nullable(inner) => value.is_null() || accepts(document, inner, value),
        Type::Named(made) => match &document.declarations[*made].shape {
            Shape::Alias(kind) => accepts(document, kind, value),
            Shape::Choice(all) => all.iter().any(|named| value == named.text.as_str()),
            Shape::Union { variants, .. } => variants
                .iter()
                .any(|variant| accepts(document, &Type::Named(variant.record), value)),
            Shape::Record(fields) | Shape::Member(fields) => {
                value.is_object() && fields.iter().all(|field| has(document, field, value))
            }
        },
    }
}

fn has(document: &Document, field: &Field, value: &Value) -> bool {
    match value.get(&field.name) {
        None => field.presence != Presence::Required,
        Some(value) => accepts(document, &field.kind, value),
    }
}

#[test]
fn types_accept_what_fits_their_schemas_and_are_the_same_each_time() {
    let rounds =
        std::env::var("FOLDSTREAM_PAIRS").map_or(300, |text| text.parse().expect("a number"));
    let (mut compared, mut draw) = (0, Draw(fastrand::Rng::with_seed(7)));
    for round in 0..rounds {
        let schemas: Vec<EventSchema> = (0..3)
            .map(|number| event(["a", "A", "a.b"][number], 1, draw.schema(3)))
            .collect();
        let document = read::document(&schemas, Formats::Text).expect("is sound");
        let checks = crate::schemas::Checks::new(&schemas).expect("are sound");
        for (schema, root) in &document.events {
            let value = draw.value(&schema.schema);
            let data = crate::event::Payload::from(value.to_string().as_str());
            let fits = checks
                .violation(Direction::Reads, &schema.event, &data)
                .is_none();
            if fits {
                compared += 1;
                let kind = Type::Named(*root);
                assert!(
                    accepts(&document, &kind, &value),
                    "round {round}: {value} fits {}, and not {document:#?}",
                    schema.schema
                );
            }
        }
        let turned: Vec<EventSchema> = schemas.iter().rev().cloned().collect();
        for target in targets() {
            let any = Inexpressible::AnyJson;
            let [one, other] = [&schemas, &turned].map(|schemas| {
                let made = generate(schemas, &target, any, Formats::Typed);
                made.expect("is sound").code
            });
            assert_eq!(one, other);
            if target == Target::Rust {
                names_are_valid(&one);
            }
        }
    }
    assert!(compared > rounds, "only {compared} values fit");
}

/// The names in a Rust file are identifiers, and different in each scope.
fn names_are_valid(code: &str) {
    let mut scopes: HashMap<bool, HashSet<String>> = HashMap::new();
    for line in code.lines() {
        let is_inner = line.starts_with("    ");
        let Some((_, rest)) = line.split_once("pub ") else {
            continue;
        };
        let kinds = ["struct ", "enum ", "type "];
        let words = kinds
            .iter()
            .find_map(|kind| rest.strip_prefix(kind))
            .unwrap_or(rest);
        let name: String = words
            .chars()
            .take_while(|c| !matches!(c, ' ' | ':' | '{' | '=' | '('))
            .collect();
        let plain = name.strip_prefix("r#").unwrap_or(&name);
        assert!(names::is_identifier(plain), "{line}");
        if !is_inner {
            scopes.remove(&true);
        }
        assert!(
            scopes.entry(is_inner).or_default().insert(name),
            "{line} is there twice"
        );
    }
}
