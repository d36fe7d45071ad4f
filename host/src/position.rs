//! Positions: how far a state is, in which stream, and the proof of that.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::event::Event;

/// Where a new deployment begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// At sequence 1; refused if the stream no longer has it.
    #[default]
    Beginning,
    /// At the first event that the stream still has; the state lacks the earlier ones.
    FirstAvailable,
}

/// The name and creation time of a stream. Both are only hints: servers change the creation time of
/// a healthy stream, and a mirror that takes over may have another name. The proof is what was read
/// from the stream ([`EventMark`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamIdentity {
    /// Name of the stream.
    pub name: String,
    /// When the stream was created, in nanoseconds since the Unix epoch.
    pub created_ns: u64,
}

/// One event, described so that it can be recognised later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventMark {
    /// Its sequence.
    pub sequence: u64,
    /// When the stream stored it, in nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// SHA-256 over sequence, time, subject and data, each with its length.
    pub digest: [u8; 32],
}

impl EventMark {
    /// The mark of an event.
    pub fn of(event: &Event) -> Self {
        Self::of_message(
            event.sequence,
            event.time_ns,
            event.subject.as_bytes(),
            event.data.as_bytes(),
        )
    }

    /// The mark of a published message, which need not be an event.
    pub fn of_message(sequence: u64, time_ns: u64, subject: &[u8], data: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(sequence.to_be_bytes());
        hash.update(time_ns.to_be_bytes());
        // With their lengths, so that no bytes can move from one to the other.
        for part in [subject, data] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self {
            sequence,
            time_ns,
            digest: hash.finalize().into(),
        }
    }
}

/// Marks of some events before the last one: recent ones close together, older ones further apart.
/// If the last event is removed, an earlier one still proves that a stream is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EarlierMarks(Vec<EventMark>);

impl EarlierMarks {
    const MAX: usize = 6;
    /// Once there are that many, how many sequences lie between two new ones at least.
    const SPACING: u64 = 64;

    /// Whether a mark of this sequence would be added: not every event is worth a digest.
    pub fn is_due(&self, sequence: u64) -> bool {
        let last = self.0.last().map_or(0, |mark| mark.sequence);
        let spacing = if self.0.len() < Self::MAX {
            1
        } else {
            Self::SPACING
        };
        sequence >= last.saturating_add(spacing)
    }

    /// Adds a mark, if it is due.
    pub fn add(&mut self, mark: EventMark) {
        if !self.is_due(mark.sequence) {
            return;
        }
        self.0.push(mark);
        if self.0.len() > Self::MAX {
            self.thin();
        }
    }

    /// From the latest to the earliest.
    pub fn latest_first(&self) -> impl Iterator<Item = &EventMark> {
        self.0.iter().rev()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops the mark whose neighbours are closest together for their age.
    fn thin(&mut self) {
        let at = |index: usize| self.0[index].sequence;
        let newest = at(self.0.len() - 1);
        let closeness = |index: &usize| {
            let width = at(index + 1) - at(index - 1);
            let age = newest - at(index - 1);
            // In parts per million; the age is at least the width.
            u128::from(width) * 1_000_000 / u128::from(age.max(1))
        };
        if let Some(index) = (1..self.0.len() - 1).min_by_key(closeness) {
            self.0.remove(index);
        }
    }
}

/// A durable position, committed together with the state that it describes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last sequence that the state reflects.
    pub position: u64,
    /// The stream to which the position belongs.
    pub stream: StreamIdentity,
    /// The last applied event, if there is one.
    pub last_event: Option<EventMark>,
    /// The last message that was seen, whatever its subject, if it is later than the last applied
    /// event. A stream that lost its tail and grew again has another message in its place.
    // Format 1 lacks this field and the following ones.
    #[serde(default)]
    pub last_seen: Option<EventMark>,
    /// Events before the last applied one.
    #[serde(default, skip_serializing_if = "EarlierMarks::is_empty")]
    pub earlier: EarlierMarks,
    /// The sequence after which the state began; none if format 1 did not record it.
    #[serde(default)]
    pub begins_after: Option<u64>,
    /// How many sequences the stream no longer had when the state passed them, that the module may
    /// have wanted, and that were accepted as missing.
    #[serde(default)]
    pub missing: u64,
    /// Messages that matched but are not events, as ranges of sequences in rising order; only the
    /// latest ones. If they are removed later, nothing is lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<(u64, u64)>,
    /// Events that were left out because their producer had published them before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub duplicates: u64,
    /// How many events of its subjects the state has passed since its beginning, whatever became of
    /// them: applied, skipped, parked or duplicates. A second fold that passes fewer lacks some.
    /// None if an earlier release has built a part of the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
    /// How many events, at most, entries lack that were rebuilt by key after the stream had lost
    /// them, as accepted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing_in_parts: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Checkpoint {
    /// A position in a stream without proof.
    pub fn at(position: u64, stream: StreamIdentity) -> Self {
        Self {
            position,
            stream,
            last_event: None,
            last_seen: None,
            earlier: EarlierMarks::default(),
            begins_after: None,
            missing: 0,
            passed_over: Vec::new(),
            duplicates: 0,
            events: None,
            missing_in_parts: 0,
        }
    }

    /// How many events the state lacks, at most, in all of it or in parts of it.
    pub fn missing_in_all(&self) -> u64 {
        self.missing.saturating_add(self.missing_in_parts)
    }

    /// What was seen of the stream, latest first: the last message seen, and the last event
    /// applied.
    pub fn marks(&self) -> impl Iterator<Item = &EventMark> {
        self.last_seen.iter().chain(&self.last_event)
    }

    /// Whether it belongs to the same stream as another, as far as both can tell. One of them may
    /// not know yet that the stream has another creation time: then what both saw at one sequence
    /// decides.
    pub fn is_of_same_stream(&self, other: &Self) -> bool {
        // The usual case, which needs no proof.
        if self.stream == other.stream {
            return true;
        }
        self.marks()
            .any(|one| other.marks().any(|another| one == another))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(sequence: u64) -> EventMark {
        EventMark::of_message(sequence, 0, b"orders", b"{}")
    }

    #[test]
    fn earlier_marks_are_close_together_at_the_end_and_reach_back_to_the_beginning() {
        let mut marks = EarlierMarks::default();
        for sequence in 1..=100_000 {
            marks.add(mark(sequence));
        }
        let sequences: Vec<u64> = marks.latest_first().map(|mark| mark.sequence).collect();
        assert_eq!(sequences.len(), EarlierMarks::MAX, "{sequences:?}");
        assert_eq!(sequences.last(), Some(&1));
        assert!(sequences[0] > 100_000 - 64, "{sequences:?}");
        assert!(sequences[1] > 90_000, "{sequences:?}");
        assert!(sequences.is_sorted_by(|one, next| one > next));
        assert!(!marks.is_due(sequences[0]), "not twice");
    }

    #[test]
    fn few_events_are_all_marked() {
        let mut marks = EarlierMarks::default();
        for sequence in [3, 3, 7, 8] {
            marks.add(mark(sequence));
        }
        let sequences: Vec<u64> = marks.latest_first().map(|mark| mark.sequence).collect();
        assert_eq!(sequences, [8, 7, 3]);
    }
}
