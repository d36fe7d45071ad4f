//! What keywords say of a value that has to fit several schemas at once.

use serde_json::{Map, Value};

use super::shape::{Sign, Type};

/// A schema object at a place.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    /// The place, as a JSON pointer.
    pub at: String,
    pub keywords: &'a Map<String, Value>,
    /// Whether its `oneOf` and `anyOf` are looked at elsewhere.
    pub is_alternative_known: bool,
}

/// Keywords that say nothing of values: a schema with no others is only a note.
const NOTES: &[&str] = &[
    "$comment",
    "$defs",
    "$id",
    "$ref",
    "$schema",
    "allOf",
    "default",
    "definitions",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];

/// Keywords about the values of one kind, by which the kind is known if `type` is missing.
const OF_KINDS: &[(&str, Kinds)] = &[
    ("additionalProperties", Kinds::OBJECT),
    ("dependentRequired", Kinds::OBJECT),
    ("maxProperties", Kinds::OBJECT),
    ("minProperties", Kinds::OBJECT),
    ("patternProperties", Kinds::OBJECT),
    ("properties", Kinds::OBJECT),
    ("propertyNames", Kinds::OBJECT),
    ("required", Kinds::OBJECT),
    ("unevaluatedProperties", Kinds::OBJECT),
    ("contains", Kinds::LIST),
    ("items", Kinds::LIST),
    ("maxItems", Kinds::LIST),
    ("minItems", Kinds::LIST),
    ("prefixItems", Kinds::LIST),
    ("unevaluatedItems", Kinds::LIST),
    ("uniqueItems", Kinds::LIST),
    ("format", Kinds::TEXT),
    ("maxLength", Kinds::TEXT),
    ("minLength", Kinds::TEXT),
    ("pattern", Kinds::TEXT),
    ("exclusiveMaximum", Kinds::NUMBERS),
    ("exclusiveMinimum", Kinds::NUMBERS),
    ("maximum", Kinds::NUMBERS),
    ("minimum", Kinds::NUMBERS),
    ("multipleOf", Kinds::NUMBERS),
];

/// A set of kinds of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kinds(u8);

impl Kinds {
    pub(super) const NONE: Self = Self(0);
    pub(super) const NULL: Self = Self(1);
    pub(super) const BOOL: Self = Self(2);
    pub(super) const INTEGER: Self = Self(4);
    /// Numbers with a fraction.
    const FRACTION: Self = Self(8);
    pub(super) const NUMBERS: Self = Self(4 | 8);
    pub(super) const TEXT: Self = Self(16);
    pub(super) const LIST: Self = Self(32);
    pub(super) const OBJECT: Self = Self(64);
    pub(super) const ALL: Self = Self(127);

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn of_name(name: &str) -> Self {
        match name {
            "null" => Self::NULL,
            "boolean" => Self::BOOL,
            "integer" => Self::INTEGER,
            "number" => Self::NUMBERS,
            "string" => Self::TEXT,
            "array" => Self::LIST,
            "object" => Self::OBJECT,
            _ => Self::NONE,
        }
    }

    pub(super) fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOL,
            Value::Number(number) if number.is_f64() => Self::FRACTION,
            Value::Number(_) => Self::INTEGER,
            Value::String(_) => Self::TEXT,
            Value::Array(_) => Self::LIST,
            Value::Object(_) => Self::OBJECT,
        }
    }

    fn of_type(wanted: &Value) -> Self {
        match wanted {
            Value::String(name) => Self::of_name(name),
            Value::Array(names) => names
                .iter()
                .filter_map(Value::as_str)
                .map(Self::of_name)
                .fold(Self::NONE, Self::or),
            _ => Self::ALL,
        }
    }

    /// The kinds, for people.
    pub(super) fn shown(self) -> String {
        let names = [
            (Self::BOOL, "a boolean"),
            (Self::NUMBERS, "a number"),
            (Self::TEXT, "a string"),
            (Self::LIST, "an array"),
            (Self::OBJECT, "an object"),
        ];
        let names = names
            .iter()
            .filter(|(kind, _)| self.and(*kind) != Self::NONE);
        let names: Vec<&str> = names.map(|(_, name)| *name).collect();
        names.join(" or ")
    }
}

impl Node<'_> {
    pub(super) fn get(&self, keyword: &str) -> Option<&Value> {
        self.keywords.get(keyword)
    }

    /// Whether it says something of values.
    pub(super) fn asserts(&self) -> bool {
        let is_note = |keyword: &str| {
            let is_known = self.is_alternative_known && ["oneOf", "anyOf"].contains(&keyword);
            is_known || NOTES.contains(&keyword)
        };
        self.keywords.keys().any(|keyword| !is_note(keyword))
    }
}

/// The kinds of values that fit all of some schemas: as `type` says, otherwise as the other keywords
/// mean.
pub(super) fn kinds(nodes: &[Node<'_>]) -> Kinds {
    let types = nodes.iter().filter_map(|node| node.get("type"));
    let declared = types.map(Kinds::of_type).fold(Kinds::ALL, Kinds::and);
    if nodes.iter().any(|node| node.get("type").is_some()) {
        return declared;
    }
    let meant = nodes.iter().flat_map(|node| {
        let known = OF_KINDS.iter();
        known.filter(|(keyword, _)| node.get(keyword).is_some())
    });
    let meant = meant.map(|(_, kind)| *kind).fold(Kinds::NONE, Kinds::or);
    if meant == Kinds::NONE {
        Kinds::ALL
    } else {
        meant
    }
}

/// The values that `const` and `enum` leave, if there is one of them.
pub(super) fn values<'a>(nodes: &[Node<'a>]) -> Option<Vec<&'a Value>> {
    let lists = nodes.iter().flat_map(|node| {
        let keywords = node.keywords;
        let constant = keywords.get("const").map(std::slice::from_ref);
        let listed = keywords.get("enum").and_then(Value::as_array);
        [constant, listed.map(Vec::as_slice)].into_iter().flatten()
    });
    let lists: Vec<&'a [Value]> = lists.collect();
    let (first, others) = lists.split_first()?;
    let types = nodes.iter().filter_map(|node| node.get("type"));
    let types = types.map(Kinds::of_type).fold(Kinds::ALL, Kinds::and);
    let mut left: Vec<&'a Value> = Vec::new();
    for value in *first {
        let fits = types.and(Kinds::of_value(value)) != Kinds::NONE
            && others.iter().all(|list| list.contains(value));
        if fits {
            left.push(value);
        }
    }
    Some(left)
}

/// The type of integers within the limits of some schemas; none if they need more than 64 bits.
pub(super) fn integer(nodes: &[Node<'_>]) -> Option<Type> {
    let of = |keyword: &str| {
        let limits = nodes.iter().filter_map(|node| node.get(keyword));
        limits.collect::<Vec<_>>()
    };
    let is_at_least = |limit: &Value, least: f64| limit.as_f64().is_some_and(|n| n >= least);
    let is_above = |limit: &Value, most: u64| match limit.as_u64() {
        Some(limit) => limit > most,
        None => limit.as_f64().is_some_and(|n| n > most as f64),
    };
    // An integer above -1 is not negative.
    let is_unsigned = of("minimum")
        .iter()
        .any(|limit| limit.as_f64().is_some_and(|n| n > -1.0))
        || of("exclusiveMinimum")
            .iter()
            .any(|limit| is_at_least(limit, -1.0));
    let (sign, most) = if is_unsigned {
        (Sign::Unsigned, u64::MAX)
    } else {
        (Sign::Signed, i64::MAX as u64)
    };
    let upper = [of("maximum"), of("exclusiveMaximum")].concat();
    let lower = [of("minimum"), of("exclusiveMinimum")].concat();
    let is_too_large = !upper.is_empty() && upper.iter().all(|limit| is_above(limit, most));
    let is_too_small = !lower.is_empty()
        && !lower
            .iter()
            .any(|limit| is_at_least(limit, i64::MIN as f64));
    (!is_too_large && !is_too_small).then_some(Type::Integer(sign))
}

/// The type of some integers; none if they need more than 64 bits.
pub(super) fn integer_of(values: &[&Value]) -> Option<Type> {
    if values.iter().all(|value| value.is_u64()) {
        return Some(Type::Integer(Sign::Unsigned));
    }
    let all = values.iter().all(|value| value.is_i64());
    all.then_some(Type::Integer(Sign::Signed))
}

/// What a schema says of itself: its title and its description.
pub(super) fn docs(keywords: &Map<String, Value>) -> Vec<String> {
    let texts = ["title", "description"].iter();
    let texts = texts.filter_map(|name| keywords.get(*name)?.as_str());
    let mut docs: Vec<String> = Vec::new();
    for text in texts {
        // Paragraphs are apart by empty lines.
        let paragraphs = text.split("\n\n").map(str::trim);
        for paragraph in paragraphs.filter(|paragraph| !paragraph.is_empty()) {
            if !docs.iter().any(|known| known == paragraph) {
                docs.push(paragraph.to_owned());
            }
        }
    }
    docs
}
