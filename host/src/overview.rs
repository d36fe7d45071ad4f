//! How deployments are, as plain data: what metrics, rollouts and the API show of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::effects::Promise;
use crate::failure::Failure;
use crate::progress::DeploymentState;
use crate::sagas::Saga;
use crate::source::Status;
use crate::state::catalogue::{
    BuildSettings, Comparison, GenerationStatus, ModuleInfo, OnFailure, Strategy,
};
use crate::state::exceptions;

/// A deployment.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Its name.
    pub name: String,
    /// Number of the active generation.
    pub generation: u64,
    /// What it is doing.
    pub state: DeploymentState,
    /// The source that it reads.
    pub source: String,
    /// The stream that it reads, if known.
    pub stream: Option<String>,
    /// The state of the source, as this deployment sees it.
    pub source_status: Status,
    /// The last sequence that its state reflects.
    pub position: u64,
    /// The last durable position.
    pub checkpoint: u64,
    /// The last sequence in the stream; none while unknown, because the source can't be reached.
    pub head: Option<u64>,
    /// How many events that may match are not applied yet; none while unknown.
    pub lag_events: Option<u64>,
    /// Age of the oldest event that is not applied yet, in seconds; 0 if there is none, and
    /// none while unknown.
    pub lag_seconds: Option<f64>,
    /// Events that were already gone from the stream when the state, or a part of it, was built
    /// without them, as accepted.
    pub missing_events: u64,
    /// Events applied since the host started.
    pub events_applied: u64,
    /// Whether its module has applied an event since it started, was replaced or was resumed, or
    /// found, with the source connected, that there is nothing to apply.
    pub begun: bool,
    /// Events per second, over the last seconds.
    pub rate: f64,
    /// Estimated seconds until it has caught up; none if it is not catching up, or unknown.
    pub remaining_seconds: Option<f64>,
    /// How much of the state file is repaired, in percent, while it is opened after an unclean
    /// stop.
    pub repair_percent: Option<f64>,
    /// Keys and values, in bytes.
    pub state_bytes: u64,
    /// The part of the state that is only in memory, including overhead, in bytes.
    pub memtable_bytes: u64,
    /// Memory held only because a reader still uses an older state, in bytes.
    pub pinned_bytes: u64,
    /// Disk space of the state file, in bytes.
    pub file_bytes: u64,
    /// Linear memory of its instances, in bytes.
    pub guest_memory_bytes: u64,
    /// Number of instances of its module.
    pub instances: u64,
    /// When it was deployed.
    pub deployed_at: String,
    /// Why this generation is active.
    pub reason: String,
    /// The first error of the current streak of failures.
    pub failure: Option<Failure>,
    /// Events that its state skipped, as an operator decided.
    pub skipped: u64,
    /// What happens to an event that has used up its attempts.
    pub on_failure: OnFailure,
    /// Where failure events go, if they go anywhere.
    pub failure_events: Option<FailureEvents>,
    /// Events after this sequence are checked against the schemas of its module; none checks none.
    pub checks_events_after: Option<u64>,
    /// What the active state has parked: it lacks the effects of these events.
    pub parked: Parked,
    /// The latest decisions to skip events, by rising sequence; only if requested.
    pub skips: Vec<Skip>,
    /// Its outbox, if it is a handler.
    pub outbox: Option<Outbox>,
    /// Its inbox, if its module asks for one.
    pub inbox: Option<Inbox>,
    /// Its lanes, if it is a projection with several.
    pub lanes: Option<Lanes>,
    /// Its timers, if it is a handler that sets any.
    pub timers: Option<Timers>,
    /// Its sagas, if it is a handler that has any; only when one deployment is requested.
    pub sagas: Vec<Saga>,
    /// Its module.
    pub module: ModuleInfo,
    /// The generation that is being built, or waits to take over.
    pub candidate: Option<Box<Generation>>,
    /// The generation that was active before and can become active again at once.
    pub previous: Option<Box<Generation>>,
}

/// A generation.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Its number; numbers only rise.
    pub number: u64,
    /// Its role.
    pub status: GenerationStatus,
    /// Why it has this status.
    pub reason: String,
    /// When it got its status.
    pub status_since: String,
    /// When it was deployed.
    pub created_at: String,
    /// How its state was created.
    pub strategy: Strategy,
    /// Number in the name of its state file: its own, or that of the generation whose state it
    /// inherited.
    pub state_file: u64,
    /// What it is doing, while it runs.
    pub state: Option<DeploymentState>,
    /// How many rebuilds are ahead of it while it waits for its turn.
    pub queued_behind: Option<u64>,
    /// The last sequence that its state reflects.
    pub position: u64,
    /// The last durable position.
    pub checkpoint: u64,
    /// The last sequence in the stream; none while unknown, or while it does not run.
    pub head: Option<u64>,
    /// How many events that may match are not applied yet; none while unknown, or while it does
    /// not run.
    pub lag_events: Option<u64>,
    /// Progress towards the head, from 0 to 1, counted from the start of the build; none while
    /// unknown.
    pub progress: Option<f64>,
    /// Events per second, over the last seconds.
    pub rate: f64,
    /// Estimated seconds until it has caught up; none if it makes no progress at the moment, or
    /// unknown.
    pub remaining_seconds: Option<f64>,
    /// The state of the source as this generation sees it, while it runs.
    pub source_status: Option<Status>,
    /// Events that were already gone from the stream when its state passed them, and were accepted
    /// as missing.
    pub missing_events: u64,
    /// How many events of the active generation it lacks because they are gone from the stream, if
    /// that keeps it from taking over until an operator accepts it; otherwise 0.
    pub lacks_events: u64,
    /// Why it does not take over although it is ready, as the last attempt found; none if nothing
    /// keeps it, or if it waits for an operator.
    pub held_back: Option<String>,
    /// Disk space of the state file, in bytes; 0 if it has none.
    pub file_bytes: u64,
    /// Events that its state skipped, as an operator decided.
    pub skipped: u64,
    /// What its state has parked: it lacks the effects of these events.
    pub parked: Parked,
    /// Keys and values, in bytes.
    pub state_bytes: u64,
    /// The first error of the current streak of failures.
    pub failure: Option<Failure>,
    /// The event that its code could not apply, if it failed or was replaced because of that.
    pub failed_at: Option<u64>,
    /// Events after this sequence are checked against the schemas of its module; none checks none.
    pub checks_events_after: Option<u64>,
    /// The options with which it was built.
    pub build: BuildSettings,
    /// The result of the last comparison with the active generation.
    pub comparison: Option<Comparison>,
    /// Its module.
    pub module: ModuleInfo,
}

/// Where failure events go.
#[derive(Clone, Debug)]
pub struct FailureEvents {
    /// As an operator writes it: `SUBJECT@SOURCE`.
    pub to: String,
    /// Why some are not published, while there are some.
    pub trouble: Option<String>,
}

/// How much is parked.
#[derive(Clone, Debug, Default)]
pub struct Parked {
    /// Keys with parked events.
    pub keys: u64,
    /// Parked events.
    pub events: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// When the oldest failure was parked; none if nothing is parked. A key whose failed event was
    /// dropped waits since the stream stored its first event.
    pub since: Option<String>,
}

/// The outbox of a handler.
#[derive(Clone, Debug)]
pub struct Outbox {
    /// Messages that are not confirmed as stored yet.
    pub entries: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// Those of them that are not to be sent before a time.
    pub delayed: u64,
    /// Those of them that are set aside, because their condition does not hold: an operator sends or
    /// drops them.
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
    pub state_file: u64,
    /// Counts changes of that file.
    pub epoch: u64,
    /// The position at which it took over the effects of another file, with the messages that
    /// waited there; 0 if it never did.
    pub owned_after: u64,
    /// Messages that events up to this sequence cause are not published: they were there before the
    /// first deploy.
    pub effects_after: u64,
    /// What it may publish, as `SUBJECTS@SOURCE`.
    pub grants: Vec<String>,
    /// What its module declares to publish and no grant covers.
    pub not_granted: Vec<String>,
    /// The streams that it publishes to.
    pub targets: Vec<OutboxTarget>,
}

/// The timers of a handler.
#[derive(Clone, Debug)]
pub struct Timers {
    /// How many are pending.
    pub pending: u64,
    /// When the next of them that is durable fires; none if none is pending, or while it is not
    /// known.
    pub next_at: Option<String>,
    /// How long the next one has been due, in seconds; 0 if none is due.
    pub overdue_seconds: f64,
    /// Why a timer that is due cannot fire at the moment.
    pub trouble: Option<String>,
    /// Since when.
    pub since: Option<String>,
    /// The loop that its timers make.
    pub timer_loop: Option<TimerLoop>,
}

/// Timers that set each other for at once, without an end in sight.
#[derive(Clone, Debug)]
pub struct TimerLoop {
    /// The timer that is pending.
    pub timer: String,
    /// How many timers in a row led to it.
    pub in_a_row: u32,
    /// Since when the host has known.
    pub since: String,
}

/// A stream that a handler publishes to.
#[derive(Clone, Debug)]
pub struct OutboxTarget {
    /// Name of the source.
    pub source: String,
    /// How safe publishing is; none before the stream was reached.
    pub promise: Option<Promise>,
    /// How long the stream recognises ids, in seconds, if the promise rests on that.
    pub window_seconds: Option<f64>,
    /// The longest time that a message has ever waited for its confirmation, or has waited until now,
    /// in seconds.
    pub longest_wait_seconds: f64,
    /// Messages confirmed as stored since the host started.
    pub released: u64,
    /// Messages sent again since the host started.
    pub resent: u64,
    /// Why nothing is released at the moment.
    pub trouble: Option<String>,
    /// Since when.
    pub since: Option<String>,
    /// Different reasons why some messages wait.
    pub reasons: Vec<String>,
    /// How far the host is in reading what the stream has, while it does.
    pub reads_back: Option<ReadBack>,
}

/// How far the host is in reading what a stream has.
#[derive(Clone, Copy, Debug)]
pub struct ReadBack {
    /// Messages that were passed.
    pub passed: u64,
    /// Of this many.
    pub of: u64,
}

/// The inbox of a deployment.
#[derive(Clone, Debug)]
pub struct Inbox {
    /// Ids that are kept, with some that are about to be removed.
    pub ids: u64,
    /// Events that the state left out, because an event with the same id came before.
    pub duplicates: u64,
}

/// In how many lanes a deployment folds large batches, and what became of them since its module
/// started.
#[derive(Clone, Debug)]
pub struct Lanes {
    /// How many lanes were asked for.
    pub count: u32,
    /// Batches that were folded in lanes.
    pub split: u64,
    /// Batches that were folded again in one lane, because lanes touched the same entries.
    pub collided: u64,
    /// Batches that were folded again in one lane for another reason.
    pub failed: u64,
    /// Too many batches collided: everything is folded in one lane until the module starts again.
    pub gave_up: bool,
    /// Some keys of entries that lanes had in common.
    pub keys: Vec<String>,
}

/// The effect of a decision to skip an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SkipState {
    /// The active state has not reached the event yet.
    Ahead,
    /// The active state skipped it, and so do states that are built from scratch.
    Skipped,
    /// The active state folded it before the decision, or does not read it; states that are built
    /// from scratch skip it.
    Folded,
    /// The active state skipped it, but the decision was withdrawn: states that are built from
    /// scratch fold it.
    Withdrawn,
}

impl SkipState {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ahead => "ahead",
            Self::Skipped => "skipped",
            Self::Folded => "folded",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// A decision to skip an event, and what came of it.
#[derive(Clone, Debug)]
pub struct Skip {
    /// The decision.
    pub decision: exceptions::Skip,
    /// Its effect.
    pub state: SkipState,
    /// How many later events of its key, which waited behind it, were dropped with it.
    pub later: u64,
}

/// The state of long-running work on a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WorkState {
    /// It waits for its turn.
    Queued,
    /// It is running.
    Running,
    /// It is complete.
    Done,
    /// It could not be completed.
    Failed,
}

/// Whether folding the stream again gives the same state.
#[derive(Clone, Debug)]
pub struct Verification {
    /// Its state.
    pub state: WorkState,
    /// The generation that is verified.
    pub generation: u64,
    /// The position at which the states are compared; 0 while unknown.
    pub position: u64,
    /// Progress, from 0 to 1.
    pub progress: f64,
    /// Events per second, over the last seconds.
    pub rate: f64,
    /// Estimated seconds until it is done.
    pub remaining_seconds: Option<f64>,
    /// Seed of the batch boundaries: the same seed repeats the run.
    pub seed: u64,
    /// How often the second fold was restarted.
    pub restarts: u64,
    /// Whether both states were equal, byte by byte; none before the end.
    pub equal: Option<bool>,
    /// What differs.
    pub comparison: Option<Comparison>,
    /// The first key that differs, and the event after which it did, if that was found.
    pub divergence: Option<Divergence>,
    /// Sequences that were skipped, because the active state skipped them.
    pub skipped: Vec<u64>,
    /// Events that were gone from the stream before the active state could have them, and were
    /// accepted as missing: both states lack them.
    pub missing_events: u64,
    /// What the active state has parked: both states lack the effects of these events.
    pub parked: Parked,
    /// The result, for people.
    pub message: String,
    /// What keeps it from getting on just now, if anything does.
    pub obstacle: Option<String>,
}

/// Where two folds of the same events diverge.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// The first key, in byte order, that differs.
    pub key: String,
    /// The first sequence after which two folds disagreed about it; none if two further folds
    /// agreed.
    pub sequence: Option<u64>,
}

/// Text to add to a message about a state that lacks this many events, which were gone from the
/// stream before it could have them.
pub(crate) fn missing_remark(count: u64) -> String {
    match count {
        0 => String::new(),
        1 => "; without 1 event that was gone from the stream".to_owned(),
        _ => format!("; without {count} events that were gone from the stream"),
    }
}
