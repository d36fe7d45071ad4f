//! How a pipeline behaves: what is wanted of it, what it may do, and why it ended.

use std::sync::Arc;
use std::time::Duration;

use crate::batch::Limits;
use crate::memory::memtables::Budget;
use crate::room::Room;
use crate::state;

/// What a pipeline does when others need what little room is left on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It stops applying until there is room again. While it serves reads, it does so only when commits lack room as well and
    /// its memtable is full.
    Wait,
    /// It ends: what it makes can be made later.
    GiveUp,
}

/// How a pipeline behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How large a batch may grow.
    pub batch: Limits,
    /// Attempts of a failing batch before the pipeline stops.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles from there, with jitter.
    pub initial_backoff: Duration,
    /// Longest pause.
    pub max_backoff: Duration,
    /// Age at which what was applied is committed.
    pub flush_interval: Duration,
    /// Size at which what was applied is committed, in bytes.
    pub memtable_bytes: u64,
    /// Memtables of all pipelines together.
    pub budget: Arc<Budget>,
    /// The disk that the state grows on; none is never looked at.
    pub disk: Option<(Room, WhenFull)>,
    /// Seed for random batch boundaries, and for restarts of the module between batches: to prove that a result depends on
    /// neither.
    pub shuffle: Option<u64>,
}

/// What an operator wants of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desired {
    /// To run. The number rises with every resume, so that one after a failure is noticed.
    Run(u64),
    /// To rest, with everything durable.
    Pause,
    /// To end, with everything durable.
    Stop,
}

/// Why a pipeline ended.
#[derive(Debug)]
pub enum Ended {
    /// It was asked to; everything applied is durable.
    Asked,
    /// It can't go on without an operator; why stands in the progress. Everything applied is durable.
    Failed,
    /// The state failed and must be opened again.
    State(state::Error),
}
