//! How far a deployment is: written by its pipeline once per batch, read by whoever asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::api::{DeploymentState, Failure};
use crate::batch::Batch;
use crate::event::Event;
use crate::position::Checkpoint;

/// The rate is averaged over about this long.
const RATE_WINDOW: Duration = Duration::from_secs(2);

/// A live deployment that falls behind by more than this is catching up again.
const LIVE_LAG_MAX: u64 = 10_000;

/// How far a deployment is.
#[derive(Clone, Debug)]
pub struct Now {
    /// What it is doing.
    pub state: DeploymentState,
    /// The first error of the failing streak.
    pub failure: Option<Failure>,
    /// Name of the stream, once it is known.
    pub stream: Option<String>,
    /// The last sequence in the stream.
    pub head: u64,
    /// Events that may match and are not yet applied.
    pub pending: u64,
    /// Time of the last applied event, in nanoseconds since the Unix epoch.
    pub last_event_ns: u64,
    /// Events applied since the process started.
    pub applied: u64,
    /// Events per second.
    pub rate: f64,
    /// Memory of the instance that applies, in bytes.
    pub memory_bytes: u64,
    /// Instances that are alive: the one that applies, and those of queries.
    pub instances: u64,
    /// Percentage of the state file that is repaired, while it is being opened.
    pub repair_percent: Option<f64>,
    /// The position that it may have shown before a restart; none while that is not known. A wait for it ends in time.
    pub catches_up_to: Option<u64>,
    /// The position that clients are known to have seen: nothing before it is ever shown.
    pub floor: u64,
    /// Number of the generation whose module began to fold last.
    pub generation: u64,
    /// How often a module began to fold.
    pub starts: u64,
}

/// Counts an instance that is alive.
#[derive(Debug)]
pub struct Alive {
    progress: Arc<Progress>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.progress.inner.lock().now.instances -= 1;
    }
}

#[derive(Debug)]
struct Inner {
    now: Now,
    measured_at: Instant,
    measured_applied: u64,
}

/// The place where a pipeline tells how far it is.
#[derive(Debug)]
pub struct Progress {
    inner: Mutex<Inner>,
    /// Whether reads are answered from this state.
    serves: AtomicBool,
    /// Whether what folds took over the state, and has not yet shown that it can go on with it.
    on_probation: AtomicBool,
}

impl Progress {
    /// Before anything was opened. `catches_up_to` is known for a new deployment, and none after a restart; nothing before
    /// `floor` is shown.
    pub fn new(catches_up_to: Option<u64>, floor: u64) -> Self {
        let now = Now {
            state: DeploymentState::Opening,
            failure: None,
            stream: None,
            head: 0,
            pending: 0,
            last_event_ns: 0,
            applied: 0,
            rate: 0.0,
            memory_bytes: 0,
            instances: 0,
            repair_percent: None,
            catches_up_to,
            floor,
            generation: 0,
            starts: 0,
        };
        let inner = Inner { now, measured_at: Instant::now(), measured_applied: 0 };
        Self { inner: Mutex::new(inner), serves: AtomicBool::new(true), on_probation: AtomicBool::new(false) }
    }

    /// Whether reads are answered from this state.
    pub fn serves(&self) -> bool {
        self.serves.load(Ordering::Relaxed)
    }

    /// Sets whether reads are answered from this state.
    pub fn set_serves(&self, serves: bool) {
        self.serves.store(serves, Ordering::Relaxed);
    }

    /// Whether what folds is on probation.
    pub fn is_on_probation(&self) -> bool {
        self.on_probation.load(Ordering::Relaxed)
    }

    /// Sets whether what folds is on probation.
    pub fn set_probation(&self, on_probation: bool) {
        self.on_probation.store(on_probation, Ordering::Relaxed);
    }

    /// The position from which on reads are answered; none while it is not known.
    pub fn answers_from(&self) -> Option<u64> {
        let now = &self.inner.lock().now;
        now.catches_up_to.map(|position| position.max(now.floor))
    }

    /// How it is now.
    pub fn now(&self) -> Now {
        let mut inner = self.inner.lock();
        inner.measure();
        inner.now.clone()
    }

    /// Sets what it is doing.
    pub fn set_state(&self, state: DeploymentState) {
        self.inner.lock().now.state = state;
    }

    /// The state file is being repaired, or no longer.
    pub fn repairing(&self, percent: Option<f64>) {
        self.inner.lock().now.repair_percent = percent;
    }

    /// Its state was opened, and reflects what a checkpoint says.
    pub fn opened(&self, checkpoint: Option<&Checkpoint>) {
        let last_event = checkpoint.and_then(|checkpoint| checkpoint.last_event.as_ref());
        self.inner.lock().now.last_event_ns = last_event.map_or(0, |event| event.time_ns);
    }

    /// The stream ends at `head`, seen from aside while nothing is read; the state reflects `position`.
    pub fn seen(&self, head: u64, position: u64) {
        let now = &mut self.inner.lock().now;
        if head <= now.head {
            return;
        }
        // Which of the new events match nobody knows before they are read. What matched of the older ones is known, unless
        // nothing was read yet.
        let grown = if now.head == 0 { head } else { now.pending.saturating_add(head - now.head) };
        now.pending = grown.min(head.saturating_sub(position));
        now.head = head;
    }

    /// A batch is about to be applied.
    pub fn received(&self, batch: &Batch) {
        let now = &mut self.inner.lock().now;
        if now.stream.is_none() {
            now.stream = Some(batch.stream.name.clone());
        }
        now.head = now.head.max(batch.head).max(batch.through);
        now.pending = batch.pending + batch.events.len() as u64;
        if now.catches_up_to.is_none() {
            now.catches_up_to = Some(if now.pending > 0 { batch.head } else { batch.through });
        }
        if now.pending > LIVE_LAG_MAX && now.state == DeploymentState::Live {
            now.state = DeploymentState::CatchingUp;
        }
    }

    /// Some events of a batch were applied.
    pub fn applied(&self, events: &[Event]) {
        let now = &mut self.inner.lock().now;
        now.pending = now.pending.saturating_sub(events.len() as u64);
        now.applied += events.len() as u64;
        if let Some(last) = events.last() {
            now.last_event_ns = last.time_ns;
        }
    }

    /// All of a batch was applied.
    pub fn finished(&self, batch: &Batch) {
        let mut inner = self.inner.lock();
        let now = &mut inner.now;
        now.pending = batch.pending;
        if now.pending == 0 && now.state == DeploymentState::CatchingUp {
            now.state = DeploymentState::Live;
        }
        inner.measure();
    }

    /// The instance that applies holds so much memory, and none once it is gone.
    pub fn memory(&self, bytes: u64) {
        self.inner.lock().now.memory_bytes = bytes;
    }

    /// Counts an instance until the guard is dropped.
    pub fn instance(self: &Arc<Self>) -> Alive {
        self.inner.lock().now.instances += 1;
        Alive { progress: Arc::clone(self) }
    }

    /// A batch failed, and is tried again after a pause. The first error of a streak stays.
    pub fn retrying(&self, kind: &str, message: &str, sequence: u64, attempts: u32) {
        let now = &mut self.inner.lock().now;
        now.state = DeploymentState::Retrying;
        note(now, kind, message, Some(sequence), attempts);
    }

    /// It rests, as an operator wants. Reads are answered from where it is: to wait for more would bring nothing.
    pub fn paused(&self) {
        self.set_state(DeploymentState::Paused);
        self.answers_now();
    }

    /// It can't go on without an operator.
    pub fn stopped(&self, kind: &str, message: &str, sequence: Option<u64>) {
        let now = &mut self.inner.lock().now;
        let attempts = now.failure.as_ref().map_or(1, |failure| failure.attempts + 1);
        now.state = DeploymentState::Failed;
        note(now, kind, message, sequence, attempts);
    }

    /// The failing streak is over.
    pub fn recovered(&self) {
        let now = &mut self.inner.lock().now;
        now.failure = None;
        if now.state == DeploymentState::Retrying {
            now.state = DeploymentState::CatchingUp;
        }
    }

    /// A generation's module begins to fold: the old failure is over.
    pub fn started(&self, generation: u64) {
        let now = &mut self.inner.lock().now;
        now.generation = generation;
        now.starts += 1;
        now.failure = None;
        now.state = DeploymentState::CatchingUp;
    }

    /// Clients have seen this position: reads are answered from there on, if not from a later one.
    pub fn shown(&self, position: u64) {
        let now = &mut self.inner.lock().now;
        now.floor = now.floor.max(position);
    }

    /// Clients may have seen this position: reads are answered from there on, until the wait for it is over.
    pub fn may_have_shown(&self, position: u64) {
        let now = &mut self.inner.lock().now;
        now.catches_up_to = now.catches_up_to.max(Some(position));
    }

    /// Nothing more is waited for: reads are answered from now on, unless clients are known to have seen more.
    pub fn answers_now(&self) {
        self.inner.lock().now.catches_up_to = Some(0);
    }
}

fn note(now: &mut Now, kind: &str, message: &str, sequence: Option<u64>, attempts: u32) {
    match &mut now.failure {
        Some(first) => first.attempts = attempts,
        none => {
            let first_at = jiff::Timestamp::now().to_string();
            *none = Some(Failure { kind: kind.to_owned(), message: message.to_owned(), sequence, first_at, attempts });
        }
    }
}

impl Inner {
    fn measure(&mut self) {
        let elapsed = self.measured_at.elapsed();
        if elapsed >= RATE_WINDOW {
            self.now.rate = (self.now.applied - self.measured_applied) as f64 / elapsed.as_secs_f64();
            self.measured_applied = self.now.applied;
            self.measured_at = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(progress: &Progress) -> (u64, u64) {
        let now = progress.now();
        (now.head, now.pending)
    }

    #[test]
    fn lag_grows_with_the_stream_while_nothing_is_read() {
        let progress = Progress::new(None, 0);
        progress.seen(10, 4);
        assert_eq!(lag(&progress), (10, 6), "nothing is known but where the stream ends");
        progress.inner.lock().now.pending = 2;
        progress.seen(10, 4);
        assert_eq!(lag(&progress), (10, 2), "of the events there were, two match");
        progress.seen(15, 4);
        assert_eq!(lag(&progress), (15, 7), "each of the new ones may");
        progress.seen(12, 4);
        assert_eq!(lag(&progress), (15, 7), "an older look says nothing new");
    }

    #[test]
    fn what_clients_saw_outlasts_the_wait_for_what_they_may_have_seen() {
        let progress = Progress::new(None, 3);
        assert_eq!(progress.answers_from(), None);
        progress.may_have_shown(9);
        assert_eq!(progress.answers_from(), Some(9));
        progress.answers_now();
        assert_eq!(progress.answers_from(), Some(3));
        progress.shown(7);
        progress.paused();
        assert_eq!(progress.answers_from(), Some(7));
    }
}
