//! A deployment: a name with several generations, one of which is active.
//!
//! All other code uses a deployment through its handle, which knows the active runner. The record
//! in the catalogue describes the generations; the handle knows which of them run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::event::Payload;
use crate::failure::{Failure, Whose};
use crate::module::QueryError;
use crate::overview;
use crate::progress::{DeploymentState, Now};
use crate::runner::{Lag, ReadError, Runner, age_seconds};
use crate::sagas::{self, Saga};
use crate::schemas::EventSchema;
use crate::state::catalogue::{Generation, GenerationStatus, Record, Strategy};
use crate::state::{Snapshot, Store};
use crate::subject::{Pattern, SubjectSet};
use crate::timestamp;

/// A consistent view of a deployment, and the runner that it came from.
#[derive(Clone, Debug)]
pub struct View {
    /// Number of its generation.
    pub generation: u64,
    /// The state.
    pub snapshot: Snapshot,
    runner: Arc<Runner>,
}

impl View {
    /// A view of a generation that is not the active one.
    pub fn of(runner: Arc<Runner>, snapshot: Snapshot) -> Self {
        Self {
            generation: runner.program().generation,
            snapshot,
            runner,
        }
    }

    /// Names of the module's queries.
    pub fn queries(&self) -> Vec<String> {
        let module = self.runner.program().module.ok();
        let queries = module
            .map(|module| module.info().queries.clone())
            .unwrap_or_default();
        queries.into_iter().map(|query| query.name).collect()
    }

    /// Answers a query with the module that built the state, on a blocking thread.
    pub async fn query(&self, name: String, args: Payload) -> Result<Payload, QueryError> {
        self.runner.query(self.snapshot.clone(), name, args).await
    }
}

/// The handle of a deployment.
///
/// The locks are taken in this order: `changing`, `record`, `active`, and then one of the others at
/// a time. Only `changing` is held across an await; the locks of rollouts say what comes after it.
#[derive(Debug)]
pub struct Deployment {
    name: String,
    record: watch::Sender<Arc<Record>>,
    active: watch::Sender<Arc<Runner>>,
    /// All runners, by the number of their state file.
    runners: RwLock<BTreeMap<u64, Arc<Runner>>>,
    /// Places in the queue of rebuilds, by state file, of those that wait or run; 0 runs.
    places: RwLock<BTreeMap<u64, u64>>,
    /// Serialises changes to its generations; reads don't wait for it.
    pub(crate) changing: tokio::sync::Mutex<()>,
    verification: RwLock<Option<overview::Verification>>,
    /// Why failure events can't be published, while they can't.
    failure_events: Mutex<Option<String>>,
    /// The number of a candidate that is ready, and why it does not take over.
    held_back: Mutex<Option<(u64, String)>>,
    /// Cancelled once it is deleted, or the host stops.
    gone: CancellationToken,
}

impl Deployment {
    /// The deployment of a record whose active generation runs. `gone` is cancelled once it is
    /// deleted, or the host stops.
    pub fn new(record: Record, active: Arc<Runner>, gone: CancellationToken) -> Arc<Self> {
        let runners = BTreeMap::from([(record.active().state_file, Arc::clone(&active))]);
        let has_effects = record.handler.is_some();
        let active_sender = watch::Sender::new(Arc::clone(&active));
        // A state of a handler must not pass the active one, which owns the effects.
        if has_effects {
            active.follow_lead(active_sender.subscribe());
        }
        Arc::new(Self {
            name: record.name.clone(),
            record: watch::Sender::new(Arc::new(record)),
            active: active_sender,
            runners: RwLock::new(runners),
            places: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            verification: RwLock::default(),
            failure_events: Mutex::default(),
            held_back: Mutex::default(),
            gone,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Notes why failure events can't be published, or that all are.
    pub(crate) fn note_failure_events(&self, trouble: Option<String>) {
        *self.failure_events.lock() = trouble;
    }

    /// Notes why a candidate does not take over although it is ready, or that nothing keeps it.
    pub(crate) fn note_held_back(&self, number: u64, reason: Option<String>) {
        *self.held_back.lock() = reason.map(|reason| (number, reason));
    }

    /// Why a generation does not take over although it is ready.
    fn held_back(&self, generation: &Generation) -> Option<String> {
        let held_back = self.held_back.lock();
        let (number, reason) = held_back.as_ref()?;
        // One that took over or was discarded since may still be noted.
        let is_it = *number == generation.number && generation.status == GenerationStatus::Ready;
        is_it.then(|| reason.clone())
    }

    /// Its record in the catalogue, which may have many generations: it is shared, not copied.
    pub fn record(&self) -> Arc<Record> {
        Arc::clone(&self.record.borrow())
    }

    /// A copy of its record, to be changed and written to the catalogue.
    pub(crate) fn draft(&self) -> Record {
        Record::clone(&self.record.borrow())
    }

    /// Its record in the catalogue and its active runner, which belong together.
    pub(crate) fn current(&self) -> (Arc<Record>, Arc<Runner>) {
        // Both change under this lock.
        let record = self.record.borrow();
        (Arc::clone(&record), self.active())
    }

    /// Reads its record in the catalogue.
    pub(crate) fn with_record<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&self.record.borrow())
    }

    /// Waits until a check of its record finds something; none once it is deleted, or the host
    /// stops. The check is made at once, and again at each change of the record, the runners and the
    /// places in the queue. Cancel-safe: it only observes.
    pub(crate) async fn until<T>(&self, mut find: impl FnMut(&Record) -> Option<T>) -> Option<T> {
        let mut records = self.record.subscribe();
        let found = async {
            loop {
                // Seen and marked in one step, so that no change between the look and the wait is
                // missed.
                let found = find(&records.borrow_and_update());
                if found.is_some() || records.changed().await.is_err() {
                    return found;
                }
            }
        };
        // Two levels: the wait was cancelled, or the record's sender is gone. Both are an end.
        self.gone.run_until_cancelled(found).await.flatten()
    }

    /// Whether it was deleted, or the host stops.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// Ends the work on it: it was deleted.
    pub(crate) fn leave(&self) {
        self.gone.cancel();
    }

    /// Sets the record that the catalogue already has.
    pub(crate) fn set_record(&self, record: Record) {
        self.record.send_replace(Arc::new(record));
    }

    /// The active runner.
    pub fn active(&self) -> Arc<Runner> {
        Arc::clone(&self.active.borrow())
    }

    /// The digest of the active module, and the schemas that it carries; none while the module is
    /// not loaded.
    pub(crate) fn schemas(&self) -> Option<(String, Arc<[EventSchema]>)> {
        let module = self.active().program().module.ok()?;
        Some((module.info().digest.clone(), Arc::clone(module.schemas())))
    }

    /// The active runner, as it changes.
    pub(crate) fn actives(&self) -> watch::Receiver<Arc<Runner>> {
        self.active.subscribe()
    }

    /// Makes another runner active, and sets the record that says so.
    pub(crate) fn flip(&self, record: Record, runner: Arc<Runner>) {
        // In one step: a client that has heard of the new generation gets answers from it.
        self.record.send_modify(|current| {
            *current = Arc::new(record);
            self.active.send_replace(runner);
        });
    }

    /// The runner of a state file.
    pub fn runner(&self, state_file: u64) -> Option<Arc<Runner>> {
        self.runners.read().get(&state_file).cloned()
    }

    /// Adds the runner of a state file.
    pub(crate) fn add_runner(&self, state_file: u64, runner: Arc<Runner>) {
        // Before anybody can start it: it must not pass the active one.
        if self.with_record(|record| record.handler.is_some()) {
            runner.follow_lead(self.active.subscribe());
        }
        self.runners.write().insert(state_file, runner);
        self.look_again();
    }

    /// Removes a runner; the caller ends it.
    pub(crate) fn take_runner(&self, state_file: u64) -> Option<Arc<Runner>> {
        self.runners.write().remove(&state_file)
    }

    /// Numbers of the state files that have runners.
    pub(crate) fn running_files(&self) -> Vec<u64> {
        self.runners.read().keys().copied().collect()
    }

    /// All runners, including the active one.
    pub fn runners(&self) -> Vec<Arc<Runner>> {
        self.runners.read().values().cloned().collect()
    }

    /// Sets the place of a rebuild in the queue, or that it is not queued.
    pub(crate) fn set_place(&self, state_file: u64, place: Option<u64>) {
        let mut places = self.places.write();
        match place {
            Some(place) => places.insert(state_file, place),
            None => places.remove(&state_file),
        };
        drop(places);
        self.look_again();
    }

    /// Whether a rebuild waits for its turn.
    pub(crate) fn is_queued(&self, state_file: u64) -> bool {
        let places = self.places.read();
        places.get(&state_file).is_some_and(|place| *place > 0)
    }

    /// Makes every [`Self::until`] check again: its check may depend on runners and places.
    fn look_again(&self) {
        self.record.send_modify(|_| ());
    }

    /// A consistent view that reflects at least a sequence; waits at most `timeout` for it.
    pub async fn view(&self, at_least: Option<u64>, timeout: Duration) -> Result<View, ReadError> {
        // One deadline for all rounds: each change of the active generation starts another one.
        let deadline = tokio::time::Instant::now() + timeout;
        let mut active = self.active.subscribe();
        loop {
            let runner = Arc::clone(&active.borrow_and_update());
            let declined = match runner.try_snapshot(at_least) {
                // Checked again, because another generation may have become active while the
                // snapshot was taken.
                Ok(snapshot) if !active.has_changed().unwrap_or(false) => {
                    return Ok(View::of(runner, snapshot));
                }
                Ok(_) => continue,
                Err(declined) => declined,
            };
            // After a try, so that a timeout of 0 still answers from what is there.
            if tokio::time::Instant::now() >= deadline {
                return Err(declined);
            }
            tokio::select! {
                // All arms only observe.
                () = runner.wait_until_answering(at_least) => {}
                // `changed` marks it as seen, which is for the loop to do.
                _ = active.changed() => active.mark_changed(),
                () = tokio::time::sleep_until(deadline) => {}
                () = self.gone.cancelled() => return Err(ReadError::Gone(self.name.clone())),
            }
        }
    }

    /// The same for a given runner, active or not.
    pub(crate) async fn view_of(
        &self,
        runner: Arc<Runner>,
        at_least: Option<u64>,
        timeout: Duration,
    ) -> Result<View, ReadError> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let declined = match runner.try_snapshot(at_least) {
                Ok(snapshot) => return Ok(View::of(runner, snapshot)),
                Err(declined) => declined,
            };
            if tokio::time::Instant::now() >= deadline {
                return Err(declined);
            }
            tokio::select! {
                // All arms only observe.
                () = runner.wait_until_answering(at_least) => {}
                () = tokio::time::sleep_until(deadline) => {}
                () = self.gone.cancelled() => return Err(ReadError::Gone(self.name.clone())),
            }
        }
    }

    /// Records that a verification starts; returns the running one if there is one.
    pub(crate) fn begin_verification(
        &self,
        begun: &overview::Verification,
    ) -> Option<overview::Verification> {
        let mut verification = self.verification.write();
        match &*verification {
            Some(running)
                if matches!(
                    running.state,
                    overview::WorkState::Queued | overview::WorkState::Running
                ) =>
            {
                Some(running.clone())
            }
            _ => {
                *verification = Some(begun.clone());
                None
            }
        }
    }

    /// Records the progress of a verification.
    pub(crate) fn update_verification(&self, update: impl FnOnce(&mut overview::Verification)) {
        if let Some(verification) = &mut *self.verification.write() {
            update(verification);
        }
    }

    /// The last verification.
    pub fn verification(&self) -> Option<overview::Verification> {
        self.verification.read().clone()
    }

    /// Its current state, with the decisions to skip events.
    pub fn info(&self) -> overview::Deployment {
        overview::Deployment {
            skips: self.latest_skips(),
            ..self.overview()
        }
    }

    /// Its sagas in figures, if it is a handler. Blocking.
    pub fn sagas(&self) -> Vec<Saga> {
        if self.with_record(|record| record.handler.is_none()) {
            return Vec::new();
        }
        let store = self.active().store();
        // A state that can't be read is shown by its failure.
        let figures = store.and_then(|store| sagas::figures(&store.snapshot()).ok());
        figures.unwrap_or_default()
    }

    /// Its current state in figures, without what [`Self::info`] and [`Self::sagas`] look up.
    pub fn overview(&self) -> overview::Deployment {
        // Both under one borrow, because `flip` changes them in one step.
        let (record, runner) = self.current();
        let now = runner.now();
        let store = runner.store();
        let figures = Figures::of(&runner, &now, store.as_ref());
        // Candidates and previous generations have instances as well.
        let all: Vec<Now> = self.runners().iter().map(|runner| runner.now()).collect();
        let active = record.active();
        overview::Deployment {
            generation: record.active,
            state: figures.state,
            source: active.source.clone(),
            stream: now.stream.clone(),
            source_status: runner.source_status(),
            position: figures.position,
            checkpoint: figures.checkpoint,
            head: figures.lag.head,
            lag_events: figures.lag.events,
            lag_seconds: figures.lag.seconds,
            missing_events: figures.missing_events,
            events_applied: now.applied,
            begun: now.begun,
            rate: figures.rate,
            remaining_seconds: figures.remaining_seconds,
            repair_percent: now.repair_percent,
            state_bytes: figures.sizes.state_bytes,
            memtable_bytes: figures.sizes.memtable_bytes,
            pinned_bytes: figures.sizes.pinned_bytes,
            file_bytes: figures.sizes.file_bytes,
            guest_memory_bytes: all.iter().map(|now| now.memory_bytes).sum(),
            instances: all.iter().map(|now| now.instances).sum(),
            deployed_at: active.created_at.clone(),
            reason: active.reason.clone(),
            failure: now
                .failure
                .map(|failure| failure.with_way_past(&record.name, Whose::Active)),
            skipped: store.as_ref().map_or(0, Store::exceptions_count),
            on_failure: record.parking.on_failure,
            failure_events: record
                .parking
                .events
                .as_ref()
                .map(|events| overview::FailureEvents {
                    to: events.place(),
                    trouble: self.failure_events.lock().clone(),
                }),
            checks_events_after: active.checks_events_after,
            parked: parked_counts(store.as_ref()),
            skips: Vec::new(),
            outbox: outbox_shown(&record, &runner, store.as_ref()),
            inbox: active
                .module
                .inbox
                .as_ref()
                .map(|_| inbox_shown(store.as_ref())),
            lanes: runner.lanes(),
            timers: timers_shown(&record, &runner, store.as_ref()),
            sagas: Vec::new(),
            module: active.module.clone(),
            candidate: record
                .candidate()
                .map(|generation| Box::new(self.generation_overview(generation))),
            previous: record
                .previous()
                .map(|generation| Box::new(self.generation_overview(generation))),
            name: record.name.clone(),
        }
    }

    /// The current state of one of its generations.
    pub fn generation_overview(&self, generation: &Generation) -> overview::Generation {
        let runner = self
            .runner(generation.state_file)
            .filter(|_| generation.has_file());
        // The runner of the file may belong to a later generation that continues it.
        let runner = runner.filter(|runner| runner.program().generation == generation.number);
        let now = runner.as_ref().map(|runner| runner.now());
        let store = runner.as_ref().and_then(|runner| runner.store());
        let figures = match (&runner, &now) {
            (Some(runner), Some(now)) => Figures::of(runner, now, store.as_ref()),
            _ => Figures::default(),
        };
        let progress = now
            .as_ref()
            .and_then(|now| figures.progress(generation, now));
        let place = self
            .places
            .read()
            .get(&generation.state_file)
            .copied()
            .filter(|place| *place > 0);
        // A generation that was paused before its turn in the queue does not run yet.
        let waits_for_operator = generation.paused && generation.status.is_candidate();
        let paused = waits_for_operator.then_some(DeploymentState::Paused);
        overview::Generation {
            number: generation.number,
            status: generation.status,
            reason: generation.reason.clone(),
            status_since: generation.status_since.clone(),
            created_at: generation.created_at.clone(),
            strategy: generation.strategy,
            state_file: generation.state_file,
            state: now.as_ref().map(|_| figures.state).or(paused),
            queued_behind: place,
            position: figures.position,
            checkpoint: figures.checkpoint,
            head: figures.lag.head,
            lag_events: figures.lag.events,
            progress,
            rate: figures.rate,
            remaining_seconds: figures.remaining_seconds,
            source_status: runner.as_ref().map(|runner| runner.source_status()),
            missing_events: figures.missing_events,
            lacks_events: generation.lacks_events,
            held_back: self.held_back(generation),
            file_bytes: figures.sizes.file_bytes,
            state_bytes: figures.sizes.state_bytes,
            failure: self.failure_of(generation, now.as_ref()),
            failed_at: generation.failed_at,
            checks_events_after: generation.checks_events_after,
            skipped: store.as_ref().map_or(0, Store::exceptions_count),
            parked: parked_counts(store.as_ref()),
            build: generation.build.clone(),
            comparison: generation.comparison.clone(),
            module: generation.module.clone(),
        }
    }

    /// The failure of a generation, while it runs or when it was built.
    fn failure_of(&self, generation: &Generation, now: Option<&Now>) -> Option<Failure> {
        // What runs knows best, also that nothing is wrong any more.
        let failure = now.map_or_else(
            || generation.failure.clone().map(Failure::from),
            |now| now.failure.clone(),
        )?;
        // A candidate that failed continues if it is resumed.
        let is_candidate =
            generation.status.is_candidate() || generation.status == GenerationStatus::Failed;
        let is_active = generation.number == self.record.borrow().active;
        Some(match (is_candidate, is_active) {
            (true, _) => failure.with_way_past(&self.name, Whose::Candidate),
            (false, true) => failure.with_way_past(&self.name, Whose::Active),
            // Nothing that an operator can do: it has ended.
            (false, false) => failure,
        })
    }

    /// The subjects that a generation reads.
    pub fn subjects_of(&self, generation: u64) -> Option<SubjectSet> {
        let record = self.record.borrow();
        let subjects = &record.generation(generation)?.module.subjects;
        SubjectSet::parse(subjects).ok()
    }

    /// Whether its state was opened, or failed to open.
    pub fn is_opened(&self) -> bool {
        self.active().now().state != DeploymentState::Opening
    }
}

/// The figures of a state and its progress.
struct Figures {
    state: DeploymentState,
    position: u64,
    checkpoint: u64,
    missing_events: u64,
    lag: Lag,
    rate: f64,
    remaining_seconds: Option<f64>,
    sizes: crate::state::Sizes,
}

impl Default for Figures {
    /// The figures of a generation that does not run.
    fn default() -> Self {
        Self {
            state: DeploymentState::Opening,
            position: 0,
            checkpoint: 0,
            missing_events: 0,
            lag: Lag::default(),
            rate: 0.0,
            remaining_seconds: None,
            sizes: crate::state::Sizes::default(),
        }
    }
}

impl Figures {
    fn of(runner: &Runner, now: &Now, store: Option<&Store>) -> Self {
        let (state, lag) = (runner.state(now), runner.lag(now));
        let moves = matches!(state, DeploymentState::CatchingUp | DeploymentState::Live);
        // A rate from before it stopped would promise an end.
        let rate = if moves { now.rate } else { 0.0 };
        let pending = lag.events.filter(|pending| *pending > 0 && rate > 0.0);
        Self {
            state,
            position: runner.last_position(),
            checkpoint: store
                .and_then(Store::checkpoint)
                .map_or(0, |checkpoint| checkpoint.position),
            missing_events: store
                .and_then(Store::published)
                .map_or(0, |checkpoint| checkpoint.missing_in_all()),
            lag,
            rate,
            remaining_seconds: pending.map(|pending| pending as f64 / rate),
            sizes: store.map(Store::sizes).unwrap_or_default(),
        }
    }

    /// Progress from the start of a build towards the head, if both are known.
    fn progress(&self, generation: &Generation, now: &Now) -> Option<f64> {
        let head = self.lag.head?;
        // Nothing left to apply: the head may be that of events which do not match.
        if self.lag.events == Some(0) {
            return Some(1.0);
        }
        let begin = match generation.strategy {
            Strategy::Rebuild => now
                .began_behind
                .or_else(|| Some(now.stream_first?.saturating_sub(1)))?,
            // From the existing entries: the stream continues from their position.
            Strategy::Migrate | Strategy::Inherit => now.opened_at?,
        };
        let (done, all) = (
            self.position.saturating_sub(begin),
            head.saturating_sub(begin),
        );
        Some(if all == 0 {
            // A stream without events, or whose head is not behind the beginning.
            0.0
        } else {
            (done as f64 / all as f64).min(1.0)
        })
    }
}

/// The inbox of a deployment whose module asks for one.
fn inbox_shown(store: Option<&Store>) -> overview::Inbox {
    overview::Inbox {
        ids: store.map_or(0, Store::inbox_ids),
        duplicates: store
            .and_then(Store::published)
            .map_or(0, |checkpoint| checkpoint.duplicates),
    }
}

/// How much a state has parked.
pub(crate) fn parked_counts(store: Option<&Store>) -> overview::Parked {
    let Some(store) = store else {
        return overview::Parked::default();
    };
    let counts = store.parked_counts();
    if counts.keys == 0 {
        return overview::Parked::default();
    }
    let since = store.parked_since();
    overview::Parked {
        keys: counts.keys,
        events: counts.events,
        bytes: counts.bytes,
        since,
    }
}

/// The timers of a handler that sets any.
fn timers_shown(
    record: &Record,
    runner: &Runner,
    store: Option<&Store>,
) -> Option<overview::Timers> {
    let pending = store.map(Store::pending_timers).unwrap_or_default();
    if !record.active().module.sets_timers && pending == 0 {
        return None;
    }
    // The firing's own note may be older than the last timer's end.
    let next_ns = runner.firing().next_ns().filter(|_| pending > 0);
    let (trouble, since) = runner.firing().trouble().unzip();
    let looping = runner.firing().timer_loop().filter(|_| pending > 0);
    Some(overview::Timers {
        pending,
        next_at: next_ns.map(timestamp::format_ns),
        overdue_seconds: next_ns.map_or(0.0, age_seconds),
        trouble,
        since: since.map(|since| since.to_string()),
        timer_loop: looping.map(|found| overview::TimerLoop {
            timer: found.timer,
            in_a_row: found.in_a_row,
            since: found.since.to_string(),
        }),
    })
}

/// The outbox of a handler.
fn outbox_shown(
    record: &Record,
    runner: &Runner,
    store: Option<&Store>,
) -> Option<overview::Outbox> {
    let handler = record.handler.as_ref()?;
    let waiting = store.map(Store::waiting_effects).unwrap_or_default();
    let known = runner.outbox().targets();
    let source = |name: &str| {
        let target = known.get(name).cloned().unwrap_or_default();
        let (trouble, since) = target.trouble.clone().unzip();
        overview::OutboxTarget {
            source: name.to_owned(),
            promise: target.promise(),
            window_seconds: target.window.map(|window| window.as_secs_f64()),
            longest_wait_seconds: target.longest_wait().as_secs_f64(),
            released: target.released,
            resent: target.resent,
            trouble,
            since: since.map(|since| since.to_string()),
            reasons: target.reasons(),
            reads_back: target.reads_back.map(|read| overview::ReadBack {
                passed: read.passed,
                of: read.of,
            }),
        }
    };
    let mut names: Vec<&str> = handler
        .grants
        .iter()
        .map(|grant| grant.source.as_str())
        .collect();
    // Targets that were used before a grant was taken away still have effects to release.
    let used = known.iter().filter(|(_, target)| {
        target.released > 0 || target.trouble.is_some() || target.reads_back.is_some()
    });
    names.extend(used.map(|(name, _)| name.as_str()));
    names.sort_unstable();
    names.dedup();
    // Over all targets: one that is stuck is what an operator wants to see.
    let oldest = known.values().filter_map(|target| target.oldest_ns).min();
    let is_covered = |wanted: &&String| {
        let pattern = Pattern::parse(wanted);
        pattern.is_ok_and(|wanted| handler.grants.cover(&wanted))
    };
    Some(overview::Outbox {
        entries: waiting.entries,
        bytes: waiting.bytes,
        delayed: waiting.delayed,
        conflicts: waiting.conflicts,
        oldest_seconds: oldest.map_or(0.0, age_seconds),
        full: store.is_some_and(Store::is_outbox_full),
        lineage: handler.lineage.to_string(),
        epoch: handler.epoch,
        state_file: handler.state_file,
        owned_after: handler.owned_after,
        effects_after: handler.effects_after,
        grants: handler.grants.texts(),
        not_granted: record
            .active()
            .module
            .publishes
            .iter()
            .filter(|wanted| !is_covered(wanted))
            .cloned()
            .collect(),
        targets: names.into_iter().map(source).collect(),
    })
}
