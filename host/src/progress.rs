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
    /// The position that it may have shown before the process started; none while that is not known.
    pub catches_up_to: Option<u64>,
    /// Where the stream ended when it was first reached since the process started: nothing beyond was shown before.
    pub first_head: Option<u64>,
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
            first_head: None,
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

    /// Its state was opened, and reflects what a checkpoint says; `is_settled` says that readers saw nothing beyond that.
    pub fn opened(&self, checkpoint: Option<&Checkpoint>, is_settled: bool) {
        let last_event = checkpoint.and_then(|checkpoint| checkpoint.last_event.as_ref());
        let now = &mut self.inner.lock().now;
        now.last_event_ns = last_event.map_or(0, |event| event.time_ns);
        if is_settled && now.catches_up_to.is_none() {
            now.catches_up_to = Some(0);
        }
    }

    /// The stream ends at `head`, seen from aside while nothing is read; the state reflects `position`.
    pub fn seen(&self, head: u64, position: u64) {
        let now = &mut self.inner.lock().now;
        // A stream that ends before the state, or that the reader refused, may be another one: its end says nothing.
        let is_refused = now.failure.as_ref().is_some_and(|failure| failure.kind.starts_with("source-"));
        if head >= position && !is_refused {
            now.reached(head);
        }
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
        // The head also where no event is pending: for a reader that the server filters, the position moves over events of
        // others as well, and readers saw that.
        now.reached(batch.head.max(batch.through));
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
    pub fn retrying(&self, kind: &str, message: &str, sequence: Option<u64>, attempts: u32) {
        let now = &mut self.inner.lock().now;
        now.state = DeploymentState::Retrying;
        note(now, kind, message, sequence, attempts);
    }

    /// It waits for what the host can't give just now. No attempt counts, and no event is to blame.
    pub fn waiting(&self, kind: &str, message: &str) {
        let now = &mut self.inner.lock().now;
        now.state = DeploymentState::Retrying;
        let attempts = now.failure.as_ref().map_or(0, |failure| failure.attempts);
        note(now, kind, message, None, attempts);
    }

    /// It can't go on without an operator.
    pub fn stopped(&self, kind: &str, message: &str, sequence: Option<u64>) {
        let now = &mut self.inner.lock().now;
        let attempts = now.failure.as_ref().map_or(1, |failure| failure.attempts + 1);
        now.state = DeploymentState::Failed;
        note(now, kind, message, sequence, attempts);
    }

    /// There is room on the disk again: a failure that said otherwise is over.
    pub fn has_room(&self) {
        if self.inner.lock().now.failure.as_ref().is_some_and(|failure| failure.kind == "state") {
            self.recovered();
        }
    }

    /// The state file failed, and is opened again in a while.
    pub fn state_failed(&self, message: &str) {
        let now = &mut self.inner.lock().now;
        let attempts = now.failure.as_ref().map_or(1, |failure| failure.attempts + 1);
        now.state = DeploymentState::Retrying;
        note(now, "state", message, None, attempts);
    }

    /// The failing streak is over.
    pub fn recovered(&self) {
        let now = &mut self.inner.lock().now;
        now.failure = None;
        if now.state == DeploymentState::Retrying {
            let is_done = now.pending == 0 && now.stream.is_some();
            now.state = if is_done { DeploymentState::Live } else { DeploymentState::CatchingUp };
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

    /// It takes the place of another, of which clients saw `position` or more, at that position: what the other one may
    /// have shown before the process started, it may have shown as well.
    pub fn succeeds(&self, before: &Now, position: u64) {
        let now = &mut self.inner.lock().now;
        now.floor = now.floor.max(before.floor).max(position);
        let inherited = before.catches_up_to.or(now.first_head);
        now.catches_up_to = match (now.catches_up_to, inherited) {
            (Some(own), Some(inherited)) => Some(own.max(inherited)),
            // The end of the stream tells, once it is reached.
            _ => None,
        };
    }

    /// It stands at an event that nothing passes: nothing beyond can have been shown. Reads are answered from now on, unless
    /// clients are known to have seen more.
    pub fn answers_now(&self) {
        self.inner.lock().now.catches_up_to = Some(0);
    }
}

impl Now {
    /// The stream was reached, and ends here.
    fn reached(&mut self, head: u64) {
        self.first_head.get_or_insert(head);
        self.catches_up_to.get_or_insert(head);
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
    fn what_may_have_been_shown_ends_where_the_stream_did_when_it_was_first_reached() {
        let progress = Progress::new(None, 3);
        assert_eq!(progress.answers_from(), None);
        progress.seen(2, 4);
        assert_eq!(progress.answers_from(), None, "another stream ends before the state");
        progress.seen(9, 4);
        progress.seen(12, 4);
        assert_eq!(progress.answers_from(), Some(9));
        progress.answers_now();
        assert_eq!(progress.answers_from(), Some(3));
        progress.shown(7);
        assert_eq!(progress.answers_from(), Some(7));
    }

    #[test]
    fn a_state_that_was_closed_in_good_order_answers_from_where_it_is() {
        let progress = Progress::new(None, 0);
        progress.opened(None, false);
        assert_eq!(progress.answers_from(), None);
        progress.opened(None, true);
        assert_eq!(progress.answers_from(), Some(0));
    }

    #[test]
    fn who_takes_over_answers_from_no_earlier_than_the_one_before() {
        let knowing = Progress::new(None, 2);
        knowing.seen(9, 0);
        let successor = Progress::new(Some(0), 0);
        successor.succeeds(&knowing.now(), 5);
        assert_eq!(successor.answers_from(), Some(9));
        // One before that never reached the stream may have shown anything up to where the stream ends.
        let unknowing = Progress::new(None, 2).now();
        let successor = Progress::new(Some(0), 0);
        successor.seen(8, 0);
        successor.succeeds(&unknowing, 5);
        assert_eq!(successor.answers_from(), Some(8));
        let successor = Progress::new(Some(0), 0);
        successor.succeeds(&unknowing, 5);
        assert_eq!(successor.answers_from(), None);
        successor.seen(4, 0);
        assert_eq!(successor.answers_from(), Some(5), "what it took over at was shown");
    }
}
