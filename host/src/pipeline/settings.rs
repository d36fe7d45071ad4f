//! The settings of a pipeline, its requests, and why it ended.

use std::sync::Arc;
use std::time::Duration;

use super::{ParkingLimits, Policy};
use crate::batch::Limits;
use crate::bundle::Keeper;
use crate::memory::memtables::Budget;
use crate::room::Room;
use crate::state;

/// What a pipeline does when others need the little space left on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It stops applying until there is room again. If it answers reads, it stops only when commits
    /// lack room as well and its memtable is full.
    Wait,
    /// It ends: its result can be built later.
    GiveUp,
}

/// The settings of a pipeline.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The largest size of a batch.
    pub batch: Limits,
    /// How often an event that fails is tried.
    pub policy: Policy,
    /// Most attempts while the state answers no reads.
    pub build_attempts: u32,
    /// Longest pause between them.
    pub build_backoff: Duration,
    /// Keeps bundles of first errors; none of a fold that nobody reads.
    pub keeper: Option<Keeper>,
    /// How much a state may park.
    pub parking: ParkingLimits,
    /// How much of a minute failed calls may take before the breaker opens, in percent.
    pub retry_percent: u32,
    /// Age at which applied events are committed.
    pub flush_interval: Duration,
    /// Size at which applied events are committed, in bytes.
    pub memtable_bytes: u64,
    /// Time without events after which the instance is dropped; zero is never.
    pub idle_after: Duration,
    /// The budget for the memtables of all pipelines.
    pub budget: Arc<Budget>,
    /// The disk on which the state grows; none is never checked.
    pub disk: Option<(Room, WhenFull)>,
    /// Seed for random batch boundaries, and for restarts of the module between batches. `verify`
    /// uses it to prove that results do not depend on them.
    pub shuffle: Option<u64>,
}

/// An operator's request to a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desired {
    /// Run. The number rises with every resume, so that a resume after a failure is noticed.
    Run(u64),
    /// Rest, with everything durable.
    Pause,
    /// End, with everything durable.
    Stop,
}

/// Why a pipeline ended.
#[derive(Debug)]
pub enum Ended {
    /// On request; everything applied is durable.
    Asked,
    /// It can't continue without an operator; the progress says why. Everything applied is durable.
    Failed,
    /// The state failed and must be reopened.
    State(state::Error),
}
