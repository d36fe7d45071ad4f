//! Redacts what was named: each text gets another one, the same everywhere, also where an SDK has
//! escaped it in a key.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::cli::support::exit::{Exit, Failure};
use crate::key_text::{escaped, unescaped};
use crate::scenario::{Action, literal, texts};

/// Shorter texts are replaced only where they are a whole value, token or part of a key: within
/// other texts they would be found by chance.
const WITHIN_CHARS_MIN: usize = 4;

/// The part of a pointer that stands for every item of a list and every member of an object.
const ANY_PART: &str = "*";

/// What is redacted, and what stands for it.
pub(super) struct Redaction {
    pointers: Vec<String>,
    /// Those that have named something.
    used: BTreeSet<String>,
    /// What stands for a text.
    stand_ins: StandIns,
    /// The same for texts that have another form in keys, by that form.
    in_keys: StandIns,
}

impl Redaction {
    /// Redacts what JSON pointers into the data of events name.
    pub(super) fn of(pointers: &[String]) -> Result<Self, Failure> {
        if let Some(wrong) = pointers.iter().find(|pointer| !pointer.starts_with('/')) {
            let message =
                format!("--redact `{wrong}` is no JSON pointer; write it like /customer/email");
            return Err(Failure::new(Exit::Usage, message));
        }
        Ok(Self {
            pointers: pointers.to_vec(),
            used: BTreeSet::new(),
            stand_ins: BTreeMap::new(),
            in_keys: BTreeMap::new(),
        })
    }

    /// Notes what is to be redacted in an event, and redacts its numbers.
    pub(super) fn collect(&mut self, action: &mut Action) {
        let Some(data) = &mut action.data else { return };
        for pointer in &self.pointers {
            let parts: Vec<_> = pointer
                .split('/')
                .skip(1)
                .map(|part| part.replace("~1", "/").replace("~0", "~"))
                .collect();
            each_at(data, &parts, &mut |found| {
                self.used.insert(pointer.clone());
                collect(found, (&mut self.stand_ins, &mut self.in_keys));
            });
        }
    }

    /// The pointers that name nothing in what was collected: they may be misspelt.
    pub(super) fn unused(&self) -> impl Iterator<Item = &String> {
        self.pointers
            .iter()
            .filter(|pointer| !self.used.contains(*pointer))
    }

    /// Redacts what was noted, wherever it is in an event.
    pub(super) fn apply(&self, action: &mut Action) {
        let change = |text: String| self.text(text);
        action.subject = action
            .subject
            .take()
            .map(|subject| self.parts(&subject, '.', |part| self.text(part.to_owned())));
        action.id = action.id.take().map(change);
        // Names of timers often are keys.
        action.fire = action.fire.take().map(|timer| self.key(&timer));
        action.data = action.data.take().map(|data| texts(data, &change));
        for value in action.headers.values_mut() {
            *value = self.text(std::mem::take(value));
        }
    }

    /// Redacts it in entries.
    pub(super) fn entries(&self, entries: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
        // As in events: what was noted of them is in the form that a scenario has.
        let change = |text: String| self.text(literal(text));
        entries
            .into_iter()
            .map(|(key, value)| {
                let value = match value {
                    // A scenario means no entry by `null`, and by a text the entry that is this.
                    Value::Null => Value::from("null"),
                    value => texts(value, &change),
                };
                (self.key(&literal(key)), value)
            })
            .collect()
    }

    /// Redacts it in keys.
    pub(super) fn keys(&self, keys: Vec<String>) -> Vec<String> {
        keys.into_iter()
            .map(|key| self.key(&literal(key)))
            .collect()
    }

    fn key(&self, key: &str) -> String {
        self.parts(key, '/', |part| {
            let text = unescaped(part);
            let changed = self.text(text.clone());
            // A module without an SDK may not escape anything.
            if changed == text {
                self.text(part.to_owned())
            } else {
                escaped(&changed)
            }
        })
    }

    fn parts(&self, text: &str, separator: char, change: impl Fn(&str) -> String) -> String {
        let parts: Vec<_> = text.split(separator).map(change).collect();
        // Once more as a whole: what is redacted may have separators in it.
        self.text(parts.join(&separator.to_string()))
    }

    fn text(&self, text: String) -> String {
        let whole = self
            .stand_ins
            .get(&text)
            .or_else(|| self.in_keys.get(&text));
        if let Some(stand_in) = whole {
            return stand_in.clone();
        }
        let mut text = text;
        let in_keys = self.in_keys.iter();
        let in_keys =
            in_keys.filter(|(form, _)| unescaped(form).chars().count() >= WITHIN_CHARS_MIN);
        // The longest first: one that is in another one would leave the rest of that.
        let mut within: Vec<_> = self
            .stand_ins
            .iter()
            .filter(|(original, _)| original.chars().count() >= WITHIN_CHARS_MIN)
            // A whole key may be within a text, such as a value that refers to an entry.
            .chain(in_keys)
            .filter(|(original, _)| text.contains(original.as_str()))
            .collect();
        within.sort_by_key(|(original, _)| std::cmp::Reverse(original.len()));
        for (original, stand_in) in within {
            text = text.replace(original, stand_in);
        }
        text
    }
}

/// Does something with each value at a pointer, of which a part `*` is every item or member.
fn each_at(value: &mut Value, parts: &[String], act: &mut impl FnMut(&mut Value)) {
    let Some((part, rest)) = parts.split_first() else {
        return act(value);
    };
    let is_every = part == ANY_PART;
    match value {
        Value::Object(members) => members
            .iter_mut()
            .filter(|(name, _)| is_every || *name == part)
            .for_each(|(_, value)| each_at(value, rest, act)),
        Value::Array(items) => items
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| is_every || index.to_string() == *part)
            .for_each(|(_, value)| each_at(value, rest, act)),
        _ => {}
    }
}

/// Texts, and what stands for each.
type StandIns = BTreeMap<String, String>;

fn collect(value: &mut Value, (stand_ins, in_keys): (&mut StandIns, &mut StandIns)) {
    match value {
        Value::String(text) => {
            let number = stand_ins.len() + 1;
            let stand_in = stand_ins
                .entry(text.clone())
                .or_insert_with(|| format!("redacted-{number}"));
            let form = escaped(text);
            if form != *text {
                in_keys.insert(form, stand_in.clone());
            }
        }
        Value::Number(number) => *number = 0.into(),
        Value::Bool(truth) => *truth = false,
        Value::Array(values) => values
            .iter_mut()
            .for_each(|value| collect(value, (stand_ins, in_keys))),
        Value::Object(members) => {
            members
                .values_mut()
                .for_each(|value| collect(value, (stand_ins, in_keys)));
        }
        Value::Null => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_redacted_text_is_replaced_wherever_it_is_and_nothing_else() {
        let mut redaction =
            Redaction::of(&["/email".to_owned(), "/age".to_owned()]).expect("sound");
        let mut action = Action {
            subject: Some("users.ada.changed".to_owned()),
            data: Some(
                json!({ "email": "ada@example.org", "age": 36, "note": "mail ada@example.org", "n": 1 }),
            ),
            ..Action::default()
        };
        redaction.collect(&mut action);
        redaction.apply(&mut action);
        assert_eq!(
            action.data,
            Some(json!({ "email": "redacted-1", "age": 0, "note": "mail redacted-1", "n": 1 }))
        );
        assert_eq!(action.subject.as_deref(), Some("users.ada.changed"));
        let entries = BTreeMap::from([("by-email/ada@example.org".to_owned(), json!(["x"]))]);
        let entries = redaction.entries(entries);
        assert_eq!(
            entries.keys().next().map(String::as_str),
            Some("by-email/redacted-1")
        );
        assert_eq!(redaction.unused().count(), 0);
        assert!(Redaction::of(&["email".to_owned()]).is_err());
    }

    #[test]
    fn a_text_that_has_another_form_in_keys_is_replaced_there_too() {
        let mut redaction = Redaction::of(&["/who".to_owned()]).expect("sound");
        // As a scenario has it, in which `${` would be a variable.
        for who in ["Smith/Jones", "100%", "a/b", "$${it}"] {
            let mut action = Action {
                data: Some(json!({ "who": who })),
                ..Action::default()
            };
            redaction.collect(&mut action);
        }
        let of_key = |key: &str| redaction.keys(vec![key.to_owned()]).remove(0);
        for (key, redacted) in [
            ("order/ada/Smith%2FJones", "order/ada/redacted-1"),
            ("order/Mr Smith%2FJones %25/x", "order/Mr redacted-1 %25/x"),
            ("order/Smith/Jones", "order/redacted-1"),
            ("order/100%25", "order/redacted-2"),
            // The key of a key.
            ("of/100%2525", "of/redacted-2"),
            ("order/a%2Fb", "order/redacted-3"),
            ("order/${it}", "order/redacted-4"),
            ("order/xa%2Fb", "order/xa%2Fb"),
            ("order/50%25", "order/50%25"),
            ("order/50%", "order/50%"),
        ] {
            assert_eq!(of_key(key), redacted, "{key}");
        }
        let entry = json!({ "see": "order/Smith%2FJones", "name": "${it}", "n": "${n}" });
        let entries = BTreeMap::from([("x".to_owned(), entry)]);
        let shown = json!({ "see": "order/redacted-1", "name": "redacted-4", "n": "$${n}" });
        assert_eq!(redaction.entries(entries)["x"], shown);
        let mut timer = Action {
            fire: Some("late/Smith%2FJones".to_owned()),
            ..Action::default()
        };
        redaction.apply(&mut timer);
        assert_eq!(timer.fire.as_deref(), Some("late/redacted-1"));
    }

    #[test]
    fn every_item_is_redacted_and_no_rest_of_a_longer_text_stays() {
        let mut redaction =
            Redaction::of(&["/people/*/name", "/a~1b/0", "/nmae"].map(str::to_owned))
                .expect("sound");
        let people = json!([{ "name": "anna" }, { "name": "anna smith" }, { "other": "anna" }, 1]);
        let mut action = Action {
            data: Some(json!({
                "people": people, "a/b": ["zoe"], "note": "for anna smith and anna",
            })),
            ..Action::default()
        };
        redaction.collect(&mut action);
        redaction.apply(&mut action);
        assert_eq!(redaction.unused().collect::<Vec<_>>(), ["/nmae"]);
        let people = json!([
            { "name": "redacted-1" }, { "name": "redacted-2" }, { "other": "redacted-1" }, 1,
        ]);
        assert_eq!(
            action.data,
            Some(json!({
                "people": people, "a/b": ["redacted-3"], "note": "for redacted-2 and redacted-1",
            }))
        );
    }
}
