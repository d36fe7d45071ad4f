//! The events and messages of a scenario, checked against the schemas that the module carries.

use super::compare::Difference;
use super::document::{Document, Mistake};
use super::play::{Act, Played, Script};
use crate::cloudevents::message;
use crate::event::Header;
use crate::log::NewEvent;
use crate::schemas::{Checks, Direction, Violation};

/// Most violations that one scenario shows.
const SHOWN_MAX: usize = 20;

/// How events that happen and messages that are published violate their schemas.
pub(super) fn violations(
    checks: &Checks,
    document: &Document,
    script: &Script,
    played: &Played,
) -> Vec<Difference> {
    let mut found = Vec::new();
    if checks.is_empty() {
        return found;
    }
    if !script.invalid_events {
        events(checks, document, script, &mut found);
    }
    for (index, step) in played.steps.iter().enumerate() {
        for (number, message) in step.published.iter().enumerate() {
            let violation = checks.violation(Direction::Publishes, &message.kind, &message.data);
            found.extend(violation.map(|violation| {
                let what = format!("message {} ({})", number + 1, message.kind);
                difference(index + 1, &what, violation)
            }));
        }
    }
    found.truncate(SHOWN_MAX);
    found
}

/// Whether an event of a scenario violates its schema.
pub(crate) fn has_invalid_events(checks: &Checks, document: &Document) -> Result<bool, Mistake> {
    let mut found = Vec::new();
    for index in 0..document.scenarios().len() {
        events(checks, document, &Script::of(document, index)?, &mut found);
    }
    Ok(!found.is_empty())
}

fn events(checks: &Checks, document: &Document, script: &Script, found: &mut Vec<Difference>) {
    let steps = script.steps.iter().flat_map(|step| &step.acts);
    let events = script.given.iter().chain(steps).flat_map(|act| match act {
        Act::Events(events) => events.as_slice(),
        _ => &[],
    });
    let origins = script.origins.iter();
    let origins = origins.flat_map(|origin| std::iter::repeat_n(origin, origin.events));
    for (event, origin) in events.zip(origins) {
        // One that is repeated a thousand times need not be looked at to the end.
        if found.len() >= SHOWN_MAX {
            return;
        }
        let Some(kind) = kind(event) else {
            continue;
        };
        let violation = checks.violation(Direction::Reads, &kind, &event.data);
        found.extend(violation.map(|violation| Difference {
            place: document.place(&origin.path),
            ..difference(origin.step, &format!("event {}", event.subject), violation)
        }));
    }
}

/// The type of an event; none if it is within a CloudEvent that is its data.
fn kind(event: &NewEvent) -> Option<String> {
    if let Some(kind) = &event.kind {
        return Some(kind.clone());
    }
    let headers: Vec<Header> = event
        .headers
        .iter()
        .map(|(name, value)| (name.to_lowercase().into(), value.as_str().into()))
        .collect();
    if message::is_announced(&headers) {
        return None;
    }
    let named = message::kind_of_headers(&headers).map(|kind| kind.to_string());
    let last = event.subject.rsplit('.').next();
    named.or_else(|| last.map(str::to_owned))
}

fn difference(step: usize, what: &str, violation: Violation) -> Difference {
    let Violation {
        schema,
        keyword,
        pointer,
        message,
        expected,
        found,
    } = violation;
    let at = match keyword.as_str() {
        "" => String::new(),
        keyword => format!(" at {keyword}"),
    };
    Difference {
        step,
        place: None,
        what: format!("{what} does not fit the schema {schema}{at}: {message}; the data"),
        path: pointer,
        expected,
        found: Some(found),
        claim: Vec::new(),
    }
}
