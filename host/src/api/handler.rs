//! Handlers: what waits in their outbox, what they may publish, and how safe that is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::effects::{EffectsFrom, InvalidEffectsFrom, Promise};

/// The outbox of a handler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Outbox {
    /// Messages that are not confirmed as stored yet.
    pub entries: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// Those of them that are not to be sent before a time.
    #[serde(default)]
    pub delayed: u64,
    /// Those of them that are set aside, because their condition does not hold: an operator sends or
    /// drops them.
    #[serde(default)]
    pub conflicts: u64,
    /// Age of the oldest of them that is durable here and could be sent, in seconds; 0 if there is
    /// none.
    pub oldest_seconds: f64,
    /// Whether the outbox is full, so that the handler handles no further events until some are
    /// confirmed.
    pub full: bool,
    /// 16 hexadecimal digits with which the ids of its messages begin, as in
    /// `fs.<lineage>.<sequence>.<sub>.<index>`.
    pub lineage: String,
    /// Number of the state file that owns the effects.
    #[serde(default)]
    pub state_file: u64,
    /// Counts changes of that file.
    pub epoch: u64,
    /// The position at which it took over the effects of another file, with the messages that
    /// waited there; 0 if it never did.
    #[serde(default)]
    pub owned_after: u64,
    /// Messages that events up to this sequence cause are not published: they were there before the
    /// first deploy.
    pub effects_after: u64,
    /// What it may publish, as `SUBJECTS@SOURCE`.
    pub grants: Vec<String>,
    /// What its module declares to publish and no grant covers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_granted: Vec<String>,
    /// The streams that it publishes to.
    pub targets: Vec<OutboxTarget>,
}

/// The timers of a handler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Timers {
    /// How many are pending.
    pub pending: u64,
    /// When the next of them that is durable fires; absent if none is pending, or while it is not
    /// known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<String>,
    /// How long the next one has been due, in seconds; 0 if none is due.
    #[serde(default)]
    pub overdue_seconds: f64,
    /// Why a timer that is due cannot fire at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The loop that its timers make; the host fires one of them a second.
    #[serde(default, rename = "loop", skip_serializing_if = "Option::is_none")]
    pub timer_loop: Option<TimerLoop>,
}

/// Timers each of which set the next for less than a second later, more often in a row than
/// `state.timers_in_a_row_max` allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TimerLoop {
    /// The name of the timer that is pending.
    pub timer: String,
    /// How many timers in a row led to it.
    pub in_a_row: u32,
    /// Since when the host has known.
    pub since: String,
}

/// A pending timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingTimer {
    /// Its name.
    pub name: String,
    /// When it fires.
    pub at: String,
    /// Sequence of the event, or of the firing, that set it.
    pub set_by: u64,
    /// The key of messages that it causes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// A timer that an operator fires or drops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TimerChanged {
    /// The timer.
    pub timer: PendingTimer,
    /// The sequence of the message in the handler's stream that does it, once the handler gets
    /// there. Absent of a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Events of its key are parked: it waits behind them, until they are retried or dropped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
}

/// Pending timers, in the order in which they fire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingTimers {
    /// The timers.
    pub timers: Vec<PendingTimer>,
    /// Pass this as `after` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A message that waits in an outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitingMessage {
    /// Its id, with which its stream recognises it.
    pub id: String,
    /// Name of the source to whose stream it goes.
    pub source: String,
    /// Its subject.
    pub subject: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Messages with the same key leave in order; empty if it has none.
    pub key: String,
    /// Sequence of the event that caused it.
    pub sequence: u64,
    /// When it was made.
    pub made_at: String,
    /// Size of its data, in bytes.
    pub bytes: u64,
    /// It is not sent before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// How long its stream keeps it, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_live_seconds: Option<u32>,
    /// On what condition it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_last: Option<ExpectedLast>,
    /// Why its condition does not hold; it is set aside until an operator sends or drops it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
    /// Why its stream, or a grant that is missing, refused it when the host last tried to send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// The condition on which a message is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExpectedLast {
    /// A subject or a pattern.
    pub subject: String,
    /// The sequence that its last message must have; 0 if there must not be any.
    pub sequence: u64,
}

/// Messages that wait, in the order in which they leave, source by source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitingMessages {
    /// The messages.
    pub messages: Vec<WaitingMessage>,
    /// Pass this as `after` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Messages to drop, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DropMessages {
    /// Their ids: 1 to 100.
    pub ids: Vec<String>,
    /// The reason, for the audit log: 1 to 500 bytes.
    pub reason: String,
}

/// Messages to send now, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SendMessages {
    /// Their ids: 1 to 100.
    pub ids: Vec<String>,
    /// The reason, for the audit log: 1 to 500 bytes.
    pub reason: String,
    /// Whether their conditions no longer count.
    #[serde(default)]
    pub without_condition: bool,
}

/// Messages that are sent now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SentMessages {
    /// The messages, as they wait now: until they are confirmed, or set aside again.
    pub messages: Vec<WaitingMessage>,
}

/// Messages that were dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DroppedMessages {
    /// The messages. They are not sent again; one that was sent without an answer may be stored all
    /// the same.
    pub dropped: Vec<WaitingMessage>,
    /// How many messages still wait.
    pub left: u64,
}

/// A stream that a handler publishes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OutboxTarget {
    /// Name of the source.
    pub source: String,
    /// How safe publishing is; absent before the stream was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promise: Option<Promise>,
    /// How long the stream recognises ids, in seconds, if the promise rests on that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_seconds: Option<f64>,
    /// The longest time that a message has ever waited for its confirmation, or has waited until now,
    /// in seconds; in whole seconds if that was before the host started.
    pub longest_wait_seconds: f64,
    /// Messages confirmed as stored since the host started.
    pub released: u64,
    /// Messages sent again since the host started.
    pub resent: u64,
    /// Why nothing is released at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Different reasons why some messages wait, at most three: that of the stream, and those for which
    /// it refuses the oldest messages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// The host reads back what the stream has stored before it sends anything, as after a start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads_back: Option<ReadBack>,
}

/// How far the host is in reading back what a stream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadBack {
    /// Messages that were looked at, or passed over.
    pub passed: u64,
    /// Of this many.
    pub of: u64,
}
