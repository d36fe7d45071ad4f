//! JSON with its numbers as they are written: as `f64`, 123456789012345678901 and …902 are equal.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Deepest nesting, as in the parser of values.
const DEPTH_MAX: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Json {
    /// A number, `true`, `false` or `null`, as written.
    Word(Box<str>),
    Text(String),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    /// Parses a value; none if it is no JSON, or an object has two members of one name, of which
    /// readers see different ones.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let raw: &RawValue = serde_json::from_slice(bytes).ok()?;
        Self::of(raw.get(), DEPTH_MAX)
    }

    fn of(text: &str, depth: usize) -> Option<Self> {
        let below = depth.checked_sub(1)?;
        Some(match text.as_bytes().first()? {
            b'"' => Self::Text(serde_json::from_str(text).ok()?),
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
                let items = items.iter().map(|item| Self::of(item.get(), below));
                Self::List(items.collect::<Option<_>>()?)
            }
            b'{' => {
                let Members(members) = serde_json::from_str(text).ok()?;
                let members = members.into_iter();
                let members = members.map(|(name, raw)| Some((name, Self::of(raw.get(), below)?)));
                Self::Object(members.collect::<Option<_>>()?)
            }
            _ => Self::Word(text.into()),
        })
    }

    /// Removes the part that a JSON pointer names, if it exists.
    pub(super) fn remove(&mut self, pointer: &str) {
        let Some((parent, last)) = pointer.rsplit_once('/') else {
            return;
        };
        let mut tokens = parent.split('/').skip(1);
        let found = tokens.try_fold(self, |value, token| value.part(&unescaped(token)));
        match found {
            Some(Self::Object(members)) => {
                members.remove(&unescaped(last));
            }
            Some(parent @ Self::List(_)) => {
                if let Some(item) = parent.part(last) {
                    // Null keeps the places of the other elements.
                    *item = Self::Word("null".into());
                }
            }
            _ => {}
        }
    }

    /// The member or element of this name.
    fn part(&mut self, name: &str) -> Option<&mut Self> {
        match self {
            Self::Object(members) => members.get_mut(name),
            Self::List(items) => items.get_mut(name.parse::<usize>().ok()?),
            Self::Word(_) | Self::Text(_) => None,
        }
    }
}

/// JSON pointers escape `/` as `~1` and `~` as `~0` (RFC 6901); in this order, or `~01` would become
/// `/`.
fn unescaped(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

impl fmt::Display for Json {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => formatter.write_str(word),
            Self::Text(text) => write_text(text, formatter),
            Self::List(items) => {
                formatter.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    formatter.write_str(if index == 0 { "" } else { "," })?;
                    item.fmt(formatter)?;
                }
                formatter.write_str("]")
            }
            Self::Object(members) => {
                formatter.write_str("{")?;
                for (index, (name, value)) in members.iter().enumerate() {
                    formatter.write_str(if index == 0 { "" } else { "," })?;
                    write_text(name, formatter)?;
                    write!(formatter, ":{value}")?;
                }
                formatter.write_str("}")
            }
        }
    }
}

fn write_text(text: &str, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    formatter.write_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?)
}

/// The members of an object.
struct Members<'a>(BTreeMap<String, &'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Members<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Members<'de>, A::Error> {
        let mut object = BTreeMap::new();
        while let Some((name, value)) = members.next_entry::<String, &RawValue>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("two members have one name"));
            }
        }
        Ok(Members(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Json> {
        Json::parse(text.as_bytes())
    }

    #[test]
    fn numbers_are_equal_if_their_texts_are() {
        let long = ["123456789012345678901", "123456789012345678902"];
        assert_ne!(parse(long[0]), parse(long[1]));
        assert_ne!(parse("[0.1]"), parse("[0.10000000000000001]"));
        assert_eq!(
            parse("{\"b\":1e999,\"a\":[1]}"),
            parse("{ \"a\": [ 1 ], \"\\u0062\": 1e999 }")
        );
    }

    #[test]
    fn what_readers_see_differently_is_no_value() {
        assert_eq!(parse(r#"[{"a":1,"a":1}]"#), None);
        assert_eq!(parse("1 2"), None);
        assert_eq!(parse(&("[".repeat(100_000) + &"]".repeat(100_000))), None);
        assert!(parse(&("[".repeat(100) + &"]".repeat(100))).is_some());
    }

    #[test]
    fn parts_are_removed_by_pointer() {
        for (pointer, left) in [
            ("/a/0", r#"{"a":[null,{"b/~":2}],"c":"d"}"#),
            ("/a/1/b~1~0", r#"{"a":[1,{}],"c":"d"}"#),
            ("/c", r#"{"a":[1,{"b/~":2}]}"#),
            ("/c/d", r#"{"a":[1,{"b/~":2}],"c":"d"}"#),
            ("c", r#"{"a":[1,{"b/~":2}],"c":"d"}"#),
        ] {
            let mut value = parse(r#"{"a":[1,{"b/~":2}],"c":"d"}"#).expect("JSON");
            value.remove(pointer);
            assert_eq!(value.to_string(), left, "{pointer}");
        }
    }
}
