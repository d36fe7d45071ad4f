//! The thread of a runner: opens the state, runs the pipeline when requested, and rests in between.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Shared;
use super::loading::Loading;
use super::options::Program;
use super::ownership::checked_role;
use crate::batch::Limits;
use crate::effects::{Lineage, Role};
use crate::failure::{self, Failure, Whose};
use crate::memory::caches;
use crate::module::{Identity, KeyRule, Manifest, Module, ModuleKind};
use crate::pipeline::lanes::{self, Lanes, MakeLane};
use crate::pipeline::{
    Desired, Ended, Fold, Leash, MakeFold, Pace, ParkedRequests, Parking, Pipeline, Settings,
    Standing,
};
use crate::precedence;
use crate::progress::{DeploymentState, SeenBeyond};
use crate::room::Use;
use crate::source::{self, Request, Source, SourceState};
use crate::state::{self, Store};
use crate::subject::SubjectSet;
use crate::timers;

/// Most attempts that a manifest may ask for.
const ATTEMPTS_MAX: u32 = 1_000;
/// Shortest pause before the second attempt that a manifest may ask for: each attempt costs an
/// instance and log lines.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// While a state keeps failing, one in this many failures is logged.
const FAILURES_LOGGED_EVERY: u32 = 60;
/// Pause before a failed state is reopened.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// How often a damaged state is reopened before the runner waits for an operator. If only memory
/// was damaged, reading the file again helps.
const DAMAGED_TRIES: u32 = 3;
/// How long a runner that is paused before its module is loaded waits for that before it reports
/// the pause.
const LOAD_BRIEF: Duration = Duration::from_secs(1);
/// Why nothing is applied, after a defect in a reader.
const BROKE_OFF: &str = "reading stopped because of a defect in the host and starts again; see its \
                         log, and please report it";
/// How often a resting state checks for the disk space that a flush needs.
const ROOM_LOOK: Duration = Duration::from_secs(1);

/// The thread behind a runner.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) state: state::Options,
    /// Released once the thread has ended and the file is closed.
    pub(super) _cache: caches::Share,
    pub(super) settings: Settings,
    pub(super) control: watch::Receiver<Desired>,
    pub(super) pace: watch::Receiver<Pace>,
    pub(super) runtime: Handle,
    /// Why the state is only read: it was damaged at each attempt.
    pub(super) halted: Option<String>,
    /// The module that is still loading, if nobody waited for it to the end.
    pub(super) loading: Option<Loading>,
}

/// Why a rest ended.
enum Woken<T> {
    /// Something else is requested. `has_handles` says whether handles still exist.
    Asked { has_handles: bool },
    /// The awaited event happened.
    Done(T),
}

/// What a pipeline is made of, besides its state.
struct Parts {
    program: Program,
    module: Arc<Module>,
    source: Source,
    role: Role,
}

/// For what the keys of events are needed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// At most for lanes, if there are several.
    ForLanes,
    /// Events may be parked.
    ForParking,
}

impl Worker {
    /// Runs until it is asked to stop.
    pub(super) fn run(mut self) {
        // Inherited by no thread that answers reads: those belong to the runtime.
        // On other systems the call changes the whole process.
        if cfg!(target_os = "linux") {
            precedence::give_way();
        }
        // How often in a row the state was damaged, and where that was.
        let (mut damaged, mut damaged_at) = (0, 0);
        while !self.is_stopping() {
            // A defect ends this life and not the process: other deployments continue.
            let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.live()));
            // In this order: nobody may rely on a standing, an outbox or a store that is about to
            // close.
            self.shared.standing.send_replace(None);
            self.shared.close_outbox();
            if let Some(store) = self.shared.store.send_replace(None) {
                // Events that readers saw may be lost, and will come again: until then, nothing
                // older is shown.
                self.shared.progress.note_shown(store.position());
                self.shared.progress.note_closed(store.position());
            }
            let (message, may_pass) = match lived {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => (
                    error.to_string(),
                    !matches!(error, state::Error::Damaged(_)),
                ),
                Err(_) => (
                    "a defect in the host ended the fold; see its log, and please report it"
                        .to_owned(),
                    false,
                ),
            };
            let position = self.shared.progress.now().last_position;
            // A state that came further was readable in between.
            // If it has come further since, what happened before is over.
            let before = if position > damaged_at { 0 } else { damaged };
            // Only damage and defects count; a full disk or a missing file may pass at any time.
            (damaged, damaged_at) = (if may_pass { 0 } else { before + 1 }, position);
            self.halted = (damaged >= DAMAGED_TRIES).then(|| message.clone());
            if self.halted.is_some() {
                // The file is opened for reads only; an operator may restart applying, with as many
                // attempts again.
                damaged = 0;
                continue;
            }
            // Everything else is tried again each second, for as long as it takes.
            self.note_state_failure(&message);
            self.pause_before_reopening();
        }
        self.shared.progress.set_state(DeploymentState::Stopping);
    }

    /// Logs that the state failed, and what happens next: at the first failure of a streak, and now
    /// and then while it lasts.
    fn note_state_failure(&self, message: &str) {
        let (deployment, progress) = (&self.shared.deployment, &self.shared.progress);
        self.shared.metrics.state_failures.inc();
        let attempts = progress.note_state_failed(message);
        if attempts % FAILURES_LOGGED_EVERY == 1 {
            tracing::error!(
                deployment,
                position = progress.now().last_position,
                attempts,
                file = %self.shared.path.display(),
                error = message,
                "the state can't be read or written; the host reopens it every second at its last \
                 checkpoint, and the stream brings back the rest"
            );
        }
    }

    fn is_stopping(&self) -> bool {
        *self.control.borrow() == Desired::Stop
    }

    /// Opens the state and runs the pipeline when requested; an error asks to reopen the state.
    fn live(&mut self) -> Result<(), state::Error> {
        // A file after an unclean stop is repaired first, which may take minutes.
        let progress = Arc::clone(&self.shared.progress);
        let opened = Store::open(&self.shared.path, self.state.clone(), move |percent| {
            progress.note_repair(Some(percent));
        });
        self.shared.progress.note_repair(None);
        let (store, writer) = opened?;
        // Before anybody sees the store: a hand-over that ended half-way is settled first.
        self.settle_ownership(&store)?;
        // Format 1 had no note of a settled state; a pause made everything durable there as well.
        let was_paused = store.is_of_format_1() && *self.control.borrow() == Desired::Pause;
        let seen = if store.is_settled() || was_paused {
            SeenBeyond::Nothing
        } else {
            SeenBeyond::Unknown
        };
        self.shared
            .progress
            .note_opened(store.checkpoint().as_ref(), seen);
        // From here on reads are answered, if the gate allows.
        self.shared.store.send_replace(Some(store.clone()));
        // Otherwise the stream has to bring back what readers saw.
        if store.position() >= self.shared.progress.now().last_position {
            // No event is lost that was there before.
            self.shared.progress.note_durable();
        }
        self.shared.opened_outbox(&store);
        self.work(&store, writer)
    }

    /// Folds, rests and pauses as requested, until it is asked to stop.
    fn work(&mut self, store: &Store, mut writer: state::Writer) -> Result<(), state::Error> {
        loop {
            // Seen as of now: a change after this ends the wait below.
            let wanted = *self.control.borrow_and_update();
            match wanted {
                // Recorded as settled, so that the next start answers at once.
                Desired::Stop => return self.settle(store),
                Desired::Pause => {
                    // Before reporting the rest: the requester relies on it.
                    self.settle(store)?;
                    match self.pause(store, &mut writer) {
                        Ok(()) => {}
                        Err(Ended::State(error)) => return Err(error),
                        // A state that cannot be used ends this life; other ends lead to the next
                        // request.
                        Err(Ended::Asked | Ended::Failed) => continue,
                    }
                }
                // The file is damaged, so it is only read: the request is answered with the reason.
                Desired::Run(_) if self.halted.is_some() => {
                    let message = self.halted.take().unwrap_or_default();
                    self.shared
                        .progress
                        .note_stopped(failure::STATE, &message, None);
                    self.log_failure(store.position());
                }
                Desired::Run(_) => {
                    let ended;
                    (writer, ended) = self.run_pipeline(store.clone(), writer, wanted);
                    match ended {
                        Ended::Asked => {
                            if *self.control.borrow() == wanted {
                                // Nobody asked: its reader failed, and would fail again at once.
                                self.shared.progress.note_waiting("host", BROKE_OFF);
                                self.pause_before_reopening();
                            }
                            continue;
                        }
                        Ended::State(error) => return Err(error),
                        Ended::Failed => {
                            // It stopped at an event and not in the stream, so nothing newer is to
                            // come: it answers.
                            if self.shared.progress.stopped_at_event() {
                                self.shared.progress.note_nothing_shown();
                            }
                            self.settle(store)?;
                            self.log_failure(store.position());
                        }
                    }
                }
            }
            let has_handles;
            (writer, has_handles) = self.rest(store, writer)?;
            // The handles are gone, so nobody can ask for anything any more.
            if !has_handles {
                return Ok(());
            }
        }
    }

    /// Records in the state that readers saw nothing beyond it, if that is so: after a restart it
    /// answers at once. A state that has not yet reached an earlier position records nothing.
    fn settle(&self, store: &Store) -> Result<(), state::Error> {
        // Without a gate it is unknown what readers saw, so nothing can be recorded.
        let is_as_far = self
            .shared
            .progress
            .answers_from()
            .is_some_and(|from| store.position() >= from);
        // Without room the record is not written, which costs a check of the stream after a
        // restart.
        if is_as_far && self.has_room() {
            store.settle()
        } else {
            Ok(())
        }
    }

    fn log_failure(&self, position: u64) {
        let deployment = &self.shared.deployment;
        // A version that ends in its probation is put back, which has a line of its own.
        let Some(failure) = self.shared.progress.now().failure else {
            return;
        };
        let whose = if self.shared.progress.serves() {
            Whose::Active
        } else {
            Whose::Candidate
        };
        let failure = failure.with_way_past(deployment, whose).message;
        tracing::error!(
            deployment,
            position,
            error = failure,
            "stopped; `foldstream resume` tries again"
        );
    }

    /// Rests until something else is requested; returns whether handles still exist. Meanwhile it
    /// applies parked events for requests that keep nothing of that.
    fn rest(
        &mut self,
        store: &Store,
        mut writer: state::Writer,
    ) -> Result<(state::Writer, bool), state::Error> {
        loop {
            let trial = trial_wanted(self.pace.clone(), Arc::clone(&self.shared.parked));
            match self.rest_until(store, &mut writer, trial)? {
                Woken::Asked { has_handles } => return Ok((writer, has_handles)),
                Woken::Done(()) => writer = self.try_parked(store, writer)?,
            }
        }
    }

    /// Answers a request that changes nothing with a pipeline that reads no stream.
    fn try_parked(
        &mut self,
        store: &Store,
        writer: state::Writer,
    ) -> Result<state::Writer, state::Error> {
        let program = self.shared.program.read().clone();
        let module = program.module.as_ref().ok().map(Arc::clone);
        let source = program.source.as_ref().ok().cloned();
        let role = checked_role(&program, store).ok();
        let (Some(module), Some(source), Some(role)) = (module, source, role) else {
            // It rests because one of these is missing.
            self.shared.parked.decline();
            return Ok(writer);
        };
        let parts = Parts {
            program,
            module,
            source,
            role: self.shared.with_logs(role),
        };
        let wanted = *self.control.borrow();
        let pipeline = self.pipeline(parts, store.clone(), writer, wanted);
        let (writer, done) = pipeline.try_parked();
        done.map(|()| writer)
    }

    /// Waits until something else is requested or an event happens. Meanwhile it publishes the
    /// position, and carries out repairs. Everything is durable, because a pipeline flushes at its
    /// end. `done` loses nothing: it is polled again until it has a result.
    fn rest_until<T>(
        &mut self,
        store: &Store,
        writer: &mut state::Writer,
        done: impl Future<Output = T>,
    ) -> Result<Woken<T>, state::Error> {
        let mut done = std::pin::pin!(done);
        loop {
            let change = self.pace.borrow_and_update().change;
            // What the pipeline could not write for lack of room is written as soon as there is
            // some.
            let is_durable = store.is_durable() || self.flush_if_possible(store)?;
            // All three need a durable state: repairs and standings are promises about the file.
            if is_durable {
                self.shared.patches.apply(writer, store)?;
                // Another request may bring the code that a retry waits for.
                if !self.control.has_changed().unwrap_or(false) {
                    self.shared.parked.serve_resting(writer, store)?;
                }
                self.settle(store)?;
                self.shared.standing.send_replace(Some(Standing {
                    position: store.position(),
                    change,
                }));
            }
            let Self {
                control,
                pace,
                runtime,
                ..
            } = self;
            let woken = runtime.block_on(async {
                let look = async {
                    if is_durable {
                        std::future::pending::<()>().await;
                    }
                    // A disk does not announce that it has room again.
                    tokio::time::sleep(ROOM_LOOK).await;
                };
                // All arms only observe, and `done` stays in place.
                tokio::select! {
                    // Requests first: they may make the awaited event pointless.
                    biased;
                    changed = control.changed() => Some(Woken::Asked { has_handles: changed.is_ok() }),
                    Ok(()) = pace.changed() => None,
                    done = &mut done => Some(Woken::Done(done)),
                    () = look => None,
                }
            });
            if let Some(woken) = woken {
                // Before anything else can happen: a standing ends with the rest.
                self.shared.standing.send_replace(None);
                return Ok(woken);
            }
        }
    }

    /// Makes durable what the pipeline could not for lack of disk space, if there is space now;
    /// returns whether it did.
    fn flush_if_possible(&self, store: &Store) -> Result<bool, state::Error> {
        // On a full disk a flush would fail, and the state would have to be reopened without what
        // is in memory.
        if !self.has_room() {
            return Ok(false);
        }
        store.flush()?;
        self.shared.progress.note_room();
        Ok(true)
    }

    fn has_room(&self) -> bool {
        self.settings
            .disk
            .as_ref()
            .is_none_or(|(room, _)| room.check(Use::Write, 0).is_ok())
    }

    fn pause_before_reopening(&mut self) {
        // A request ends the pause early.
        let changed = self.control.changed();
        let _ = self
            .runtime
            .block_on(async { tokio::time::timeout(REOPEN_PAUSE, changed).await });
    }

    /// Rests until something has happened; ends early if something else is requested.
    pub(super) fn rest_unless<T>(
        &mut self,
        store: &Store,
        writer: &mut state::Writer,
        wanted: Desired,
        done: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        let mut done = std::pin::pin!(done);
        loop {
            // `done` is pinned here, so that a rest that ends early does not begin it again.
            match self
                .rest_until(store, writer, &mut done)
                .map_err(Ended::State)?
            {
                Woken::Done(done) => return Ok(done),
                Woken::Asked { .. } if *self.control.borrow() != wanted => {
                    return Err(Ended::Asked);
                }
                Woken::Asked { has_handles: true } => {}
                // No handle exists any more, which means stop.
                Woken::Asked { has_handles: false } => return Err(Ended::Asked),
            }
        }
    }

    /// Reports the pause. Queries are answered during the rest, so the module is loaded if it was
    /// not, but slow loading is not waited for. If it can't be loaded, queries say why.
    fn pause(&mut self, store: &Store, writer: &mut state::Writer) -> Result<(), Ended> {
        // Short, so that the pause is reported soon even if the module is slow to load.
        self.loaded(store, writer, Desired::Pause, LOAD_BRIEF)?;
        self.shared.progress.set_state(DeploymentState::Paused);
        if self.loading.is_some() {
            self.loaded(store, writer, Desired::Pause, Duration::MAX)?;
        }
        Ok(())
    }

    fn run_pipeline(
        &mut self,
        store: Store,
        mut writer: state::Writer,
        wanted: Desired,
    ) -> (state::Writer, Ended) {
        let (program, module) = match self.load_module(&store, &mut writer, wanted) {
            Ok(loaded) => loaded,
            Err(ended) => return (writer, ended),
        };
        // Before anything can fail, so that a failure is judged as one on probation.
        if program.on_probation {
            self.shared.progress.begin_probation();
        } else {
            self.shared.progress.end_probation();
        }
        self.shared.progress.note_started(program.generation);
        self.recall_failure(&program, &module, store.position());
        let source = match &program.source {
            Ok(source) => source.clone(),
            Err(unknown) => {
                let message = unknown.to_string();
                self.shared.progress.note_stopped("source", &message, None);
                source::report(
                    &self.shared.source_status,
                    SourceState::Stopped,
                    Some(message),
                );
                return (writer, Ended::Failed);
            }
        };
        // Catalogue and file are compared at each start, before anything is handled.
        let role = match checked_role(&program, &store) {
            Ok(role) => self.shared.with_logs(role),
            Err(mismatch) => {
                self.shared
                    .progress
                    .note_stopped("owner-mismatch", &mismatch.to_string(), None);
                return (writer, Ended::Failed);
            }
        };
        let parts = Parts {
            program,
            module,
            source,
            role,
        };
        let pipeline = self.pipeline(parts, store, writer, wanted);
        let status = &self.shared.source_status;
        source::report(status, SourceState::Connecting, None);
        let run = pipeline.run();
        reading_ended(status);
        run
    }

    fn pipeline(
        &self,
        parts: Parts,
        store: Store,
        mut writer: state::Writer,
        wanted: Desired,
    ) -> Pipeline {
        let Parts {
            program,
            module,
            source,
            role,
        } = parts;
        let manifest = module.manifest();
        // A limit of the manifest, and only for what this code writes.
        writer.limit_state_bytes(manifest.state_bytes.unwrap_or(u64::MAX));
        writer.set_lineage(program.first_lineage.map(|Lineage(lineage)| lineage));
        let parking = self.parking(&module);
        // Keys are needed to find events that wait behind a parked one.
        let keys = if store.parked_counts().keys > 0
            || parking.parks.load(Ordering::Relaxed)
            || !program.skips.past().parked.is_empty()
        {
            Keys::ForParking
        } else {
            Keys::ForLanes
        };
        let request = self.request(&program, &module, keys);
        Pipeline {
            source,
            request,
            skips: program.skips.clone(),
            source_status: self.shared.source_status.clone(),
            make_fold: self.make_fold(&program, &module),
            store,
            writer,
            recognises: manifest.inbox.clone(),
            role,
            settings: self.settings(&module),
            progress: Arc::clone(&self.shared.progress),
            metrics: self.shared.metrics.clone(),
            control: self.control.clone(),
            wanted,
            pace: self.pace.clone(),
            leash: Leash::new(self.shared.leash.subscribe()),
            standing: self.shared.standing.clone(),
            patches: Arc::clone(&self.shared.patches),
            parking,
            parked: Arc::clone(&self.shared.parked),
            runtime: self.runtime.clone(),
        }
    }

    /// Continues the failure at which the same code stopped before this process started.
    fn recall_failure(&self, program: &Program, module: &Module, position: u64) {
        let of = (program.generation, module.info().digest.as_str());
        let keeper = self.settings.keeper.as_ref();
        let failed = keeper.and_then(|keeper| keeper.failure_behind(position, of));
        if let Some(failed) = failed
            && let Some(first_at) = failed.first_at
        {
            let failure = Failure::begun(&failed.kind, failed.sequence, first_at);
            self.shared.progress.recall_failure(failure);
        }
    }

    /// What the source is asked for.
    fn request(&self, program: &Program, module: &Module, keys: Keys) -> Request {
        let manifest = module.manifest();
        // With an inbox, whether an event of the part is a duplicate depends on all events.
        let subjects = program
            .part
            .as_ref()
            .filter(|_| manifest.inbox.is_none())
            .map(|part| part.subjects());
        let keyed_by_header = matches!(manifest.key_rule, KeyRule::Header(_));
        let needs_keys = keys == Keys::ForParking
            || plan_of_lanes(program, module, self.settings.batch).is_some();
        let needs_headers = program
            .part
            .as_ref()
            .is_some_and(|part| part.needs_headers())
            || (keyed_by_header && needs_keys);
        Request {
            resume: None,
            start: program.start,
            begins_after: program.begins_after,
            subjects: subjects.unwrap_or_else(|| subjects_of(module, &self.shared.deployment)),
            // Effects continue the correlation of their causes.
            wants_headers: manifest.wants_headers
                || needs_headers
                || manifest.inbox.is_some()
                || module.kind() == ModuleKind::Handler,
            limits: self.settings.batch,
            accepts_missing_through: program.accepts_missing_through,
            skips: Arc::default(),
        }
    }

    fn make_fold(&self, program: &Program, module: &Arc<Module>) -> MakeFold {
        let plan = plan_of_lanes(program, module, self.settings.batch);
        // Each module starts with a record of its own: what collides depends on its code.
        let record = Arc::new(lanes::Record::new(&self.shared.deployment));
        *self.shared.lanes.lock() = plan
            .as_ref()
            .map(|plan| (plan.lanes as u32, Arc::clone(&record)));
        let (module, part) = (Arc::clone(module), program.part.clone());
        let identity = Identity {
            deployment: self.shared.deployment.clone(),
            generation: program.generation,
        };
        let checks_after = program.checks_events_after;
        if let Some(plan) = plan {
            let make: MakeLane = Arc::new(move || {
                let checks = module.checks_after(checks_after)?;
                Ok(Box::new(module.instantiate(&identity)?.checking(checks)))
            });
            return Box::new(move || {
                let lanes = Lanes::new(plan.clone(), Arc::clone(&make), Arc::clone(&record))?;
                Ok(Box::new(lanes))
            });
        }
        Box::new(move || {
            let checks = module.checks_after(checks_after)?;
            // A part wraps the fold, so it sees a batch before the module does.
            let fold: Box<dyn Fold> = Box::new(module.instantiate(&identity)?.checking(checks));
            Ok(match &part {
                Some(part) => part.narrow(fold),
                None => fold,
            })
        })
    }

    /// What happens to events after their last attempt.
    fn parking(&self, module: &Module) -> Parking {
        Parking {
            deployment: self.shared.deployment.clone(),
            rule: module.manifest().key_rule.clone(),
            firings: (module.manifest().sets_timers)
                .then(|| timers::subject(&self.shared.deployment)),
            generation: self.shared.program.read().generation,
            checks_events_after: self.shared.program.read().checks_events_after,
            module: module.info().digest.clone(),
            keeper: self.settings.keeper.clone(),
            parks: Arc::clone(&self.shared.parks),
            limits: self.settings.parking,
        }
    }

    /// The host's settings, overridden by those of the module.
    fn settings(&self, module: &Module) -> Settings {
        overridden(&self.settings, module.manifest())
    }
}

/// How its folds are split; none if they are serial. Effects and timers have an order over all keys,
/// and a part of the events is for one key.
fn plan_of_lanes(program: &Program, module: &Module, batch: Limits) -> Option<lanes::Plan> {
    let rule = &module.manifest().key_rule;
    let events_max = module
        .manifest()
        .batch_events
        .map_or(batch.events, |wanted| batch.events.min(wanted as usize));
    let lanes = lanes::Plan::most(events_max).min(program.lanes as usize);
    let is_split = lanes > 1
        && module.kind() == ModuleKind::Projection
        && *rule != KeyRule::None
        && program.part.is_none();
    is_split.then(|| lanes::Plan::new(lanes, rule.clone()))
}

/// The subjects that a deployment of a module reads.
pub(crate) fn subjects_of(module: &Module, deployment: &str) -> SubjectSet {
    let manifest = module.manifest();
    match manifest.sets_timers {
        true => manifest.subjects.with(&timers::subject(deployment)),
        false => SubjectSet::clone(&manifest.subjects),
    }
}

/// Settings, overridden by what a manifest asks for, within limits.
pub(crate) fn overridden(settings: &Settings, manifest: &Manifest) -> Settings {
    let mut settings = settings.clone();
    let policy = &mut settings.policy;
    let wanted = manifest
        .attempts
        .map(|attempts| attempts.clamp(1, ATTEMPTS_MAX));
    policy.attempts = wanted.unwrap_or(policy.attempts);
    let wanted = manifest.initial_backoff.map(|pause| pause.max(BACKOFF_MIN));
    policy.initial_backoff = wanted.unwrap_or(policy.initial_backoff);
    policy.max_backoff = manifest
        .max_backoff
        .unwrap_or(policy.max_backoff)
        .max(policy.initial_backoff);
    if let Some(events) = manifest.batch_events {
        // A module may want smaller batches than the host, but not larger ones.
        settings.batch.events = settings.batch.events.min(events.max(1) as usize);
    }
    settings
}

/// Waits for a request to apply parked events and keep nothing of that. Cancel-safe: it only
/// observes.
async fn trial_wanted(mut pace: watch::Receiver<Pace>, parked: Arc<ParkedRequests>) {
    // Each request is announced by a change of pace, which follows it.
    while !parked.is_trial_waiting() {
        if pace.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Nobody reads the source any more; the host checks it outside the reader. Trouble stays until
/// that check, because nothing has shown that it is over.
fn reading_ended(status: &source::StatusSender) {
    let is_over = {
        let status = status.borrow();
        // What an operator has to look at stays shown.
        status.state != SourceState::Stopped && !status.is_trouble()
    };
    if is_over {
        source::report(status, SourceState::Idle, None);
    }
}
