//! Positions: how far some state is, in which stream, and the proof of it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::event::Event;

/// Which history a sequence belongs to. Two streams of one name that were
/// created at different times are different histories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamIdentity {
    /// Name of the stream.
    pub name: String,
    /// When the stream was created, in nanoseconds since the Unix epoch.
    pub created_ns: u64,
}

/// One event, remembered so that it can be recognised later.
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
        let mut hash = Sha256::new();
        hash.update(event.sequence.to_be_bytes());
        hash.update(event.time_ns.to_be_bytes());
        hash.update((event.subject.len() as u64).to_be_bytes());
        hash.update(event.subject.as_bytes());
        hash.update((event.data.len() as u64).to_be_bytes());
        hash.update(event.data.as_bytes());
        Self { sequence: event.sequence, time_ns: event.time_ns, digest: hash.finalize().into() }
    }
}

/// A durable position, committed together with the state that it describes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last sequence that the state reflects.
    pub position: u64,
    /// The stream that it counts in.
    pub stream: StreamIdentity,
    /// The last event that was applied, if there was any.
    pub last_event: Option<EventMark>,
}
