//! JSON as received: members in their order, numbers with all their digits.

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

/// JSON without white space between its parts, because a line break would split a line of output.
pub(crate) fn one_line(json: &str) -> String {
    crate::event::without_space(json)
}

/// JSON with an indentation of two spaces per level.
pub(crate) fn indented(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    // The list or object that was opened last is still empty, and may be closed right away.
    let mut empty = false;
    // Without its own white space, of which the input may have any.
    each(&one_line(json), |c, in_text| {
        if in_text {
            if std::mem::take(&mut empty) {
                new_line(&mut text, depth);
            }
            text.push(c);
            return;
        }
        match c {
            '{' | '[' => {
                if std::mem::take(&mut empty) {
                    new_line(&mut text, depth);
                }
                text.push(c);
                depth += 1;
                empty = true;
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                if !std::mem::take(&mut empty) {
                    new_line(&mut text, depth);
                }
                text.push(c);
            }
            ',' => {
                text.push(c);
                new_line(&mut text, depth);
            }
            ':' => text.push_str(": "),
            other => {
                if std::mem::take(&mut empty) {
                    new_line(&mut text, depth);
                }
                text.push(other);
            }
        }
    });
    text
}

fn new_line(text: &mut String, depth: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n("  ", depth));
}

/// Each character, and whether it is part of a string, including the quotes.
fn each(json: &str, mut look: impl FnMut(char, bool)) {
    let mut in_text = false;
    let mut escaped = false;
    for c in json.chars() {
        // A quote belongs to its text on both sides.
        look(c, in_text || c == '"');
        match c {
            // What follows a backslash is never the end, also if it is a quote.
            _ if escaped => escaped = false,
            '\\' if in_text => escaped = true,
            '"' => in_text = !in_text,
            _ => {}
        }
    }
}

/// JSON that keeps the order of members, which a module chose for people to read.
#[derive(Debug)]
pub(crate) enum Ordered {
    /// Null, a truth value, a number or a text.
    Scalar(serde_json::Value),
    List(Vec<Ordered>),
    /// Members by name.
    Object(Vec<(String, Ordered)>),
}

impl Ordered {
    /// A member as a cell of a table.
    pub(crate) fn cell(&self, column: &str) -> String {
        let Self::Object(members) = self else {
            return String::new();
        };
        match members
            .iter()
            .find(|(name, _)| name == column)
            .map(|(_, value)| value)
        {
            Some(Self::Scalar(serde_json::Value::String(text))) => text.clone(),
            Some(Self::Scalar(serde_json::Value::Null)) | None => String::new(),
            Some(Self::Scalar(other)) => other.to_string(),
            Some(Self::List(_) | Self::Object(_)) => String::new(),
        }
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OrderedVisitor)
    }
}

struct OrderedVisitor;

impl<'de> Visitor<'de> for OrderedVisitor {
    type Value = Ordered;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Ordered, E> {
        Ok(Ordered::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Ordered, E> {
        Ok(Ordered::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Ordered, E> {
        Ok(Ordered::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Ordered, E> {
        Ok(Ordered::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Ordered, E> {
        Ok(Ordered::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Ordered, E> {
        Ok(Ordered::Scalar(serde_json::Value::Null))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut access: A) -> Result<Ordered, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Ordered::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Ordered, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = access.next_entry()? {
            members.push(member);
        }
        Ok(Ordered::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_outside_of_texts_only() {
        assert_eq!(
            one_line("{ \"a\" :\n [ 1 , \"b  \\\" c\" ] }\n"),
            "{\"a\":[1,\"b  \\\" c\"]}"
        );
    }

    #[test]
    fn indentation_keeps_order_and_digits() {
        assert_eq!(
            indented(
                r#"{"b":12345678901234567890123,"a":[true,null,{}],"c":[],"d":"x, {y}: [z]"}"#
            ),
            r#"{
  "b": 12345678901234567890123,
  "a": [
    true,
    null,
    {}
  ],
  "c": [],
  "d": "x, {y}: [z]"
}"#
        );
        assert_eq!(indented("3"), "3");
        assert_eq!(indented("[[1]]"), "[\n  [\n    1\n  ]\n]");
    }
}
