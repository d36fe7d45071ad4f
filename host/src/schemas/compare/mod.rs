//! Whether everything that one schema accepts, another one accepts as well.
//!
//! The comparison is sound: without a reason against it, no value that fits the *writer's* schema is
//! refused by the *reader's*. It is not complete: some pairs that are compatible have a reason,
//! because nothing here shows it. What it does not understand is a reason that says so.
//!
//! A writer is a set of schemas that all hold (`writer.rs`). The comparison takes apart its
//! alternatives, values and types, and then looks at each keyword of the reader for one type
//! (`keyword.rs`, `lists.rs`, `members.rs`).

mod keyword;
mod kinds;
mod lists;
mod members;
mod numbers;
mod writer;

use jsonschema::Draft;
use serde::Serialize;
use serde_json::{Value, json};

use super::document::validator_of;
use super::{Schema, escaped};
use kinds::Kind;
use writer::Writer;

/// Most steps of one comparison.
const STEPS_MAX: usize = 50_000;
/// Steps that count for a schema that is compiled, which is most of the work.
const COMPILED_STEPS: usize = 50;
/// Most reasons that one comparison shows.
const REASONS_MAX: usize = 50;

/// The kind of a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Weight {
    /// Values that the writer may write are refused, as far as can be seen.
    Incompatible,
    /// The comparison does not understand a keyword.
    Unknown,
}

/// Why a reader may refuse what a writer writes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Reason {
    /// Its kind.
    pub weight: Weight,
    /// The place in the data of an event, as a JSON pointer; `*` is any item or member.
    pub pointer: String,
    /// The keyword of the reader's schema, as a JSON pointer.
    pub keyword: String,
    /// In words.
    pub message: String,
}

/// Why a reader may refuse something that fits the writer's schema; empty if it never does.
pub(crate) fn reasons(reader: &Schema, writer: &Schema) -> Vec<Reason> {
    let mut comparison = Comparison {
        reader: reader.draft,
        writer: writer.draft,
        steps: 0,
    };
    let mut all = comparison.within(
        &reader.expanded,
        &Writer::of(&writer.expanded),
        &Place::default(),
    );
    // First what no permission covers, so that the limit never leaves the rest alone.
    all.sort_by_key(|reason| reason.weight == Weight::Unknown);
    let mut different: Vec<Reason> = Vec::new();
    for reason in all {
        if different.len() < REASONS_MAX && !different.contains(&reason) {
            different.push(reason);
        }
    }
    different
}

/// The same, if each side may have several versions, with their numbers: whatever fits a version of
/// the writer must fit the same one of the reader, as an event may name its version; if the reader
/// does not have it, any other. Each reason names the versions, by their indices.
pub(crate) fn reasons_of_versions(
    readers: &[(u32, &Schema)],
    writers: &[(u32, &Schema)],
) -> Vec<(usize, usize, Vec<Reason>)> {
    let mut against = Vec::new();
    for (written, (version, writer)) in writers.iter().enumerate() {
        let is_same = |(_, (other, _)): &(usize, &(u32, &Schema))| other == version;
        let has_same = readers.iter().enumerate().any(|reader| is_same(&reader));
        let all = readers.iter().enumerate();
        let all = all.filter(|reader| !has_same || is_same(reader));
        let all = all.map(|(read, (_, reader))| (written, read, reasons(reader, writer)));
        let all = all.collect::<Vec<_>>().into_iter();
        // The nearest one; of several, the newest.
        let nearest = all.rev().min_by_key(|(_, _, reasons)| reasons.len());
        against.extend(nearest.filter(|(_, _, reasons)| !reasons.is_empty()));
    }
    against
}

/// A place in the data, and one in the reader's schema.
#[derive(Clone, Debug, Default)]
struct Place {
    pointer: String,
    keyword: String,
}

impl Place {
    /// Another keyword for the same value.
    fn keyword(&self, path: &str) -> Self {
        Self {
            pointer: self.pointer.clone(),
            keyword: format!("{}/{path}", self.keyword),
        }
    }

    /// A member or item, and the keyword about it.
    fn inside(&self, part: &str, keyword: &str) -> Self {
        Self {
            pointer: format!("{}/{}", self.pointer, escaped(part)),
            keyword: format!("{}/{keyword}", self.keyword),
        }
    }

    fn reason(&self, weight: Weight, message: impl Into<String>) -> Reason {
        Reason {
            weight,
            pointer: self.pointer.clone(),
            keyword: self.keyword.clone(),
            message: message.into(),
        }
    }

    fn refused(&self, message: impl Into<String>) -> Vec<Reason> {
        vec![self.reason(Weight::Incompatible, message)]
    }

    fn unknown(&self, message: impl Into<String>) -> Vec<Reason> {
        vec![self.reason(Weight::Unknown, message)]
    }
}

struct Comparison {
    reader: Draft,
    writer: Draft,
    steps: usize,
}

impl Comparison {
    /// Why the reader may refuse what the writer writes at a place.
    fn within(&mut self, reader: &Value, writer: &Writer<'_>, place: &Place) -> Vec<Reason> {
        if let Some(reasons) = self.is_over(place) {
            return reasons;
        }
        if *reader == Value::Bool(true) || writer.writes_nothing() {
            return Vec::new();
        }
        // One of the schemas that hold is the reader's own.
        if self.is_same(writer, |node| node == reader) {
            return Vec::new();
        }
        // Without looking at the alternatives first: they only narrow what is written.
        let Some((without, alternatives)) = writer.split() else {
            return self.whole(reader, writer, place);
        };
        if self.within(reader, &without, place).is_empty() {
            return Vec::new();
        }
        let mut reasons = Vec::new();
        for alternative in alternatives {
            let narrowed = without.and(alternative);
            reasons.extend(self.within(reader, &narrowed, place));
            // Further ones show nothing new.
            let is_against = |reason: &&Reason| reason.weight == Weight::Incompatible;
            if reasons.iter().filter(is_against).count() > REASONS_MAX {
                break;
            }
        }
        reasons
    }

    /// The same for a writer without alternatives.
    fn whole(&mut self, reader: &Value, writer: &Writer<'_>, place: &Place) -> Vec<Reason> {
        if let Some(values) = writer.values() {
            return self.values(reader, writer, &values, place);
        }
        let mut reasons = Vec::new();
        for kind in writer.kinds() {
            reasons.extend(match kind {
                Kind::Null => self.values(reader, writer, &[json!(null)], place),
                Kind::Boolean => self.values(reader, writer, &[json!(false), json!(true)], place),
                kind => self.keywords(reader, writer, kind, place),
            });
        }
        reasons
    }

    /// Why the reader refuses one of these values, if it fits the writer.
    fn values(
        &mut self,
        reader: &Value,
        writer: &Writer<'_>,
        values: &[Value],
        place: &Place,
    ) -> Vec<Reason> {
        let Ok(reads) = validator_of(self.reader, reader) else {
            return place.refused("this part of the schema cannot be looked at alone");
        };
        self.steps += COMPILED_STEPS;
        let written = self.written(writer, values);
        let refused = written.into_iter().filter_map(|value| {
            let error = reads.validate(value).err()?;
            let place = Place {
                pointer: format!("{}{}", place.pointer, error.instance_path()),
                keyword: format!("{}{}", place.keyword, error.schema_path()),
            };
            let message = format!(
                "{} is refused: {}",
                shown(value),
                clipped(&error.to_string())
            );
            Some(place.reason(Weight::Incompatible, message))
        });
        refused.collect()
    }

    /// Those of some values that fit all of the writer's schemas, as far as can be seen.
    fn written<'b>(&mut self, writer: &Writer<'_>, values: &'b [Value]) -> Vec<&'b Value> {
        self.steps += COMPILED_STEPS * writer.nodes().count();
        let schemas = writer.nodes().map(|node| validator_of(self.writer, node));
        let schemas: Vec<_> = schemas.filter_map(Result::ok).collect();
        let fits = |value: &&Value| schemas.iter().all(|schema| schema.is_valid(value));
        values.iter().filter(fits).collect()
    }

    /// Whether nothing fits both the writer and another schema of the reader, as far as can be seen.
    fn is_disjoint(&mut self, reader: &Value, writer: &Writer<'_>) -> bool {
        self.steps += 1;
        if writer.writes_nothing() {
            return true;
        }
        if self.steps > STEPS_MAX {
            return false;
        }
        if let Some(values) = writer.values() {
            let Ok(reads) = validator_of(self.reader, reader) else {
                return false;
            };
            self.steps += COMPILED_STEPS;
            let written = self.written(writer, &values);
            return !written.into_iter().any(|value| reads.is_valid(value));
        }
        let kinds: Vec<Kind> = writer.kinds().collect();
        kinds
            .into_iter()
            .all(|kind| self.is_disjoint_in(reader, writer, kind))
    }

    fn is_disjoint_in(&mut self, reader: &Value, writer: &Writer<'_>, kind: Kind) -> bool {
        let reader = match reader {
            Value::Bool(accepts) => return !accepts,
            Value::Object(reader) => reader,
            _ => return false,
        };
        if reader.get("type").is_some_and(|wanted| !kind.is_in(wanted)) {
            return true;
        }
        let constants = reader.get("const").map(std::slice::from_ref);
        let listed = reader.get("enum").and_then(Value::as_array);
        let listed = constants.or(listed.map(Vec::as_slice));
        if listed.is_some_and(|values| self.written(writer, values).is_empty()) {
            return true;
        }
        let all = reader.get("allOf").and_then(Value::as_array);
        let all = all.into_iter().flatten().chain(reader.get("$ref"));
        for part in all {
            if self.is_disjoint_in(part, writer, kind) {
                return true;
            }
        }
        for keyword in ["anyOf", "oneOf"] {
            let alternatives = reader.get(keyword).and_then(Value::as_array);
            if let Some(alternatives) = alternatives
                && alternatives
                    .iter()
                    .all(|part| self.is_disjoint_in(part, writer, kind))
            {
                return true;
            }
        }
        kind == Kind::Object && self.has_disjoint_member(reader, writer)
    }

    /// Whether a keyword holds in one of the writer's schemas as well. Its meaning must not depend
    /// on others next to it.
    fn is_same(&self, writer: &Writer<'_>, holds: impl Fn(&Value) -> bool) -> bool {
        // A keyword may mean something else in another draft.
        self.reader == self.writer && writer.nodes().any(holds)
    }

    /// A reason if the comparison has taken too many steps.
    fn is_over(&mut self, place: &Place) -> Option<Vec<Reason>> {
        self.steps += 1;
        (self.steps > STEPS_MAX)
            .then(|| place.refused("the schemas have too many alternatives to compare them"))
    }
}

/// A value in a message.
fn shown(value: &Value) -> String {
    clip(&value.to_string(), 60)
}

/// What the validator says in a message: it repeats the value.
fn clipped(error: &str) -> String {
    clip(error, 200)
}

fn clip(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max).chain(['…']).collect()
}

#[cfg(test)]
mod tests;
