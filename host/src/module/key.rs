//! The key of an event, according to a module's key rule.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::KeyRule;
use crate::event::Event;

impl KeyRule {
    /// Passes the key of an event on without a copy, unless it is inside the data.
    pub(crate) fn with_key<T>(&self, event: &Event, take: impl FnOnce(Option<&str>) -> T) -> T {
        match self {
            Self::None => take(None),
            Self::Subject => take(Some(&event.subject)),
            Self::SubjectToken(number) => {
                let mut tokens = event.subject.split('.');
                take(tokens.nth((*number as usize).saturating_sub(1)))
            }
            Self::Header(name) => take(event.header(name)),
            Self::DataPointer(_) => take(self.key_of(event).as_deref()),
        }
    }

    /// The key of an event; none if it has none.
    pub fn key_of(&self, event: &Event) -> Option<String> {
        match self {
            Self::None => None,
            Self::Subject => Some(event.subject.to_string()),
            Self::SubjectToken(number) => event
                .subject
                .split('.')
                .nth((*number as usize).saturating_sub(1))
                .map(str::to_owned),
            Self::Header(name) => event.header(name).map(str::to_owned),
            Self::DataPointer(pointer) => identity(at(event.data.as_bytes(), pointer)?),
        }
    }
}

/// What a value identifies: a string its text, a number its digits as they are written, because two
/// ids may differ in digits that no number of 64 bits has. A list or an object is its JSON without
/// white space, with sorted members.
fn identity(value: &RawValue) -> Option<String> {
    let text = value.get();
    match text.as_bytes().first()? {
        b'"' => serde_json::from_str(text).ok(),
        b'n' => None,
        b'[' | b'{' => {
            let marked: Value = serde_json::from_str(&marked(text)).ok()?;
            let mut written = String::with_capacity(text.len());
            write(&marked, &mut written);
            Some(written)
        }
        _ => Some(text.to_owned()),
    }
}

/// Marks of [`marked`].
const STRING: char = 's';
const NUMBER: char = 'n';

/// A JSON text with its numbers as strings, which keep their digits while the text is a tree. A
/// first character tells them from strings.
fn marked(text: &str) -> String {
    let mut marked = String::with_capacity(text.len() + text.len() / 4);
    let (mut in_string, mut is_escaped, mut in_number) = (false, false, false);
    for character in text.chars() {
        if in_string {
            in_string = is_escaped || character != '"';
            is_escaped = !is_escaped && character == '\\';
            marked.push(character);
            continue;
        }
        let is_number = matches!(character, '0'..='9' | '-')
            || in_number && matches!(character, '+' | '.' | 'e' | 'E');
        if is_number && !in_number {
            marked.extend(['"', NUMBER]);
        } else if in_number && !is_number {
            marked.push('"');
        }
        in_number = is_number;
        marked.push(character);
        if character == '"' {
            in_string = true;
            marked.push(STRING);
        }
    }
    marked
}

/// Writes a tree of a marked text without the marks.
fn write(value: &Value, text: &mut String) {
    match value {
        Value::String(marked) => match marked.strip_prefix(NUMBER) {
            Some(digits) => text.push_str(digits),
            None => write_string(marked, text),
        },
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                write(item, text);
            }
            text.push(']');
        }
        Value::Object(members) => {
            text.push('{');
            for (index, (name, member)) in members.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                write_string(name, text);
                text.push(':');
                write(member, text);
            }
            text.push('}');
        }
        other => text.push_str(&other.to_string()),
    }
}

fn write_string(marked: &str, text: &mut String) {
    let string = marked.strip_prefix(STRING).unwrap_or(marked);
    text.push_str(&Value::from(string).to_string());
}

/// The value at a JSON pointer (RFC 6901), as it is written; none if there is none, or the data is
/// no JSON. Of members with the same name, it is in the last one.
fn at<'a>(data: &'a [u8], pointer: &str) -> Option<&'a RawValue> {
    if !pointer.is_empty() && !pointer.starts_with('/') {
        return None;
    }
    let parts: Vec<_> = pointer
        .split('/')
        .skip(1)
        .map(|part| part.replace("~1", "/").replace("~0", "~"))
        .collect();
    let text = std::str::from_utf8(data).ok()?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let found = At { parts: &parts }.deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    found
}

/// Finds the value at the parts of a pointer without a tree of the rest.
struct At<'p> {
    parts: &'p [String],
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        if self.parts.is_empty() {
            return serde::Deserialize::deserialize(deserializer).map(Some);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut members: M) -> Result<Self::Value, M::Error> {
        let Some((part, parts)) = self.parts.split_first() else {
            return Ok(None);
        };
        let mut found = None;
        while let Some(name) = members.next_key::<String>()? {
            if name == *part {
                found = members.next_value_seed(At { parts })?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Self::Value, S::Error> {
        let Some((part, parts)) = self.parts.split_first() else {
            return Ok(None);
        };
        // An index has no sign, and no zeros in front.
        let is_index = part.bytes().all(|byte| byte.is_ascii_digit())
            && (part.len() == 1 || !part.starts_with('0'));
        let wanted = part.parse::<usize>().ok().filter(|_| is_index);
        let mut found = None;
        for index in 0_usize.. {
            if Some(index) == wanted {
                match items.next_element_seed(At { parts })? {
                    Some(item) => found = item,
                    None => break,
                }
            } else if items.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
        }
        Ok(found)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pointer: &str, data: &str) -> Option<String> {
        identity(at(data.as_bytes(), pointer)?)
    }

    #[test]
    fn number_is_its_digits_as_they_are_written() {
        for digits in [
            "7",
            "-0",
            "1.0",
            "1e0",
            "1.50",
            "123456789012345678901",
            "123456789012345678902",
            "18446744073709551616",
            "10000000000.0000011",
            "1e999",
        ] {
            let data = format!("{{\"id\": {digits} ,\"n\":1}}");
            assert_eq!(key("/id", &data).as_deref(), Some(digits));
            assert_eq!(key("", digits).as_deref(), Some(digits));
            let list = format!("[ -1 , [{digits}, 2e+5 ]]");
            assert_eq!(key("/1/0", &list).as_deref(), Some(digits));
            assert_eq!(key("/1", &list), Some(format!("[{digits},2e+5]")));
        }
    }

    #[test]
    fn value_of_another_type_is_its_text() {
        for (pointer, data, found) in [
            (
                "/a~1b/~0c",
                r#"{"a/b":{"~c":"ada \u00e9"}}"#,
                Some("ada \u{e9}"),
            ),
            ("/a", r#"{"a":"1","a":"2"}"#, Some("2")),
            ("/a/b", r#"{"a":{"b":1},"a":{}}"#, None),
            ("/a", r#"{"a":true}"#, Some("true")),
            ("/a", r#"{"a":null}"#, None),
            ("/a", r#"{"a":""}"#, Some("")),
            (
                "/a",
                r#"{"a": {"z":[1.50, "n1", "s\"[2]\\"], "b" : {"s": null}, "z2":false}}"#,
                Some(r#"{"b":{"s":null},"z":[1.50,"n1","s\"[2]\\"],"z2":false}"#),
            ),
            ("/0", r#"{"0":[]}"#, Some("[]")),
            ("/1", "[1,2,3]", Some("2")),
            ("/01", "[1,2,3]", None),
            ("/+1", "[1,2,3]", None),
            ("/-", "[1,2,3]", None),
            ("/3", "[1,2,3]", None),
            ("/a/b", r#"{"a":"text"}"#, None),
            ("a", r#"{"a":1}"#, None),
            ("/a", r#"{"a":1} 2"#, None),
            ("/a", r#"{"a":1"#, None),
            ("/a", "no JSON", None),
            ("/a", r#"{"a":"\ud800"}"#, None),
        ] {
            assert_eq!(key(pointer, data).as_deref(), found, "{pointer} of {data}");
        }
        assert_eq!(
            at(b"{\"a\":1,\"b\":\"\xff\"}", "/a").map(RawValue::get),
            None
        );
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(1_000), "]".repeat(1_000));
        assert_eq!(key("/a", &deep), None);
        let parts = "/0".repeat(900);
        assert_eq!(key(&format!("/a{parts}"), &deep), None);
    }
}
