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
/// Most events that were dropped behind others, in all decisions of a deployment. Each takes some
/// 25 bytes of the deployment's row.
pub const BEHIND_MAX: usize = 100_000;
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
    /// Later events of its key, which waited behind it and were dropped with it.
    #[serde(default, skip_serializing_if = "Behind::is_empty")]
    pub behind: Behind,
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
            behind: Behind::default(),
        }
    }

    /// Whether it is about the event of this sequence, or one behind it.
    pub fn has(&self, sequence: u64) -> bool {
        self.sequence == sequence || self.behind.has(sequence)
    }

    /// The decision that a state carried out.
    pub fn carried_out(sequence: u64, skipped: &Skipped) -> Self {
        let Skipped {
            reason,
            at,
            error,
            event,
        } = skipped.clone();
        Self {
            sequence,
            reason,
            at,
            error,
            event,
            behind: Behind::default(),
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

/// The beginning of the digest of an event, which tells it from another one in its place.
pub type Mark = u32;

fn mark_of(event: &Event) -> Mark {
    let [first, second, third, fourth, ..] = EventMark::of(event).digest;
    Mark::from_be_bytes([first, second, third, fourth])
}

/// Events that were dropped behind another one: sequences in rising order, with marks. There may be
/// many, so nothing else is kept of them. Cloning shares them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, Mark)>", into = "Vec<(u64, Mark)>")]
pub struct Behind(Arc<[(u64, Mark)]>);

impl From<Vec<(u64, Mark)>> for Behind {
    fn from(events: Vec<(u64, Mark)>) -> Self {
        Self(events.into())
    }
}

impl From<Behind> for Vec<(u64, Mark)> {
    fn from(behind: Behind) -> Self {
        behind.0.to_vec()
    }
}

impl Behind {
    /// What is kept of an event.
    pub fn entry(event: &Event) -> (u64, Mark) {
        (event.sequence, mark_of(event))
    }

    /// The same without one of them.
    pub fn without(&self, sequence: u64) -> Self {
        let others = self.0.iter().copied();
        let others: Vec<_> = others.filter(|(other, _)| *other != sequence).collect();
        others.into()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether an event is among them, by sequence.
    pub fn has(&self, sequence: u64) -> bool {
        let found = self.0.binary_search_by_key(&sequence, |(known, _)| *known);
        found.is_ok()
    }
}

/// What a state did with an event instead of folding it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Exception {
    /// It was skipped, as an operator decided.
    // Boxed, because there may be many of the others, and all are in memory.
    Skipped(Box<Skipped>),
    /// It waited behind a parked event of its key, and was dropped with it.
    DroppedBehind {
        /// The sequence of that event.
        first: u64,
        /// Tells it from another one in its place.
        mark: Mark,
    },
}

impl Exception {
    /// What a state did with the event of a decision; `event` as far as it could be read.
    pub fn skipped(skip: &Skip, event: Option<&Event>) -> Self {
        Self::Skipped(Box::new(Skipped::new(skip, event)))
    }

    /// What a state did with an event that was dropped behind another.
    pub fn dropped_behind(first: u64, event: &Event) -> Self {
        let mark = mark_of(event);
        Self::DroppedBehind { first, mark }
    }
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
pub struct Skips(Arc<Decided>, Arc<Past>);

/// Which events are left out.
#[derive(Debug, Default)]
struct Decided {
    skips: BTreeMap<u64, Skip>,
    /// Those that are left out with another one: its sequence, and their mark.
    behind: BTreeMap<u64, (u64, Mark)>,
}

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
        let mut decided = Decided::default();
        for skip in skips {
            let behind = skip.behind.0.iter();
            decided
                .behind
                .extend(behind.map(|(sequence, mark)| (*sequence, (skip.sequence, *mark))));
            decided.skips.insert(skip.sequence, skip);
        }
        Self(Arc::new(decided), Arc::default())
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
        let mut decided = Decided::default();
        for (sequence, exception) in exceptions {
            match exception {
                Exception::Skipped(skipped) => {
                    let skip = Skip::carried_out(*sequence, skipped);
                    decided.skips.insert(*sequence, skip);
                }
                Exception::DroppedBehind { first, mark } => {
                    decided.behind.insert(*sequence, (*first, *mark));
                }
            }
        }
        // Decisions up to the position were carried out, or came too late for that state.
        let ahead = position.saturating_add(1)..;
        let skips = self.0.skips.range(ahead.clone());
        decided
            .skips
            .extend(skips.map(|(sequence, skip)| (*sequence, skip.clone())));
        decided.behind.extend(self.0.behind.range(ahead));
        Self(Arc::new(decided), Arc::default())
    }

    /// Whether no event is skipped.
    pub fn is_empty(&self) -> bool {
        self.0.skips.is_empty() && self.0.behind.is_empty()
    }

    /// The sequences, in rising order.
    pub fn sequences(&self) -> Arc<[u64]> {
        let Decided { skips, behind } = &*self.0;
        let sequences: BTreeSet<u64> = skips.keys().chain(behind.keys()).copied().collect();
        sequences.into_iter().collect()
    }

    /// Whether there is a decision about an event.
    pub fn has(&self, sequence: u64) -> bool {
        self.0.skips.contains_key(&sequence) || self.0.behind.contains_key(&sequence)
    }

    /// What a state does with an event instead of folding it; none if nothing was decided about it.
    pub fn exception(&self, event: &Event) -> Option<Exception> {
        if let Some(skip) = self.0.skips.get(&event.sequence) {
            return skip
                .means(event)
                .then(|| Exception::skipped(skip, Some(event)));
        }
        let (first, mark) = *self.0.behind.get(&event.sequence)?;
        (mark == mark_of(event)).then_some(Exception::DroppedBehind { first, mark })
    }

    /// The exceptions to record when a state moves from `after` (exclusive) through `through`:
    /// `events` are the ones skipped in between. Decisions about events that the module does not
    /// read leave no trace.
    pub fn passed(&self, after: u64, through: u64, events: &[Event]) -> BTreeMap<u64, Exception> {
        // A step that does not move passes nothing.
        if after >= through {
            return BTreeMap::new();
        }
        let passed = after + 1..=through;
        // Without a description nobody could read the event, so it cannot be among them.
        let unread = self.0.skips.range(passed.clone());
        let unread = unread.filter(|(_, skip)| skip.event.is_none());
        let mut noted: BTreeMap<_, _> = unread
            .map(|(sequence, skip)| (*sequence, Exception::skipped(skip, None)))
            .collect();
        let read = events
            .iter()
            .filter(|event| passed.contains(&event.sequence));
        noted.extend(read.filter_map(|event| Some((event.sequence, self.exception(event)?))));
        noted
    }

    /// Removes the events to skip from a list in rising order; none if all stay.
    pub fn leave_out(&self, events: &[Event]) -> Option<(Vec<Event>, Vec<Event>)> {
        let covered = events.first()?.sequence..=events.last()?.sequence;
        // Most batches have none, and an event costs a digest only if there is a decision about its
        // sequence.
        let skip = self.0.skips.range(covered.clone()).next();
        if skip.is_none() && self.0.behind.range(covered).next().is_none() {
            return None;
        }
        // What the other state has parked first, it left out later.
        let is_meant = |event: &&Event| {
            self.exception(event).is_some() && !self.1.parked.contains(&event.sequence)
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

    fn behind(sequences: &[u64]) -> Behind {
        let events = sequences.iter().map(|sequence| event(*sequence));
        let entries: Vec<_> = events.map(|event| Behind::entry(&event)).collect();
        entries.into()
    }

    #[test]
    fn exceptions_are_read_as_they_were_written() {
        for event in [Some(event(3)), None] {
            let exception = Exception::skipped(&skip(3), event.as_ref());
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
        let left_out = BTreeMap::from([
            (3, Exception::skipped(&skip(3), Some(&event(3)))),
            (4, Exception::dropped_behind(3, &event(4))),
        ]);
        let behind = behind(&[6, 10]);
        let decided = Skips::new([Skip { behind, ..skip(5) }, skip(9)]);
        assert_eq!(
            *decided.as_folded(&left_out, 7).sequences(),
            [3, 4, 9, 10],
            "3 and 4 were withdrawn, 5 and 6 were folded before"
        );
    }

    #[test]
    fn events_behind_another_are_left_out_with_it_and_read_as_they_were_written() {
        let behind = behind(&[4, 5]);
        let decided = Skip { behind, ..skip(2) };
        let json = serde_json::to_string(&decided).expect("plain data");
        assert_eq!(
            serde_json::from_str::<Skip>(&json).expect("the same"),
            decided,
            "{json}"
        );
        let skips = Skips::new([decided.clone()]);
        let (kept, left_out) = skips
            .leave_out(&[event(2), event(3), event(4), event(5)])
            .expect("three are among them");
        assert_eq!((kept.len(), left_out.len()), (1, 3));
        let noted = skips.passed(3, 9, &left_out);
        assert_eq!(noted.into_keys().collect::<Vec<_>>(), [4, 5]);
        let other = Event {
            data: Payload::from("other"),
            ..event(4)
        };
        assert!(
            skips.leave_out(&[other]).is_none(),
            "the stream was made again"
        );
        assert!(decided.has(5) && !decided.behind.without(5).has(5));
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
