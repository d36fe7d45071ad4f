//! Objects with members, and lists with items.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Error;
use super::facts::{self, Node};
use super::read::{Reader, members_of};
use super::shape::{Field, Presence, Shape, Sign, Type};

/// Most items of a tuple: Rust prints and compares no longer ones.
const TUPLE_ITEMS_MAX: usize = 12;

impl<'a> Reader<'a, '_> {
    /// An object: a record if its members are known, otherwise a map.
    pub(super) fn object(
        &mut self,
        nodes: &[Node<'a>],
        (name, root): (&str, Option<usize>),
    ) -> Result<Type, Error> {
        let known = members(nodes);
        if known.is_empty() {
            let others = self.others(nodes);
            let value = match &others[..] {
                [] => Type::Json,
                others => self.read(others, &self.inner_name(name, "value"))?,
            };
            return Ok(Type::Map(Box::new(value)));
        }
        if let [(at, _), ..] = &self.others(nodes)[..] {
            let reason = "members with a schema of their own next to others with any name; put \
                          these into an object of their own";
            return Ok(self.cannot(&at.clone(), reason));
        }
        let fields = self.fields(nodes, name, None)?;
        Ok(self.declare(Shape::Record(fields), nodes, (name, root)))
    }

    /// The members of a record, but for one: first those that must be there, so that every language
    /// keeps the same order.
    pub(super) fn fields(
        &mut self,
        nodes: &[Node<'a>],
        name: &str,
        except: Option<&str>,
    ) -> Result<Vec<Field>, Error> {
        let required = required(nodes);
        let (mut fields, mut optional) = (Vec::new(), Vec::new());
        for (member, schemas) in members(nodes) {
            let is_required = required.contains(member);
            let is_forbidden = schemas
                .iter()
                .any(|(_, value)| **value == Value::Bool(false));
            if (is_forbidden && !is_required) || except == Some(member) {
                continue;
            }
            let kind = match &schemas[..] {
                [] => Type::Json,
                schemas => self.read(schemas, &self.inner_name(name, member))?,
            };
            let own = schemas.iter().filter_map(|(_, value)| value.as_object());
            let mut docs = own.map(facts::docs).find(|docs| !docs.is_empty());
            let presence = if is_required {
                Presence::Required
            } else {
                let stated = self.default(&schemas);
                self.presence(&kind, stated, docs.get_or_insert_default())
            };
            let field = Field {
                name: member.to_owned(),
                kind,
                presence,
                docs: docs.unwrap_or_default(),
            };
            if is_required {
                fields.push(field);
            } else {
                optional.push(field);
            }
        }
        fields.extend(optional);
        Ok(fields)
    }

    /// The default of a member, as its own schema says.
    fn default(&self, schemas: &[(String, &'a Value)]) -> Option<&'a Value> {
        let mut stated = schemas.iter().filter_map(|(_, value)| value.get("default"));
        stated.find(|value| !value.is_null())
    }

    /// What a member is that is left out. A default that is no plain value is only a note.
    fn presence(&self, kind: &Type, stated: Option<&Value>, docs: &mut Vec<String>) -> Presence {
        let Some(stated) = stated else {
            return Presence::Optional;
        };
        let fits = match kind {
            Type::Bool => stated.is_boolean(),
            Type::Integer(Sign::Unsigned) => stated.is_u64(),
            Type::Integer(Sign::Signed) => stated.is_i64(),
            Type::Number => stated.is_number(),
            Type::Text => stated.is_string(),
            Type::Named(made) => match &self.document.declarations[*made].shape {
                Shape::Choice(all) => all.iter().any(|named| *stated == *named.text),
                _ => false,
            },
            _ => false,
        };
        if fits {
            return Presence::Default(stated.clone());
        }
        docs.push(format!("If it is left out, it means {stated}."));
        Presence::Optional
    }

    /// The schemas of members that have no name in the schema.
    fn others(&self, nodes: &[Node<'a>]) -> Vec<(String, &'a Value)> {
        let mut others = Vec::new();
        for node in nodes {
            // A schema that accepts anything, or nothing, says nothing of them.
            let says = |value: &Value| value.as_object().is_some_and(|schema| !schema.is_empty());
            let further = node.keywords.get("additionalProperties");
            if let Some(value) = further.filter(|value| says(value)) {
                others.push((format!("{}/additionalProperties", node.at), value));
            }
            let patterns = members_of(node, "patternProperties").map(|(_, schema)| schema);
            others.extend(patterns.filter(|(_, value)| says(value)));
        }
        others
    }

    /// A list, or a tuple if each item has a schema of its own.
    pub(super) fn list(&mut self, nodes: &[Node<'a>], name: &str) -> Result<Type, Error> {
        let prefixes: Vec<_> = nodes.iter().filter_map(|node| self.prefix(node)).collect();
        if let [prefix, others @ ..] = &prefixes[..] {
            return match others {
                [] => self.tuple(prefix, nodes, name),
                _ => Ok(self.cannot(&prefix.at, "its items have two lists of schemas")),
            };
        }
        let all = nodes.iter().filter_map(|node| {
            let items = node.keywords.get("items")?;
            Some((format!("{}/items", node.at), items))
        });
        let all: Vec<_> = all.collect();
        let item = match &all[..] {
            [] => Type::Json,
            all => self.read(all, &self.inner_name(name, "item"))?,
        };
        Ok(Type::List(Box::new(item)))
    }

    fn prefix(&self, node: &Node<'a>) -> Option<Prefix<'a>> {
        let (keyword, rest) = if self.has_prefix_items {
            ("prefixItems", "items")
        } else {
            ("items", "additionalItems")
        };
        Some(Prefix {
            at: format!("{}/{keyword}", node.at),
            items: node.keywords.get(keyword)?.as_array()?,
            is_closed: node.keywords.get(rest) == Some(&Value::Bool(false)),
        })
    }

    fn tuple(
        &mut self,
        prefix: &Prefix<'a>,
        nodes: &[Node<'a>],
        name: &str,
    ) -> Result<Type, Error> {
        let length = prefix.items.len();
        let limits = |keyword: &str| -> Vec<u64> {
            let limits = nodes.iter().filter_map(|node| node.get(keyword));
            limits.filter_map(Value::as_u64).collect()
        };
        let has_all = limits("minItems")
            .iter()
            .any(|least| *least >= length as u64);
        let has_no_more =
            prefix.is_closed || limits("maxItems").iter().any(|most| *most <= length as u64);
        if !has_all || !has_no_more {
            let reason = format!(
                "a list whose items differ needs a fixed length: `minItems` {length}, and no \
                 further items"
            );
            return Ok(self.cannot(&prefix.at, &reason));
        }
        if length > TUPLE_ITEMS_MAX {
            let reason = format!("it has {length} items that differ, at most 12 have a type");
            return Ok(self.cannot(&prefix.at, &reason));
        }
        let mut items = Vec::new();
        for (place, item) in prefix.items.iter().enumerate() {
            let name = self.inner_name(name, &format!("item {}", place + 1));
            items.push(self.read(&[(format!("{}/{place}", prefix.at), item)], &name)?);
        }
        Ok(Type::Tuple(items))
    }
}

/// A list of schemas, one for each item.
struct Prefix<'a> {
    at: String,
    items: &'a Vec<Value>,
    /// Whether there may be no further items.
    is_closed: bool,
}

/// Members that must be there.
pub(super) fn required<'a>(nodes: &[Node<'a>]) -> BTreeSet<&'a str> {
    let lists = nodes
        .iter()
        .filter_map(|node| node.keywords.get("required"));
    let lists = lists.filter_map(Value::as_array).flatten();
    lists.filter_map(Value::as_str).collect()
}

/// The members with a name, and all schemas of each.
pub(super) fn members<'a>(nodes: &[Node<'a>]) -> BTreeMap<&'a str, Vec<(String, &'a Value)>> {
    let mut members: BTreeMap<&'a str, Vec<(String, &'a Value)>> = BTreeMap::new();
    for node in nodes {
        for (name, schema) in members_of(node, "properties") {
            members.entry(name).or_default().push(schema);
        }
    }
    for name in required(nodes) {
        members.entry(name).or_default();
    }
    members
}
