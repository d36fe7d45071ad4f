//! How a pipeline behaves.

use std::sync::Arc;
use std::time::Duration;

use super::Budget;
use crate::batch::Limits;
use crate::room::Room;

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
    /// Ends batches where chance says, seeded by this: to prove that a result does not depend on where they end.
    pub shuffle: Option<u64>,
}
