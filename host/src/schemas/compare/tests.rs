use serde_json::{Value, json};

use super::*;

fn schema(value: &Value) -> Schema {
    Schema::check(value).expect("is sound")
}

/// The reasons, as lines.
fn lines(reader: &Value, writer: &Value) -> Vec<String> {
    let all = reasons(&schema(reader), &schema(writer));
    let line = |reason: Reason| {
        let Reason {
            weight,
            pointer,
            keyword,
            message,
        } = reason;
        format!("{weight:?} {pointer} {keyword} {message}")
    };
    all.into_iter().map(line).collect()
}

#[track_caller]
fn fits(reader: &Value, writer: &Value) {
    assert_eq!(lines(reader, writer), [""; 0], "{reader} reads {writer}");
}

#[track_caller]
fn differs(reader: &Value, writer: &Value, wanted: &[&str]) {
    let found = lines(reader, writer);
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.starts_with(wanted), "{found} instead of {wanted}");
    }
}

#[test]
fn a_reader_that_demands_less_reads_all() {
    let any = json!({});
    let order = json!({
        "type": "object", "required": ["id", "cents"],
        "properties": {
            "id": { "type": "string", "minLength": 1, "maxLength": 36 },
            "cents": { "type": "integer", "minimum": 0 },
            "lines": { "type": "array", "items": { "type": "string" }, "maxItems": 9 },
        },
    });
    fits(&any, &order);
    fits(&order, &order);
    fits(
        &json!({ "properties": { "cents": { "type": "number" } } }),
        &order,
    );
    fits(
        &json!({ "required": ["id"], "type": ["object", "null"] }),
        &order,
    );
    fits(&json!({ "minProperties": 2 }), &order);
    fits(
        &json!({ "properties": { "cents": { "exclusiveMinimum": -1 } } }),
        &order,
    );
}

#[test]
fn media_type_is_compared_together_with_its_encoding() {
    let draft = "http://json-schema.org/draft-07/schema#";
    let media = json!({ "$schema": draft, "contentMediaType": "application/json" });
    let encoding = json!({ "$schema": draft, "contentEncoding": "base64" });
    let both = json!({ "$schema": draft, "contentMediaType": "application/json",
        "contentEncoding": "base64" });
    let apart = json!({ "$schema": draft, "allOf": [
        { "contentMediaType": "application/json" }, { "contentEncoding": "base64" },
    ] });
    let unknown = "Unknown  /contentMediaType `contentMediaType` is not understood";
    fits(&both, &both);
    fits(&encoding, &both);
    fits(&encoding, &apart);
    fits(&apart, &apart);
    // `1234` is JSON and base64, and encodes no JSON; what encodes JSON need not be any.
    differs(&both, &apart, &[unknown]);
    differs(&both, &media, &["Unknown  /contentEncoding", unknown]);
    differs(&media, &both, &[unknown]);
}

#[test]
fn reasons_have_their_places() {
    let writer = json!({ "type": "object", "required": ["id"], "properties": {
        "id": { "type": ["string", "null"] },
        "lines": { "type": "array", "items": { "properties": { "count": { "maximum": 10 } } } },
    } });
    let reader = json!({ "$defs": { "line": {
            "properties": { "count": { "maximum": 5 } },
        } },
        "required": ["id", "a/b"], "properties": {
        "id": { "type": "string" },
        "lines": { "type": "array", "items": { "$ref": "#/$defs/line" } },
    } });
    differs(
        &reader,
        &writer,
        &[
            "Incompatible /id /properties/id/type null is refused",
            "Incompatible /lines/*/count /properties/lines/items/$ref/properties/count/maximum it \
             may be more than 5",
            "Incompatible /a~1b /required it is required, and may be absent",
        ],
    );
}

#[test]
fn members_that_are_not_named_count() {
    let open = json!({ "properties": { "a": { "type": "string" } } });
    let more = json!({ "properties": { "a": { "type": "string" }, "b": { "type": "integer" } } });
    fits(&open, &more);
    let found = lines(&more, &open);
    assert!(
        found
            .iter()
            .all(|line| line.contains(" /b /properties/b/type")),
        "{found:?}"
    );
    assert!(!found.is_empty());
    let mut closed = open.clone();
    closed["additionalProperties"] = json!(false);
    fits(&more, &closed);
    differs(
        &closed,
        &json!({ "type": "object", "properties": { "b": {} } }),
        &[
            "Incompatible /b /additionalProperties it is not accepted",
            "Incompatible /* /additionalProperties there may be further members",
            "Incompatible /a /properties/a/type",
            "Incompatible /a /properties/a/type",
            "Incompatible /a /properties/a/type",
            "Incompatible /a /properties/a/type",
            "Incompatible /a /properties/a/type",
            "Incompatible /a /properties/a/type",
            "Incompatible /a /properties/a/type",
        ],
    );
    let map = json!({ "type": "object", "additionalProperties": { "type": "integer" } });
    fits(
        &json!({ "additionalProperties": { "type": "number" } }),
        &map,
    );
    assert_eq!(
        reasons(&schema(&map), &schema(&json!({ "type": "object" }))).len(),
        7
    );
}

#[test]
fn alternatives_are_compared_one_by_one() {
    let kind = |kind: &str, member: &str| {
        json!({
            "type": "object", "required": ["kind", member],
            "properties": { "kind": { "const": kind }, member: { "type": "integer" } },
        })
    };
    let two = json!({ "oneOf": [kind("a", "x"), kind("b", "y")] });
    let three = json!({ "oneOf": [kind("a", "x"), kind("b", "y"), kind("c", "z")] });
    fits(&three, &two);
    fits(&two, &kind("a", "x"));
    let found = lines(&two, &three);
    assert!(
        found
            .iter()
            .any(|line| line.contains(" /kind ") && line.contains("\"c\" is refused")),
        "{found:?}"
    );
    let either = json!({ "anyOf": [{ "type": "string" }, { "type": "integer" }] });
    fits(&json!({ "type": ["string", "number"] }), &either);
    fits(&either, &json!({ "enum": ["a", 1, 2.0] }));
    differs(&either, &json!({ "enum": ["a", 1.5] }), &["Incompatible "]);
    let overlapping = json!({ "oneOf": [{ "type": "integer" }, { "minimum": 5 }] });
    differs(
        &overlapping,
        &json!({ "type": "integer" }),
        &["Unknown  /oneOf"],
    );
    fits(&overlapping, &json!({ "enum": [1, 2] }));
    differs(
        &overlapping,
        &json!({ "const": 7 }),
        &["Incompatible  /oneOf 7 is refused"],
    );
}

#[test]
fn what_is_not_understood_says_so() {
    let any = json!({ "type": "object" });
    for (reader, keyword) in [
        (json!({ "not": { "required": ["a"] } }), "not"),
        (
            json!({ "if": { "required": ["a"] }, "then": { "required": ["b"] } }),
            "if",
        ),
        (
            json!({ "patternProperties": { "^x": { "type": "string" } } }),
            "patternProperties",
        ),
        (
            json!({ "dependentSchemas": { "a": { "required": ["b"] } } }),
            "dependentSchemas",
        ),
        (
            json!({ "unevaluatedProperties": false }),
            "unevaluatedProperties",
        ),
    ] {
        differs(
            &reader,
            &any,
            &[&format!("Unknown  /{keyword} `{keyword}`")],
        );
        fits(&reader, &reader);
        // Nothing of it changes if the rest of the writer's schema is narrower.
        if keyword != "unevaluatedProperties" {
            let mut narrower = reader.clone();
            narrower["required"] = json!(["z"]);
            fits(&reader, &narrower);
        }
    }
    let listed = json!({ "contains": { "const": 1 }, "type": "array" });
    differs(
        &listed,
        &json!({ "type": "array" }),
        &["Unknown  /contains"],
    );
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    differs(&text("^a"), &text("^b"), &["Unknown  /pattern"]);
    differs(
        &text("^a"),
        &json!({ "type": "string" }),
        &["Incompatible  /pattern"],
    );
    fits(&text("^a"), &text("^a"));
    fits(&text("^a"), &json!({ "enum": ["a", "ab"] }));
    fits(
        &json!({ "not": { "type": "string" } }),
        &json!({ "type": "integer" }),
    );
}

#[test]
fn limits_are_compared() {
    let number = |keyword: &str, limit: f64| json!({ "type": "number", keyword: limit });
    fits(&number("minimum", 1.0), &number("exclusiveMinimum", 1.0));
    differs(
        &number("exclusiveMinimum", 1.0),
        &number("minimum", 1.0),
        &["Incompatible  /exclusiveMinimum it may be less than or equal to 1"],
    );
    differs(
        &number("exclusiveMaximum", 1.5),
        &number("maximum", 1.5),
        &["Incompatible  /exclusiveMaximum it may be more than or equal to 1.5"],
    );
    fits(
        &json!({ "minimum": 1 }),
        &json!({ "type": "integer", "exclusiveMinimum": 0 }),
    );
    fits(
        &json!({ "multipleOf": 5 }),
        &json!({ "type": "integer", "multipleOf": 10 }),
    );
    differs(
        &json!({ "multipleOf": 10 }),
        &json!({ "type": "integer", "multipleOf": 5 }),
        &["Incompatible  /multipleOf"],
    );
    let pair = json!({ "type": "array", "prefixItems": [{ "type": "string" }, { "type": "integer" }], "items": false });
    fits(
        &json!({ "items": { "type": ["string", "number"] }, "maxItems": 9 }),
        &{
            let mut bounded = pair.clone();
            bounded["maxItems"] = json!(2);
            bounded
        },
    );
    fits(&json!({ "prefixItems": [{}, { "type": "number" }] }), &pair);
    differs(
        &json!({ "items": { "type": "string" } }),
        &pair,
        &["Incompatible /1 /items/type it may be of type integer"],
    );
}

#[test]
fn each_version_of_a_writer_needs_one_of_the_reader() {
    let of = |name: &str| schema(&json!({ "type": "object", "required": [name] }));
    let [a, b, c] = ["a", "b", "c"].map(of);
    let readers = [(1, &a), (2, &b)];
    let found = reasons_of_versions(&readers, &[(3, &b), (4, &a), (5, &c)]);
    let [(2, 1, reasons)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(
        reasons[0].pointer, "/b",
        "compared with the newest of the nearest"
    );
}

#[test]
fn a_version_that_both_sides_have_is_compared_with_itself_alone() {
    let of = |name: &str| schema(&json!({ "type": "object", "required": [name] }));
    let [a, b] = ["a", "b"].map(of);
    let readers = [(1, &a), (2, &b)];
    assert_eq!(reasons_of_versions(&readers, &[(1, &a), (2, &b)]), []);
    // An event of type `p.v2` is validated against version 2, whatever version 1 accepts.
    let found = reasons_of_versions(&readers, &[(2, &a)]);
    assert!(matches!(found[..], [(0, 1, _)]), "{found:?}");
}

#[test]
fn many_alternatives_end() {
    let choice = |name: usize| {
        json!({ "anyOf": [
        { "required": [format!("a{name}")] }, { "required": [format!("b{name}")] },
    ] })
    };
    let all: Vec<_> = (0..40).map(choice).collect();
    let found = lines(
        &json!({ "required": ["z"] }),
        &json!({ "type": "object", "allOf": all }),
    );
    assert!(!found.is_empty());
}

/// Draws schemas and values of a small grammar.
struct Draw(fastrand::Rng);

impl Draw {
    fn value(&mut self, depth: usize) -> Value {
        match self.0.usize(if depth == 0 { 0..7 } else { 0..10 }) {
            0 => json!(null),
            1 => json!(self.0.bool()),
            2 | 3 => json!(self.0.i64(-3..4)),
            4 => json!(f64::from(self.0.i32(-6..7)) / 2.0),
            5 | 6 => json!("a".repeat(self.0.usize(0..4))),
            7 => (0..self.0.usize(0..4))
                .map(|_| self.value(depth - 1))
                .collect(),
            _ => {
                let mut members = serde_json::Map::new();
                for name in ["a", "b", "c"] {
                    if self.0.u8(0..3) > 0 {
                        members.insert(name.to_owned(), self.value(depth - 1));
                    }
                }
                Value::Object(members)
            }
        }
    }

    fn kind(&mut self) -> Value {
        let kinds = [
            "null", "boolean", "integer", "number", "string", "array", "object",
        ];
        let one = |draw: &mut Self| json!(kinds[draw.0.usize(0..kinds.len())]);
        match self.0.u8(0..4) {
            0 => json!([one(self), "object"]),
            1 => json!("object"),
            _ => one(self),
        }
    }

    fn schema(&mut self, depth: usize) -> Value {
        let mut schema = json!({});
        for _ in 0..self.0.usize(0..4) {
            self.change(&mut schema, depth);
        }
        schema
    }

    /// Adds, replaces or removes a keyword.
    fn change(&mut self, schema: &mut Value, depth: usize) {
        let Some(node) = schema.as_object_mut() else {
            *schema = self.schema(depth);
            return;
        };
        let plain = [
            "type",
            "minimum",
            "exclusiveMinimum",
            "maximum",
            "exclusiveMaximum",
            "multipleOf",
            "minLength",
            "maxLength",
            "pattern",
            "minItems",
            "maxItems",
            "uniqueItems",
            "required",
            "minProperties",
            "maxProperties",
            "dependentRequired",
            "enum",
            "const",
        ];
        let nested = [
            "items",
            "prefixItems",
            "contains",
            "properties",
            "additionalProperties",
            "propertyNames",
            "patternProperties",
            "allOf",
            "anyOf",
            "oneOf",
            "not",
            "if",
            "then",
            "else",
            "unevaluatedProperties",
            "properties",
            "properties",
            "items",
        ];
        let is_nested = depth > 0 && self.0.bool();
        let keyword = if is_nested {
            nested[self.0.usize(0..nested.len())]
        } else {
            plain[self.0.usize(0..plain.len())]
        };
        if self.0.u8(0..4) == 0 {
            node.remove(keyword);
            return;
        }
        // A change inside of what is there keeps schemas similar.
        if let Some(inner) = node.get_mut(keyword).filter(|_| is_nested && self.0.bool()) {
            match inner {
                Value::Object(members) if keyword == "properties" => {
                    if let Some(member) = members.values_mut().next() {
                        self.change(member, depth - 1);
                    }
                }
                Value::Array(list) => {
                    if let Some(part) = list.first_mut() {
                        self.change(part, depth - 1);
                    }
                }
                inner if keyword != "patternProperties" => self.change(inner, depth - 1),
                _ => {}
            }
            return;
        }
        let value = self.keyword(keyword, depth);
        node.insert(keyword.to_owned(), value);
    }

    fn keyword(&mut self, keyword: &str, depth: usize) -> Value {
        let name = |draw: &mut Self| ["a", "b", "c"][draw.0.usize(0..3)];
        match keyword {
            "type" => self.kind(),
            "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum" => {
                json!(f64::from(self.0.i32(-4..5)) / 2.0)
            }
            "multipleOf" => json!(self.0.u8(1..4)),
            "pattern" => json!(["^a*$", "^aa", "a$"][self.0.usize(0..3)]),
            "uniqueItems" => json!(self.0.bool()),
            "required" => json!([name(self)]),
            "dependentRequired" => json!({ name(self): [name(self)] }),
            "enum" => (0..3).map(|_| self.value(1)).collect(),
            "const" => self.value(1),
            "prefixItems" | "allOf" | "anyOf" | "oneOf" => {
                let count = self.0.usize(1..3);
                (0..count).map(|_| self.schema(depth - 1)).collect()
            }
            "properties" => {
                json!({ name(self): self.schema(depth - 1), name(self): self.schema(depth - 1) })
            }
            "patternProperties" => json!({ "^[ab]$": self.schema(depth - 1) }),
            "additionalProperties" | "unevaluatedProperties" if self.0.bool() => json!(false),
            _ if keyword.starts_with("min") || keyword.starts_with("max") => json!(self.0.u8(0..4)),
            _ => self.schema(depth - 1),
        }
    }
}

/// How pairs were judged that were drawn.
#[derive(Debug, Default)]
struct Drawn {
    pairs: usize,
    compatible: usize,
    /// Pairs that were said to be compatible, with a value that shows that they are not.
    wrong: Vec<(Value, Value, Value)>,
}

/// Draws pairs, and looks for values that a writer may write and a reader refuses although the
/// judge says that there are none.
fn drawn(seed: u64, pairs: usize, judge: impl Fn(&Schema, &Schema) -> bool) -> Drawn {
    let mut draw = Draw(fastrand::Rng::with_seed(seed));
    let mut drawn = Drawn::default();
    while drawn.pairs < pairs {
        let writer = draw.schema(2);
        let mut reader = writer.clone();
        for _ in 0..draw.0.usize(0..4) {
            draw.change(&mut reader, 2);
        }
        let (Ok(reads), Ok(writes)) = (Schema::check(&reader), Schema::check(&writer)) else {
            continue;
        };
        drawn.pairs += 1;
        if !judge(&reads, &writes) {
            continue;
        }
        drawn.compatible += 1;
        let reads = reads.validator().expect("it was checked");
        let writes = writes.validator().expect("it was checked");
        let mut values = (0..100).map(|_| draw.value(2));
        let wrong = values.find(|value| writes.is_valid(value) && !reads.is_valid(value));
        drawn
            .wrong
            .extend(wrong.map(|value| (reader, writer, value)));
    }
    drawn
}

/// `FOLDSTREAM_PAIRS=100000` draws more.
fn pairs() -> usize {
    let wanted = std::env::var("FOLDSTREAM_PAIRS").ok();
    wanted.and_then(|wanted| wanted.parse().ok()).unwrap_or(500)
}

#[test]
fn no_value_of_a_compatible_writer_is_refused() {
    let judge = |reader: &Schema, writer: &Schema| reasons(reader, writer).is_empty();
    let drawn = drawn(1, pairs(), judge);
    assert_eq!(drawn.wrong, [], "reader, writer, value");
    assert!(
        drawn.compatible > drawn.pairs / 5 && drawn.compatible < drawn.pairs * 9 / 10,
        "the grammar shows little: {} of {}",
        drawn.compatible,
        drawn.pairs
    );
}

#[test]
fn a_judge_that_is_wrong_is_found() {
    let always = drawn(2, 150, |_, _| true);
    assert!(always.wrong.len() > 10, "{}", always.wrong.len());
    // One that looks only at events as a whole, and not into them.
    let shallow = drawn(3, 400, |reader, writer| {
        let reasons = reasons(reader, writer);
        reasons.iter().all(|reason| !reason.pointer.is_empty())
    });
    assert!(!shallow.wrong.is_empty());
}
