//! Sources: where events come from, in order and without gaps.
//!
//! A source returns supervised readers. A reader starts after a position,
//! proves that the stream is the one to which the position belongs, reconnects
//! for as long as it takes, and stops with an error as soon as it can't prove
//! that nothing was skipped. It never acknowledges anything: the checkpoint is
//! ours.

pub mod embedded;
mod info;
pub mod jetstream;
mod kind;
mod outlet;
mod sources;
mod status;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::batch::{Batch, Limits};
use crate::event::Event;
use crate::failure;
use crate::position::{Checkpoint, Start};
use crate::subject::SubjectSet;

pub use info::Info;
pub(crate) use kind::{HostParts, NotBegun, SOURCE_KINDS};
pub use kind::{Reader, Source, SourceSettings, UnusableSource};
pub(crate) use outlet::{NotPublished, Outlet};
pub use sources::{NotChosen, Sources, Unknown};
pub use status::{SourceState, Status, StatusSender, doubt, heard, initial_status, lost, report};

/// Options of a reader.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where to continue; none starts from scratch, according to `start`.
    pub resume: Option<Checkpoint>,
    /// Where to begin when there is nothing to resume.
    pub start: Start,
    /// The sequence after which to begin when there is nothing to resume, whatever `start` says.
    pub begins_after: Option<u64>,
    /// The subjects to read.
    pub subjects: SubjectSet,
    /// Whether headers are wanted; otherwise they are parsed only as far as CloudEvents need.
    pub wants_headers: bool,
    /// The largest batch that one call of [`Reader::next`] may return.
    pub limits: Limits,
    /// Events up to this sequence may be missing from the stream, and are then counted. 0 accepts
    /// none.
    pub accepts_missing_through: u64,
    /// Sequences, in rising order, of events that the caller skips: a reader that can't read one of
    /// them passes it, with `through` after it, instead of stopping.
    pub skips: Arc<[u64]>,
}

/// What to do if events are gone from a stream that were not applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMissing {
    /// Stop, and wait for an operator.
    #[default]
    Stop,
    /// Count them and continue: for streams that lose events by design.
    Count,
}

impl OnMissing {
    /// Whether they are counted.
    pub fn is_count(self) -> bool {
        self == Self::Count
    }

    /// The sequence up to which events may be missing, for the given request.
    pub(crate) fn accepts_through(self, request: &Request) -> u64 {
        match self {
            Self::Stop => request.accepts_missing_through,
            Self::Count => u64::MAX,
        }
    }
}

/// Sequences that a stream no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The first of them.
    pub from: u64,
    /// The last of them.
    pub to: u64,
    /// Their number; none if unknown.
    pub count: Option<u64>,
}

impl fmt::Display for Missing {
    /// With its verb, as in `3 events (7 to 9) are`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, count } = *self;
        match count {
            None => write!(
                formatter,
                "an unknown number of events between {from} and {to} are"
            ),
            Some(1) => write!(formatter, "1 event ({from}) is"),
            Some(count) if count == to - from + 1 => {
                write!(formatter, "{count} events ({from} to {to}) are")
            }
            Some(count) => write!(formatter, "{count} events (between {from} and {to}) are"),
        }
    }
}

/// What a state has of a stream, to find out what the stream has lost of it.
#[derive(Clone, Copy, Debug)]
pub struct Had<'a> {
    /// The sequence after which it began.
    pub after: u64,
    /// Up to which sequence losses matter: at most its position.
    pub through: u64,
    /// The messages in between that it does not have because they were no events or were skipped,
    /// as ranges of sequences in rising order.
    pub without: &'a [(u64, u64)],
    /// The subjects of its events.
    pub subjects: &'a SubjectSet,
    /// How many events it has passed, and its position, if known.
    pub events: Option<(u64, u64)>,
}

/// Sequences of a state's range that a stream no longer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Name of the stream.
    pub stream: String,
    /// The sequences.
    pub missing: Missing,
    /// Which subjects they may have had.
    pub whose: Whose,
    /// Whether they are those that the state has passed, because the stream does not show what else
    /// it lacks. Otherwise they include what was missing when the state passed it.
    pub is_counted: bool,
}

/// What waits in a stream after a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It could not be asked just now.
    Unknown,
    /// Nothing that may match.
    Nothing,
    /// Events that may match, of which the first has this time, in nanoseconds since the Unix
    /// epoch.
    Since(u64),
}

/// Which subjects missing events may have had. What a stream has removed shows its subject no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The subjects that the state reads.
    Own,
    /// Perhaps others, that it does not read.
    PerhapsOthers,
}

impl From<bool> for Whose {
    fn from(reads_part: bool) -> Self {
        if reads_part {
            Self::PerhapsOthers
        } else {
            Self::Own
        }
    }
}

/// What an error says of missing events.
impl fmt::Display for Whose {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Own => "",
            Self::PerhapsOthers => {
                ", perhaps some or all of them of subjects that the module does not read,"
            }
        })
    }
}

/// Why a reader stopped for good. Conditions that may pass are states of the source instead
/// ([`Status`]).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream is not the one to which the checkpoint belongs.
    #[error("{0}")]
    Diverged(String),
    /// The stream ends before the checkpoint.
    #[error(
        "stream {stream} ends at {last}, before position {position}: its tail was lost; restore \
         the stream, or delete and deploy again to build from the remaining events"
    )]
    Truncated {
        /// Name of the stream.
        stream: String,
        /// Its last sequence.
        last: u64,
        /// The position that it no longer has.
        position: u64,
    },
    /// Events after the position were removed before they were read.
    #[error(
        "{missing} gone from stream {stream} without having been applied{whose} (removed by a \
         limit, a purge, an expiry or a deletion); restore the stream, or continue without them \
         with `foldstream resume --accept-missing`"
    )]
    Gap {
        /// Name of the stream.
        stream: String,
        /// What is missing.
        missing: Missing,
        /// Which subjects it may have had.
        whose: Whose,
    },
    /// A new state would lack events.
    #[error(
        "{missing} gone from stream {stream}{whose}, so a state built from it would lack them; \
         accept that with --accept-missing, or, if they are the first ones, begin after them with \
         --start first-available"
    )]
    Incomplete {
        /// Name of the stream.
        stream: String,
        /// What is missing.
        missing: Missing,
        /// Which subjects it may have had.
        whose: Whose,
    },
    /// The kind of stream cannot be read without losing events.
    #[error(
        "stream {stream} cannot be read: {reason}; keep events in a stream with retention limits, \
         such as one that has {stream} as a source"
    )]
    Unsupported {
        /// Name of the stream.
        stream: String,
        /// What is unsupported about it.
        reason: String,
    },
    /// A message cannot be parsed, however it is fetched.
    #[error(
        "message {sequence} of stream {stream} cannot be read: {reason}; inspect it with `nats \
         stream get`, or delete it"
    )]
    Unreadable {
        /// Name of the stream.
        stream: String,
        /// The sequence of the message; if the answer does not name it, that of the first requested
        /// one.
        sequence: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The embedded log can't be read.
    #[error(transparent)]
    Log(#[from] crate::log::Error),
}

impl Error {
    /// How many checks, some seconds apart, must show the same before it stops a reader. A server
    /// that has just started, or a newly elected leader, may not have the whole stream yet; and an
    /// answer that cannot be parsed may have been damaged on its way.
    pub(crate) fn checks(&self) -> u32 {
        match self {
            Self::Unsupported { .. } | Self::Log(_) => 1,
            Self::Diverged(_)
            | Self::Truncated { .. }
            | Self::Gap { .. }
            | Self::Incomplete { .. } => 2,
            Self::Unreadable { .. } => 3,
        }
    }

    /// The name of the error, as in `Failure::kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Diverged(_) => failure::SOURCE_DIVERGED,
            Self::Truncated { .. } => failure::SOURCE_TRUNCATED,
            Self::Gap { .. } => "source-gap",
            Self::Incomplete { .. } => "source-incomplete",
            Self::Unsupported { .. } => "source-unsupported",
            Self::Unreadable { .. } => failure::SOURCE_UNREADABLE,
            Self::Log(_) => "source-log",
        }
    }

    /// The sequence of the message that it is about, if it is about one.
    pub fn sequence(&self) -> Option<u64> {
        match self {
            Self::Unreadable { sequence, .. } => Some(*sequence),
            _ => None,
        }
    }
}

/// Why a source can't be looked into outside a reader at the moment.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The server can't be reached, or refuses.
    #[error("{0}")]
    Away(String),
    /// The server did not answer in time.
    #[error("no answer within {} s; check the servers and the network", .0.as_secs())]
    Late(Duration),
    /// The embedded log can't be read.
    #[error(transparent)]
    Log(#[from] crate::log::Error),
    /// The work ended early, because of a defect or because the host stops.
    #[error(transparent)]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Selects a page of events.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Start after this sequence.
    pub after: u64,
    /// Only these subjects; none means all.
    pub subjects: Option<SubjectSet>,
    /// Most events, at least 1.
    pub limit: usize,
    /// Size at which the page ends, in bytes.
    pub bytes_max: usize,
}

/// A page of events.
#[derive(Debug)]
pub struct Page {
    /// Those that match, in order.
    pub events: Vec<Event>,
    /// The last sequence that was examined.
    pub through: u64,
    /// The last sequence of the stream.
    pub head: u64,
}

/// Logs missing events that were passed over: once at first, and then whenever their number has
/// doubled.
#[derive(Debug, Default)]
struct Passed {
    count: u64,
    logged: u64,
}

impl Passed {
    fn note(&mut self, stream: &str, batch: &Batch) {
        self.count += batch.missing_between(batch.after, batch.through) + batch.overlooked;
        if self.count > self.logged.saturating_mul(2) {
            self.logged = self.count;
            warn!(
                stream,
                position = batch.through,
                missing = self.count,
                "events are gone from the stream and were passed over without being applied, as \
                 accepted"
            );
        }
    }
}
