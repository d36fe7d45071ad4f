//! Compares the actual state with what a scenario expects.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::expand::ANY;
use super::file::{ExpectedFailure, ExpectedMessage, FailureKind, Then};
use super::observe::{Message, Observation};
use super::places::Place;
use crate::event::Payload;
use crate::failure::Failure;
use crate::timestamp;

/// The member of an object that allows others which are not named.
const OTHERS: &str = "...";
/// Most differences that one step shows.
const SHOWN_MAX: usize = 50;

/// A difference between the actual state and the expected one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Difference {
    /// The step, from 1.
    pub step: usize,
    /// Where the file claims it, if that is known.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What differs: `entry customer/ada`, `message 2`.
    pub what: String,
    /// Where in it, as a JSON pointer; empty if as a whole.
    pub path: String,
    /// What there should be; absent if nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<Value>,
    /// The actual value; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<Value>,
    /// The path below `then` of what claims it.
    #[serde(skip)]
    pub(super) claim: Vec<String>,
}

/// What values are compared for.
pub(super) struct Subject {
    /// In words.
    what: String,
    /// The path below `then` of what claims it; empty if no file does.
    claim: Vec<String>,
}

impl Subject {
    /// Something that no file claims.
    pub(super) fn of(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            claim: Vec::new(),
        }
    }

    fn claimed(what: impl Into<String>, claim: &[&str]) -> Self {
        Self {
            what: what.into(),
            claim: claim.iter().map(|&part| part.to_owned()).collect(),
        }
    }
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

    fn add(
        &mut self,
        subject: &Subject,
        path: &[String],
        expected: Option<Value>,
        found: Option<Value>,
    ) {
        let escaped = |part: &String| format!("/{}", part.replace('~', "~0").replace('/', "~1"));
        self.found.push(Difference {
            step: self.step,
            place: None,
            what: subject.what.clone(),
            path: path.iter().map(escaped).collect(),
            expected,
            found,
            claim: subject.claim.iter().chain(path).cloned().collect(),
        });
    }

    pub(super) fn values(
        &mut self,
        subject: &Subject,
        expected: Option<&Value>,
        found: Option<&Value>,
    ) {
        self.values_at(subject, &mut Vec::new(), expected, found);
    }

    /// Compares values member by member, so that a difference shows where it is.
    fn values_at(
        &mut self,
        subject: &Subject,
        path: &mut Vec<String>,
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
                    path.push(name.clone());
                    self.values_at(subject, path, expected.get(name), found.get(name));
                    path.pop();
                }
            }
            (Some(Value::Array(expected)), Some(Value::Array(found))) => {
                for index in 0..expected.len().max(found.len()) {
                    path.push(index.to_string());
                    self.values_at(subject, path, expected.get(index), found.get(index));
                    path.pop();
                }
            }
            (Some(expected), Some(found)) if is_same(expected, found) => {}
            (None, None) => {}
            (expected, found) => self.add(subject, path, expected.cloned(), found.cloned()),
        }
    }

    /// Compares a payload with a value: a text stands for the payload that is this text.
    fn payload(&mut self, subject: &Subject, path: &str, expected: &Value, found: &Payload) {
        if expected.as_str().is_some() && expected.as_str() == found.as_str() {
            return;
        }
        let mut path: Vec<String> = path.split_terminator('/').map(str::to_owned).collect();
        self.values_at(subject, &mut path, Some(expected), Some(&found.to_json()));
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
            answer(index, answers.get(index), found, &mut all);
        }
    }
    if let Some(published) = &then.published {
        for index in 0..published.len().max(seen.published.len()) {
            let found = seen.published.get(index);
            message((index, seen.now_ns), published.get(index), found, &mut all);
        }
    }
    if let Some(timers) = &then.timers {
        compare_timers(timers, seen, &mut all);
    }
    parked(then.parked.as_deref(), seen, &mut all);
    if let Some(position) = then.position {
        let subject = Subject::claimed("position", &["position"]);
        all.values(
            &subject,
            Some(&json!(position)),
            Some(&json!(seen.position)),
        );
    }
    all.all()
}

fn failure(expected: Option<&ExpectedFailure>, found: Option<&Failure>, all: &mut Differences) {
    let shown = |failure: &Failure| json!({ "kind": failure.kind, "message": failure.message, "event": failure.sequence });
    let subject = Subject::claimed("failure", &["failure"]);
    match (expected, found) {
        (None, None) => {}
        (None, Some(found)) => all.add(&subject, &[], None, Some(shown(found))),
        (Some(expected), None) => {
            let expected = serde_json::to_value(expected).expect("plain data");
            all.add(&subject, &[], Some(expected), None);
        }
        (Some(expected), Some(found)) => {
            let mut differs = |part: &str, expected: Value, found: Value| {
                all.add(&subject, &[part.to_owned()], Some(expected), Some(found));
            };
            let kind = expected.kind.map(FailureKind::name);
            if let Some(kind) = kind.filter(|kind| *kind != found.kind) {
                differs("kind", json!(kind), json!(found.kind));
            }
            let lacks = |part: &&String| !found.message.contains(part.as_str());
            if let Some(message) = expected.message.as_ref().filter(lacks) {
                differs("message", json!(message), json!(found.message));
            }
            if expected.event.is_some() && expected.event != found.sequence {
                differs("event", json!(expected.event), json!(found.sequence));
            }
        }
    }
}

fn entries(then: &Then, seen: &Observation, all: &mut Differences) {
    for (key, expected) in &then.entries {
        let subject = Subject::claimed(format!("entry {key}"), &["entries", key]);
        match (expected, seen.entries.get(key)) {
            (Value::Null, None) => {}
            (Value::Null, Some(found)) => all.add(&subject, &[], None, Some(found.to_json())),
            (expected, None) => all.add(&subject, &[], Some(expected.clone()), None),
            (expected, Some(found)) => all.payload(&subject, "", expected, found),
        }
    }
    if !then.no_other_entries {
        return;
    }
    let others = seen
        .entries
        .iter()
        .filter(|(key, _)| !then.entries.contains_key(*key));
    for (key, value) in others {
        let subject = Subject::claimed(format!("entry {key}"), &["no_other_entries"]);
        all.add(&subject, &[], None, Some(value.to_json()));
    }
}

fn answer(
    index: usize,
    expected: Option<&Value>,
    found: Option<&Result<Payload, String>>,
    all: &mut Differences,
) {
    let number = index.to_string();
    let subject = Subject::claimed(format!("answer {}", index + 1), &["answers", &number]);
    let wanted_error = expected
        .and_then(Value::as_object)
        .filter(|members| members.len() == 1)
        .and_then(|members| members.get("$error"))
        .and_then(Value::as_str);
    match (wanted_error, expected, found) {
        (Some(part), _, Some(Err(error))) if error.contains(part) => {}
        (_, expected, Some(Err(error))) => {
            let found = json!({ "$error": error });
            all.add(&subject, &[], expected.cloned(), Some(found));
        }
        (_, Some(expected), Some(Ok(found))) => all.payload(&subject, "", expected, found),
        (_, expected, found) => {
            let found = found.and_then(|found| found.as_ref().ok());
            all.add(
                &subject,
                &[],
                expected.cloned(),
                found.map(Payload::to_json),
            );
        }
    }
}

fn message(
    (index, now_ns): (usize, u64),
    expected: Option<&ExpectedMessage>,
    found: Option<&Message>,
    all: &mut Differences,
) {
    let number = index.to_string();
    let subject = Subject::claimed(format!("message {}", index + 1), &["published", &number]);
    let (expected, found) = match (expected, found) {
        (Some(expected), Some(found)) => (expected, found),
        (expected, found) => {
            let expected =
                expected.map(|message| serde_json::to_value(message).expect("plain data"));
            all.add(&subject, &[], expected, found.map(Message::to_json));
            return;
        }
    };
    let mut text = |path: &[&str], expected: Option<&String>, found: Option<&String>| {
        if let Some(expected) = expected {
            let mut path: Vec<String> = path.iter().map(|&part| part.to_owned()).collect();
            let (expected, found) = (json!(expected), found.map(|found| json!(found)));
            all.values_at(&subject, &mut path, Some(&expected), found.as_ref());
        }
    };
    text(&["subject"], Some(&expected.subject), Some(&found.subject));
    text(&["type"], expected.kind.as_ref(), Some(&found.kind));
    text(&["key"], expected.key.as_ref(), Some(&found.key));
    for (name, value) in &expected.headers {
        let found = found
            .headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name));
        text(
            &["headers", name],
            Some(value),
            found.map(|(_, value)| value),
        );
    }
    if let Some(data) = &expected.data {
        all.payload(&subject, "data/", data, &found.data);
    }
    compare_deliveries(&subject, (expected, found), now_ns, all);
}

fn compare_deliveries(
    subject: &Subject,
    (expected, found): (&ExpectedMessage, &Message),
    now_ns: u64,
    all: &mut Differences,
) {
    let of_found = found.to_json();
    let mut value = |name: &str, expected: Option<Value>| {
        if let Some(expected) = expected {
            let mut path = vec![name.to_owned()];
            all.values_at(subject, &mut path, Some(&expected), of_found.get(name));
        }
    };
    // As a time, whatever way it is written.
    let not_before = expected.not_before.as_ref().map(|wanted| {
        let time_ns = due_ns(wanted, now_ns);
        json!(time_ns.map_or_else(|| wanted.clone(), timestamp::format_ns))
    });
    value("not_before", not_before);
    let seconds = expected.time_to_live_seconds.map(|seconds| json!(seconds));
    value("time_to_live_seconds", seconds);
    let expected_last = expected.expected_last.as_ref().map(|last| {
        let subject = last.subject.as_ref().unwrap_or(&found.subject);
        json!({ "subject": subject, "sequence": last.sequence })
    });
    value("expected_last", expected_last);
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
            let subject = Subject::claimed(format!("timer {name}"), &["timers", name]);
            all.add(&subject, &[], wanted, found);
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
        let subject = Subject::claimed("parked keys", &["parked"]);
        all.add(&subject, &[], Some(json!(expected)), Some(json!(found)));
    }
}
