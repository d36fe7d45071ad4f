//! The schemas of a module, compiled to check events while a deployment folds them.
//!
//! Schemas come from uploads, and a host checks events without a process of its own. So everything
//! here has a limit that depends on schema and event alone, never on time: every fold of a stream
//! comes to the same result, on any machine.

use std::cell::Cell;
use std::collections::HashMap;

use jsonschema::{Draft, Keyword, PatternOptions, ValidationError, Validator};
use serde_json::{Map, Value};

use super::document::{closed, options};
use super::keywords::with_subschemas;
use super::validate::NOT_JSON;
use super::version::version_named;
use super::{Direction, Error, EventSchema, Schema, Unsound, by_event};
use crate::event::Payload;

/// Largest compiled regular expression, in bytes: less than a check outside a host accepts, because
/// the size also bounds the time that a byte of text takes.
const PATTERN_COMPILED_BYTES_MAX: usize = 64 << 10;
/// What matching keeps per regular expression and thread, in bytes, and for how many threads that is
/// charged: few folds check with one schema at the same moment.
const PATTERN_CACHE_BYTES: usize = 64 << 10;
const PATTERN_CACHES: usize = 4;
const PATTERN_BYTES: u64 =
    (PATTERN_COMPILED_BYTES_MAX + PATTERN_CACHES * PATTERN_CACHE_BYTES) as u64;
/// Memory of a compiled subschema, in bytes, with its place and its messages.
const SUBSCHEMA_BYTES: u64 = 1 << 10;
/// Memory of a byte of the values that keywords list.
const LISTED_FACTOR: u64 = 16;
/// Most memory of the compiled schemas of one module, in bytes.
const COMPILED_BYTES_MAX: u64 = 64 << 20;
/// Most steps to check one event: the weight of its schemas times the bytes of its data. No part of
/// the data is validated against a part of a schema more often than that.
const STEPS_MAX: u64 = 1 << 28;
/// Most steps to find out why an event does not fit: reasons take memory as well.
const REASON_STEPS_MAX: u64 = 1 << 20;
/// Most bytes of one event that are validated against `pattern`.
const MATCHED_BYTES_MAX: u64 = 256 << 10;
/// The weight of a regular expression for names of members.
const NAME_PATTERN_WEIGHT: u64 = 512;
/// Bytes of listed values that weigh as much as a subschema.
const LISTED_BYTES_PER_WEIGHT: u64 = 16;
/// Most characters of what a misfit says.
const REASON_CHARS_MAX: usize = 1_000;

thread_local! {
    /// How many more bytes of the current event may be validated against `pattern`.
    static MATCHED_BYTES_LEFT: Cell<u64> = const { Cell::new(0) };
    /// Whether there were more.
    static IS_EXHAUSTED: Cell<bool> = const { Cell::new(false) };
}

/// The schemas of a module before they are compiled, within their limits.
pub(crate) struct Uncompiled<'a> {
    schemas: Vec<(&'a EventSchema, (Draft, Value), Cost)>,
    bytes: u64,
}

/// The compiled schemas of a module.
#[derive(Debug)]
pub(crate) struct LiveChecks {
    /// By direction and type; the versions of each, the newest last.
    events: HashMap<Direction, HashMap<String, Vec<Check>>>,
}

#[derive(Debug)]
struct Check {
    version: u32,
    name: String,
    validator: Validator,
    weight: u64,
}

impl<'a> Uncompiled<'a> {
    /// Prepares the schemas of a module, which the caller need not have checked.
    pub(crate) fn new(all: &'a [EventSchema]) -> Result<Self, Error> {
        let (mut schemas, mut bytes) = (Vec::new(), 0_u64);
        for version in by_event(all).into_values().flatten() {
            let schema =
                Schema::expand(&version.schema).map_err(|unsound| unsound.of(&version.name()))?;
            let document = closed(&schema.expanded);
            let cost = cost(&document);
            bytes = bytes.saturating_add(cost.bytes);
            schemas.push((version, (schema.draft, document), cost));
        }
        if bytes > COMPILED_BYTES_MAX {
            return Err(Error::All(format!(
                "to check events, its schemas may take {bytes} bytes of memory, and \
                 {COMPILED_BYTES_MAX} are allowed; use fewer regular expressions and references, \
                 and do not nest `unevaluatedItems` and `unevaluatedProperties`"
            )));
        }
        Ok(Self { schemas, bytes })
    }

    /// The memory that they take at most once they are compiled, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Compiles them, in time in proportion to their memory.
    pub(crate) fn compile(self) -> Result<LiveChecks, Error> {
        let mut events: HashMap<_, HashMap<_, Vec<Check>>> = HashMap::new();
        for (version, schema, cost) in self.schemas {
            let validator = compile(schema).map_err(|unsound| unsound.of(&version.name()))?;
            let check = Check {
                version: version.version,
                name: version.name(),
                validator,
                weight: cost.weight,
            };
            events
                .entry(version.direction)
                .or_default()
                .entry(version.event.clone())
                .or_default()
                .push(check);
        }
        Ok(LiveChecks { events })
    }
}

impl LiveChecks {
    /// Why the data of an event does not fit the schemas of its type; none if it fits one of the
    /// versions, or has no schema.
    pub(crate) fn misfit(
        &self,
        direction: Direction,
        kind: &str,
        data: &Payload,
    ) -> Option<String> {
        let versions = self.versions(direction, kind)?;
        let newest = versions.last()?;
        let says = |what: &str| {
            Some(format!(
                "it does not fit the schema {}: {what}",
                newest.name
            ))
        };
        let weight = versions
            .iter()
            .fold(0_u64, |sum, check| sum.saturating_add(check.weight));
        let steps = weight.saturating_mul(data.len() as u64 + 1);
        // Before the data is parsed, which takes many times its memory.
        if steps > STEPS_MAX {
            return says(&format!(
                "schema-steps: its {} bytes times the weight {weight} of its schemas are more than \
                 {STEPS_MAX}; send less in one event, or simplify its schemas",
                data.len()
            ));
        }
        let Some(Ok(value)) = data.as_str().map(serde_json::from_str::<Value>) else {
            return says(NOT_JSON);
        };
        MATCHED_BYTES_LEFT.set(MATCHED_BYTES_MAX);
        IS_EXHAUSTED.set(false);
        let fits = versions
            .iter()
            .any(|check| check.validator.is_valid(&value));
        // Also if it seems to fit: under `not`, what was not matched looks like what fits.
        if IS_EXHAUSTED.get() {
            return says(&format!(
                "schema-steps: more than {MATCHED_BYTES_MAX} bytes of its texts are validated against \
                 patterns; send less in one event, or simplify its schemas"
            ));
        }
        if fits {
            return None;
        }
        if steps > REASON_STEPS_MAX {
            return says("schema or data are too large to say where");
        }
        MATCHED_BYTES_LEFT.set(MATCHED_BYTES_MAX);
        let error = newest.validator.validate(&value).err()?;
        let others = match versions.len() {
            1 => "",
            _ => "nor those of earlier versions, ",
        };
        // Without values: they may be personal, and failures are logged.
        let place = match error.instance_path().as_str() {
            "" => "the data as a whole".to_owned(),
            place => format!("the data at `{place}`"),
        };
        let reason: String = format!(
            "{others}at {}: {}; {place}",
            error.schema_path(),
            error.masked(),
        )
        .chars()
        .take(REASON_CHARS_MAX)
        .collect();
        Some(format!(
            "it does not fit the schema {} {reason}",
            newest.name
        ))
    }

    /// The versions for a type. A type may also name one version, as in `placed.v2`.
    fn versions(&self, direction: Direction, kind: &str) -> Option<&[Check]> {
        let of = |event: &str| self.events.get(&direction)?.get(event);
        if let Some(versions) = of(kind) {
            return Some(versions);
        }
        let (event, version) = version_named(kind)?;
        let at = of(event)?
            .iter()
            .position(|check| check.version == version)?;
        Some(&of(event)?[at..=at])
    }
}

fn compile((draft, document): (Draft, Value)) -> Result<Validator, Unsound> {
    options(draft, patterns())
        .with_keyword("pattern", move |_, pattern, _| {
            let matching = serde_json::json!({ "pattern": pattern });
            let validator = jsonschema::options()
                .with_draft(draft)
                .offline()
                .with_pattern_options(patterns())
                .build(&matching)?;
            Ok(Box::new(CountedPattern(validator)))
        })
        .build(&document)
        .map_err(|error| {
            Unsound::new(
                &error.instance_path().to_string(),
                format!("it can't be used to check events: {error}"),
            )
        })
}

fn patterns() -> PatternOptions<jsonschema::Regex> {
    PatternOptions::regex()
        .size_limit(PATTERN_COMPILED_BYTES_MAX)
        .dfa_size_limit(PATTERN_CACHE_BYTES)
}

/// The keyword `pattern`, which counts the bytes that it matches: that can take long for each of
/// them, and how often a text is matched is not known before.
struct CountedPattern(Validator);

impl CountedPattern {
    /// Takes the text of an instance from what is left.
    fn count(instance: &Value) -> bool {
        let bytes = instance.as_str().map_or(0, str::len) as u64;
        let left = MATCHED_BYTES_LEFT.get().checked_sub(bytes);
        MATCHED_BYTES_LEFT.set(left.unwrap_or(0));
        if left.is_none() {
            IS_EXHAUSTED.set(true);
        }
        left.is_some()
    }
}

impl<'i> Keyword<'i> for CountedPattern {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        if Self::count(instance) {
            self.0.validate(instance)
        } else {
            Err(ValidationError::custom(
                "too much text is validated against patterns",
            ))
        }
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        Self::count(instance) && self.0.is_valid(instance)
    }
}

/// What a compiled schema costs at most.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// How many of its parts can be validated against one part of the data.
    weight: u64,
    /// Its memory, in bytes.
    bytes: u64,
}

impl Cost {
    fn and(self, other: Self) -> Self {
        Self {
            weight: self.weight.saturating_add(other.weight),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn times(self, count: u64) -> Self {
        Self {
            weight: self.weight.saturating_mul(count),
            bytes: self.bytes.saturating_mul(count),
        }
    }
}

fn cost(schema: &Value) -> Cost {
    let alone = Cost {
        weight: 1,
        bytes: SUBSCHEMA_BYTES,
    };
    let Value::Object(node) = schema else {
        return alone;
    };
    let mut of_subschemas = Cost::default();
    let copied = with_subschemas(node, &mut |subschema, _| {
        of_subschemas = of_subschemas.and(cost(subschema));
        Ok::<_, std::convert::Infallible>(Value::Null)
    });
    let Ok(_) = copied;
    // To know what the others have evaluated, each of these has them once more.
    let again = ["unevaluatedItems", "unevaluatedProperties"]
        .iter()
        .filter(|keyword| node.contains_key(**keyword))
        .count();
    let (listed, names) = (listed_bytes(node), name_patterns(node));
    let patterns = names + u64::from(node.contains_key("pattern"));
    let own = Cost {
        weight: listed / LISTED_BYTES_PER_WEIGHT + names * NAME_PATTERN_WEIGHT,
        bytes: listed * LISTED_FACTOR + patterns * PATTERN_BYTES,
    };
    alone.and(own).and(of_subschemas.times(1 << again))
}

fn listed_bytes(node: &Map<String, Value>) -> u64 {
    let listed = super::document::DATA
        .iter()
        .filter_map(|keyword| node.get(*keyword));
    listed.map(|value| value.to_string().len() as u64).sum()
}

fn name_patterns(node: &Map<String, Value>) -> u64 {
    let patterns = node.get("patternProperties").and_then(Value::as_object);
    patterns.map_or(0, Map::len) as u64
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

    fn compiled(schemas: &[EventSchema]) -> Result<LiveChecks, Error> {
        Uncompiled::new(schemas)?.compile()
    }

    fn misfit(schemas: &[EventSchema], kind: &str, data: &str) -> Option<String> {
        let checks = compiled(schemas).expect("they compile");
        checks.misfit(Direction::Reads, kind, &Payload::from(data))
    }

    #[test]
    fn a_misfit_names_places_and_no_values() {
        let of_placed = [schema(
            "placed",
            1,
            json!({
                "properties": { "name": { "$ref": "#/$defs/name" }, "cents": { "type": "integer" } },
                "$defs": { "name": { "pattern": "^[a-z]+$" } },
            }),
        )];
        let look = |data: &str| misfit(&of_placed, "placed", data);
        assert_eq!(look(r#"{"name": "ada", "cents": 1}"#), None);
        let found = look(r#"{"cents": "secret"}"#).expect("does not fit");
        assert_eq!(
            found,
            "it does not fit the schema placed at /properties/cents/type: value is not of type \
             \"integer\"; the data at `/cents`"
        );
        let required = [schema("a", 1, json!({ "required": ["b"] }))];
        let found = misfit(&required, "a", "{}").expect("does not fit");
        assert_eq!(
            found,
            "it does not fit the schema a at /required: \"b\" is a required property; the data as a \
             whole"
        );
        let found = look(r#"{"name": "SECRET"}"#).expect("does not fit");
        assert!(
            found.contains("pattern: value does not match") && found.ends_with("`/name`"),
            "{found}"
        );
        assert!(!found.contains("SECRET"), "{found}");
        let found = look("no JSON").expect("does not fit");
        assert!(found.ends_with("the data is no JSON"), "{found}");
        assert_eq!(misfit(&of_placed, "cancelled", "no JSON"), None);
    }

    #[test]
    fn an_event_fits_one_of_the_versions_unless_its_type_names_one() {
        let cents = |name: &str| json!({ "required": [name] });
        let both = [
            schema("placed", 1, cents("cents")),
            schema("placed", 2, cents("total_cents")),
        ];
        assert_eq!(misfit(&both, "placed", r#"{"cents": 1}"#), None);
        assert_eq!(misfit(&both, "placed.v2", r#"{"total_cents": 1}"#), None);
        assert!(misfit(&both, "placed.v2", r#"{"cents": 1}"#).is_some());
        assert_eq!(misfit(&both, "placed.v3", "{}"), None);
        let found = misfit(&both, "placed", "{}").expect("fits none");
        assert!(found.contains("placed v2 nor those of earlier"), "{found}");
    }

    #[test]
    fn memory_is_known_before_anything_is_compiled() {
        let patterns = |count| -> Vec<Value> {
            (0..count)
                .map(|number| json!({ "pattern": format!("^{number}") }))
                .collect()
        };
        let sixty = [schema("a", 1, json!({ "allOf": patterns(60) }))];
        let uncompiled = Uncompiled::new(&sixty).expect("is allowed");
        assert!(uncompiled.bytes() > 60 * PATTERN_BYTES);
        assert!(uncompiled.compile().is_ok());
        let many = compiled(&[schema("a", 1, json!({ "allOf": patterns(250) }))]);
        let many = many.expect_err("is refused");
        assert!(many.to_string().contains("67108864 are allowed"), "{many}");
        let large = compiled(&[schema("a", 1, json!({ "pattern": "(?:\\w{99}){99}" }))]);
        let large = large.expect_err("is refused").to_string();
        assert!(large.contains("can't be used to check events"), "{large}");
    }

    #[test]
    fn no_schema_makes_a_check_take_more_than_its_steps() {
        // Each level has the one below it twice, to know what that evaluated.
        let nested = |levels| {
            (0..levels).fold(
                json!({ "properties": { "a": true } }),
                |inner, _| json!({ "allOf": [inner], "unevaluatedProperties": false }),
            )
        };
        let refused = compiled(&[schema("a", 1, nested(30))]).expect_err("is refused");
        assert!(refused.to_string().contains("do not nest"), "{refused}");
        let ten = [schema("a", 1, nested(10))];
        assert_eq!(misfit(&ten, "a", r#"{"a": 1}"#), None);
        let large = json!({ "a": "x".repeat(200_000) }).to_string();
        let found = misfit(&ten, "a", &large).expect("is refused");
        assert!(found.contains("schema-steps: its 200008 bytes"), "{found}");
        // Each item is validated against all of them.
        let text = json!({ "$ref": "#/$defs/text" });
        let wide = json!({
            "items": { "anyOf": vec![text; 2_500] },
            "$defs": { "text": { "type": "string" } },
        });
        let items = format!("[{}1]", "1,".repeat(100_000));
        let found = misfit(&[schema("a", 1, wide.clone())], "a", &items).expect("is refused");
        assert!(found.contains("schema-steps: its 200003 bytes"), "{found}");
        let found = misfit(&[schema("a", 1, wide)], "a", "[1,1,1]").expect("does not fit");
        assert!(found.contains("the data at `/0`"), "{found}");
        // The same text is matched again and again, also where nothing has to match.
        let matched = json!({ "not": { "allOf": vec![json!({ "pattern": "[ab]{500}c" }); 60] } });
        let text = format!("\"{}\"", "ab".repeat(150_000));
        let found = misfit(&[schema("a", 1, matched)], "a", &text).expect("is refused");
        assert!(
            found.contains("of its texts are validated against patterns"),
            "{found}"
        );
    }

    #[test]
    fn data_of_any_shape_is_checked() {
        let any = [schema("a", 1, json!({ "type": "object" }))];
        for data in ["", "null", "[", "{\"a\":", "\u{0}", &"[".repeat(100_000)] {
            assert!(misfit(&any, "a", data).is_some(), "{data}");
        }
        let checks = compiled(&any).expect("they compile");
        let bytes = Payload::Bytes(bytes::Bytes::from_static(b"\xff"));
        assert!(checks.misfit(Direction::Reads, "a", &bytes).is_some());
        assert_eq!(checks.misfit(Direction::Publishes, "a", &bytes), None);
    }
}
