//! The keywords about objects.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::keyword::at_most;
use super::writer::Writer;
use super::{Comparison, Place, Reason, numbers};

/// The names for which a writer has schemas.
fn named<'a>(writer: &Writer<'a>) -> BTreeSet<&'a str> {
    let all = writer.members("properties").flat_map(Map::keys);
    all.map(String::as_str).collect()
}

/// The names of members that a writer always writes.
fn required<'a>(writer: &Writer<'a>) -> BTreeSet<&'a str> {
    let all = writer.all("required").filter_map(Value::as_array).flatten();
    all.filter_map(Value::as_str).collect()
}

impl Comparison {
    /// What a writer writes as a member; without a name, as one for whose name it has no schema.
    fn member<'a>(&self, writer: &Writer<'a>, name: Option<&str>) -> Writer<'a> {
        let mut written = Writer::default();
        for node in writer.nodes() {
            let properties = node.get("properties");
            let own = name.and_then(|name| properties?.get(name));
            if let Some(schema) = own {
                written.add(schema);
            } else if node.get("patternProperties").is_none()
                && let Some(schema) = node.get("additionalProperties")
            {
                // With patterns it holds for some names only, so nothing is known.
                written.add(schema);
            }
        }
        written
    }

    /// Whether the writer writes only members that it names.
    fn is_closed(&self, writer: &Writer<'_>) -> bool {
        self.member(writer, None).writes_nothing()
    }

    pub(super) fn object(
        &mut self,
        (node, keyword, value): (&Map<String, Value>, &str, &Value),
        writer: &Writer<'_>,
        place: &Place,
    ) -> Vec<Reason> {
        let at = place.keyword(keyword);
        match keyword {
            "required" => {
                let written = required(writer);
                let names = value.as_array().into_iter().flatten();
                let names = names.filter_map(Value::as_str);
                let missing = names.filter(|name| !written.contains(name));
                let reasons = missing.flat_map(|name| {
                    let at = place.inside(name, keyword);
                    at.refused("it is required, and may be absent")
                });
                reasons.collect()
            }
            "minProperties" => {
                let own = numbers::least(writer, keyword).max(required(writer).len() as u64);
                if own >= numbers::count(value) {
                    return Vec::new();
                }
                at.refused(format!("it may have less than {value} members"))
            }
            "maxProperties" => {
                let count = named(writer).len() as u64;
                if self.is_closed(writer) && count <= numbers::count(value) {
                    return Vec::new();
                }
                at_most(writer, keyword, value, &at)
            }
            "properties" => self.properties(value, writer, place),
            "additionalProperties" => self.additional((node, value), writer, place),
            "propertyNames" => self.names(value, writer, &at),
            "dependentRequired" => self.dependent(value, writer, &at),
            "patternProperties" | "dependentSchemas" | "dependencies" => {
                self.other((keyword, value), writer, &at)
            }
            "unevaluatedProperties" if *value != Value::Bool(true) => {
                at.unknown("`unevaluatedProperties` is not understood")
            }
            _ => Vec::new(),
        }
    }

    fn properties(
        &mut self,
        properties: &Value,
        writer: &Writer<'_>,
        place: &Place,
    ) -> Vec<Reason> {
        let mut reasons = Vec::new();
        for (name, schema) in properties.as_object().into_iter().flatten() {
            let written = self.member(writer, Some(name));
            let keyword = format!("properties/{}", super::escaped(name));
            let inside = place.inside(name, &keyword);
            reasons.extend(self.within(schema, &written, &inside));
        }
        reasons
    }

    fn additional(
        &mut self,
        (node, schema): (&Map<String, Value>, &Value),
        writer: &Writer<'_>,
        place: &Place,
    ) -> Vec<Reason> {
        if *schema == Value::Bool(true) {
            return Vec::new();
        }
        let keyword = "additionalProperties";
        if node.contains_key("patternProperties") {
            let keywords = ["properties", "patternProperties", keyword];
            let is_same = self.is_same(writer, |own| {
                keywords.iter().all(|name| own.get(name) == node.get(*name))
            });
            if is_same {
                return Vec::new();
            }
            let at = place.keyword(keyword);
            return at
                .unknown("`additionalProperties` next to `patternProperties` is not understood");
        }
        let own = node.get("properties").and_then(Value::as_object);
        let is_own = |name: &str| own.is_some_and(|own| own.contains_key(name));
        let further = named(writer).into_iter().filter(|name| !is_own(name));
        let mut members: Vec<_> = further.map(Some).collect();
        members.push(None);
        let mut reasons = Vec::new();
        for name in members {
            let written = self.member(writer, name);
            let inside = place.inside(name.unwrap_or("*"), keyword);
            if *schema != Value::Bool(false) {
                reasons.extend(self.within(schema, &written, &inside));
            } else if !written.writes_nothing() {
                reasons.extend(inside.refused(match name {
                    Some(_) => "it is not accepted",
                    None => "there may be further members, which are not accepted",
                }));
            }
        }
        reasons
    }

    /// Names are texts, with schemas of their own.
    fn names(&mut self, schema: &Value, writer: &Writer<'_>, at: &Place) -> Vec<Reason> {
        if self.is_closed(writer) {
            let names: Vec<Value> = named(writer).into_iter().map(|name| json!(name)).collect();
            return self.values(schema, &Writer::default(), &names, at);
        }
        let text = json!({ "type": "string" });
        let mut names = Writer::of(&text);
        writer.all("propertyNames").for_each(|own| names.add(own));
        self.within(schema, &names, at)
    }

    fn dependent(&mut self, members: &Value, writer: &Writer<'_>, at: &Place) -> Vec<Reason> {
        let written = required(writer);
        let mut reasons = Vec::new();
        for (name, wanted) in members.as_object().into_iter().flatten() {
            let own = writer.members("dependentRequired");
            if own.into_iter().any(|own| own.get(name) == Some(wanted))
                || self.member(writer, Some(name)).writes_nothing()
            {
                continue;
            }
            let wanted = wanted.as_array().into_iter().flatten();
            for missing in wanted.filter_map(Value::as_str) {
                if !written.contains(missing) {
                    let at = at.inside(missing, &super::escaped(name));
                    reasons.extend(at.refused(format!(
                        "it is required if there is `{name}`, and may be absent then"
                    )));
                }
            }
        }
        reasons
    }

    /// Whether a member that must be there can't have a value that fits both.
    pub(super) fn has_disjoint_member(
        &mut self,
        reader: &Map<String, Value>,
        writer: &Writer<'_>,
    ) -> bool {
        let read = reader.get("required").and_then(Value::as_array);
        let read = read.into_iter().flatten().filter_map(Value::as_str);
        let names: BTreeSet<&str> = read.chain(required(writer)).collect();
        names.into_iter().any(|name| {
            let written = self.member(writer, Some(name));
            let schema = reader.get("properties").and_then(|all| all.get(name));
            let schema = schema.unwrap_or(&Value::Bool(true));
            self.is_disjoint(schema, &written)
        })
    }
}
