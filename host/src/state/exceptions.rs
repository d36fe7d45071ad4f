//! Exceptions: what a state did with events that it did not fold, and the decisions behind them.
//!
//! A decision ([`Skip`]) belongs to a deployment, and applies to every state that has not passed
//! its event. What a state did with the event is an [`Exception`] in the state's own file, in the
//! commit that moved the state past the event. An exception never changes: a second fold of that
//! state skips the same events, whatever was decided since.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Release;
use crate::event::Event;
use crate::position::EventMark;

/// Most decisions per deployment.
pub const SKIPS_MAX: usize = 1_000;
/// Longest reason, in bytes.
pub const REASON_BYTES_MAX: usize = 500;
/// Longest error text in a decision, in bytes.
const ERROR_BYTES_MAX: usize = 500;

/// A decision to skip an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// The event.
    pub sequence: u64,
    /// The operator's reason.
    pub reason: String,
    /// When the operator decided, in RFC 3339.
    pub at: String,
    /// The failure at the time of the decision, as `kind: message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Identifies the event. Another event in its place, in a stream that was created again, is not
    /// skipped. None if the source could not read it: it is then passed without having been seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<SkippedEvent>,
}

impl Skip {
    /// A decision made now.
    pub fn new(sequence: u64, reason: &str, error: Option<String>, event: Option<&Event>) -> Self {
        Self {
            sequence,
            reason: reason.to_owned(),
            at: jiff::Timestamp::now().to_string(),
            error: error.map(|error| shortened(error, ERROR_BYTES_MAX)),
            event: event.map(SkippedEvent::of),
        }
    }

    /// Whether the decision is about this event.
    pub fn means(&self, event: &Event) -> bool {
        let digest = |known: &SkippedEvent| known.digest == SkippedEvent::of(event).digest;
        event.sequence == self.sequence && self.event.as_ref().is_none_or(digest)
    }
}

fn shortened(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
        text.push('…');
    }
    text
}

/// What a state did with an event instead of folding it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Exception {
    /// It was skipped, as an operator decided.
    Skipped(Skipped),
}

/// A skipped event, as far as known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The operator's reason.
    pub reason: String,
    /// When the operator decided, in RFC 3339.
    pub at: String,
    /// Its failure, as `kind: message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its description; none if the source could not read it.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub event: Option<SkippedEvent>,
}

/// Description of a skipped event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedEvent {
    /// Its subject.
    pub subject: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// When the stream stored it, in RFC 3339.
    pub time: String,
    /// SHA-256 over sequence, time, subject and data, in hexadecimal.
    pub digest: String,
}

impl Skipped {
    /// The exception to record when a state passes the event of a decision.
    pub fn new(skip: &Skip, event: Option<&Event>) -> Self {
        let Skip {
            reason,
            at,
            error,
            event: known,
            ..
        } = skip.clone();
        Self {
            reason,
            at,
            error,
            // What the source could read now is better than what was known at the decision.
            event: event.map(SkippedEvent::of).or(known),
        }
    }
}

impl SkippedEvent {
    fn of(event: &Event) -> Self {
        let time = jiff::Timestamp::from_nanosecond(i128::from(event.time_ns))
            .unwrap_or(jiff::Timestamp::MAX);
        Self {
            subject: event.subject.to_string(),
            kind: event.kind.to_string(),
            time: time.to_string(),
            digest: EventMark::of(event)
                .digest
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        }
    }
}

/// The decisions that apply to a state, and what another state did that it should equal. Cloning
/// shares them.
#[derive(Clone, Debug, Default)]
pub struct Skips(Arc<BTreeMap<u64, Skip>>, Arc<Past>);

/// What a state did with parked events, for another state that should equal it.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Its position; 0 if there is no such state.
    pub position: u64,
    /// All events that it ever parked, and that it did not drop; firings also if it dropped them.
    pub parked: BTreeSet<u64>,
    /// Which of them it applied later, or dropped, in order.
    pub releases: Vec<Release>,
}

impl Skips {
    /// The decisions of a deployment, for a state that is folded from the beginning.
    pub fn new(skips: impl IntoIterator<Item = Skip>) -> Self {
        let skips = skips.into_iter().map(|skip| (skip.sequence, skip));
        Self(Arc::new(skips.collect()), Arc::default())
    }

    /// The same decisions, and what a state did with parked events.
    pub fn with_past(self, past: Past) -> Self {
        Self(self.0, Arc::new(past))
    }

    /// What the state that should be equalled did with parked events.
    pub fn past(&self) -> &Arc<Past> {
        &self.1
    }

    /// The decisions with which a state that has passed `position` can be folded again: up to there
    /// exactly the events that it skipped, whatever was decided since, and after it the current
    /// decisions.
    pub fn as_folded(&self, exceptions: &BTreeMap<u64, Exception>, position: u64) -> Self {
        let done = exceptions
            .iter()
            .map(|(sequence, Exception::Skipped(skipped))| Skip {
                sequence: *sequence,
                reason: skipped.reason.clone(),
                at: skipped.at.clone(),
                error: skipped.error.clone(),
                event: skipped.event.clone(),
            });
        // Decisions up to the position were carried out, or came too late for that state.
        let ahead = self
            .0
            .range(position.saturating_add(1)..)
            .map(|(_, skip)| skip.clone());
        Self::new(done.chain(ahead))
    }

    /// Whether no event is skipped.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sequences, in rising order.
    pub fn sequences(&self) -> Arc<[u64]> {
        self.0.keys().copied().collect()
    }

    /// The decision about an event.
    pub fn get(&self, sequence: u64) -> Option<&Skip> {
        self.0.get(&sequence)
    }

    /// The exceptions to record when a state moves from `after` (exclusive) through `through`:
    /// `events` are the ones skipped in between. Decisions about events that the module does not
    /// read leave no trace.
    pub fn passed(&self, after: u64, through: u64, events: &[Event]) -> BTreeMap<u64, Exception> {
        if after >= through {
            return BTreeMap::new();
        }
        // A step that does not move passes nothing.
        let passed = self
            .0
            .range(after + 1..=through)
            .filter_map(|(sequence, skip)| {
                let event = events.iter().find(|event| event.sequence == *sequence);
                // Without a description nobody could read the event, so it cannot be among them.
                let is_noted = event.is_some() || skip.event.is_none();
                is_noted.then(|| (*sequence, Exception::Skipped(Skipped::new(skip, event))))
            });
        passed.collect()
    }

    /// Removes the events to skip from a list in rising order; none if all stay.
    pub fn leave_out(&self, events: &[Event]) -> Option<(Vec<Event>, Vec<Event>)> {
        let (first, last) = (events.first()?, events.last()?);
        // Most batches have none, and an event costs a digest only if there is a decision about its
        // sequence.
        self.0.range(first.sequence..=last.sequence).next()?;
        let is_meant = |event: &&Event| {
            let is_decided = self
                .get(event.sequence)
                .is_some_and(|skip| skip.means(event));
            // The other state has parked it first, and left it out later.
            is_decided && !self.1.parked.contains(&event.sequence)
        };
        let (left_out, kept): (Vec<&Event>, Vec<&Event>) = events.iter().partition(is_meant);
        let owned = |events: Vec<&Event>| events.into_iter().cloned().collect();
        (!left_out.is_empty()).then(|| (owned(kept), owned(left_out)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    fn event(sequence: u64) -> Event {
        let data = Payload::from("{}");
        Event {
            sequence,
            time_ns: 1,
            subject: "a.b".into(),
            kind: "b".into(),
            headers: Vec::new(),
            data,
        }
    }

    fn skip(sequence: u64) -> Skip {
        Skip::new(sequence, "broken", None, Some(&event(sequence)))
    }

    #[test]
    fn exceptions_are_read_as_they_were_written() {
        for event in [Some(event(3)), None] {
            let exception = Exception::Skipped(Skipped::new(&skip(3), event.as_ref()));
            let json = serde_json::to_string(&exception).expect("plain data");
            assert!(
                json.starts_with(r#"{"kind":"skipped","reason":"broken""#),
                "{json}"
            );
            assert_eq!(
                serde_json::from_str::<Exception>(&json).expect("the same"),
                exception,
                "{json}"
            );
        }
    }

    #[test]
    fn a_state_is_folded_again_as_it_was_whatever_was_decided_since() {
        let left_out = BTreeMap::from([(
            3,
            Exception::Skipped(Skipped::new(&skip(3), Some(&event(3)))),
        )]);
        let decided = Skips::new([skip(5), skip(9)]);
        assert_eq!(
            *decided.as_folded(&left_out, 7).sequences(),
            [3, 9],
            "3 was withdrawn, 5 was folded before"
        );
    }

    #[test]
    fn only_what_was_read_or_could_not_be_read_is_noted() {
        let unreadable = Skip {
            event: None,
            ..skip(6)
        };
        let skips = Skips::new([skip(2), skip(4), unreadable, skip(8)]);
        let noted = |after, through| {
            skips
                .passed(after, through, &[event(2)])
                .into_keys()
                .collect::<Vec<_>>()
        };
        assert_eq!(noted(0, 7), [2, 6]);
        assert_eq!(noted(2, 5), [0; 0]);
        assert_eq!(noted(7, 7), [0; 0]);
    }

    #[test]
    fn the_event_that_is_meant_is_left_out_and_no_other_in_its_place() {
        let skips = Skips::new([skip(2), skip(4)]);
        let sequences = |events: Vec<Event>| {
            events
                .iter()
                .map(|event| event.sequence)
                .collect::<Vec<_>>()
        };
        let (kept, left_out) = skips
            .leave_out(&[event(1), event(2), event(3)])
            .expect("2 is among them");
        assert_eq!(
            (sequences(kept), sequences(left_out)),
            (vec![1, 3], vec![2])
        );
        assert!(skips.leave_out(&[event(1), event(3), event(5)]).is_none());
        let other = Event {
            data: Payload::from("other"),
            ..event(2)
        };
        assert!(
            skips.leave_out(&[other]).is_none(),
            "the stream was made again"
        );
    }

    #[test]
    fn long_errors_are_shortened_between_characters() {
        let skip = Skip::new(1, "", Some("ä".repeat(400)), None);
        let error = skip.error.expect("it is kept");
        assert!(
            error.len() <= ERROR_BYTES_MAX + '…'.len_utf8() && error.ends_with("ä…"),
            "{error}"
        );
    }
}
