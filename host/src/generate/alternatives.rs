//! `oneOf` and `anyOf`: values that may be null, texts with notes, records that a member tells apart.

use serde_json::Value;

use super::Error;
use super::facts::{self, Kinds, Node};
use super::members::{members, required};
use super::read::Reader;
use super::shape::{Field, Named, Presence, Shape, Sign, Type, Variant};

/// An alternative, together with what holds for all of them.
type Case<'a> = Vec<Node<'a>>;

impl<'a> Reader<'a, '_> {
    /// What the alternatives of some nodes are; none if there are none.
    pub(super) fn alternatives(
        &mut self,
        nodes: &[Node<'a>],
        at: (&str, Option<usize>),
    ) -> Result<Option<Type>, Error> {
        let mut lists = nodes.iter().flat_map(|node| {
            let keywords = ["oneOf", "anyOf"].into_iter();
            let lists = keywords.filter_map(move |keyword| {
                let list = node.keywords.get(keyword)?.as_array()?;
                Some((format!("{}/{keyword}", node.at), list))
            });
            lists.filter(|(_, list)| !node.is_alternative_known && !list.iter().all(is_condition))
        });
        let Some((place, list)) = lists.next() else {
            return Ok(None);
        };
        if let Some((second, _)) = lists.next() {
            let reason = format!("there are other alternatives at {place}");
            return Ok(Some(self.cannot(&second, &reason)));
        }
        let base: Vec<Node<'a>> = nodes.iter().cloned().map(known).collect();
        let base_kinds = facts::kinds(&base);
        let (mut cases, mut is_nullable) = (Vec::new(), false);
        for (number, alternative) in list.iter().enumerate() {
            let all = [(format!("{place}/{number}"), alternative)];
            // One that nothing fits is none.
            if let Some(own) = self.flat(&all)? {
                if is_null(&own) {
                    is_nullable |= base_kinds.and(Kinds::NULL) != Kinds::NONE;
                } else {
                    cases.push(own);
                }
            }
        }
        let root = at.1.filter(|_| !is_nullable);
        let kind = self.of_cases(&base, &cases, &place, (at.0, root))?;
        Ok(Some(if is_nullable { kind.or_null() } else { kind }))
    }

    fn of_cases(
        &mut self,
        base: &[Node<'a>],
        cases: &[Case<'a>],
        place: &str,
        at: (&str, Option<usize>),
    ) -> Result<Type, Error> {
        let with_base = |case: &Case<'a>| [base, case].concat();
        if cases.is_empty() {
            return Ok(Type::Null);
        }
        if let [case] = cases {
            let all = with_base(case);
            return match at.1 {
                Some(_) => self.shape(&all, at.0, at.1),
                None => self.read_nodes(&all, at.0),
            };
        }
        if let Some(texts) = texts(cases) {
            return Ok(self.choice(texts, base, at));
        }
        let all: Vec<Case<'a>> = cases.iter().map(with_base).collect();
        let kinds: Vec<Kinds> = all.iter().map(|case| facts::kinds(case)).collect();
        if kinds.iter().all(|kinds| *kinds == Kinds::OBJECT) {
            if let Some(tag) = tag(&all) {
                return self.union(&tag, &all, base, at);
            }
            let reason = "its alternatives are objects, and no required member with a different \
                          `const` in each tells them apart";
            return Ok(self.cannot(place, reason));
        }
        let is_plain = |case: &Case<'a>| {
            let kinds = facts::kinds(case);
            let plain = Kinds::BOOL.or(Kinds::NUMBERS).or(Kinds::TEXT);
            kinds.without(plain) == Kinds::NONE && facts::values(case).is_none()
        };
        let nested = |case: &Case<'a>| case.iter().any(has_alternatives);
        if all.iter().all(is_plain) && !all.iter().any(nested) {
            let mut types = Vec::new();
            for case in &all {
                types.push(self.shape(case, at.0, None)?);
            }
            if let Some(common) = common(&types) {
                return Ok(common);
            }
        }
        let kinds = kinds.into_iter().fold(Kinds::NONE, Kinds::or);
        let reason = format!("it may be {}", kinds.shown());
        Ok(self.cannot(place, &reason))
    }

    fn union(
        &mut self,
        tag: &str,
        all: &[Case<'a>],
        base: &[Node<'a>],
        (name, root): (&str, Option<usize>),
    ) -> Result<Type, Error> {
        let mut variants = Vec::new();
        for case in all {
            let value = constant(case, tag).unwrap_or_default();
            let name = self.inner_name(name, value);
            let mut fields = self.fields(case, &name, Some(tag))?;
            let own = members(case).remove(tag).unwrap_or_default().into_iter();
            let mut own = own.filter_map(|(_, schema)| schema.as_object().map(facts::docs));
            let docs = own.find(|docs| !docs.is_empty());
            let first = Field {
                name: tag.to_owned(),
                kind: Type::Constant(value.to_owned()),
                presence: Presence::Required,
                docs: docs.unwrap_or_default(),
            };
            fields.insert(0, first);
            // The notes of the alternative, not those of all of them.
            let own: Vec<Node<'a>> = case[base.len()..].to_vec();
            if let Type::Named(record) = self.declare(Shape::Member(fields), &own, (&name, None)) {
                variants.push(Variant {
                    value: value.to_owned(),
                    record,
                });
            }
        }
        let shape = Shape::Union {
            tag: tag.to_owned(),
            variants,
        };
        Ok(self.declare(shape, base, (name, root)))
    }
}

/// The same node, whose alternatives are looked at.
fn known(node: Node<'_>) -> Node<'_> {
    Node {
        is_alternative_known: true,
        ..node
    }
}

fn has_alternatives(node: &Node<'_>) -> bool {
    let has = |keyword| node.keywords.contains_key(keyword);
    !node.is_alternative_known && (has("oneOf") || has("anyOf"))
}

/// Whether an alternative only says which members must be there, and so does not change a type.
fn is_condition(alternative: &Value) -> bool {
    let notes = ["required", "title", "description", "not", "minProperties"];
    alternative.as_object().is_some_and(|keywords| {
        let mut names = keywords.keys();
        keywords.contains_key("required") && names.all(|name| notes.contains(&name.as_str()))
    })
}

fn is_null(nodes: &[Node<'_>]) -> bool {
    match facts::values(nodes) {
        Some(values) => !values.is_empty() && values.iter().all(|value| value.is_null()),
        None => facts::kinds(nodes) == Kinds::NULL,
    }
}

/// The texts of all cases, if each case is nothing but constant texts.
fn texts(cases: &[Case<'_>]) -> Option<Vec<Named>> {
    let mut all = Vec::new();
    for case in cases {
        let values = facts::values(case)?;
        let mut notes = case.iter().map(|node| facts::docs(node.keywords));
        let docs = notes.find(|docs| !docs.is_empty());
        for value in &values {
            all.push(Named {
                text: value.as_str()?.to_owned(),
                docs: docs
                    .clone()
                    .filter(|_| values.len() == 1)
                    .unwrap_or_default(),
            });
        }
    }
    Some(all)
}

/// The name of a required member whose constant is different in each case.
fn tag(cases: &[Case<'_>]) -> Option<String> {
    // A case of several cases is none of them.
    if cases.iter().flatten().any(has_alternatives) {
        return None;
    }
    let (first, _) = cases.split_first()?;
    let mut names = required(first).into_iter();
    let found = names.find(|name| {
        let constants = cases.iter().map(|case| {
            let is_required = required(case).contains(name);
            constant(case, name).filter(|_| is_required)
        });
        let Some(constants) = constants.collect::<Option<Vec<&str>>>() else {
            return false;
        };
        let mut different = std::collections::HashSet::new();
        constants.iter().all(|text| different.insert(*text))
    });
    found.map(str::to_owned)
}

/// The only text that a member may be.
fn constant<'a>(case: &[Node<'a>], member: &str) -> Option<&'a str> {
    let schemas = case.iter().filter_map(|node| {
        let schema = node.keywords.get("properties")?.get(member)?.as_object()?;
        Some(Node {
            at: String::new(),
            keywords: schema,
            is_alternative_known: false,
        })
    });
    let schemas: Vec<Node<'a>> = schemas.collect();
    match &facts::values(&schemas)?[..] {
        [value] => value.as_str(),
        _ => None,
    }
}

/// The type that accepts the values of all of some plain types.
fn common(types: &[Type]) -> Option<Type> {
    let (first, others) = types.split_first()?;
    if others.iter().all(|kind| kind == first) {
        return Some(first.clone());
    }
    let all = |is: fn(&Type) -> bool| types.iter().all(is);
    if all(|kind| matches!(kind, Type::Integer(_))) {
        return Some(Type::Integer(Sign::Signed));
    }
    if all(|kind| matches!(kind, Type::Integer(_) | Type::Number)) {
        return Some(Type::Number);
    }
    if all(|kind| matches!(kind, Type::Text | Type::Date | Type::Time)) {
        return Some(Type::Text);
    }
    None
}
