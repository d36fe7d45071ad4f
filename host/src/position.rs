//! Positions: how far a state is, in which stream, and the proof of that.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::event::Event;

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
            begins_after: None,
            missing: 0,
            passed_over: Vec::new(),
            duplicates: 0,
            events: None,
            missing_in_parts: 0,
        }
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
