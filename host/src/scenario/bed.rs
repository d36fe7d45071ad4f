//! What a scenario runs on: a log, a state file and a pipeline, as a host has them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::fs::statvfs;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use super::cost::Meter;
use super::file::OnFailure;
use super::play::Script;
use crate::config::Config;
use crate::effects::{Grant, GrantError, Grants, Lineage, Owner, Role};
use crate::event::{Event, Payload};
use crate::failure::Failure;
use crate::log::{self, APPEND_BYTES_MAX, APPEND_EVENTS_MAX, Expectation, Log, NewEvent};
use crate::memory::Memory;
use crate::memory::memtables::Budget;
use crate::metrics::{DeploymentMetrics, Metrics};
use crate::module::{
    self, ApplyError, Checking, Identity, Instance, Manifest, Module, ModuleKind, QueryError,
};
use crate::pipeline::{
    Ceiling, Desired, Ended, Fold, Leash, MakeFold, Pace, Parking, ParkingLimits, Pipeline, Policy,
    Settings, Standing,
};
use crate::position::Start;
use crate::progress::{Progress, SeenBeyond};
use crate::runner;
use crate::source::embedded::Embedded;
use crate::source::{self, Request, Source};
use crate::state::exceptions::Skips;
use crate::state::inbox::Keep;
use crate::state::{self, Due, Ownership, Parked, Store, Writer};
use crate::timers::{self, Firing, What};

/// The name of the one target of messages.
const TARGET: &str = "scenario";
/// The owner of the effects of a scenario. They go nowhere.
const OWNERSHIP: Ownership = Ownership {
    lineage: Lineage(0),
    epoch: 1,
};
/// Most attempts at an event. Nothing changes between them, so more would only take longer: each may
/// take until the deadline.
const ATTEMPTS_MAX: u32 = 3;
/// The pause between attempts at an event: a scenario does not wait as a host does.
const BACKOFF: Duration = Duration::from_millis(1);
/// Longest wait for a pipeline that applies nothing.
const SETTLE_MAX: Duration = Duration::from_secs(120);
/// Most timers that fire while time passes once.
const FIRINGS_MAX: usize = 10_000;
/// Most restarts of one run: each takes milliseconds, and a mistake shows soon.
const RESTARTS_MAX: usize = 30;
/// Cache of a file, in bytes: files of scenarios are small, and there are many.
const CACHE_BYTES: usize = 1 << 20;
/// Memory for memtables and batches, in bytes.
const BUDGET_BYTES: u64 = 1 << 30;
/// Space that the files of a run take in any case, in bytes.
const FILES_BYTES: u64 = 32 << 20;
/// How often the events of a run may be on the disk: in the log, in the state, in copies of pages.
const EVENT_COPIES: u64 = 8;
/// A time that no scenario is at: 2500-01-01.
const OTHER_CLOCK_NS: u64 = 16_725_225_600_000_000_000;
/// Most bytes of subjects and data in one append: half of what a log takes, as headers count, too.
const PART_BYTES_MAX: usize = APPEND_BYTES_MAX / 2;
/// The subject of events that no module reads.
const OTHERS_SUBJECT: &str = "_fs.scenario.others";

/// Why a scenario could not be played to its end. It says nothing about the module.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The module can't be used.
    #[error(transparent)]
    Module(#[from] module::Error),
    #[error(transparent)]
    Log(#[from] log::Error),
    #[error(transparent)]
    State(#[from] state::Error),
    /// The module publishes to subjects that no host grants.
    #[error("its manifest can't be granted what it publishes: {0}")]
    Grants(#[from] GrantError),
    /// The system has no file or thread.
    #[error("cannot play a scenario: {0}")]
    System(#[from] std::io::Error),
    /// The pipeline did not come to an end.
    #[error("the module applied nothing for {} s", SETTLE_MAX.as_secs())]
    Stuck,
    /// Timers set each other without end.
    #[error("more than {FIRINGS_MAX} timers fire in one `pass`; do they set each other for ever?")]
    Endless,
    /// The pipeline ended without being asked.
    #[error("the pipeline ended unexpectedly")]
    Ended,
    /// Somebody asked it to stop.
    #[error("it was stopped")]
    Stopped,
}

/// Where runs have their files.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    /// On a disk.
    pub disk: PathBuf,
    /// In memory, where nothing waits for a disk; none if the system has no such folder.
    pub memory: Option<PathBuf>,
}

impl Folders {
    /// A folder for small files.
    fn any(&self) -> &Path {
        self.memory.as_ref().unwrap_or(&self.disk)
    }

    /// The folder for a run whose events have this many bytes.
    fn of(&self, bytes: usize) -> &Path {
        let needed = FILES_BYTES + EVENT_COPIES * bytes as u64;
        let has_room = |folder: &&PathBuf| {
            statvfs(folder.as_path()).is_ok_and(|space| space.f_bavail * space.f_frsize >= needed)
        };
        self.memory.as_ref().filter(has_room).unwrap_or(&self.disk)
    }
}

/// Files as each run begins with them: copying one is faster than creating it.
struct Blanks {
    folder: TempDir,
}

impl Blanks {
    fn new(folder: &Path, kind: ModuleKind, state: state::Options) -> Result<Self, Error> {
        let blanks = Self {
            folder: TempDir::new_in(folder)?,
        };
        // Closed at once, so that the files are whole.
        drop(Log::open(&blanks.log(), log_options())?);
        if kind == ModuleKind::Handler {
            state::create_owned(&blanks.state(), OWNERSHIP)?;
        }
        drop(Store::open(&blanks.state(), state, |_| ())?);
        Ok(blanks)
    }

    fn log(&self) -> PathBuf {
        log_in(self.folder.path())
    }

    fn state(&self) -> PathBuf {
        state_in(self.folder.path())
    }

    /// Copies them into a folder.
    fn copy(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::copy(self.log(), log_in(folder))?;
        std::fs::copy(self.state(), state_in(folder))?;
        Ok(())
    }
}

fn log_in(folder: &Path) -> PathBuf {
    folder.join("log.redb")
}

fn state_in(folder: &Path) -> PathBuf {
    folder.join("state.redb")
}

fn log_options() -> log::Options {
    log::Options {
        // An event that is delivered twice is in the stream twice.
        duplicate_window: Duration::ZERO,
        // A scenario has a clock of its own.
        future_max: None,
        cache_bytes: CACHE_BYTES,
        ..log::Options::default()
    }
}

/// What all runs share.
pub(super) struct Stage {
    runtime: Handle,
    pub(super) module: Arc<Module>,
    settings: Settings,
    state: state::Options,
    metrics: DeploymentMetrics,
    folders: Folders,
    blanks: Blanks,
    stops: watch::Receiver<bool>,
}

impl Stage {
    /// `stops` ends the work. Must be called within a runtime. Blocking.
    pub(super) fn new(
        module: Arc<Module>,
        folders: Folders,
        stops: watch::Receiver<bool>,
    ) -> Result<Self, Error> {
        let config = Config::default();
        let state = config.state_options(CACHE_BYTES as u64, &Memory::unlimited());
        Ok(Self {
            runtime: Handle::current(),
            settings: settings(&config, module.manifest()),
            metrics: Metrics::new().deployment(&module.manifest().name),
            blanks: Blanks::new(folders.any(), module.kind(), state.clone())?,
            state,
            module,
            folders,
            stops,
        })
    }

    fn is_stopped(&self) -> bool {
        *self.stops.borrow()
    }

    fn deployment(&self) -> &str {
        &self.module.manifest().name
    }

    /// The settings of a run.
    fn settings(&self, batch_events: Option<usize>) -> Settings {
        let mut settings = self.settings.clone();
        if let Some(events) = batch_events {
            settings.batch.events = settings.batch.events.min(events);
        }
        settings
    }

    /// All that the module reads.
    fn request(&self, settings: &Settings) -> Request {
        Request {
            resume: None,
            start: Start::Beginning,
            begins_after: None,
            subjects: runner::subjects_of(&self.module, self.deployment()),
            // Always: a scenario may park, whose keys may be headers.
            wants_headers: true,
            limits: settings.batch,
            accepts_missing_through: 0,
            skips: Arc::default(),
        }
    }

    fn parking(&self, settings: &Settings, parks: &Arc<AtomicBool>) -> Parking {
        let manifest = self.module.manifest();
        Parking {
            deployment: self.deployment().to_owned(),
            rule: manifest.key_rule.clone(),
            firings: (manifest.sets_timers).then(|| timers::subject(self.deployment())),
            generation: 1,
            checks_events_after: None,
            module: self.module.info().digest.clone(),
            keeper: None,
            parks: Arc::clone(parks),
            limits: settings.parking,
        }
    }

    /// A handler owns its effects, and may publish what its manifest says.
    fn role(&self) -> Result<Role, Error> {
        if self.module.kind() == ModuleKind::Projection {
            return Ok(Role::Mute);
        }
        let grant = |subjects: &crate::subject::Pattern| Grant {
            subjects: subjects.clone(),
            source: TARGET.to_owned(),
        };
        let publishes = &self.module.manifest().publishes;
        Ok(Role::Owner(Arc::new(Owner {
            deployment: self.deployment().to_owned(),
            lineage: OWNERSHIP.lineage,
            epoch: OWNERSHIP.epoch,
            effects_after: 0,
            timers_after: 0,
            grants: Grants::new(publishes.iter().map(grant).collect())?,
            publishes: Arc::default(),
            // The module may be meant for a stream, so it may ask for what only a stream can do.
            logs: Arc::default(),
        })))
    }
}

/// The key of a timer, as its firing names it; none if it is not pending at that time.
fn key_of(store: &Store, due: &Due) -> Result<Option<String>, Error> {
    let found = store.still_pending(std::slice::from_ref(due))?;
    let timer = found.into_iter().next().flatten();
    Ok(timer.map(|timer| Parked::name_of(timer.key)))
}

/// The host's settings, with the module's own.
fn settings(config: &Config, manifest: &Manifest) -> Settings {
    let Config {
        pipeline, state, ..
    } = config;
    let settings = Settings {
        batch: config.batch_limits(),
        policy: Policy {
            attempts: pipeline.attempts,
            initial_backoff: pipeline.initial_backoff,
            max_backoff: pipeline.max_backoff,
        },
        build_attempts: u32::MAX,
        build_backoff: BACKOFF,
        // What failed calls take slows down nobody else.
        retry_percent: 100,
        keeper: None,
        parking: ParkingLimits {
            keys: state.parked_keys_max,
            events: state.parked_events_max,
            bytes: state.parked_bytes_max,
        },
        flush_interval: state.flush_interval,
        memtable_bytes: state.memtable_bytes,
        idle_after: Duration::ZERO,
        budget: Arc::new(Budget::new(BUDGET_BYTES)),
        disk: None,
        shuffle: None,
    };
    let mut settings = runner::overridden(&settings, manifest);
    settings.policy.attempts = settings.policy.attempts.min(ATTEMPTS_MAX);
    settings.policy.initial_backoff = BACKOFF;
    settings.policy.max_backoff = BACKOFF;
    settings
}

/// Under which conditions a run folds. Nothing of this may change its result.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Conditions {
    /// Most events in one batch.
    pub(super) batch_events: Option<usize>,
    /// Each batch gets a new instance.
    pub(super) is_fresh: bool,
    /// The state is closed and opened again after each of the first events.
    pub(super) restarts: bool,
    /// Another seed of the module's randomness.
    pub(super) other_seed: bool,
    /// The module's clock is years ahead of the events.
    pub(super) other_clock: bool,
    /// The events with ids are delivered again at the end.
    pub(super) repeats: bool,
}

/// One run: an empty stream and an empty state.
pub(super) struct Bed<'a> {
    stage: &'a Stage,
    folder: TempDir,
    log: Log,
    conditions: Conditions,
    /// How many more events are followed by a restart.
    restarts_left: usize,
    checks_events_after: Option<u64>,
    parks: Arc<AtomicBool>,
    pub(super) meter: Arc<Meter>,
    /// None only while it restarts.
    life: Option<Life>,
}

/// An open state and the pipeline that folds into it.
struct Life {
    store: Store,
    progress: Arc<Progress>,
    control: watch::Sender<Desired>,
    pace: watch::Sender<Pace>,
    standing: watch::Sender<Option<Standing>>,
    /// Resolves when the pipeline has ended.
    ended: oneshot::Receiver<()>,
    is_over: bool,
    thread: std::thread::JoinHandle<(Writer, Ended)>,
}

impl<'a> Bed<'a> {
    pub(super) fn new(
        stage: &'a Stage,
        conditions: Conditions,
        script: &Script,
        meter: Meter,
    ) -> Result<Self, Error> {
        if stage.is_stopped() {
            return Err(Error::Stopped);
        }
        let folder = TempDir::new_in(stage.folders.of(script.bytes))?;
        stage.blanks.copy(folder.path())?;
        let log = Log::open(&log_in(folder.path()), log_options())?;
        let mut bed = Self {
            stage,
            folder,
            log,
            conditions,
            restarts_left: if conditions.restarts { RESTARTS_MAX } else { 0 },
            checks_events_after: script.check_events.then_some(0),
            parks: Arc::new(AtomicBool::new(script.on_failure == OnFailure::Park)),
            meter: Arc::new(meter),
            life: None,
        };
        bed.start()?;
        Ok(bed)
    }

    fn life(&self) -> &Life {
        self.life
            .as_ref()
            .expect("it lives except while it restarts")
    }

    /// Opens the state and starts to fold.
    fn start(&mut self) -> Result<(), Error> {
        let stage = self.stage;
        let life = Life::start(stage, self, &state_in(self.folder.path()))?;
        self.life = Some(life);
        Ok(())
    }

    /// Closes the state, and continues as after a stop of the host.
    fn restart(&mut self) -> Result<(), Error> {
        let has_failed = self.failure().is_some();
        // A deployment that has stopped stays stopped.
        if !has_failed {
            if let Some(life) = self.life.take() {
                life.stop()?;
            }
            self.start()?;
        }
        Ok(())
    }

    /// Appends events, and waits until the module is through with them.
    pub(super) fn happen(&mut self, events: &[NewEvent]) -> Result<(), Error> {
        let mut rest = events;
        while !rest.is_empty() {
            // One by one as long as there is a restart after each.
            let count = if self.restarts_left > 0 {
                1
            } else {
                rest.len()
            };
            let (now, later) = rest.split_at(count);
            rest = later;
            let last = self.append(now)?;
            self.settle(last)?;
            if self.restarts_left > 0 {
                self.restarts_left -= 1;
                self.restart()?;
            }
        }
        Ok(())
    }

    /// Appends events, in as many parts as the log takes at once; returns the last sequence. None is
    /// folded before the pipeline may go further.
    fn append(&self, events: &[NewEvent]) -> Result<u64, Error> {
        let (mut last, mut rest) = (0, events);
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |event: &&NewEvent| {
                bytes += event.subject.len() + event.data.len();
                bytes <= PART_BYTES_MAX
            };
            let count = rest
                .iter()
                .take(APPEND_EVENTS_MAX)
                .take_while(fits)
                .count()
                // One that is too large by itself is refused by the log, which says why.
                .max(1);
            let (part, later) = rest.split_at(count);
            rest = later;
            last = self
                .log
                .append(part, &Expectation::default())?
                .last_sequence;
        }
        Ok(last)
    }

    /// Waits until the module is through with the stream up to a sequence and everything is
    /// durable, or it has failed.
    fn settle(&mut self, through: u64) -> Result<(), Error> {
        let life = self
            .life
            .as_mut()
            .expect("it lives except while it restarts");
        life.settle(self.stage, through)
    }

    /// Fires the timers that are due up to a time, in the order of their times. A timer that fires
    /// may set further ones.
    pub(super) fn fire_until(&mut self, until_ns: u64, now_ns: u64) -> Result<(), Error> {
        for _ in 0..FIRINGS_MAX {
            if self.failure().is_some() {
                return Ok(());
            }
            let Some(due) = self.next_due(until_ns)? else {
                return Ok(());
            };
            let key = key_of(&self.life().store, &due)?;
            // One that is late fires now.
            let time_ns = due.at_ns.max(now_ns);
            let firing = Firing {
                name: due.name,
                at_ns: due.at_ns,
                key,
                what: What::Due,
                lineage: None,
            };
            self.publish(&firing, time_ns)?;
        }
        Err(Error::Endless)
    }

    /// The first timer that is due. One whose firing is parked waits for its key.
    fn next_due(&self, until_ns: u64) -> Result<Option<Due>, Error> {
        let store = &self.life().store;
        let subject = timers::subject(self.stage.deployment());
        // Nearly always the first one is it.
        for count in [1, usize::MAX] {
            let due = store.due_timers(until_ns, count)?;
            let is_all = due.len() < count;
            let next = due
                .into_iter()
                .find(|due| !store.is_parked_firing(&subject, &due.name));
            if next.is_some() || is_all {
                return Ok(next);
            }
        }
        Ok(None)
    }

    /// Publishes the firing of a timer at a place that the scenario chose. If the timer is not set,
    /// or not due, it does nothing.
    pub(super) fn fire(&mut self, name: &str, now_ns: u64) -> Result<(), Error> {
        let store = &self.life().store;
        let timer = store.snapshot().timer(name)?;
        let at_ns = timer.map_or(now_ns, |timer| timer.at_ns);
        let due = Due {
            at_ns,
            name: name.to_owned(),
            depth: 0,
        };
        let key = key_of(store, &due)?;
        let firing = Firing {
            name: name.to_owned(),
            at_ns,
            key,
            what: What::Due,
            lineage: None,
        };
        self.publish(&firing, now_ns)
    }

    fn publish(&mut self, firing: &Firing, time_ns: u64) -> Result<(), Error> {
        self.happen(&[NewEvent {
            subject: timers::subject(self.stage.deployment()),
            kind: Some(Firing::KIND.to_owned()),
            id: None,
            time_ns: Some(time_ns),
            headers: Vec::new(),
            data: firing.data(),
        }])
    }

    /// Appends events that the module does not read.
    pub(super) fn happen_elsewhere(&mut self, count: u32, now_ns: u64) -> Result<(), Error> {
        let event = NewEvent {
            subject: OTHERS_SUBJECT.to_owned(),
            kind: None,
            id: None,
            time_ns: Some(now_ns),
            headers: Vec::new(),
            data: Payload::from(""),
        };
        let events = vec![event; count as usize];
        let last = self.append(&events)?;
        self.settle(last)
    }

    pub(super) fn ask(&self, name: &str, args: &Payload) -> Result<Payload, QueryError> {
        let snapshot = self.life().store.snapshot();
        self.stage
            .module
            .query(&self.identity(), snapshot, name, args)
    }

    /// The failure at which it has stopped.
    pub(super) fn failure(&self) -> Option<Failure> {
        let life = self.life();
        life.is_over.then(|| life.progress.now().failure).flatten()
    }

    /// How long its inbox keeps ids, if it has one.
    pub(super) fn keeps_ids(&self) -> Option<Keep> {
        self.stage
            .module
            .manifest()
            .inbox
            .as_ref()
            .map(|inbox| inbox.keep())
    }

    pub(super) fn store(&self) -> &Store {
        &self.life().store
    }

    fn identity(&self) -> Identity {
        Identity {
            deployment: self.stage.deployment().to_owned(),
            // The seed of the module's randomness.
            generation: if self.conditions.other_seed { 2 } else { 1 },
        }
    }

    fn make_fold(&self) -> MakeFold {
        let module = Arc::clone(&self.stage.module);
        let (identity, meter) = (self.identity(), Arc::clone(&self.meter));
        let is_fresh = self.conditions.is_fresh;
        let clock_ns = if self.conditions.other_clock {
            OTHER_CLOCK_NS
        } else {
            0
        };
        let checks_after = self.checks_events_after;
        Box::new(move || {
            let checks = module.checks_after(checks_after)?;
            let instance = module.instantiate_at(&identity, clock_ns)?;
            Ok(Box::new(Watched {
                module: Arc::clone(&module),
                identity: identity.clone(),
                instance: Some(instance.checking(checks.clone())),
                checks,
                is_fresh,
                clock_ns,
                meter: Arc::clone(&meter),
            }))
        })
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        // A module that is at work when all is stopped is not waited for: it ends with the process.
        if let Some(life) = self.life.take().filter(|_| !self.stage.is_stopped()) {
            // Its files go with the folder, so nothing is left to report.
            let _ = life.stop();
        }
    }
}

impl Life {
    fn start(stage: &Stage, bed: &Bed<'_>, path: &Path) -> Result<Self, Error> {
        let manifest = stage.module.manifest();
        let (store, mut writer) = Store::open(path, stage.state.clone(), |_| ())?;
        writer.limit_state_bytes(manifest.state_bytes.unwrap_or(u64::MAX));
        let progress = Arc::new(Progress::new(Some(0), 0));
        progress.note_opened(store.checkpoint().as_ref(), SeenBeyond::Nothing);
        progress.note_started(1);
        let (control, standing) = (
            watch::Sender::new(Desired::Run(0)),
            watch::Sender::new(None),
        );
        // Held where it is until there is something to fold.
        let pace = watch::Sender::new(Pace {
            ceiling: Ceiling::Position(store.position()),
            ..Pace::default()
        });
        let settings = stage.settings(bed.conditions.batch_events);
        let pipeline = Pipeline {
            source: Source::Embedded(Embedded::new(bed.log.clone())),
            request: stage.request(&settings),
            skips: Skips::default(),
            source_status: watch::Sender::new(source::initial_status()),
            make_fold: bed.make_fold(),
            store: store.clone(),
            writer,
            recognises: manifest.inbox.clone(),
            role: stage.role()?,
            parking: stage.parking(&settings, &bed.parks),
            settings,
            progress: Arc::clone(&progress),
            metrics: stage.metrics.clone(),
            control: control.subscribe(),
            wanted: Desired::Run(0),
            pace: pace.subscribe(),
            leash: Leash::none(),
            standing: standing.clone(),
            patches: Arc::default(),
            parked: Arc::default(),
            runtime: stage.runtime.clone(),
        };
        let (done, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("scenario".to_owned())
            .spawn(move || {
                let end = pipeline.run();
                // Nobody waits for the end of a run that was stopped.
                let _ = done.send(());
                end
            })?;
        Ok(Self {
            store,
            progress,
            control,
            pace,
            standing,
            ended,
            is_over: false,
            thread,
        })
    }

    fn settle(&mut self, stage: &Stage, through: u64) -> Result<(), Error> {
        if self.is_over {
            return Ok(());
        }
        let mut change = 0;
        self.pace.send_modify(|pace| {
            pace.ceiling = Ceiling::Position(through);
            pace.change += 1;
            change = pace.change;
        });
        let mut standing = self.standing.subscribe();
        let is_there = |standing: &Option<Standing>| {
            standing
                .as_ref()
                .is_some_and(|standing| standing.change >= change)
        };
        let (ended, store, mut stops) = (&mut self.ended, &self.store, stage.stops.clone());
        self.is_over = stage.runtime.block_on(async {
            let mut position = store.position();
            loop {
                // All of them only observe.
                let any = async {
                    tokio::select! {
                        _ = standing.wait_for(is_there) => Ok(false),
                        _ = &mut *ended => Ok(true),
                        _ = stops.wait_for(|stops| *stops) => Err(Error::Stopped),
                    }
                };
                match tokio::time::timeout(SETTLE_MAX, any).await {
                    Ok(is_over) => return is_over,
                    // It is slow, and not stuck.
                    Err(_) if store.position() > position => position = store.position(),
                    Err(_) => return Err(Error::Stuck),
                }
            }
        })?;
        if self.is_over && self.progress.now().failure.is_none() {
            return Err(Error::Ended);
        }
        Ok(())
    }

    /// Stops it, with everything durable.
    fn stop(self) -> Result<(), Error> {
        self.control.send_replace(Desired::Stop);
        match self.thread.join() {
            Ok((_, Ended::State(error))) => Err(Error::State(error)),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Ended),
        }
    }
}

/// A fold of an instance that is looked at, and replaced if that is wanted.
struct Watched {
    module: Arc<Module>,
    identity: Identity,
    instance: Option<Instance>,
    checks: Option<Checking>,
    is_fresh: bool,
    /// Where the clock of an instance begins.
    clock_ns: u64,
    meter: Arc<Meter>,
}

impl Fold for Watched {
    fn apply(&mut self, events: &[Event], writer: Writer) -> (Writer, Result<(), ApplyError>) {
        let instance = match self.instance.take() {
            Some(instance) => Ok(instance),
            None => self
                .module
                .instantiate_at(&self.identity, self.clock_ns)
                .map(|instance| instance.checking(self.checks.clone())),
        };
        let mut instance = match instance {
            Ok(instance) => instance,
            // It started before, so it is the machine that lacks something.
            Err(error) => return (writer, Err(ApplyError::Host(error.to_string()))),
        };
        let (writer, result) = self.meter.measure(events, writer, &mut instance);
        if result.is_ok() && !self.is_fresh {
            self.instance = Some(instance);
        }
        (writer, result)
    }

    fn memory_bytes(&self) -> u64 {
        self.instance.as_ref().map_or(0, Instance::memory_bytes)
    }
}
