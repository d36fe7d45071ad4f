//! Compares what there is with what a scenario expects.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::expand::ANY;
use super::file::{ExpectedFailure, ExpectedMessage, Then};
use super::observe::{Message, Observation};
use crate::api::Failure;
use crate::timestamp;

/// The member of an object that allows others which are not named.
const OTHERS: &str = "...";
/// Most differences that one step shows.
const SHOWN_MAX: usize = 50;

/// A difference between what there is and what there should be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The step, from 1.
    pub step: usize,
    /// What differs: `entry customer/ada`, `message 2`.
    pub what: String,
    /// Where in it, as a JSON pointer; empty if as a whole.
    pub path: String,
    /// What there should be; absent if nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<Value>,
    /// What there is; absent if nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<Value>,
}

/// Collects differences of one step.
pub(super) struct Differences {
    step: usize,
    found: Vec<Difference>,
}

impl Differences {
    pub(super) fn of(step: usize) -> Self {
        Self {
            step,
            found: Vec::new(),
        }
    }

    pub(super) fn all(mut self) -> Vec<Difference> {
        self.found.truncate(SHOWN_MAX);
        self.found
    }

    fn add(&mut self, what: &str, path: &str, expected: Option<Value>, found: Option<Value>) {
        self.found.push(Difference {
            step: self.step,
            what: what.to_owned(),
            path: path.to_owned(),
            expected,
            found,
        });
    }

    /// Compares values, member by member, so that a difference shows where it is.
    pub(super) fn values(
        &mut self,
        what: &str,
        path: &str,
        expected: Option<&Value>,
        found: Option<&Value>,
    ) {
        match (expected, found) {
            (Some(Value::String(any)), Some(_)) if any == ANY => {}
            (Some(Value::Object(expected)), Some(Value::Object(found))) => {
                let names: std::collections::BTreeSet<_> =
                    expected.keys().chain(found.keys()).collect();
                let is_open = expected.contains_key(OTHERS);
                for name in names {
                    // Members that are not named may be there.
                    if name == OTHERS || (is_open && !expected.contains_key(name)) {
                        continue;
                    }
                    let path = format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
                    self.values(what, &path, expected.get(name), found.get(name));
                }
            }
            (Some(Value::Array(expected)), Some(Value::Array(found))) => {
                for index in 0..expected.len().max(found.len()) {
                    let path = format!("{path}/{index}");
                    self.values(what, &path, expected.get(index), found.get(index));
                }
            }
            (Some(expected), Some(found)) if is_same(expected, found) => {}
            (None, None) => {}
            (expected, found) => self.add(what, path, expected.cloned(), found.cloned()),
        }
    }
}

/// Whether values without members are the same: `1` and `1.0` are.
fn is_same(one: &Value, other: &Value) -> bool {
    one == other
        || matches!(
            (one, other),
            (Value::Number(one), Value::Number(other))
                if (one.is_f64() || other.is_f64()) && one.as_f64() == other.as_f64()
        )
}

/// The differences of a step, numbered from 1.
pub(super) fn compare(step: usize, then: &Then, seen: &Observation) -> Vec<Difference> {
    let mut all = Differences::of(step);
    // First: everything else may follow from it.
    failure(then.failure.as_ref(), seen.failure.as_ref(), &mut all);
    entries(then, seen, &mut all);
    if let Some(answers) = &then.answers {
        for index in 0..answers.len().max(seen.answers.len()) {
            let found = seen.answers.get(index);
            answer(index + 1, answers.get(index), found, &mut all);
        }
    }
    if let Some(published) = &then.published {
        for index in 0..published.len().max(seen.published.len()) {
            let found = seen.published.get(index);
            message(index + 1, published.get(index), found, &mut all);
        }
    }
    if let Some(timers) = &then.timers {
        compare_timers(timers, seen, &mut all);
    }
    parked(then.parked.as_deref(), seen, &mut all);
    if let Some(position) = then.position.filter(|wanted| *wanted != seen.position) {
        all.add(
            "position",
            "",
            Some(json!(position)),
            Some(json!(seen.position)),
        );
    }
    all.all()
}

fn failure(expected: Option<&ExpectedFailure>, found: Option<&Failure>, all: &mut Differences) {
    let shown = |failure: &Failure| json!({ "kind": failure.kind, "message": failure.message, "event": failure.sequence });
    match (expected, found) {
        (None, None) => {}
        (None, Some(found)) => all.add("failure", "", None, Some(shown(found))),
        (Some(expected), None) => {
            let expected = serde_json::to_value(expected).expect("plain data");
            all.add("failure", "", Some(expected), None);
        }
        (Some(expected), Some(found)) => {
            if let Some(kind) = expected.kind.as_ref().filter(|kind| **kind != found.kind) {
                all.add(
                    "failure",
                    "/kind",
                    Some(json!(kind)),
                    Some(json!(found.kind)),
                );
            }
            let lacks = |part: &&String| !found.message.contains(part.as_str());
            if let Some(message) = expected.message.as_ref().filter(lacks) {
                let found = json!(found.message);
                all.add("failure", "/message", Some(json!(message)), Some(found));
            }
            if expected.event.is_some() && expected.event != found.sequence {
                let (expected, found) = (json!(expected.event), json!(found.sequence));
                all.add("failure", "/event", Some(expected), Some(found));
            }
        }
    }
}

fn entries(then: &Then, seen: &Observation, all: &mut Differences) {
    for (key, expected) in &then.entries {
        let found = seen.entries.get(key).map(|value| value.to_json());
        let expected = (!expected.is_null()).then_some(expected);
        all.values(&format!("entry {key}"), "", expected, found.as_ref());
    }
    if !then.no_other_entries {
        return;
    }
    let others = seen
        .entries
        .iter()
        .filter(|(key, _)| !then.entries.contains_key(*key));
    for (key, value) in others {
        all.add(&format!("entry {key}"), "", None, Some(value.to_json()));
    }
}

fn answer(
    number: usize,
    expected: Option<&Value>,
    found: Option<&Result<crate::event::Payload, String>>,
    all: &mut Differences,
) {
    let what = format!("answer {number}");
    let wanted_error = expected
        .and_then(Value::as_object)
        .filter(|members| members.len() == 1)
        .and_then(|members| members.get("$error"))
        .and_then(Value::as_str);
    match (wanted_error, found) {
        (Some(part), Some(Err(error))) if error.contains(part) => {}
        (_, Some(Err(error))) => {
            all.add(
                &what,
                "",
                expected.cloned(),
                Some(json!({ "$error": error })),
            );
        }
        (_, found) => {
            let found = found.and_then(|found| found.as_ref().ok());
            let found = found.map(|value| value.to_json());
            all.values(&what, "", expected, found.as_ref());
        }
    }
}

fn message(
    number: usize,
    expected: Option<&ExpectedMessage>,
    found: Option<&Message>,
    all: &mut Differences,
) {
    let what = format!("message {number}");
    let (expected, found) = match (expected, found) {
        (Some(expected), Some(found)) => (expected, found),
        (expected, found) => {
            let expected =
                expected.map(|message| serde_json::to_value(message).expect("plain data"));
            all.add(&what, "", expected, found.map(Message::to_json));
            return;
        }
    };
    let mut text = |path: &str, expected: Option<&String>, found: Option<&String>| {
        if let Some(expected) = expected {
            let (expected, found) = (json!(expected), found.map(|found| json!(found)));
            all.values(&what, path, Some(&expected), found.as_ref());
        }
    };
    text("/subject", Some(&expected.subject), Some(&found.subject));
    text("/type", expected.kind.as_ref(), Some(&found.kind));
    text("/key", expected.key.as_ref(), Some(&found.key));
    for (name, value) in &expected.headers {
        let found = found
            .headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name));
        text(
            &format!("/headers/{name}"),
            Some(value),
            found.map(|(_, value)| value),
        );
    }
    if let Some(data) = &expected.data {
        all.values(&what, "/data", Some(data), Some(&found.data.to_json()));
    }
}

fn compare_timers(expected: &BTreeMap<String, String>, seen: &Observation, all: &mut Differences) {
    let names: std::collections::BTreeSet<_> = expected.keys().chain(seen.timers.keys()).collect();
    for name in names {
        let (wanted, found) = (expected.get(name), seen.timers.get(name));
        let due = wanted.and_then(|wanted| due_ns(wanted, seen.now_ns));
        let fits = match (wanted, found) {
            (Some(wanted), Some(_)) if wanted == ANY => true,
            (Some(_), Some(found)) => due == Some(*found),
            _ => false,
        };
        if !fits {
            let found = found.map(|at_ns| json!(timestamp::format_ns(*at_ns)));
            let wanted = wanted.map(|wanted| match due {
                Some(due) => json!(timestamp::format_ns(due)),
                None => json!(wanted),
            });
            all.add(&format!("timer {name}"), "", wanted, found);
        }
    }
}

/// When a timer should be due: at a time, or this long from now.
fn due_ns(wanted: &str, now_ns: u64) -> Option<u64> {
    if let Ok(time_ns) = timestamp::parse_ns(wanted) {
        return Some(time_ns);
    }
    let wait = humantime::parse_duration(wanted).ok()?;
    now_ns.checked_add(u64::try_from(wait.as_nanos()).ok()?)
}

fn parked(expected: Option<&[String]>, seen: &Observation, all: &mut Differences) {
    let mut expected = expected.unwrap_or_default().to_vec();
    expected.sort();
    let found: Vec<_> = seen.parked.keys().cloned().collect();
    if expected != found {
        all.add("parked keys", "", Some(json!(expected)), Some(json!(found)));
    }
}
