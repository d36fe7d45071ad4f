//! The form between schemas and languages.

use serde_json::Value;

use super::Place;
use super::names::Names;
use crate::schemas::EventSchema;

/// All types of a file.
#[derive(Debug, Default)]
pub(super) struct Document {
    /// What is declared. The index is the identity of a declaration.
    pub declarations: Vec<Declaration>,
    /// The declarations in the order of the file: each after the ones that it uses.
    pub order: Vec<usize>,
    /// The events, each with its declaration.
    pub events: Vec<(EventSchema, usize)>,
    /// What has the type of any JSON because no type says what it is.
    pub loose: Vec<Place>,
}

/// A type with a name.
#[derive(Clone, Debug)]
pub(super) struct Declaration {
    /// What its name is made of: ASCII words in upper camel case.
    pub name: String,
    /// What the schema says of it, as paragraphs.
    pub docs: Vec<String>,
    pub shape: Shape,
    /// The schema in which it is declared, and where.
    pub place: (String, String),
}

/// What a declaration declares.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shape {
    /// An object with members that are known. There is at least one.
    Record(Vec<Field>),
    /// One of some texts.
    Choice(Vec<Named>),
    /// One of some records, which a member with a constant tells apart.
    Union { tag: String, variants: Vec<Variant> },
    /// A record of a union, with the member that tells it apart first.
    Member(Vec<Field>),
    /// Another name of a type.
    Alias(Type),
}

/// A text, and what the schema says of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Named {
    pub text: String,
    pub docs: Vec<String>,
}

/// A record of a union.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Variant {
    /// The constant.
    pub value: String,
    /// Its declaration.
    pub record: usize,
}

/// A member of an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    /// Its name in JSON.
    pub name: String,
    pub kind: Type,
    pub presence: Presence,
    pub docs: Vec<String>,
}

/// Whether a member is there.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Presence {
    Required,
    /// It may be left out.
    Optional,
    /// If it is left out, it has this value, which fits the type.
    Default(Value),
}

/// A type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Type {
    /// JSON as it is.
    Json,
    Null,
    Bool,
    /// 64 bits.
    Integer(Sign),
    Number,
    Text,
    /// A day.
    Date,
    /// An instant.
    Time,
    /// Exactly this text, which tells the records of a union apart.
    Constant(String),
    List(Box<Type>),
    Map(Box<Type>),
    Tuple(Vec<Type>),
    /// A value or null.
    Nullable(Box<Type>),
    /// A declaration.
    Named(usize),
}

/// Which integers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// From -2^63 to 2^63 - 1.
    Signed,
    /// From 0 to 2^64 - 1.
    Unsigned,
}

/// A file in a language.
pub(super) struct Printed {
    pub code: String,
    /// The name of each declaration.
    pub names: Vec<String>,
}

impl Type {
    /// The same, or null.
    pub(super) fn or_null(self) -> Self {
        match self {
            // They accept it already.
            Self::Json | Self::Null | Self::Nullable(_) => self,
            other => Self::Nullable(Box::new(other)),
        }
    }

    /// The type of the values that are not null.
    pub(super) fn not_null(&self) -> &Self {
        match self {
            Self::Nullable(inner) => inner,
            other => other,
        }
    }

    /// Calls `look` for it and for each type inside of it.
    pub(super) fn each(&self, look: &mut dyn FnMut(&Self)) {
        look(self);
        match self {
            Self::List(inner) | Self::Map(inner) | Self::Nullable(inner) => inner.each(look),
            Self::Tuple(items) => items.iter().for_each(|item| item.each(look)),
            _ => {}
        }
    }
}

impl Declaration {
    /// Its members, if it is a record.
    pub(super) fn fields(&self) -> &[Field] {
        match &self.shape {
            Shape::Record(fields) | Shape::Member(fields) => fields,
            _ => &[],
        }
    }
}

impl Document {
    /// The names of the declarations in a language, none of which is reserved.
    pub(super) fn type_names(&self, reserved: &[&str]) -> Vec<String> {
        let mut scope = Names::without(reserved);
        let declarations = self.declarations.iter();
        declarations
            .map(|declaration| scope.unique(&declaration.name))
            .collect()
    }

    /// Calls `look` for each type that a declaration names.
    pub(super) fn each_type(&self, look: &mut dyn FnMut(&Type)) {
        for declaration in &self.declarations {
            match &declaration.shape {
                Shape::Record(fields) | Shape::Member(fields) => {
                    fields.iter().for_each(|field| field.kind.each(look));
                }
                Shape::Alias(kind) => kind.each(look),
                Shape::Choice(_) | Shape::Union { .. } => {}
            }
        }
    }

    /// Whether a type is anywhere in it.
    pub(super) fn uses(&self, is: impl Fn(&Type) -> bool) -> bool {
        let mut found = false;
        self.each_type(&mut |kind| found |= is(kind));
        found
    }

    /// Whether a member may be left out, or has another presence that is asked for.
    pub(super) fn has_field(&self, is: impl Fn(&Field) -> bool) -> bool {
        let mut declarations = self.declarations.iter();
        declarations.any(|declaration| declaration.fields().iter().any(&is))
    }

    /// Whether a declaration has a shape that is asked for.
    pub(super) fn declares(&self, is: impl Fn(&Shape) -> bool) -> bool {
        self.declarations
            .iter()
            .any(|declaration| is(&declaration.shape))
    }
}
