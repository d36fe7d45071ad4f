//! One schema: checked, bounded, and with its references inlined.

use std::convert::Infallible;

use jsonschema::{Draft, PatternOptions, ValidationOptions, Validator};
use serde_json::{Map, Value};

use super::keywords::{asserts, with_subschemas};
use super::{SCHEMA_BYTES_MAX, Unsound};

/// Deepest nesting of JSON in a schema, and of subschemas once references are inlined.
const DEPTH_MAX: usize = 64;
/// Most subschemas once references are inlined. It bounds the time of a check.
const SUBSCHEMAS_MAX: usize = 10_000;
/// Keywords with values instead of schemas.
pub(super) const DATA: [&str; 4] = ["const", "dependentRequired", "enum", "required"];
/// Most bytes of such values once references are inlined.
const DATA_BYTES_MAX: usize = 1 << 20;
/// Longest regular expression, in bytes.
const PATTERN_BYTES_MAX: usize = 1_024;
/// Largest compiled regular expression, in bytes.
const PATTERN_COMPILED_BYTES_MAX: usize = 1 << 20;
/// Most regular expressions, once references are inlined.
const PATTERNS_MAX: usize = 256;
/// The draft of a schema that names none.
const DRAFT: Draft = Draft::Draft202012;

/// A schema that is valid and within its limits.
#[derive(Clone, Debug)]
pub(crate) struct Schema {
    pub(super) draft: Draft,
    /// Only what asserts something, with each `$ref` replaced by the schema that it refers to.
    pub(super) expanded: Value,
}

impl Schema {
    /// Checks a schema.
    pub(crate) fn check(written: &Value) -> Result<Self, Unsound> {
        let schema = Self::expand(written)?;
        compile(schema.draft, written)?;
        schema.validator()?;
        Ok(schema)
    }

    /// Inlines the references of a schema, within its limits. What it says may still be invalid.
    pub(super) fn expand(written: &Value) -> Result<Self, Unsound> {
        let bytes = written.to_string().len();
        if bytes > SCHEMA_BYTES_MAX {
            return Err(Unsound::new(
                "",
                format!("it has {bytes} bytes, at most {SCHEMA_BYTES_MAX} are accepted"),
            ));
        }
        let draft = draft(written)?;
        scan(written, "", 0)?;
        let mut expansion = Expansion {
            root: written,
            draft,
            subschemas: 0,
            bytes: 0,
            patterns: 0,
            open: Vec::new(),
        };
        let expanded = expansion.expand(written, "", 0)?;
        Ok(Self { draft, expanded })
    }

    /// Whether what is next to a `$ref` means nothing.
    pub(crate) fn ignores_siblings_of_references(&self) -> bool {
        self.draft == Draft::Draft7
    }

    /// Whether the schemas of single items are in `prefixItems`, and no longer in `items`.
    pub(crate) fn has_prefix_items(&self) -> bool {
        self.draft == Draft::Draft202012
    }

    /// What checks values against it.
    pub(super) fn validator(&self) -> Result<Validator, Unsound> {
        // What was compared, and nothing that only the validator would see.
        validator_of(self.draft, &self.expanded)
    }
}

/// What checks values against a part of an expanded schema.
pub(super) fn validator_of(draft: Draft, expanded: &Value) -> Result<Validator, Unsound> {
    compile(draft, &closed(expanded))
}

fn compile(draft: Draft, schema: &Value) -> Result<Validator, Unsound> {
    let patterns = PatternOptions::regex().size_limit(PATTERN_COMPILED_BYTES_MAX);
    options(draft, patterns).build(schema).map_err(|error| {
        let at = error.instance_path().to_string();
        let is_pattern = at.ends_with("/pattern") || at.contains("/patternProperties");
        let advice = if is_pattern {
            "; look-around and back-references are not accepted, nor patterns that are too large"
        } else {
            ""
        };
        Unsound::new(&at, format!("it is no valid schema: {error}{advice}"))
    })
}

/// How schemas are compiled.
pub(super) fn options(
    draft: Draft,
    patterns: PatternOptions<jsonschema::Regex>,
) -> ValidationOptions<'static> {
    jsonschema::options()
        .with_draft(draft)
        .offline()
        .should_validate_formats(false)
        .with_pattern_options(patterns)
}

/// The draft that a schema names.
fn draft(schema: &Value) -> Result<Draft, Unsound> {
    if !schema.is_object() && !schema.is_boolean() {
        return Err(Unsound::new("", "it is neither an object nor a boolean"));
    }
    let Some(named) = schema.get("$schema") else {
        return Ok(DRAFT);
    };
    let named = named.as_str().unwrap_or_default();
    match named.trim_end_matches('#') {
        "https://json-schema.org/draft/2020-12/schema" => Ok(Draft::Draft202012),
        "https://json-schema.org/draft/2019-09/schema" => Ok(Draft::Draft201909),
        "http://json-schema.org/draft-07/schema" | "https://json-schema.org/draft-07/schema" => {
            Ok(Draft::Draft7)
        }
        _ => Err(Unsound::new(
            "/$schema",
            "accepted are the drafts 2020-12, 2019-09 and draft-07",
        )),
    }
}

/// Refuses what is nested too deep, and what changes the meaning of references.
fn scan(value: &Value, at: &str, depth: usize) -> Result<(), Unsound> {
    if depth > DEPTH_MAX {
        return Err(too_deep(at));
    }
    match value {
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| scan(item, &format!("{at}/{index}"), depth + 1)),
        Value::Object(members) => members.iter().try_for_each(|(name, member)| {
            let at = format!("{at}/{}", super::escaped(name));
            match name.as_str() {
                // Data, not schemas.
                "const" | "default" | "enum" | "examples" => return Ok(()),
                "$id" if depth > 0 && member.is_string() => {
                    return Err(Unsound::new(&at, "only the whole schema may have an `$id`"));
                }
                "$dynamicRef" | "$recursiveRef" if member.is_string() => {
                    let message = format!("`{name}` is not accepted; use `$ref`");
                    return Err(Unsound::new(&at, message));
                }
                _ => {}
            }
            scan(member, &at, depth + 1)
        }),
        _ => Ok(()),
    }
}

/// Refuses what would make a part of a schema a document of its own. Whatever the name of the member
/// above it: this is a schema, and no data.
fn refuse_other_documents(
    node: &Map<String, Value>,
    at: &str,
    depth: usize,
) -> Result<(), Unsound> {
    for keyword in ["$id", "$schema", "$dynamicRef", "$recursiveRef"] {
        let is_at_root = depth == 0 && ["$id", "$schema"].contains(&keyword);
        if node.contains_key(keyword) && !is_at_root {
            let message = format!("`{keyword}` is not accepted below the whole schema; use `$ref`");
            return Err(Unsound::new(&format!("{at}/{keyword}"), message));
        }
    }
    Ok(())
}

fn too_deep(at: &str) -> Unsound {
    Unsound::new(at, format!("it is nested deeper than {DEPTH_MAX}"))
}

/// Inlines references.
struct Expansion<'a> {
    root: &'a Value,
    draft: Draft,
    subschemas: usize,
    /// Of the values that keywords list.
    bytes: usize,
    patterns: usize,
    /// The references that lead to the current place.
    open: Vec<String>,
}

impl Expansion<'_> {
    fn expand(&mut self, value: &Value, at: &str, depth: usize) -> Result<Value, Unsound> {
        self.subschemas += 1;
        if self.subschemas > SUBSCHEMAS_MAX {
            return Err(Unsound::new(
                at,
                format!("with its references it has more than {SUBSCHEMAS_MAX} subschemas"),
            ));
        }
        if depth > DEPTH_MAX {
            return Err(too_deep(at));
        }
        let Value::Object(node) = value else {
            return Ok(value.clone());
        };
        refuse_other_documents(node, at, depth)?;
        self.count_patterns(node, at)?;
        self.count_data(node, at)?;
        let reference = node.get("$ref");
        // Draft 7 ignores what is next to a reference.
        let is_alone = reference.is_some() && self.draft == Draft::Draft7;
        let kept: Map<String, Value> = node
            .iter()
            .filter(|(keyword, _)| asserts(self.draft, keyword) && *keyword != "$ref" && !is_alone)
            .map(|(keyword, value)| (keyword.clone(), value.clone()))
            .collect();
        let mut expanded = with_subschemas(&kept, &mut |value, place| {
            self.expand(value, &format!("{at}{place}"), depth + 1)
        })?;
        if let Some(reference) = reference {
            let at = format!("{at}/$ref");
            let target = self.follow(reference, &at, depth)?;
            expanded.insert("$ref".to_owned(), target);
        }
        Ok(Value::Object(expanded))
    }

    fn follow(&mut self, reference: &Value, at: &str, depth: usize) -> Result<Value, Unsound> {
        let Some(pointer) = reference.as_str().and_then(|text| text.strip_prefix('#')) else {
            return Err(Unsound::new(
                at,
                "it refers to another document, which is never fetched; copy that one into `$defs`, \
                 and refer to `#/$defs/…`",
            ));
        };
        if self.open.iter().any(|open| open == pointer) || pointer.is_empty() {
            return Err(Unsound::new(
                at,
                "it refers to itself; schemas of events must not be recursive",
            ));
        }
        let target = self
            .root
            .pointer(pointer)
            .filter(|_| !pointer.contains('%'));
        let Some(target) = target else {
            let message = format!("`#{pointer}` is not the place of a schema in this document");
            return Err(Unsound::new(at, message));
        };
        self.open.push(pointer.to_owned());
        let expanded = self.expand(target, at, depth + 1);
        self.open.pop();
        expanded
    }

    /// Each reference to a list of values copies it.
    fn count_data(&mut self, node: &Map<String, Value>, at: &str) -> Result<(), Unsound> {
        let listed = DATA.iter().filter_map(|keyword| node.get(*keyword));
        self.bytes += listed.map(|value| value.to_string().len()).sum::<usize>();
        if self.bytes > DATA_BYTES_MAX {
            return Err(Unsound::new(
                at,
                format!("with its references it lists more than {DATA_BYTES_MAX} bytes of values"),
            ));
        }
        Ok(())
    }

    fn count_patterns(&mut self, node: &Map<String, Value>, at: &str) -> Result<(), Unsound> {
        let pattern = node.get("pattern").and_then(Value::as_str);
        let of_names = node.get("patternProperties").and_then(Value::as_object);
        let of_names = of_names.into_iter().flat_map(Map::keys).map(String::as_str);
        for pattern in pattern.into_iter().chain(of_names) {
            self.patterns += 1;
            if pattern.len() > PATTERN_BYTES_MAX {
                let bytes = pattern.len();
                return Err(Unsound::new(
                    at,
                    format!(
                        "a regular expression has {bytes} bytes, at most {PATTERN_BYTES_MAX} are \
                         accepted"
                    ),
                ));
            }
        }
        if self.patterns > PATTERNS_MAX {
            return Err(Unsound::new(
                at,
                format!("with its references it has more than {PATTERNS_MAX} regular expressions"),
            ));
        }
        Ok(())
    }
}

/// An expanded schema as a valid one: what was referred to is one more schema of `allOf`.
pub(super) fn closed(expanded: &Value) -> Value {
    let Value::Object(node) = expanded else {
        return expanded.clone();
    };
    let copied = with_subschemas(node, &mut |value, _| Ok::<_, Infallible>(closed(value)));
    let Ok(mut copy) = copied;
    if let Some(target) = copy.remove("$ref") {
        let target = closed(&target);
        match copy.get_mut("allOf") {
            Some(Value::Array(all)) => all.push(target),
            _ => {
                copy.insert("allOf".to_owned(), Value::Array(vec![target]));
            }
        }
    }
    Value::Object(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusal(schema: &Value) -> String {
        let unsound = Schema::check(schema).expect_err("is refused");
        format!("{}: {}", unsound.at, unsound.message)
    }

    #[test]
    fn references_are_inlined_and_annotations_left_out() {
        let schema = json!({
            "title": "an order",
            "$defs": { "id": { "type": "string", "format": "uuid", "minLength": 1 } },
            "properties": { "title": { "$ref": "#/$defs/id", "maxLength": 9 } },
        });
        let schema = Schema::check(&schema).expect("is sound");
        assert_eq!(
            schema.expanded,
            json!({ "properties": { "title": {
                "$ref": { "type": "string", "minLength": 1 }, "maxLength": 9,
            } } })
        );
        let validator = validator_of(schema.draft, &schema.expanded).expect("is valid");
        assert!(validator.is_valid(&json!({ "title": "a" })));
        assert!(!validator.is_valid(&json!({ "title": "" })));
        assert!(!validator.is_valid(&json!({ "title": "more than nine" })));
    }

    #[test]
    fn schemas_that_could_do_harm_are_refused() {
        let nested = (0..70).fold(json!(true), |inner, _| json!({ "not": inner }));
        assert!(refusal(&nested).contains("nested deeper than 64"));
        let recursive = json!({ "properties": { "next": { "$ref": "#" } } });
        assert!(refusal(&recursive).contains("/properties/next/$ref: it refers to itself"));
        let circle = json!({ "$ref": "#/$defs/a", "$defs": {
            "a": { "items": { "$ref": "#/$defs/b" } }, "b": { "not": { "$ref": "#/$defs/a" } },
        } });
        assert!(refusal(&circle).contains("must not be recursive"));
        for remote in [
            "https://example.com/a.json",
            "file:///etc/passwd",
            "other.json#/a",
        ] {
            let remote = json!({ "items": { "$ref": remote } });
            assert!(refusal(&remote).contains("/items/$ref: it refers to another document"));
        }
        // Each definition uses the next one twice, 2^30 times in all.
        let mut doubling = json!({ "$ref": "#/$defs/0", "$defs": { "30": {} } });
        for level in 0..30 {
            let next = json!({ "$ref": format!("#/$defs/{}", level + 1) });
            doubling["$defs"][level.to_string()] = json!({ "allOf": [next, next] });
        }
        assert!(refusal(&doubling).contains("more than 10000 subschemas"));
        let long = json!({ "pattern": "a".repeat(2_000) });
        assert!(refusal(&long).contains("a regular expression has 2000 bytes"));
        let large = json!({ "pattern": "(?:(?:\\w{99}){99}){99}" });
        assert!(refusal(&large).contains("/pattern"), "{}", refusal(&large));
        let look = json!({ "pattern": "(?=a)b" });
        assert!(refusal(&look).contains("look-around"), "{}", refusal(&look));
        let many = json!({ "enum": ["x".repeat(70_000)] });
        assert!(refusal(&many).contains("at most 65536 are accepted"));
        // The member's name is no keyword: what is there is a schema.
        for (keyword, value) in [
            ("$id", "https://example.com/a"),
            ("$schema", "http://json-schema.org/draft-07/schema#"),
            ("$dynamicRef", "#a"),
        ] {
            let hidden = json!({ "properties": { "default": { keyword: value } } });
            let why = refusal(&hidden);
            assert!(
                why.starts_with(&format!("/properties/default/{keyword}: ")),
                "{why}"
            );
        }
        let copies = vec![json!({ "$ref": "#/$defs/a" }); 64];
        let listed: Vec<_> = (0..4_000).collect();
        let copied = json!({ "$defs": { "a": { "enum": listed } }, "allOf": copies });
        assert!(refusal(&copied).contains("more than 1048576 bytes of values"));
        let inner = json!({ "$defs": { "a": { "$id": "https://example.com/a" } } });
        assert!(refusal(&inner).contains("/$defs/a/$id"));
        assert!(
            refusal(&json!({ "$schema": "http://json-schema.org/draft-04/schema#" }))
                .contains("draft-07")
        );
    }

    #[test]
    fn what_is_no_schema_is_refused_with_its_place() {
        assert!(refusal(&json!([])).contains("neither an object nor a boolean"));
        let wrong = json!({ "properties": { "a": { "type": "strin" } } });
        assert!(
            refusal(&wrong).starts_with("/properties/a/type: "),
            "{}",
            refusal(&wrong)
        );
        let missing = json!({ "items": { "$ref": "#/$defs/a" } });
        assert!(refusal(&missing).contains("`#/$defs/a` is not the place of a schema"));
    }

    #[test]
    fn siblings_of_a_reference_count_since_2019() {
        let with = |draft: &str| {
            let schema = json!({
                "$schema": draft, "$ref": "#/definitions/a", "maxLength": 1,
                "definitions": { "a": { "type": "string" } },
            });
            Schema::check(&schema).expect("is sound").expanded
        };
        let draft7 = with("http://json-schema.org/draft-07/schema#");
        assert_eq!(draft7, json!({ "$ref": { "type": "string" } }));
        let current = with("https://json-schema.org/draft/2020-12/schema");
        assert_eq!(
            current,
            json!({ "$ref": { "type": "string" }, "maxLength": 1 })
        );
    }
}
