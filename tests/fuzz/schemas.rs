//! Schemas that modules carry: read, checked, compared, validated against events, made into types.

use fastrand::Rng;
use foldstream::entry;
use foldstream_tests::fuzz::{change, drive, text};
use serde_json::{Map, Value, json};

/// Words that mean something in a schema.
const WORDS: [&str; 16] = [
    "\"$ref\":\"#\"",
    "\"$ref\":\"#/$defs/a\"",
    "\"type\":\"object\"",
    "\"not\":{}",
    "\"enum\":[",
    "\"pattern\":\"(a+)+$\"",
    "\"\\u0000\"",
    "1e999",
    "-0",
    "18446744073709551616",
    "true",
    "null",
    "{",
    "]",
    "\"a\"",
    ",",
];

#[test]
fn schemas_are_refused_or_mean_one_thing() {
    drive::run("schemas", 400, |rng| {
        let section = section(rng).to_string();
        let section = if rng.u8(0..4) == 0 {
            change::changed(rng, section.as_bytes(), &WORDS)
        } else {
            section.into_bytes()
        };
        let (event, data) = (event(rng), text::json(rng, 3));
        let found = match entry::schemas(&section, &event, &data) {
            Err(words) => {
                assert!(!words.is_empty() && words.len() < 16 << 10, "{words:?}");
                return "refused";
            }
            Ok(found) => found,
        };
        // No section at all is how a module carries none.
        if found.section.is_empty() {
            return "none";
        }
        assert_eq!(
            found.against_itself, [""; 0],
            "a schema accepts what it accepts"
        );
        let again = entry::schemas(&found.section, &event, &data).expect("it was sound before");
        assert_eq!(
            again, found,
            "the section is the same once it is written again"
        );
        let mut outcome = "sound";
        for types in &found.types {
            match types {
                Ok(code) => is_code(code),
                Err(words) => {
                    assert!(words.contains("too many"), "{words}");
                    outcome = "without types";
                }
            }
        }
        outcome
    });
}

/// Nothing in a file turns its direction or ends its comments in the middle of a line.
fn is_code(code: &str) {
    assert!(code.contains("enerated by foldstream generate"), "{code}");
    let is_harmful = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
    assert!(!code.contains(is_harmful), "{code:?}");
}

fn event(rng: &mut Rng) -> String {
    let names = ["a", "a.v2", "a.v02", "b", "a.b", ""];
    match rng.u8(0..12) {
        0 => text::any(rng),
        _ => (*rng.choice(&names).expect("some")).to_owned(),
    }
}

fn section(rng: &mut Rng) -> Value {
    let names = ["a", "b", "c"].into_iter().take(rng.usize(0..4));
    let all = names.map(|event| {
        json!({
            "event": event,
            "version": rng.u8(1..3),
            "direction": if rng.bool() { "reads" } else { "publishes" },
            "schema": root(rng),
        })
    });
    let all: Vec<Value> = all.collect();
    json!({ "format": 1, "schemas": all })
}

fn root(rng: &mut Rng) -> Value {
    let mut schema = schema(rng, 4);
    if let Some(members) = schema.as_object_mut() {
        if rng.u8(0..12) > 0 {
            let definitions = json!({ "a": node(rng, 2), "b": { "$ref": "#/$defs/a" } });
            members.insert("$defs".to_owned(), definitions);
        }
        let drafts = [
            "https://json-schema.org/draft/2020-12/schema",
            "https://json-schema.org/draft/2019-09/schema",
            "http://json-schema.org/draft-07/schema#",
        ];
        if rng.bool() {
            let draft = rng.choice(&drafts).expect("some");
            members.insert("$schema".to_owned(), json!(draft));
        }
    }
    schema
}

fn schema(rng: &mut Rng, depth: usize) -> Value {
    match rng.u8(0..12) {
        0 => json!(rng.bool()),
        1 => json!({ "$ref": if rng.bool() { "#/$defs/a" } else { "#/$defs/b" } }),
        _ => node(rng, depth),
    }
}

/// An object with a few keywords, which mostly are about one kind of values.
fn node(rng: &mut Rng, depth: usize) -> Value {
    let mut members = Map::new();
    let keywords: &[&str] = match rng.u8(0..7) {
        0 => &[
            "type",
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "multipleOf",
            "default",
        ],
        1 => &[
            "type",
            "minLength",
            "maxLength",
            "pattern",
            "format",
            "default",
        ],
        2 => &[
            "items",
            "prefixItems",
            "minItems",
            "maxItems",
            "uniqueItems",
            "contains",
        ],
        3 => &["oneOf", "anyOf", "allOf", "not", "if", "then"],
        4 => &["enum", "const", "title", "description"],
        _ => &[
            "type",
            "properties",
            "required",
            "additionalProperties",
            "patternProperties",
            "propertyNames",
            "dependentRequired",
            "description",
        ],
    };
    for keyword in keywords {
        if rng.u8(0..3) > 0 {
            let value = value(rng, keyword, depth);
            members.insert((*keyword).to_owned(), value);
        }
    }
    Value::Object(members)
}

fn value(rng: &mut Rng, keyword: &str, depth: usize) -> Value {
    let inner = |rng: &mut Rng| {
        if depth == 0 {
            json!({})
        } else {
            schema(rng, depth - 1)
        }
    };
    match keyword {
        "type" => {
            let kinds = [
                "object", "array", "string", "integer", "number", "boolean", "null",
            ];
            let kind = *rng.choice(&kinds).expect("some");
            if rng.u8(0..4) == 0 {
                json!([kind, "null"])
            } else {
                json!(kind)
            }
        }
        "minimum" | "maximum" | "exclusiveMinimum" => number(rng),
        "multipleOf" => json!(rng.u8(1..9)),
        "minLength" | "maxLength" | "minItems" | "maxItems" => json!(rng.u8(0..5)),
        "uniqueItems" => json!(rng.bool()),
        "pattern" => json!(
            rng.choice(&["^a", "(a|b)+$", "\\\\d{2}", "x*"])
                .expect("some")
        ),
        "format" => json!(rng.choice(&["date", "date-time", "uuid"]).expect("some")),
        "title" | "description" => json!(text::any(rng)),
        "default" | "const" => plain(rng),
        "enum" => values(rng),
        "oneOf" | "anyOf" | "allOf" | "prefixItems" => {
            let all: Vec<Value> = (0..rng.usize(1..4)).map(|_| inner(rng)).collect();
            json!(all)
        }
        "required" => json!(names(rng)),
        "dependentRequired" => json!({ "a": names(rng) }),
        "properties" | "patternProperties" => {
            let names = names(rng).into_iter();
            let members: Map<String, Value> = names.map(|name| (name, inner(rng))).collect();
            Value::Object(members)
        }
        _ => inner(rng),
    }
}

/// Some different values.
fn values(rng: &mut Rng) -> Value {
    let mut values: Vec<Value> = Vec::new();
    for _ in 0..rng.usize(1..5) {
        let value = if rng.bool() {
            json!(text::word(rng))
        } else {
            plain(rng)
        };
        if !values.contains(&value) {
            values.push(value);
        }
    }
    json!(values)
}

/// Some different names.
fn names(rng: &mut Rng) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for _ in 0..rng.usize(0..4) {
        let name = match rng.u8(0..8) {
            0 => text::word(rng),
            _ => (*rng
                .choice(&["a", "b", "a-b", "kind", "type"])
                .expect("some"))
            .to_owned(),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn number(rng: &mut Rng) -> Value {
    let numbers = [
        json!(0),
        json!(-1),
        json!(0.5),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
    ];
    rng.choice(&numbers).expect("some").clone()
}

fn plain(rng: &mut Rng) -> Value {
    match rng.u8(0..6) {
        0 => json!(null),
        1 => json!(rng.bool()),
        2 => number(rng),
        _ => json!(text::any(rng)),
    }
}
