//! A runner: one state file, the module that folds into it, and the thread on which that happens.
//!
//! The thread opens the state, runs the pipeline, and waits for an operator if the pipeline can't
//! continue. A runner knows nothing of its neighbours: `deployment.rs` decides which runner answers
//! reads.

mod lag;
mod lead;
mod loading;
mod options;
mod ownership;
mod reads;
mod repairs;
#[cfg(test)]
pub(crate) mod tests;
mod threads;
mod waiting;
mod worker;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::event::Event;
use crate::firing;
use crate::metrics::DeploymentMetrics;
use crate::module::Module;
use crate::outbox;
use crate::overview;
use crate::pipeline::{Ceiling, Desired, Pace, ParkedRequests, Patches, Standing, Throttle, lanes};
use crate::progress::{DeploymentState, Now, Progress};
use crate::source::{self, Status};
use crate::state::Store;
use crate::state::exceptions::Skips;

pub use crate::pipeline::RepairError;
pub use lag::Lag;
pub(crate) use lag::age_seconds;
pub use options::{Load, LoadError, NotLoaded, Options, Part, Program};
use ownership::Releasing;
pub use reads::{Behind, ReadError};
use worker::Worker;
pub(crate) use worker::{overridden, subjects_of};

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

/// Shared between the thread and all handles of a runner.
///
/// The locks are taken in this order: `releasing`, then `program`; of the handle `thread`, then
/// `worker`.
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
    /// The lanes of the module that folds, if it has several, and what became of their batches.
    lanes: Mutex<Option<(u32, Arc<lanes::Record>)>>,
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

/// The stream of another runner, compared with that of a runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OtherStream {
    Same,
    Different,
    /// It is not known of both which stream they read.
    Unknown,
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
                change: 0,
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
            lanes: Mutex::default(),
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
                self.shared.progress.note_waiting("host", &message);
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
        self.compare_stream_of(other) != OtherStream::Different
    }

    fn compare_stream_of(&self, other: &Self) -> OtherStream {
        let published = |runner: &Self| runner.store()?.published();
        // A checkpoint has marks of its stream, by which the two are compared.
        match (published(self), published(other)) {
            (Some(one), Some(another)) if one.is_of_same_stream(&another) => OtherStream::Same,
            (Some(_), Some(_)) => OtherStream::Different,
            _ => OtherStream::Unknown,
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

    /// Sets where its state begins again if its file is lost.
    pub fn set_begins_after(&self, after: u64) {
        self.shared.program.write().begins_after = Some(after);
    }

    /// The lanes of the module that folds, if it has several.
    pub(crate) fn lanes(&self) -> Option<overview::Lanes> {
        let (count, record) = self.shared.lanes.lock().clone()?;
        let figures = record.figures();
        Some(overview::Lanes {
            count,
            split: figures.split,
            collided: figures.collided,
            failed: figures.failed,
            gave_up: figures.gave_up,
            keys: figures.keys.iter().map(|key| key.to_string()).collect(),
        })
    }

    /// Its current module.
    pub fn program(&self) -> Program {
        self.shared.program.read().clone()
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
        self.shared.progress.note_awaited_start();
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
        self.shared.progress.end_probation();
        // The event stopped it, and during a probation it did not answer for that reason.
        if self.shared.progress.stopped_at_event() {
            self.shared.progress.note_nothing_shown();
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

    fn change_pace(&self, apply: impl FnOnce(&mut Pace)) -> u64 {
        // In the closure, so that no two changes get the same number.
        let mut change = 0;
        self.shared.pace.send_modify(|pace| {
            apply(pace);
            pace.change += 1;
            change = pace.change;
        });
        change
    }

    /// Whether it is held.
    pub fn is_held(&self) -> bool {
        self.shared.standing.borrow().is_some()
    }

    /// Waits until it is held after a change of pace, with everything durable; returns its
    /// position. Cancel-safe.
    pub async fn held_at(&self, change: u64) -> u64 {
        let mut standing = self.shared.standing.subscribe();
        let has_seen = |standing: &Option<Standing>| {
            standing.is_some_and(|standing| standing.change >= change)
        };
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
