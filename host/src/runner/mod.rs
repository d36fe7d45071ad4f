//! A runner: one state file, the module that folds into it, and the thread on which that happens.
//!
//! The thread opens the state, runs the pipeline, and waits for an operator if the pipeline can't
//! continue. A runner knows nothing of its neighbours: `deployment.rs` decides which runner answers
//! reads.

mod lead;
mod options;
mod ownership;
mod repairs;
#[cfg(test)]
mod tests;
mod threads;
mod waiting;
mod worker;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::api::{self, DeploymentState, SourceState};
use crate::event::{Event, Payload};
use crate::firing;
use crate::metrics::DeploymentMetrics;
use crate::module::{Identity, Module, QueryError};
use crate::outbox;
use crate::pipeline::{Ceiling, Desired, Pace, ParkedRequests, Patches, Standing, Throttle};
use crate::progress::{Now, Progress};
use crate::source::{self, Status};
use crate::state::exceptions::Skips;
use crate::state::{Snapshot, Store};

pub use crate::pipeline::RepairError;
pub use options::{Load, LoadError, NotLoaded, Options, Part, Program};
use ownership::Releasing;
use worker::Worker;
pub(crate) use worker::{overridden, subjects_of};

/// How long information about a stream counts as current.
const KNOWN_FOR: Duration = Duration::from_secs(6);
/// After how long without news of a stream it is checked outside the reader.
const HEARD_FOR: Duration = Duration::from_secs(2);

/// How far a state is behind the end of its stream. Unknown values are none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lag {
    /// The last sequence in the stream.
    pub head: Option<u64>,
    /// Events that may match and are not applied yet.
    pub events: Option<u64>,
    /// Age of the oldest of them, in seconds; 0 if there is none.
    pub seconds: Option<f64>,
}

/// How long ago a time was, in seconds.
pub(crate) fn age_seconds(time_ns: u64) -> f64 {
    // Signed, because a time of the future is possible, and has the age 0.
    let age_ns = jiff::Timestamp::now().as_nanosecond() - i128::from(time_ns);
    (age_ns as f64 / 1e9).max(0.0)
}

/// The requested position was not reached in time.
#[derive(Debug, thiserror::Error)]
#[error("position {wanted} was not reached in time: the deployment is at {position}")]
pub struct Behind {
    /// The requested position.
    pub wanted: u64,
    /// The position reached.
    pub position: u64,
}

/// Pause before the next attempt to start a thread; it doubles up to the maximum.
const THREAD_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Starts the thread of a runner as soon as the system allows another thread.
async fn start_later(runner: Weak<Runner>) {
    let mut pause = THREAD_PAUSE.0;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(THREAD_PAUSE.1);
        match runner.upgrade() {
            Some(runner) if !runner.start_thread() => {}
            _ => return,
        }
    }
}

/// Why a state can't be read at the moment.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its file is still being opened.
    #[error("{0}")]
    NotReady(String),
    /// It has not yet reached the position that it must reach.
    #[error(transparent)]
    Behind(#[from] Behind),
}

/// Shared between the thread and all handles of a runner.
struct Shared {
    deployment: String,
    path: PathBuf,
    program: RwLock<Program>,
    progress: Arc<Progress>,
    store: watch::Sender<Option<Store>>,
    control: watch::Sender<Desired>,
    pace: watch::Sender<Pace>,
    standing: watch::Sender<Option<Standing>>,
    patches: Arc<Patches>,
    /// Whether events that have used up their attempts are parked.
    parks: Arc<AtomicBool>,
    /// Requests to change what is parked.
    parked: Arc<ParkedRequests>,
    /// What its releaser reports, if it owns effects.
    outbox: Arc<outbox::Status>,
    /// What the task that fires timers reports, if it owns effects.
    firing: Arc<firing::Status>,
    /// Raised when the releaser must look at grants, or at a pause, again.
    outbox_wake: watch::Sender<u64>,
    releasing: Releasing,
    /// The position that it must not pass.
    leash: watch::Sender<u64>,
    /// The end of its leash is where it takes over from an owner that is gone.
    succeeds_lost_owner: bool,
    source_status: source::StatusSender,
    metrics: DeploymentMetrics,
}

impl Shared {
    fn wake_outbox(&self) {
        self.outbox_wake.send_modify(|number| *number += 1);
    }
}

/// The handle of a runner. Dropping it asks the thread to stop.
pub struct Runner {
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// The work for the thread, until it starts.
    worker: Arc<Mutex<Option<Worker>>>,
    /// The task that keeps it behind another runner.
    lead: Mutex<Option<AbortHandle>>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Runner")
            .field("path", &self.shared.path)
            .finish_non_exhaustive()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.ask_to_stop();
        // The thread ends on its own; the task would wait for its lead for ever.
        if let Some(lead) = self.lead.get_mut() {
            lead.abort();
        }
    }
}

impl Runner {
    /// Starts a runner.
    pub fn start(options: Options) -> Arc<Self> {
        let progress = Arc::new(Progress::new(options.catches_up_to, options.floor));
        let desired = if options.paused {
            Desired::Pause
        } else {
            Desired::Run(0)
        };
        let (ceiling, throttle) = options.pace;
        let shared = Arc::new(Shared {
            deployment: options.deployment,
            path: options.path,
            program: RwLock::new(options.program),
            progress,
            store: watch::Sender::new(None),
            control: watch::Sender::new(desired),
            // `start` numbers the ceiling of its options as change 0, which `held_at(0)` waits for.
            pace: watch::Sender::new(Pace {
                ceiling,
                throttle,
                epoch: 0,
            }),
            standing: watch::Sender::new(None),
            patches: Arc::default(),
            parks: Arc::new(AtomicBool::new(options.parks)),
            parked: Arc::default(),
            outbox: Arc::default(),
            firing: Arc::default(),
            outbox_wake: watch::Sender::new(0),
            releasing: Releasing {
                outlets: options.outlets,
                room: options.settings.disk.as_ref().map(|(room, _)| room.clone()),
                runtime: options.runtime.clone(),
                slot: Mutex::default(),
            },
            leash: watch::Sender::new(options.leash),
            succeeds_lost_owner: options.succeeds_lost_owner,
            source_status: watch::Sender::new(source::initial_status()),
            metrics: options.metrics,
        });
        let worker = Worker {
            control: shared.control.subscribe(),
            pace: shared.pace.subscribe(),
            shared: Arc::clone(&shared),
            state: options.state,
            _cache: options.cache,
            settings: options.settings,
            runtime: options.runtime.clone(),
            halted: None,
            loading: None,
        };
        let worker = Arc::new(Mutex::new(Some(worker)));
        let runner = Arc::new(Self {
            shared,
            thread: Mutex::new(None),
            worker,
            lead: Mutex::default(),
        });
        // A system at its limit of threads may allow one later; reads say why until then.
        if !runner.start_thread() {
            options.runtime.spawn(start_later(Arc::downgrade(&runner)));
        }
        runner
    }

    /// Starts the thread unless it runs; returns whether it runs.
    fn start_thread(&self) -> bool {
        let mut thread = self.thread.lock();
        // The worker is taken once, by its thread: without it there is nothing to start.
        if thread.is_some() || self.worker.lock().is_none() {
            return true;
        }
        let (name, worker) = (
            format!("fold-{}", self.shared.deployment),
            Arc::clone(&self.worker),
        );
        // Passed through a shared slot, which keeps the work if the thread cannot start.
        let begin = move || {
            let worker = worker.lock().take();
            worker.into_iter().for_each(Worker::run);
        };
        match threads::spawn(name, begin) {
            Ok(started) => *thread = Some(started),
            Err(error) => {
                let message = format!("cannot start a thread: {error}; raise the limit of tasks");
                self.shared.progress.waiting("host", &message);
            }
        }
        thread.is_some()
    }

    /// Its progress.
    pub fn now(&self) -> Now {
        self.shared.progress.now()
    }

    /// How publishing its effects goes.
    pub fn outbox(&self) -> &outbox::Status {
        &self.shared.outbox
    }

    /// How firing its timers goes.
    pub(crate) fn firing(&self) -> &firing::Status {
        &self.shared.firing
    }

    /// The state of its source.
    pub fn source_status(&self) -> Status {
        self.shared.source_status.borrow().clone()
    }

    /// Its state at a progress that was read before, including what is known about its source. A
    /// progress that is read again may be another one, of which the rest of an answer knows nothing.
    pub fn state(&self, now: &Now) -> DeploymentState {
        let state = now.state;
        let would_read = matches!(state, DeploymentState::CatchingUp | DeploymentState::Live);
        if would_read && self.source_status().is_trouble() {
            DeploymentState::Disconnected
        } else {
            state
        }
    }

    /// How far it is behind the end of its stream at a progress that was read before, as far as
    /// known.
    pub fn lag(&self, now: &Now) -> Lag {
        // While it reads, its own reader says where the stream ends; otherwise the look of the host
        // does.
        let status = self.source_status();
        let reads = now.has_read && status.is_known_within(KNOWN_FOR);
        // A look from before the source was lost says nothing about now.
        let is_current = |at: &Instant| {
            at.elapsed() <= KNOWN_FOR && status.troubled_at.is_none_or(|since| since < *at)
        };
        let was_looked_at = now.looked_at.as_ref().is_some_and(is_current);
        if (!reads && !was_looked_at) || now.is_of_another_history() {
            return Lag::default();
        }
        // The age of the last event is an upper bound of the age of the next one.
        // Events on their way to us follow the last applied event.
        let next_ns = now
            .oldest_ns
            .or_else(|| (reads && now.last_event_ns > 0).then_some(now.last_event_ns));
        let seconds = if now.pending == 0 {
            Some(0.0)
        } else {
            next_ns.map(age_seconds)
        };
        Lag {
            // The head was reported earlier, and may lie behind the position by now.
            head: Some(now.head.max(self.last_position())),
            events: Some(now.pending),
            seconds,
        }
    }

    /// Its state, once it is open.
    pub fn store(&self) -> Option<Store> {
        self.shared.store.borrow().clone()
    }

    /// Its state, as soon as it is open. Cancel-safe: it only observes.
    pub async fn opened(&self) -> Store {
        let mut stores = self.stores();
        let found = stores
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|store| store.clone());
        match found {
            Some(store) => store,
            // The sender lives in `shared`, which this handle keeps: it cannot be gone.
            None => std::future::pending().await,
        }
    }

    /// Its state, as it opens and closes.
    pub fn stores(&self) -> watch::Receiver<Option<Store>> {
        self.shared.store.subscribe()
    }

    /// Path of its state file.
    pub fn path(&self) -> &std::path::Path {
        &self.shared.path
    }

    /// The last sequence that its state reflects, or reflected when it was last open; 0 before it
    /// was opened.
    pub fn last_position(&self) -> u64 {
        self.store()
            .map_or_else(|| self.now().last_position, |store| store.position())
    }

    /// The last sequence that its state reflects; 0 while it is not open.
    pub fn position(&self) -> u64 {
        self.shared
            .store
            .borrow()
            .as_ref()
            .map_or(0, Store::position)
    }

    /// The last event that its state reflects; 0 if none.
    pub fn last_event(&self) -> u64 {
        let published = self.store().and_then(|store| store.published());
        published
            .and_then(|checkpoint| checkpoint.last_event)
            .map_or(0, |event| event.sequence)
    }

    /// Whether it reads the same stream as another runner, as far as both know.
    pub fn is_of_same_stream(&self, other: &Self) -> bool {
        self.reads_stream_of(other).unwrap_or(true)
    }

    /// The same; none if it is not known of both which stream they read.
    fn reads_stream_of(&self, other: &Self) -> Option<bool> {
        let published = |runner: &Self| runner.store()?.published();
        // A checkpoint has marks of its stream, by which the two are compared.
        match (published(self), published(other)) {
            (Some(one), Some(another)) => Some(one.is_of_same_stream(&another)),
            _ => None,
        }
    }

    /// Whether it applies the same events as another runner.
    pub fn applies_same_events(&self, other: &Self) -> bool {
        let subjects = |runner: &Self| {
            let program = runner.program();
            // A part of the events is not what the module applies otherwise.
            let module = program.module.ok().filter(|_| program.part.is_none());
            // Firings are events of the host's own.
            module.map(|module| {
                let manifest = module.manifest();
                (manifest.subjects.clone(), manifest.sets_timers)
            })
        };
        matches!((subjects(self), subjects(other)), (Some(one), Some(another)) if one == another)
    }

    /// Lets it pass over missing events up to a sequence, from its next start.
    pub fn accept_missing(&self, through: u64) {
        self.shared.program.write().accepts_missing_through = through;
    }

    /// Its current module.
    pub fn program(&self) -> Program {
        self.shared.program.read().clone()
    }

    /// A view that reflects at least a sequence, if available now, otherwise the reason. Does not
    /// wait.
    pub fn try_snapshot(&self, at_least: Option<u64>) -> Result<Snapshot, ReadError> {
        let Some(store) = self.store() else {
            return Err(ReadError::NotReady(self.why_not_ready()));
        };
        // None: nobody knows yet what readers saw before the host started.
        let Some(gate) = self.shared.progress.answers_from() else {
            return Err(ReadError::NotReady(self.why_not_ready()));
        };
        // Both bounds apply: what readers saw before, and what this one asks for.
        let wanted = gate.max(at_least.unwrap_or(0));
        let snapshot = store.snapshot();
        let position = snapshot.position();
        if position >= wanted {
            Ok(snapshot)
        } else {
            Err(Behind { wanted, position }.into())
        }
    }

    /// It answers reads from now on.
    pub fn start_serving(&self) {
        self.shared.progress.set_serves(true);
        self.shared.progress.set_follows(false);
    }

    /// It answers no reads from now on.
    pub fn stop_serving(&self) {
        self.shared.progress.set_serves(false);
    }

    /// It answers no reads from now on, and follows the stream, so that it can answer them again.
    pub fn follow(&self) {
        self.stop_serving();
        self.shared.progress.set_follows(true);
    }

    /// Whether it has just started and does not know yet from which position it may answer.
    pub fn is_uncertain(&self) -> bool {
        self.now().catches_up_to.is_none() && self.is_running()
    }

    /// Replaces another runner: rejects reads until this runner reaches the highest position that
    /// the other has (or may have) served.
    pub fn succeeds(&self, other: &Self, position: u64) {
        self.shared.progress.succeeds(&other.now(), position);
    }

    fn why_not_ready(&self) -> String {
        let (name, now) = (&self.shared.deployment, self.now());
        match (now.failure, now.repair_percent) {
            (Some(failure), _) => format!("{name} can't be read: {}", failure.message),
            (None, Some(percent)) => {
                format!(
                    "the state of {name} is being repaired after an unclean stop: {percent:.0} %; \
                     try again later"
                )
            }
            (None, None) => {
                let source = self
                    .source_status()
                    .message
                    .map(|message| format!(" ({message})"))
                    .unwrap_or_default();
                format!(
                    "{name} was not stopped cleanly, and only the end of its stream shows which \
                     positions it may have answered from; its source is not connected yet{source}; \
                     try again"
                )
            }
        }
    }

    /// Answers a query over a snapshot, on a blocking thread.
    pub async fn query(
        &self,
        snapshot: Snapshot,
        name: String,
        args: Payload,
    ) -> Result<Payload, QueryError> {
        let program = self.program();
        // A module that loads now, or that the runner will load, is worth another request.
        let may_come = self.is_running() || matches!(program.module, Err(NotLoaded::Yet));
        let not_loaded = |why: NotLoaded| {
            let why = why.to_string();
            if may_come {
                QueryError::NotReady(why)
            } else {
                QueryError::Failed(why)
            }
        };
        let module = program.module.map_err(not_loaded)?;
        let identity = Identity {
            deployment: self.shared.deployment.clone(),
            generation: program.generation,
        };
        let seconds = self.shared.metrics.query_seconds.clone();
        let progress = Arc::clone(&self.shared.progress);
        let answered = tokio::task::spawn_blocking(move || {
            // Counted while it runs, so that the host knows how many instances there are.
            let _alive = progress.instance();
            let started = Instant::now();
            let answer = module.query(&identity, snapshot, &name, &args);
            seconds.observe(started.elapsed().as_secs_f64());
            answer
        });
        answered.await.unwrap_or_else(|error| {
            Err(QueryError::Failed(format!(
                "the query ended unexpectedly: {error}"
            )))
        })
    }

    /// The position up to which nothing under a prefix changed since another position; none if
    /// something changed, or if that is unknown or can't be read.
    pub fn untouched_through(&self, after: u64, prefix: &str) -> Option<u64> {
        // A gate that is not open yet admits no read, and so no answer from memory either.
        let gate = self.shared.progress.answers_from()?;
        // All from one store, because a reopened store counts its changes from its last checkpoint.
        let store = self.store()?;
        let through = store.position();
        if through < gate {
            return None;
        }
        store
            .changed_between(after, through, prefix)
            .is_some_and(|keys| keys.is_empty())
            .then_some(through)
    }

    /// Whether a part of the state was replaced at a position, as far as known.
    pub fn was_patched_at(&self, position: u64) -> bool {
        self.store()
            .is_none_or(|store| store.changed_between(position, position, "").is_none())
    }

    /// Stops applying. Reads continue.
    pub fn pause(&self) {
        self.shared.control.send_replace(Desired::Pause);
        // A paused owner does not send either.
        self.shared.wake_outbox();
    }

    /// Continues after a pause or a failure.
    pub fn resume(&self) {
        // It may have had no thread so far, for lack of one in the system.
        self.start_thread();
        // Before the request: a waiter that looks in between must not see the old failure.
        self.shared.progress.awaits_start();
        // A number that rises, so that a resume after a failure differs from the request before it.
        self.shared.control.send_modify(|desired| {
            let number = if let Desired::Run(number) = desired {
                *number + 1
            } else {
                1
            };
            *desired = Desired::Run(number);
        });
        self.shared.wake_outbox();
    }

    /// Whether it folds, or would fold if its state were open.
    pub fn is_running(&self) -> bool {
        !matches!(
            self.now().state,
            DeploymentState::Paused | DeploymentState::Failed | DeploymentState::Stopping
        )
    }

    /// Whether the end of the stream is out of date, because the stream is not read at the moment
    /// or read events are waiting.
    pub fn asks_for_head(&self) -> bool {
        !self.source_status().is_heard_within(HEARD_FOR)
    }

    /// The position after which somebody must look up the next event: it is not read, so its age is
    /// unknown.
    pub fn asks_for_age(&self) -> Option<u64> {
        let position = self.store()?.position();
        self.shared.progress.asks_for_age().then_some(position)
    }

    /// Records what its source reported outside the reader, which a runner that does not read would
    /// not learn.
    pub fn source_says(&self, info: &api::SourceInfo) {
        // Only an operator ends this state; a look from outside proves nothing about its cause.
        let is_stopped = self.source_status().state == SourceState::Stopped;
        let rests = !matches!(
            self.now().state,
            DeploymentState::CatchingUp | DeploymentState::Live
        );
        let status = &self.shared.source_status;
        match (info.first_sequence, info.last_sequence) {
            (Some(first), Some(last)) if info.reachable => {
                source::heard(status, Instant::now());
                if rests && !is_stopped {
                    source::report(status, SourceState::Idle, None);
                }
                self.stream_reaches(first.max(1), last);
            }
            _ if rests && !is_stopped => {
                source::report(
                    status,
                    info.state.unwrap_or(SourceState::Reconnecting),
                    info.message.clone(),
                );
            }
            _ => {}
        }
    }

    /// Records where the stream begins and ends, which a runner that does not read would not learn.
    pub fn stream_reaches(&self, first: u64, head: u64) {
        if let Some(store) = self.store() {
            self.shared.progress.seen(first, head, store.position());
        }
    }

    /// Records the time of the next event in the stream.
    pub fn next_event_is_of(&self, time_ns: u64) {
        self.shared.progress.oldest_is_of(time_ns);
    }

    /// Passes it a module that could not be loaded before, if that is why it does not fold; returns
    /// whether it was.
    pub fn give_module(&self, module: &Arc<Module>) -> bool {
        {
            let mut program = self.shared.program.write();
            // It is loaded already, and a running pipeline keeps it.
            if program.module.is_ok() {
                return false;
            }
            program.module = Ok(Arc::clone(module));
        }
        self.run_program();
        true
    }

    /// Runs another program on the same state, from the next batch on.
    pub fn take_over(&self, program: Program) {
        self.change_program(|current| *current = program);
    }

    /// Changes a part of the program, from the next batch on. Other parts may change at the same
    /// moment.
    pub fn change_program(&self, change: impl FnOnce(&mut Program)) {
        // The write lock is released here, before anybody is woken.
        change(&mut self.shared.program.write());
        self.run_program();
    }

    /// Opens the state again if a write to it has failed, unless it is paused: nothing else might
    /// write to it, and notice.
    pub fn reopen_if_failed(&self) {
        if self.store().is_some_and(|store| store.has_failed()) {
            self.run_program();
        }
    }

    fn run_program(&self) {
        self.shared.wake_outbox();
        // A paused runner takes the program with its next resume.
        if matches!(*self.shared.control.borrow(), Desired::Run(_)) {
            self.resume();
        }
    }

    /// Skips other events from the next batch on. The caller holds it at a ceiling, so that nothing
    /// is applied in between.
    pub fn leave_out(&self, skips: Skips) {
        // Read before the skips change: the failure is the one that they may be about.
        let now = self.now();
        let failed_at = now.failure.as_ref().and_then(|failure| failure.sequence);
        let is_past_it = failed_at.is_some_and(|sequence| skips.has(sequence));
        self.shared.program.write().skips = skips;
        // If it stopped for another reason, it stays stopped.
        if self.is_running() || (is_past_it && now.state == DeploymentState::Failed) {
            self.resume();
        }
    }

    /// The event that fails, if there is one.
    pub fn failing_event(&self) -> Option<Event> {
        self.shared.progress.failing_event()
    }

    /// Ends the probation: the module gets its usual number of attempts.
    pub fn pass_probation(&self) {
        self.shared.program.write().on_probation = false;
        self.shared.progress.set_probation(false);
        // The event stopped it, and during a probation it did not answer for that reason.
        if self.shared.progress.stopped_at_event() {
            self.shared.progress.answers_now();
        }
    }

    /// Sets how far it may go; returns the number of the change, by which [`Runner::held_at`]
    /// recognises it.
    pub fn set_ceiling(&self, ceiling: Ceiling) -> u64 {
        self.change_pace(|pace| pace.ceiling = ceiling)
    }

    /// Sets how fast it may go.
    pub fn set_throttle(&self, throttle: Throttle) {
        self.change_pace(|pace| pace.throttle = throttle);
    }

    fn change_pace(&self, change: impl FnOnce(&mut Pace)) -> u64 {
        // In the closure, so that no two changes get the same number.
        let mut epoch = 0;
        self.shared.pace.send_modify(|pace| {
            change(pace);
            pace.epoch += 1;
            epoch = pace.epoch;
        });
        epoch
    }

    /// Whether it is held.
    pub fn is_held(&self) -> bool {
        self.shared.standing.borrow().is_some()
    }

    /// Waits until it is held after a change of pace, with everything durable; returns its
    /// position. Cancel-safe.
    pub async fn held_at(&self, epoch: u64) -> u64 {
        let mut standing = self.shared.standing.subscribe();
        let has_seen =
            |standing: &Option<Standing>| standing.is_some_and(|standing| standing.epoch >= epoch);
        let found = standing
            .wait_for(has_seen)
            .await
            .ok()
            .and_then(|standing| *standing);
        match found {
            Some(standing) => standing.position,
            None => std::future::pending().await,
        }
    }

    /// Asks it to finish its batch, flush and end.
    pub fn ask_to_stop(&self) {
        self.shared.control.send_replace(Desired::Stop);
    }

    /// Waits for the requested end. Blocking.
    pub fn join(&self) {
        // Taken out, so that a second caller does not wait for it again.
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!(deployment = self.shared.deployment, "the thread panicked");
        }
    }
}
