//! Lanes: one fold on several cores, with the result of the serial fold.
//!
//! A large batch is split by the keys of its events over several instances, each on a thread of its
//! own. Each lane reads the state as of the beginning of the batch, and its own writes; what it
//! reads and writes is noted for as long as its instance lives. If no lane has touched what another
//! one wrote, their writes are those of the serial fold, and are published as one step. Otherwise,
//! and if anything fails in a lane, they are dropped with the instances, and the batch is folded
//! again serially. `docs/internals/lanes.md` says why that is exact.

mod lane;
mod permits;
mod record;
mod split;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use tokio::sync::watch;

use super::Fold;
use crate::event::Event;
use crate::lanes::LANES_MAX;
use crate::module::{self, ApplyError, KeyRule};
use crate::state::{self, Key, Notes, Writer};

use lane::{Lane, Outcome};
use permits::Permits;
use record::BatchSize;
pub use record::{Figures, Record};
use split::split;

/// Fewest events in a batch for each lane. Waking a thread and comparing notes costs as much as some
/// tens of events of a fast module.
const EVENTS_PER_LANE: usize = 256;

/// Creates the fold of a lane.
pub type MakeLane = Arc<dyn Fn() -> Result<Box<dyn Fold>, module::Error> + Send + Sync>;

/// How a fold is split.
#[derive(Clone)]
pub struct Plan {
    /// Number of lanes; at least 2.
    pub lanes: usize,
    /// How the key of an event is found; events without a key share one lane.
    pub rule: KeyRule,
    /// Smallest batch that is split.
    pub events_min: usize,
}

impl Plan {
    /// The number of lanes into which a batch of this many events may be split.
    pub fn most(events: usize) -> usize {
        events / EVENTS_PER_LANE
    }

    /// One for this many lanes.
    pub fn new(lanes: usize, rule: KeyRule) -> Self {
        let lanes = lanes.clamp(2, LANES_MAX as usize);
        Self {
            lanes,
            rule,
            events_min: lanes * EVENTS_PER_LANE,
        }
    }
}

/// Why a batch was folded again serially.
#[derive(Debug)]
enum Cause {
    /// A lane wrote what another one had read or written.
    Collision(Key),
    /// More was read or written than can be noted.
    TooMuch,
    /// An event failed, a limit was reached, or the host lacked something.
    Failed,
}

/// A fold with several lanes.
pub struct Lanes {
    plan: Plan,
    make: MakeLane,
    record: Arc<Record>,
    /// The instance for batches that are not split. It is never used after lanes have written, and
    /// they never after it: no instance misses a change of what it may remember.
    serial: Option<Box<dyn Fold>>,
    /// None while batches are folded serially.
    split: Option<Split>,
}

/// The lanes and their threads.
struct Split {
    lanes: Vec<Lane>,
    /// One thread less: the first lane is run by the caller.
    pool: ThreadPool,
    _permits: Permits,
}

impl Lanes {
    /// A fold that begins serially; fails if there is no instance.
    pub fn new(plan: Plan, make: MakeLane, record: Arc<Record>) -> Result<Self, module::Error> {
        let serial = Some(make()?);
        Ok(Self {
            plan,
            make,
            record,
            serial,
            split: None,
        })
    }

    /// Whether to split a batch.
    fn is_split(&mut self, events: usize, writer: &Writer) -> bool {
        let size = if events >= self.plan.events_min {
            BatchSize::Large
        } else {
            BatchSize::Small
        };
        if !writer.can_branch() || !self.record.is_due(size) {
            return false;
        }
        if self.split.is_none() {
            self.split = Split::new(self.plan.lanes, writer);
            if self.split.is_none() {
                // What is missing may come back, but hardly for the next batch.
                self.record.note_fallback(&Cause::Failed);
            }
        }
        self.split.is_some()
    }

    fn apply_serially(
        &mut self,
        events: &[Event],
        writer: Writer,
    ) -> (Writer, Result<(), ApplyError>) {
        // They would miss what is written now.
        self.split = None;
        let serial = match &mut self.serial {
            Some(serial) => serial,
            None => match (self.make)() {
                Ok(fold) => self.serial.insert(fold),
                // The caller drops this fold and makes another one, which says exactly what is
                // missing.
                Err(error) => return (writer, Err(ApplyError::Host(error.to_string()))),
            },
        };
        serial.apply(events, writer)
    }

    fn apply_split(&mut self, events: &[Event], writer: &mut Writer) -> Result<Duration, Cause> {
        // It would miss what the lanes write.
        self.serial = None;
        let split = self
            .split
            .as_mut()
            .expect("it is made before a batch is split");
        let started = Instant::now();
        split.apply(events, &self.plan.rule, &self.make, writer)?;
        let at_once = started.elapsed();
        split.check()?;
        split.merge(writer)?;
        Ok(at_once)
    }
}

impl Fold for Lanes {
    fn apply(&mut self, events: &[Event], mut writer: Writer) -> (Writer, Result<(), ApplyError>) {
        if self.is_split(events.len(), &writer) {
            match self.apply_split(events, &mut writer) {
                Ok(at_once) => {
                    self.record.note_split(at_once);
                    return (writer, Ok(()));
                }
                Err(cause) => self.record.note_fallback(&cause),
            }
        }
        self.apply_serially(events, writer)
    }

    fn memory_bytes(&self) -> u64 {
        let lanes = self.split.iter().flat_map(|split| &split.lanes);
        let serial = self.serial.as_ref().map_or(0, |fold| fold.memory_bytes());
        serial + lanes.map(Lane::memory_bytes).sum::<u64>()
    }

    fn wanted(&self) -> Option<watch::Receiver<()>> {
        let mut lanes = self.split.iter().flat_map(|split| &split.lanes);
        match &self.serial {
            Some(serial) => serial.wanted(),
            None => lanes.find_map(Lane::wanted),
        }
    }
}

impl Split {
    /// New lanes, as many as there are threads for; none if there is no other thread.
    fn new(count: usize, writer: &Writer) -> Option<Self> {
        let permits = Permits::take(count - 1)?;
        let threads = permits.count();
        // They inherit the low priority of the thread that makes them.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("lane {}", number + 1))
            .build()
            .inspect_err(|error| tracing::warn!(%error, "no threads for lanes; folding with one"))
            .ok()?;
        let lanes = (0..=threads).map(|_| Lane::new(writer.branch())).collect();
        Some(Self {
            lanes,
            pool,
            _permits: permits,
        })
    }

    /// Applies each event in the lane of its key.
    fn apply(
        &mut self,
        events: &[Event],
        rule: &KeyRule,
        make: &MakeLane,
        writer: &Writer,
    ) -> Result<(), Cause> {
        let places = split(events, rule, self.lanes.len(), &self.pool);
        let work = |number: usize, lane: &mut Lane| lane.apply(events, &places, number, make);
        let (first, others) = self
            .lanes
            .split_first_mut()
            .expect("there are two at least");
        writer.begin_branch(first.writer_mut());
        for lane in &mut *others {
            writer.begin_branch(lane.writer_mut());
        }
        self.pool.in_place_scope(|scope| {
            for (number, lane) in (1..).zip(others) {
                scope.spawn(move |_| work(number, lane));
            }
            work(0, first);
        });
        let has_failed = |lane: &Lane| lane.outcome() == Outcome::Failed;
        match self.lanes.iter().any(has_failed) {
            true => Err(Cause::Failed),
            false => Ok(()),
        }
    }

    /// Checks that no lane depends on what another one has written. Each lane does that for itself:
    /// the number of keys to look up is the same for all, however many lanes there are.
    fn check(&mut self) -> Result<(), Cause> {
        let outcomes: Vec<Outcome> = self.lanes.iter().map(Lane::outcome).collect();
        let lanes = self.lanes.iter_mut();
        let notes: Vec<Notes<'_>> = lanes
            .filter_map(|lane| lane.writer_mut().branch_notes())
            .collect();
        if notes.iter().any(Notes::is_cut) {
            return Err(Cause::TooMuch);
        }
        let mut met: Vec<Option<Key>> = vec![None; notes.len()];
        let look = |number: usize, met: &mut Option<Key>| {
            let others = (0..notes.len()).filter(|other| *other != number);
            *met = others
                .into_iter()
                .find_map(|other| notes[number].met_by(&notes[other]));
        };
        let (first, others) = met.split_first_mut().expect("there are two at least");
        self.pool.in_place_scope(|scope| {
            for (number, met) in (1..).zip(others) {
                scope.spawn(move |_| look(number, met));
            }
            look(0, first);
        });
        let mut stale = Vec::new();
        for (number, met) in met.into_iter().enumerate() {
            match met {
                Some(key) if outcomes[number] == Outcome::Applied => {
                    return Err(Cause::Collision(key));
                }
                // It had nothing to do in this batch, but remembers what was changed.
                Some(_) => stale.push(number),
                None => {}
            }
        }
        for number in stale {
            self.lanes[number].renew();
        }
        Ok(())
    }

    /// Moves the writes of all lanes into one.
    fn merge(&mut self, writer: &mut Writer) -> Result<(), Cause> {
        let merged: Result<(), state::Error> = self
            .lanes
            .iter_mut()
            .try_for_each(|lane| writer.absorb(lane.writer_mut()));
        if merged.is_err() {
            // All of them together are too much for one batch, or for the host at the moment.
            writer.drop_absorbed();
            return Err(Cause::Failed);
        }
        for lane in &mut self.lanes {
            if lane.writer().is_branch_large() {
                lane.renew();
            }
        }
        Ok(())
    }
}
