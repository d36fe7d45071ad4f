//! What a writer may write: everything that fits all of some schemas.

use serde_json::{Map, Value};

use super::kinds::Kind;

/// A writer at one place of the data.
#[derive(Clone, Debug, Default)]
pub(super) struct Writer<'a> {
    /// All of them hold. Objects, or `false`.
    nodes: Vec<&'a Value>,
    /// Of each of these lists, one holds. The nodes that have them are among `nodes`.
    choices: Vec<&'a [Value]>,
}

impl<'a> Writer<'a> {
    /// A writer with one schema.
    pub(super) fn of(schema: &'a Value) -> Self {
        Self::default().and(schema)
    }

    /// The same, with one more schema that holds.
    pub(super) fn and(&self, schema: &'a Value) -> Self {
        let mut narrowed = self.clone();
        narrowed.add(schema);
        narrowed
    }

    pub(super) fn add(&mut self, schema: &'a Value) {
        match schema {
            Value::Bool(true) => return,
            Value::Object(node) if node.is_empty() => return,
            _ => self.nodes.push(schema),
        }
        let list = |keyword: &str| schema.get(keyword).and_then(Value::as_array);
        let all = list("allOf").into_iter().flatten();
        all.chain(schema.get("$ref"))
            .for_each(|part| self.add(part));
        self.choices.extend(
            [list("anyOf"), list("oneOf")]
                .into_iter()
                .flatten()
                .map(Vec::as_slice),
        );
    }

    /// The schemas that hold.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &'a Value> + '_ {
        self.nodes.iter().copied()
    }

    /// The values of a keyword in all schemas that hold.
    pub(super) fn all<'b>(&'b self, keyword: &'b str) -> impl Iterator<Item = &'a Value> + 'b {
        self.nodes().filter_map(move |node| node.get(keyword))
    }

    /// The members of a keyword that is an object, in all schemas that hold.
    pub(super) fn members<'b>(
        &'b self,
        keyword: &'b str,
    ) -> impl Iterator<Item = &'a Map<String, Value>> + 'b {
        self.all(keyword).filter_map(Value::as_object)
    }

    /// Whether nothing fits, as far as can be seen at once.
    pub(super) fn writes_nothing(&self) -> bool {
        self.nodes.iter().any(|node| **node == Value::Bool(false))
    }

    /// The writer without one of its choices, and the alternatives of that one.
    pub(super) fn split(&self) -> Option<(Self, &'a [Value])> {
        let mut without = self.clone();
        let alternatives = without.choices.pop()?;
        Some((without, alternatives))
    }

    /// All values that may be written, and perhaps some more; none if there is no list of them.
    pub(super) fn values(&self) -> Option<Vec<Value>> {
        let constant = self.all("const").next().map(|value| vec![value.clone()]);
        let listed = || self.all("enum").find_map(Value::as_array).cloned();
        constant.or_else(listed)
    }

    /// The types of what may be written.
    pub(super) fn kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        let fits = |kind: &Kind| self.all("type").all(|wanted| kind.is_in(wanted));
        Kind::ALL.into_iter().filter(fits)
    }
}
