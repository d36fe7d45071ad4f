//! Makes the form of `shape.rs` of schemas.
//!
//! A value may have to fit several schemas at once: one and what it refers to, all of `allOf`. The
//! reader flattens these into a list of nodes, and asks the whole list what the value is.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::facts::{self, Kinds, Node};
use super::names::upper_camel;
use super::shape::{Declaration, Document, Named, Shape, Type};
use super::{Error, Formats, Place};
use crate::schemas::{Direction, EventSchema, Schema, escaped};

/// Most nodes of one schema, counted at each place that they apply to.
const NODES_MAX: usize = 50_000;

/// Reads all schemas.
pub(super) fn document(schemas: &[EventSchema], formats: Formats) -> Result<Document, Error> {
    let mut events: Vec<EventSchema> = schemas.to_vec();
    // The order of files and sections does not matter.
    events.sort_by(|one, other| key(one).cmp(&key(other)));
    let mut document = Document::default();
    let mut roots = Vec::new();
    // Events have their names before anything inside of them.
    for schema in &events {
        let same = |(other, _): &&(&EventSchema, usize)| {
            (&other.event, other.version) == (&schema.event, schema.version)
        };
        let known = roots.iter().find(same);
        let root = match known {
            Some((other, root)) if other.schema == schema.schema => *root,
            // Another schema has the name already.
            Some(_) => declare_root(&mut document, schema, "Published"),
            None => declare_root(&mut document, schema, ""),
        };
        roots.push((schema, root));
    }
    for (schema, root) in roots {
        if !document.order.contains(&root) {
            let sound = Schema::check(&schema.schema);
            let sound = sound.map_err(|unsound| unsound.of(&schema.name()))?;
            Reader::new(&mut document, schema, &sound, formats).root(root)?;
        }
        document.events.push((schema.clone(), root));
    }
    Ok(document)
}

fn key(schema: &EventSchema) -> (&str, u32, Direction) {
    (&schema.event, schema.version, schema.direction)
}

fn declare_root(document: &mut Document, schema: &EventSchema, suffix: &str) -> usize {
    let mut name = upper_camel(&schema.event, "Event");
    if schema.version > 1 {
        name.push_str(&format!("V{}", schema.version));
    }
    name.push_str(suffix);
    document.declarations.push(Declaration {
        name,
        docs: Vec::new(),
        shape: Shape::Alias(Type::Json),
        place: (schema.name(), String::new()),
    });
    document.declarations.len() - 1
}

/// Reads one schema.
pub(super) struct Reader<'a, 'd> {
    pub(super) document: &'d mut Document,
    root: &'a Value,
    event: String,
    /// The beginning of the names inside of it.
    name: String,
    pub(super) formats: Formats,
    /// Whether it follows draft-07.
    ignores_siblings: bool,
    /// Whether lists of types for items are in `prefixItems`.
    pub(super) has_prefix_items: bool,
    /// The types of nodes that were read before, by their places.
    known: HashMap<Vec<String>, Type>,
    nodes: usize,
}

impl<'a, 'd> Reader<'a, 'd> {
    fn new(
        document: &'d mut Document,
        schema: &'a EventSchema,
        sound: &Schema,
        formats: Formats,
    ) -> Self {
        Self {
            document,
            root: &schema.schema,
            event: schema.name(),
            name: String::new(),
            formats,
            ignores_siblings: sound.ignores_siblings_of_references(),
            has_prefix_items: sound.has_prefix_items(),
            known: HashMap::new(),
            nodes: 0,
        }
    }

    fn root(mut self, root: usize) -> Result<(), Error> {
        self.name = self.document.declarations[root].name.clone();
        let nodes = self.flat(&[(String::new(), self.root)])?;
        let name = self.name.clone();
        let kind = match nodes {
            Some(nodes) => self.shape(&nodes, &name, Some(root))?,
            None => self.cannot("", "nothing fits it"),
        };
        if !matches!(kind, Type::Named(made) if made == root) {
            self.document.declarations[root].shape = Shape::Alias(kind);
        }
        let docs = self.root.as_object().map(facts::docs);
        self.document.declarations[root].docs = docs.unwrap_or_default();
        self.document.order.push(root);
        Ok(())
    }

    /// The type of what fits all of some schemas.
    pub(super) fn read(&mut self, all: &[(String, &'a Value)], name: &str) -> Result<Type, Error> {
        match self.flat(all)? {
            Some(nodes) => self.read_nodes(&nodes, name),
            None => Ok(self.cannot(&all[0].0, "nothing fits it")),
        }
    }

    /// The same for nodes.
    pub(super) fn read_nodes(&mut self, nodes: &[Node<'a>], name: &str) -> Result<Type, Error> {
        let asserting = nodes.iter().filter(|node| node.asserts());
        let key: Vec<String> = asserting
            .map(|node| {
                format!(
                    "{}{}",
                    node.at,
                    if node.is_alternative_known { "!" } else { "" }
                )
            })
            .collect();
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let definition = match &key[..] {
            [place] => definition(place).map(|word| self.inner_name(&self.name, word)),
            _ => None,
        };
        let name = definition.unwrap_or_else(|| name.to_owned());
        let kind = self.shape(nodes, &name, None)?;
        self.known.insert(key, kind.clone());
        Ok(kind)
    }

    /// The name of what is inside of something with a name.
    pub(super) fn inner_name(&self, outer: &str, word: &str) -> String {
        upper_camel(&format!("{outer} {}", upper_camel(word, "Field")), "Field")
    }

    /// The schemas with all that they refer to; none if nothing fits them.
    pub(super) fn flat(
        &mut self,
        all: &[(String, &'a Value)],
    ) -> Result<Option<Vec<Node<'a>>>, Error> {
        let mut nodes = Vec::new();
        for (at, value) in all {
            if !self.flatten(at.clone(), value, &mut nodes)? {
                return Ok(None);
            }
        }
        Ok(Some(nodes))
    }

    /// Adds a schema and what it refers to; says whether something fits it.
    fn flatten(
        &mut self,
        at: String,
        value: &'a Value,
        nodes: &mut Vec<Node<'a>>,
    ) -> Result<bool, Error> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(Error::TooMuch {
                event: self.event.clone(),
            });
        }
        let Value::Object(keywords) = value else {
            return Ok(*value != Value::Bool(false));
        };
        let reference = keywords.get("$ref").and_then(Value::as_str);
        let is_alone = reference.is_some() && self.ignores_siblings;
        if !is_alone && !nodes.iter().any(|node| node.at == at) {
            nodes.push(Node {
                at: at.clone(),
                keywords,
                is_alternative_known: false,
            });
        }
        if let Some(pointer) = reference.and_then(|reference| reference.strip_prefix('#')) {
            // `Schema::check` has followed it before.
            let Some(target) = self.root.pointer(pointer) else {
                return Ok(true);
            };
            if !self.flatten(pointer.to_owned(), target, nodes)? {
                return Ok(false);
            }
        }
        if is_alone {
            return Ok(true);
        }
        let parts = keywords.get("allOf").and_then(Value::as_array);
        for (place, part) in parts.into_iter().flatten().enumerate() {
            if !self.flatten(format!("{at}/allOf/{place}"), part, nodes)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What some nodes are together. `root` is the declaration that waits for it, if there is one.
    pub(super) fn shape(
        &mut self,
        nodes: &[Node<'a>],
        name: &str,
        root: Option<usize>,
    ) -> Result<Type, Error> {
        let at = place_of(nodes);
        if let Some(values) = facts::values(nodes) {
            return Ok(self.of_values(&values, nodes, (name, root)));
        }
        if let Some(kind) = self.alternatives(nodes, (name, root))? {
            return Ok(kind);
        }
        let kinds = facts::kinds(nodes);
        if kinds == Kinds::ALL {
            return Ok(Type::Json);
        }
        let is_nullable = kinds.and(Kinds::NULL) != Kinds::NONE;
        let kind = match kinds.without(Kinds::NULL) {
            Kinds::NONE if is_nullable => Type::Null,
            Kinds::NONE => self.cannot(&at, "nothing fits it"),
            Kinds::BOOL => Type::Bool,
            Kinds::INTEGER => facts::integer(nodes)
                .unwrap_or_else(|| self.cannot(&at, "its integers need more than 64 bits")),
            Kinds::NUMBERS => Type::Number,
            Kinds::TEXT => self.text(nodes),
            Kinds::LIST => self.list(nodes, name)?,
            // A declaration that may be null is an alias of one that may not.
            Kinds::OBJECT => self.object(nodes, (name, root.filter(|_| !is_nullable)))?,
            several => {
                let reason = format!("it may be {}", several.shown());
                self.cannot(&at, &reason)
            }
        };
        Ok(if is_nullable { kind.or_null() } else { kind })
    }

    fn text(&self, nodes: &[Node<'a>]) -> Type {
        let format = nodes.iter().find_map(|node| node.get("format")?.as_str());
        match (format, self.formats) {
            (Some("date-time"), Formats::Typed) => Type::Time,
            (Some("date"), Formats::Typed) => Type::Date,
            _ => Type::Text,
        }
    }

    fn of_values(
        &mut self,
        values: &[&'a Value],
        nodes: &[Node<'a>],
        (name, root): (&str, Option<usize>),
    ) -> Type {
        let others = values.iter().copied().filter(|value| !value.is_null());
        let others: Vec<&Value> = others.collect();
        let is_nullable = others.len() < values.len();
        let kinds = others.iter().copied().map(Kinds::of_value);
        let kind = match kinds.fold(Kinds::NONE, Kinds::or) {
            Kinds::NONE if is_nullable => Type::Null,
            Kinds::NONE => self.cannot(&place_of(nodes), "no value is left"),
            Kinds::BOOL => Type::Bool,
            Kinds::TEXT => {
                let named = others
                    .iter()
                    .filter_map(|value| value.as_str())
                    .map(|text| Named {
                        text: text.to_owned(),
                        docs: Vec::new(),
                    });
                self.choice(
                    named.collect(),
                    nodes,
                    (name, root.filter(|_| !is_nullable)),
                )
            }
            Kinds::INTEGER => facts::integer_of(&others).unwrap_or_else(|| {
                self.cannot(&place_of(nodes), "its integers need more than 64 bits")
            }),
            // Also integers among others.
            kinds if kinds.without(Kinds::NUMBERS) == Kinds::NONE => Type::Number,
            kinds => {
                let reason = format!("its constants are {}", kinds.shown());
                self.cannot(&place_of(nodes), &reason)
            }
        };
        if is_nullable { kind.or_null() } else { kind }
    }

    /// Declares one of some texts.
    pub(super) fn choice(
        &mut self,
        all: Vec<Named>,
        nodes: &[Node<'a>],
        at: (&str, Option<usize>),
    ) -> Type {
        let mut different: Vec<Named> = Vec::new();
        let mut known = std::collections::HashSet::new();
        for named in all {
            if known.insert(named.text.clone()) {
                different.push(named);
            }
        }
        self.declare(Shape::Choice(different), nodes, at)
    }

    /// Gives a shape a name, or that of the declaration that waits for it.
    pub(super) fn declare(
        &mut self,
        shape: Shape,
        nodes: &[Node<'a>],
        (name, root): (&str, Option<usize>),
    ) -> Type {
        if let Some(root) = root {
            self.document.declarations[root].shape = shape;
            return Type::Named(root);
        }
        let asserting = nodes.iter().filter(|node| node.asserts());
        let mut docs = asserting
            .chain(nodes)
            .map(|node| facts::docs(node.keywords));
        self.document.declarations.push(Declaration {
            name: name.to_owned(),
            docs: docs.find(|docs| !docs.is_empty()).unwrap_or_default(),
            shape,
            place: (self.event.clone(), place_of(nodes)),
        });
        let made = self.document.declarations.len() - 1;
        self.document.order.push(made);
        Type::Named(made)
    }

    /// Notes a place that no type says.
    pub(super) fn cannot(&mut self, at: &str, reason: &str) -> Type {
        self.document.loose.push(Place {
            event: self.event.clone(),
            pointer: at.to_owned(),
            reason: reason.to_owned(),
        });
        Type::Json
    }
}

/// Where some nodes are: the first that says something of values.
pub(super) fn place_of(nodes: &[Node<'_>]) -> String {
    let asserting = nodes.iter().find(|node| node.asserts());
    let first = asserting.or(nodes.first());
    first.map(|node| node.at.clone()).unwrap_or_default()
}

/// The last word of the place of a definition.
fn definition(place: &str) -> Option<&str> {
    let word = ["/$defs/", "/definitions/"]
        .iter()
        .find_map(|folder| place.strip_prefix(folder))?;
    (!word.contains('/')).then_some(word)
}

/// The members of an object of schemas, with their places.
pub(super) fn members_of<'a>(
    node: &Node<'a>,
    keyword: &str,
) -> impl Iterator<Item = (&'a str, (String, &'a Value))> + use<'a> {
    let folder = format!("{}/{keyword}", node.at);
    let members = node.keywords.get(keyword).and_then(Value::as_object);
    let members = members.into_iter().flat_map(Map::iter);
    members.map(move |(name, value)| {
        (
            name.as_str(),
            (format!("{folder}/{}", escaped(name)), value),
        )
    })
}
