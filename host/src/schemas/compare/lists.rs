//! The keywords about lists.

use serde_json::{Map, Value};

use super::keyword::{at_least, at_most};
use super::writer::Writer;
use super::{Comparison, Place, Reason, numbers};

/// The schemas of the first items, and of all further ones with the keyword that has it.
fn items(node: &Value) -> (&[Value], Option<(&'static str, &Value)>) {
    let rest = |keyword: &'static str| node.get(keyword).map(|rest| (keyword, rest));
    match node.get("items") {
        // Drafts before 2020-12.
        Some(Value::Array(first)) => (first, rest("additionalItems")),
        _ => {
            let first = node.get("prefixItems").and_then(Value::as_array);
            (first.map_or(&[], Vec::as_slice), rest("items"))
        }
    }
}

/// The keyword that has the schemas of the first items.
fn first_keyword(node: &Map<String, Value>) -> &'static str {
    match node.get("items") {
        Some(Value::Array(_)) => "items",
        _ => "prefixItems",
    }
}

/// What a writer writes as an item; without an index, as one after all that have their own schema.
fn item<'a>(writer: &Writer<'a>, index: Option<usize>) -> Writer<'a> {
    let mut written = Writer::default();
    for node in writer.nodes() {
        let (first, rest) = items(node);
        let own = index.and_then(|index| first.get(index));
        if let Some(schema) = own.or(rest.map(|(_, rest)| rest)) {
            written.add(schema);
        }
    }
    written
}

impl Comparison {
    pub(super) fn list(
        &mut self,
        (node, keyword, value): (&Map<String, Value>, &str, &Value),
        writer: &Writer<'_>,
        place: &Place,
    ) -> Vec<Reason> {
        let at = place.keyword(keyword);
        match keyword {
            "minItems" => at_least(writer, keyword, value, &at),
            "maxItems" => at_most(writer, keyword, value, &at),
            "uniqueItems" => {
                let is_short = numbers::most(writer, "maxItems").is_some_and(|most| most <= 1);
                let is_unique = writer.all(keyword).any(|own| *own == Value::Bool(true));
                if *value != Value::Bool(true) || is_short || is_unique {
                    return Vec::new();
                }
                at.refused("it may have the same item twice")
            }
            "prefixItems" | "items" | "additionalItems" => {
                // Once, at the first of the keywords that are there.
                let keywords = ["additionalItems", "items", "prefixItems"];
                let first = keywords.into_iter().find(|name| node.contains_key(*name));
                if first == Some(keyword) {
                    self.items(node, writer, place)
                } else {
                    Vec::new()
                }
            }
            "contains" => {
                let keywords = ["contains", "minContains", "maxContains"];
                let is_same = self.is_same(writer, |own| {
                    keywords.iter().all(|name| own.get(name) == node.get(*name))
                });
                if is_same {
                    return Vec::new();
                }
                at.unknown("`contains` is not understood")
            }
            "unevaluatedItems" if *value != Value::Bool(true) => {
                at.unknown("`unevaluatedItems` is not understood")
            }
            _ => Vec::new(),
        }
    }

    fn items(
        &mut self,
        node: &Map<String, Value>,
        writer: &Writer<'_>,
        place: &Place,
    ) -> Vec<Reason> {
        let whole = Value::Object(node.clone());
        let (first, rest) = items(&whole);
        let most = numbers::most(writer, "maxItems");
        let may_have = |index: usize| most.is_none_or(|most| (index as u64) < most);
        let mut reasons = Vec::new();
        for (index, schema) in first
            .iter()
            .enumerate()
            .filter(|(index, _)| may_have(*index))
        {
            let keyword = format!("{}/{index}", first_keyword(node));
            let inside = place.inside(&index.to_string(), &keyword);
            reasons.extend(self.within(schema, &item(writer, Some(index)), &inside));
        }
        let Some((keyword, schema)) = rest else {
            return reasons;
        };
        // Those for which the writer has schemas of their own, and then all others.
        let named = writer.nodes().map(|node| items(node).0.len()).max();
        let named = named.unwrap_or(0).max(first.len());
        for index in (first.len()..named).filter(|index| may_have(*index)) {
            let inside = place.inside(&index.to_string(), keyword);
            reasons.extend(self.within(schema, &item(writer, Some(index)), &inside));
        }
        if may_have(named) {
            let inside = place.inside("*", keyword);
            reasons.extend(self.within(schema, &item(writer, None), &inside));
        }
        reasons
    }
}
