//! The progress of a deployment: its pipeline writes it once per batch, and everyone else reads it.

mod failures;
mod gate;
mod milestone;
mod state;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::batch::Batch;
use crate::event::Event;
use crate::failure::Failure;
use crate::position::Checkpoint;

pub use failures::{Cause, NextAttempt};
pub use state::DeploymentState;

/// The rate is averaged over about this long.
const RATE_WINDOW: Duration = Duration::from_secs(2);

/// How long looks must say that a stream ends earlier than before until that counts: a leader that
/// is cut off from its cluster answers for some ten seconds.
const EARLIER_HEAD_BELIEVED_AFTER: Duration = Duration::from_secs(15);

/// A live deployment that falls behind by more than this counts as catching up again.
const LIVE_LAG_MAX: u64 = 10_000;

/// The current progress of a deployment.
#[derive(Clone, Debug)]
pub struct Now {
    /// Its state.
    pub state: DeploymentState,
    /// The first error of the current streak of failures.
    pub failure: Option<Failure>,
    /// Name of the stream, if known.
    pub stream: Option<String>,
    /// The last sequence in the stream, as last seen.
    pub head: u64,
    /// Events that may match and are not applied yet, as last seen.
    pub pending: u64,
    /// Time of the oldest event that is not applied yet, in nanoseconds since the Unix epoch; none
    /// if there is none, or it was not read yet.
    pub oldest_ns: Option<u64>,
    /// Whether anything was read since the module began to fold; before that, the figures are
    /// older.
    pub has_read: bool,
    /// The last look said that the stream ends before the known head.
    pub head_is_doubtful: bool,
    /// When the end of the stream was last checked outside the reader.
    pub looked_at: Option<Instant>,
    /// The position after which the state began, if known; it had no checkpoint before.
    pub began_behind: Option<u64>,
    /// The position at which the state was first opened in this process.
    pub opened_at: Option<u64>,
    /// The position of the state when it was last closed.
    pub last_position: u64,
    /// The first sequence that the stream still had at the last check.
    pub stream_first: Option<u64>,
    /// Time of the last applied event, in nanoseconds since the Unix epoch.
    pub last_event_ns: u64,
    /// Events applied since the host started.
    pub applied: u64,
    /// Events per second.
    pub rate: f64,
    /// Memory of the instance that applies, in bytes.
    pub memory_bytes: u64,
    /// Instances that are alive: the one that applies, and those of queries.
    pub instances: u64,
    /// How much of the state file is repaired, in percent, while it is opening.
    pub repair_percent: Option<f64>,
    /// The position that readers may have seen before the process started; none while unknown.
    pub catches_up_to: Option<u64>,
    /// Where the stream ended when it was first reached since the process started: readers saw
    /// nothing beyond that.
    pub first_head: Option<u64>,
    /// The position that clients are known to have seen: no earlier one is ever shown.
    pub floor: u64,
    /// Number of the generation whose module last began to fold.
    pub generation: u64,
    /// How often a module began to fold.
    pub starts: u64,
    /// How often the module's instance was dropped on purpose.
    pub restarts: u64,
    /// Whether the latest module has applied an event since it began, or found, with the source
    /// connected, that there is nothing to apply.
    pub begun: bool,
    /// Another module, or another attempt, is requested and has not begun: the state of the
    /// previous one says nothing about it.
    awaits_start: bool,
}

/// Counts an instance while it exists.
#[derive(Debug)]
pub struct Alive {
    progress: Arc<Progress>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.progress.inner.lock().now.instances -= 1;
    }
}

/// A batch that was read and is not fully applied.
#[derive(Clone, Copy, Debug)]
struct Read {
    first: u64,
    first_ns: u64,
    last: u64,
    events: u64,
}

#[derive(Debug)]
struct Figures {
    now: Now,
    /// Events that were read and are not applied yet, in order.
    read: VecDeque<Read>,
    /// Number of the run that reads; late reports of earlier runs do not count.
    run: u64,
    /// When that run began.
    run_began_at: Instant,
    /// When the stream was last said to reach the known head, or further.
    head_seen_at: Instant,
    /// Events that may match and were not read yet when the source last answered.
    beyond: u64,
    /// The sequence of the last applied event.
    applied_through: u64,
    /// The state could not be read or written, and nothing was made durable since.
    state_failure: Option<Failure>,
    /// Time of the oldest event that is neither applied nor read, if it was looked up.
    beyond_ns: Option<u64>,
    measured_at: Instant,
    measured_applied: u64,
    /// The single event that fails, until it or another one is applied.
    failing: Option<Event>,
    /// The failure before the last start. The same failure again is not a new one.
    failed_before: Option<Failure>,
    /// The generation whose module folded first in this process.
    first_generation: Option<u64>,
}

/// Shared between a pipeline, which reports its progress, and everyone who reads it.
#[derive(Debug)]
pub struct Progress {
    inner: Mutex<Figures>,
    /// Wakes those who wait for a milestone.
    passed: Notify,
    /// Whether this state answers reads.
    serves: AtomicBool,
    /// Whether this state answered reads before, and follows the stream so that it can again.
    follows: AtomicBool,
    /// Whether the module inherited the state and has not yet shown that it can continue it.
    on_probation: AtomicBool,
}

/// What readers saw of a state beyond the checkpoint at which it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenBeyond {
    /// Nothing.
    Nothing,
    /// Nobody knows.
    Unknown,
}

/// Which batch of a state was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchTurn {
    /// The first one that was ever read for it.
    First,
    /// A later one.
    Later,
}

impl Progress {
    /// The progress before anything was opened. `catches_up_to` is known for a new deployment, and
    /// none after a restart; no position before `floor` is shown.
    pub fn new(catches_up_to: Option<u64>, floor: u64) -> Self {
        let now = Now {
            state: DeploymentState::Opening,
            failure: None,
            stream: None,
            head: 0,
            pending: 0,
            oldest_ns: None,
            has_read: false,
            head_is_doubtful: false,
            looked_at: None,
            began_behind: None,
            opened_at: None,
            last_position: 0,
            stream_first: None,
            last_event_ns: 0,
            applied: 0,
            rate: 0.0,
            memory_bytes: 0,
            instances: 0,
            repair_percent: None,
            catches_up_to,
            first_head: None,
            floor,
            generation: 0,
            starts: 0,
            restarts: 0,
            begun: false,
            awaits_start: false,
        };
        let inner = Figures {
            now,
            read: VecDeque::new(),
            run: 0,
            run_began_at: Instant::now(),
            head_seen_at: Instant::now(),
            beyond: 0,
            applied_through: 0,
            state_failure: None,
            beyond_ns: None,
            measured_at: Instant::now(),
            measured_applied: 0,
            failing: None,
            failed_before: None,
            first_generation: None,
        };
        Self {
            inner: Mutex::new(inner),
            passed: Notify::new(),
            serves: AtomicBool::new(true),
            follows: AtomicBool::new(false),
            on_probation: AtomicBool::new(false),
        }
    }

    /// Whether this state answers reads.
    pub fn serves(&self) -> bool {
        self.serves.load(Ordering::Relaxed)
    }

    /// Whether many events are known to wait to be applied.
    pub fn is_far_behind(&self) -> bool {
        self.inner.lock().now.pending > LIVE_LAG_MAX
    }

    /// This state answers reads from now on.
    pub fn start_serving(&self) {
        self.serves.store(true, Ordering::Relaxed);
        self.follows.store(false, Ordering::Relaxed);
    }

    /// This state answers no reads from now on.
    pub fn stop_serving(&self) {
        self.serves.store(false, Ordering::Relaxed);
    }

    /// Whether this state answered reads before, and follows the stream so that it can again.
    pub fn follows(&self) -> bool {
        self.follows.load(Ordering::Relaxed)
    }

    /// This state answers no reads from now on, and follows the stream so that it can again.
    pub fn follow(&self) {
        self.stop_serving();
        self.follows.store(true, Ordering::Relaxed);
    }

    /// Whether the module is on probation.
    pub fn is_on_probation(&self) -> bool {
        self.on_probation.load(Ordering::Relaxed)
    }

    /// The module is on probation from now on.
    pub fn begin_probation(&self) {
        self.on_probation.store(true, Ordering::Relaxed);
    }

    /// The module is not on probation from now on.
    pub fn end_probation(&self) {
        self.on_probation.store(false, Ordering::Relaxed);
    }

    /// The current progress.
    pub fn now(&self) -> Now {
        let mut inner = self.inner.lock();
        // Also here, because a pipeline that applies nothing measures nothing.
        inner.measure();
        Now {
            oldest_ns: inner.oldest_ns(),
            ..inner.now.clone()
        }
    }

    /// Sets its state.
    pub fn set_state(&self, state: DeploymentState) {
        let now = &mut self.change().now;
        now.state = state;
        if state == DeploymentState::Paused
            && let Some(failure) = &mut now.failure
        {
            // Nothing is tried before somebody resumes it.
            (failure.next_attempt_at, failure.breaker_open) = (None, false);
        }
    }

    /// The repair of the state file progresses, or is over.
    pub fn note_repair(&self, percent: Option<f64>) {
        self.inner.lock().now.repair_percent = percent;
    }

    /// Its state was opened at a checkpoint.
    pub fn note_opened(&self, checkpoint: Option<&Checkpoint>, seen: SeenBeyond) {
        let last_event = checkpoint.and_then(|checkpoint| checkpoint.last_event.as_ref());
        let inner = &mut *self.change();
        inner.now.last_event_ns = last_event.map_or(0, |event| event.time_ns);
        inner.applied_through = last_event.map_or(0, |event| event.sequence);
        // Nothing was shown beyond what was opened, so nothing has to be caught up with.
        if seen == SeenBeyond::Nothing && inner.now.catches_up_to.is_none() {
            inner.now.catches_up_to = Some(0);
        }
        if inner.now.state == DeploymentState::Retrying {
            // What kept its thread from starting is over.
            drop(inner.now.failure.take_if(|failure| failure.is_of_host()));
        }
        inner
            .now
            .opened_at
            .get_or_insert(checkpoint.map_or(0, |checkpoint| checkpoint.position));
    }

    /// A check outside the reader found that the stream reaches from `first` to `head`; the state
    /// reflects `position`.
    pub fn note_stream(&self, first: u64, head: u64, position: u64) {
        let inner = &mut *self.change();
        inner.now.looked_at = Some(Instant::now());
        inner.now.stream_first = Some(first);
        // A stream that ends before the state, or that the reader refused, may be another one: its
        // end means nothing.
        let is_refused = inner
            .now
            .failure
            .as_ref()
            .is_some_and(|failure| failure.kind.starts_with("source-"));
        if head >= position && !is_refused {
            inner.now.reached(head);
        }
        inner.note_first(first, head, position);
        if head < inner.now.head {
            inner.note_earlier_head(head);
            return;
        }
        (inner.head_seen_at, inner.now.head_is_doubtful) = (Instant::now(), false);
        if head == inner.now.head {
            return;
        }
        // Which of the new events match is known when they are read; of older ones it is, unless
        // nothing was read yet.
        let known = inner.now.head;
        let grown = if known == 0 {
            head
        } else {
            inner.now.pending.saturating_add(head - known)
        };
        let pending = grown.min(head.saturating_sub(position));
        // What was read is counted there already; `beyond` is the rest.
        let waiting: u64 = inner.read.iter().map(|read| read.events).sum();
        inner.beyond = pending.saturating_sub(waiting);
        inner.now.head = head;
        inner.count();
    }

    /// Whether events are known to wait in the stream, and the age of the oldest is still unknown.
    pub fn asks_for_age(&self) -> bool {
        let inner = self.inner.lock();
        inner.now.pending > 0 && inner.oldest_ns().is_none()
    }

    /// The oldest event that waits in the stream has this time.
    pub fn note_oldest(&self, time_ns: u64) {
        let inner = &mut *self.inner.lock();
        // Otherwise the oldest is one that was read, whose time is known exactly.
        if inner.read.is_empty() && inner.beyond > 0 {
            inner.beyond_ns = Some(time_ns);
        }
    }

    /// Nothing waits in the stream up to this sequence: all that is there is for others.
    pub fn note_nothing_waits(&self, head: u64) {
        let inner = &mut *self.change();
        if inner.read.is_empty() && inner.now.head <= head {
            inner.beyond = 0;
            inner.beyond_ns = None;
            inner.count();
        }
    }

    /// Returns the number of the run that begins to read.
    pub fn begin_reading(&self) -> u64 {
        let inner = &mut *self.inner.lock();
        // A new number each time: the previous reader may still have a batch on its way.
        inner.run += 1;
        inner.run_began_at = Instant::now();
        inner.run
    }

    /// A run has read a batch, which waits to be applied.
    pub fn note_read(&self, run: u64, batch: &Batch, turn: BatchTurn) {
        let inner = &mut *self.change();
        // A batch of an earlier run is thrown away, and read again by the run that took over.
        if run != inner.run {
            return;
        }
        let now = &mut inner.now;
        if turn == BatchTurn::First {
            now.began_behind = Some(batch.after);
        }
        let reached = batch.head.max(batch.through);
        if inner.head_seen_at < inner.run_began_at {
            // The reader has asked since then: the stream may have been made again.
            now.head = reached;
        }
        // Events that the check outside the reader has seen since then are still to come.
        inner.beyond = batch.pending + now.head.saturating_sub(reached);
        now.head = now.head.max(reached);
        (inner.head_seen_at, now.head_is_doubtful) = (Instant::now(), false);
        now.has_read = true;
        inner.beyond_ns = None;
        if let (Some(first), Some(last)) = (batch.events.first(), batch.events.last()) {
            let (first, first_ns, last) = (first.sequence, first.time_ns, last.sequence);
            inner.read.push_back(Read {
                first,
                first_ns,
                last,
                events: batch.events.len() as u64,
            });
        }
        inner.count();
    }

    /// Reading has stopped; events that were read and not applied will be read again.
    pub fn note_reading_ended(&self) {
        let inner = &mut *self.change();
        // The oldest of what was read is now the oldest of what is to be read again.
        inner.run += 1;
        inner.beyond_ns = inner.oldest_ns();
        inner.beyond += inner.read.drain(..).map(|read| read.events).sum::<u64>();
        inner.count();
    }

    /// A batch is about to be applied.
    pub fn note_received(&self, batch: &Batch) {
        let now = &mut self.change().now;
        if now.stream.is_none() {
            now.stream = Some(batch.stream.name.clone());
        }
        // Record the head even if no event is pending: if the server filters for the reader, the
        // position also moves over events of others, and readers saw that.
        now.reached(batch.head.max(batch.through));
        if now.pending > LIVE_LAG_MAX && now.state == DeploymentState::Live {
            now.state = DeploymentState::CatchingUp;
        }
    }

    /// Some events of a batch were applied.
    pub fn note_applied(&self, events: &[Event]) {
        let inner = &mut *self.change();
        if !events.is_empty() {
            (inner.failing, inner.failed_before) = (None, None);
        }
        inner.now.begun |= !inner.now.awaits_start;
        inner.now.applied += events.len() as u64;
        if let Some(last) = events.last() {
            inner.now.last_event_ns = last.time_ns;
            inner.pass(events.len() as u64, last.sequence);
        }
    }

    /// Events up to a position were skipped: they are no longer to come.
    pub fn note_left_out(&self, events: &[Event], through: u64) {
        let inner = &mut *self.change();
        // Batches that lie before the position entirely; at most one lies across it.
        while inner.read.front().is_some_and(|read| read.last <= through) {
            inner.read.pop_front();
        }
        if let Some(read) = inner.read.front_mut().filter(|read| read.first <= through) {
            let left_out = events
                .iter()
                .filter(|event| event.sequence >= read.first)
                .count() as u64;
            read.events = read.events.saturating_sub(left_out);
        }
        inner.count();
    }

    /// The whole batch was applied.
    pub fn note_finished(&self, batch: &Batch) {
        let mut inner = self.change();
        let now = &mut inner.now;
        if batch.pending == 0 && !now.awaits_start {
            now.begun = true;
            if now.state == DeploymentState::CatchingUp {
                now.state = DeploymentState::Live;
            }
        }
        inner.measure();
    }

    /// The memory of the instance that applies; none once it is gone.
    pub fn set_memory(&self, bytes: u64) {
        self.inner.lock().now.memory_bytes = bytes;
    }

    /// Counts an instance until the guard is dropped.
    pub fn count_instance(self: &Arc<Self>) -> Alive {
        self.inner.lock().now.instances += 1;
        Alive {
            progress: Arc::clone(self),
        }
    }

    /// The module of a generation begins to fold: the old failure is over.
    pub fn note_started(&self, generation: u64) {
        let Figures {
            now,
            state_failure,
            failed_before,
            first_generation,
            ..
        } = &mut *self.change();
        // Kept for comparison: the same failure at the same event is not a new one (see
        // `Figures::note`).
        if let Some(failure) = now.failure.take() {
            *failed_before = Some(failure);
        }
        first_generation.get_or_insert(generation);
        now.has_read = false;
        now.generation = generation;
        now.starts += 1;
        // A state that failed has to prove first that it can be written again.
        let is_state_failing = state_failure.is_some();
        now.failure.clone_from(state_failure);
        now.state = if is_state_failing {
            DeploymentState::Retrying
        } else {
            DeploymentState::CatchingUp
        };
        (now.begun, now.awaits_start) = (false, false);
    }

    /// The state was closed at this position. Its events in memory have to be read again, so
    /// earlier knowledge about the rest of the stream no longer counts.
    pub fn note_closed(&self, position: u64) {
        let inner = &mut *self.change();
        // All of this came from a reader that has ended with the state.
        inner.now.last_position = position;
        (inner.now.head, inner.now.has_read, inner.now.looked_at) = (0, false, None);
        inner.now.head_is_doubtful = false;
        (inner.beyond, inner.beyond_ns) = (0, None);
        inner.read.clear();
        inner.count();
    }

    /// The module's instance was dropped on purpose.
    pub fn note_shuffle(&self) {
        self.inner.lock().now.restarts += 1;
    }

    /// A failure is known from before this process started: the same one at the same event is not a
    /// new one.
    pub fn recall_failure(&self, failure: Failure) {
        self.change().failed_before.get_or_insert(failure);
    }

    /// When an event that fails now first failed in this way, in RFC 3339.
    pub fn first_failed_at(&self, kind: &str, sequence: u64) -> String {
        let Figures {
            now, failed_before, ..
        } = &mut *self.change();
        let is_same =
            |failure: &&Failure| failure.kind == kind && failure.sequence == Some(sequence);
        let known = now.failure.iter().chain(&*failed_before).find(is_same);
        if let Some(known) = known {
            return known.first_at.clone();
        }
        let failure = Failure::begun(kind, sequence, jiff::Timestamp::now().to_string());
        failed_before.insert(failure).first_at.clone()
    }

    /// A module is about to begin to fold, again or in place of another: its progress is unknown.
    pub fn note_awaited_start(&self) {
        let Figures {
            now, failed_before, ..
        } = &mut *self.change();
        (now.begun, now.awaits_start) = (false, true);
        // It has begun when it applies something, or finds that there is nothing.
        if matches!(
            now.state,
            // Paused and opening states stay: they do not depend on the module.
            DeploymentState::Live | DeploymentState::Retrying | DeploymentState::Failed
        ) {
            if let Some(failure) = now.failure.take() {
                *failed_before = Some(failure);
            }
            now.state = DeploymentState::CatchingUp;
        }
    }
}

impl Figures {
    /// The stream has nothing before `first`, so no more can wait than what follows.
    fn note_first(&mut self, first: u64, head: u64, position: u64) {
        let left = (head + 1).saturating_sub(first.max(position.saturating_add(1)));
        if self.read.is_empty() && head >= self.now.head && self.beyond > left {
            self.beyond = left;
            self.count();
        }
    }

    /// A look says that the stream ends before the known head. It may be of a leader that lags, or of
    /// a stream that was made again. Only what lasts is believed, and only if no reader knows better.
    fn note_earlier_head(&mut self, head: u64) {
        let reads = matches!(
            self.now.state,
            DeploymentState::CatchingUp | DeploymentState::Live
        );
        if reads {
            return;
        }
        self.now.head_is_doubtful = self.head_seen_at.elapsed() < EARLIER_HEAD_BELIEVED_AFTER;
        if !self.now.head_is_doubtful {
            let gone = self.now.head - head;
            self.now.head = head;
            self.beyond = self.beyond.saturating_sub(gone).min(head);
            self.beyond_ns = None;
            self.head_seen_at = Instant::now();
            self.count();
        }
    }

    /// Records that events up to a sequence were applied.
    fn pass(&mut self, count: u64, through: u64) {
        self.applied_through = through;
        let mut left = count;
        while left > 0
            && let Some(read) = self.read.front_mut()
        {
            let passed = left.min(read.events);
            read.events -= passed;
            left -= passed;
            // `last` as well, because the count may have shrunk by events that were left out.
            if read.events == 0 || read.last <= through {
                self.read.pop_front();
            }
        }
        self.count();
    }

    fn count(&mut self) {
        self.now.pending = self.beyond + self.read.iter().map(|read| read.events).sum::<u64>();
    }

    /// Time of the oldest event that is not applied yet, as far as known.
    fn oldest_ns(&self) -> Option<u64> {
        match self.read.front() {
            // In a batch that is half applied, the next event follows the last applied one.
            Some(read) if read.first <= self.applied_through => {
                Some(self.now.last_event_ns.max(read.first_ns))
            }
            Some(read) => Some(read.first_ns),
            None if self.beyond > 0 => self.beyond_ns,
            None => None,
        }
    }

    fn measure(&mut self) {
        let elapsed = self.measured_at.elapsed();
        // No more often: a rate over a few milliseconds would jump.
        if elapsed >= RATE_WINDOW {
            self.now.rate =
                (self.now.applied - self.measured_applied) as f64 / elapsed.as_secs_f64();
            self.measured_applied = self.now.applied;
            self.measured_at = Instant::now();
        }
    }
}
