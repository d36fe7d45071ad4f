//! Variables: `${name}` in the texts of a scenario.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::spelling::nearest;

/// Something in a scenario makes no sense: what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unsound(pub(super) String);

/// Matches anything in `then`; no variable can have this name.
pub(super) const ANY: &str = "${any}";
/// Variables may name others, up to this depth.
const DEPTH_MAX: u32 = 16;
/// Longest text that comes of variables, in bytes: they may name each other twice.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Most bytes of texts and values in one part of a scenario: lists may name each other twice, too.
const PART_BYTES_MAX: usize = 16 << 20;

/// Variables, by name. Inner ones hide outer ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope(BTreeMap<String, Value>);

impl Scope {
    /// With further variables, which hide those of the same name.
    pub(super) fn with<'a>(&self, more: impl IntoIterator<Item = (&'a String, &'a Value)>) -> Self {
        let mut scope = self.clone();
        for (name, value) in more {
            scope.0.insert(name.clone(), value.clone());
        }
        scope
    }

    /// With one more.
    pub(super) fn with_one(&self, name: &str, value: Value) -> Self {
        let mut scope = self.clone();
        scope.0.insert(name.to_owned(), value);
        scope
    }

    /// A part of a scenario with the values of its variables.
    pub(super) fn fill<T: Serialize + DeserializeOwned>(&self, part: &T) -> Result<T, Unsound> {
        let unsound = |error: serde_json::Error| Unsound(error.to_string());
        let value = serde_json::to_value(part).map_err(unsound)?;
        let filled = self.value(value, 0, &mut 0)?;
        serde_json::from_value(filled).map_err(unsound)
    }

    fn unknown(&self, name: &str) -> Unsound {
        let near = nearest(name, self.0.keys().map(String::as_str));
        Unsound(match near {
            Some(near) => format!("no variable `{name}`; did you mean `{near}`?"),
            None => format!("no variable `{name}`; add it to `vars` or `with`"),
        })
    }

    fn value(&self, value: Value, depth: u32, bytes: &mut usize) -> Result<Value, Unsound> {
        count(bytes, size_of::<Value>())?;
        Ok(match value {
            Value::String(text) => self.text(&text, depth, bytes)?,
            Value::Array(values) => Value::Array(
                values
                    .into_iter()
                    .map(|value| self.value(value, depth, bytes))
                    .collect::<Result<_, _>>()?,
            ),
            Value::Object(members) => {
                let mut filled = serde_json::Map::new();
                for (name, value) in members {
                    let name = plain(&self.text(&name, depth, bytes)?);
                    filled.insert(name, self.value(value, depth, bytes)?);
                }
                Value::Object(filled)
            }
            other => other,
        })
    }

    fn text(&self, text: &str, depth: u32, bytes: &mut usize) -> Result<Value, Unsound> {
        if depth > DEPTH_MAX {
            return Err(Unsound(format!(
                "variables name each other in a circle, or through more than {DEPTH_MAX} others, at `{text}`"
            )));
        }
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            // `$${` is the text `${`.
            if let Some(before) = before.strip_suffix('$') {
                filled.push_str(before);
                filled.push_str("${");
                rest = after;
                continue;
            }
            let Some((name, behind)) = after.split_once('}') else {
                return Err(Unsound(format!(
                    "`{text}` has `${{` without `}}`; write `$${{` for the text"
                )));
            };
            filled.push_str(before);
            rest = behind;
            if name == "any" {
                filled.push_str(ANY);
                continue;
            }
            let Some(value) = self.0.get(name) else {
                return Err(self.unknown(name));
            };
            let value = self.value(value.clone(), depth + 1, bytes)?;
            // A text that is one variable keeps its type.
            if before.is_empty() && behind.is_empty() && filled.is_empty() {
                return Ok(value);
            }
            filled.push_str(&plain(&value));
            if filled.len() > TEXT_BYTES_MAX {
                return Err(Unsound(format!(
                    "a text has more than {TEXT_BYTES_MAX} bytes"
                )));
            }
        }
        filled.push_str(rest);
        count(bytes, filled.len())?;
        Ok(Value::String(filled))
    }
}

fn count(bytes: &mut usize, more: usize) -> Result<(), Unsound> {
    *bytes += more;
    if *bytes > PART_BYTES_MAX {
        return Err(Unsound(format!(
            "variables make more than {PART_BYTES_MAX} bytes of it"
        )));
    }
    Ok(())
}

/// A value within a text.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scope() -> Scope {
        Scope::default()
            .with_one("n", json!(7))
            .with_one("who", json!("ada"))
            .with_one("key", json!("customer/${who}"))
            .with_one("a", json!("${b}"))
            .with_one("b", json!("${a}"))
    }

    #[test]
    fn variables_keep_their_type_if_they_are_the_whole_text() {
        let filled: Value = scope()
            .fill(&json!({ "${key}": ["${n}", "n=${n}", "$${n}", "${any}", true] }))
            .expect("fills");
        assert_eq!(
            filled,
            json!({ "customer/ada": [7, "n=7", "${n}", "${any}", true] })
        );
    }

    #[test]
    fn variables_that_multiply_each_other_end_at_a_limit() {
        let mut scope = scope().with_one("x0", json!("lol"));
        for number in 1..16 {
            let inner = format!("${{x{}}}", number - 1);
            scope = scope.with_one(&format!("x{number}"), json!(vec![inner; 9]));
        }
        let refused = scope.fill(&json!("${x15}")).expect_err("is refused");
        assert!(refused.0.contains("bytes of it"), "{refused}");
    }

    #[test]
    fn unknown_variables_and_circles_are_refused() {
        let refused = |text: &str| scope().fill(&json!(text)).expect_err("is refused").0;
        assert!(refused("${nobody}").contains("no variable `nobody`"));
        assert!(refused("${a}").contains("circle"));
        assert!(refused("${n").contains("without"));
        assert!(refused("${whom}").contains("did you mean `who`"));
    }
}
