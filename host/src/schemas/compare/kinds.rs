//! The types of values, with integers apart from other numbers.

use serde_json::Value;

/// A type of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Boolean,
    /// A number without a fraction.
    Integer,
    /// A number with a fraction.
    Fraction,
    Text,
    List,
    Object,
}

impl Kind {
    pub(super) const ALL: [Self; 7] = [
        Self::Null,
        Self::Boolean,
        Self::Integer,
        Self::Fraction,
        Self::Text,
        Self::List,
        Self::Object,
    ];

    /// Its name, as in a schema.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Fraction => "number",
            Self::Text => "string",
            Self::List => "array",
            Self::Object => "object",
        }
    }

    /// Whether a `type` has it.
    pub(super) fn is_in(self, wanted: &Value) -> bool {
        let is_named = |name: &Value| {
            name == self.name() || (self == Self::Integer && name == Self::Fraction.name())
        };
        match wanted {
            Value::Array(names) => names.iter().any(is_named),
            name => is_named(name),
        }
    }
}
