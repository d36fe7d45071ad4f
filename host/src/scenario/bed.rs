//! What a scenario runs on: a log, a state file and a pipeline, as a host has them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{oneshot, watch};

use super::cost::Meter;
use super::file::OnFailure;
use crate::api::{Failure, Start};
use crate::config::Config;
use crate::effects::{Grant, GrantError, Grants, Lineage, Owner, Role};
use crate::event::{Event, Payload};
use crate::log::{self, Expectation, Log, NewEvent};
use crate::memory::Memory;
use crate::memory::memtables::Budget;
use crate::metrics::{DeploymentMetrics, Metrics};
use crate::module::{self, ApplyError, Identity, Instance, Kind, Module, QueryError};
use crate::pipeline::{
    Ceiling, Desired, Ended, Fold, Leash, MakeFold, Pace, Parking, ParkingLimits, Pipeline, Policy,
    Settings, Standing,
};
use crate::progress::Progress;
use crate::runner;
use crate::source::embedded::Embedded;
use crate::source::{self, Request, Source};
use crate::state::exceptions::Skips;
use crate::state::inbox::Keep;
use crate::state::{self, Ownership, Store, Writer};
use crate::timers::{self, Firing, What};

/// The name of the one target of messages.
const TARGET: &str = "scenario";
/// The owner of the effects of a scenario. They go nowhere.
const OWNERSHIP: Ownership = Ownership {
    lineage: Lineage(0),
    epoch: 1,
};
/// The pause between attempts at an event: a scenario does not wait as a host does.
const BACKOFF: Duration = Duration::from_millis(1);
/// Longest wait until the pipeline is through with what was appended.
const SETTLE_MAX: Duration = Duration::from_secs(120);
/// Most timers that fire while time passes once.
const FIRINGS_MAX: usize = 10_000;
/// Most restarts of one run: each takes milliseconds, and a mistake shows soon.
const RESTARTS_MAX: usize = 200;
/// Cache of a file, in bytes: files of scenarios are small, and there are many.
const CACHE_BYTES: usize = 1 << 20;
/// Memory for memtables and batches, in bytes.
const BUDGET_BYTES: u64 = 1 << 30;

/// Why a scenario could not be played to its end. It says nothing about the module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The module can't be used.
    #[error(transparent)]
    Module(#[from] module::Error),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The state failed.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The module publishes to subjects that no host grants.
    #[error("its manifest can't be granted what it publishes: {0}")]
    Grants(#[from] GrantError),
    /// The system has no file or thread.
    #[error("cannot play a scenario: {0}")]
    System(#[from] std::io::Error),
    /// The pipeline did not come to an end.
    #[error("the module was not through within {} s", SETTLE_MAX.as_secs())]
    Stuck,
    /// Timers set each other without end.
    #[error("more than {FIRINGS_MAX} timers fire in one `pass`; do they set each other for ever?")]
    Endless,
    /// The pipeline ended without being asked.
    #[error("the pipeline ended unexpectedly")]
    Ended,
}

/// What all runs share.
pub(super) struct Stage {
    runtime: Runtime,
    pub(super) module: Arc<Module>,
    config: Config,
    budget: Arc<Budget>,
    metrics: DeploymentMetrics,
    /// The folder for the files of runs.
    folder: PathBuf,
}

impl Stage {
    pub(super) fn new(module: Arc<Module>, folder: PathBuf) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()?;
        let metrics = Metrics::new().deployment(&module.manifest().name);
        Ok(Self {
            runtime,
            module,
            config: Config::default(),
            budget: Arc::new(Budget::new(BUDGET_BYTES)),
            metrics,
            folder,
        })
    }

    fn deployment(&self) -> &str {
        &self.module.manifest().name
    }

    /// The host's settings, with the module's own.
    fn settings(&self, batch_events: Option<usize>) -> Settings {
        let Config {
            pipeline, state, ..
        } = &self.config;
        let settings = Settings {
            batch: self.config.batch_limits(),
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
            parking: self.parking_limits(),
            flush_interval: state.flush_interval,
            memtable_bytes: state.memtable_bytes,
            budget: Arc::clone(&self.budget),
            disk: None,
            shuffle: None,
        };
        let mut settings = runner::overridden(&settings, self.module.manifest());
        settings.policy.initial_backoff = BACKOFF;
        settings.policy.max_backoff = BACKOFF;
        if let Some(events) = batch_events {
            settings.batch.events = settings.batch.events.min(events);
        }
        settings
    }

    fn parking_limits(&self) -> ParkingLimits {
        let state = &self.config.state;
        ParkingLimits {
            keys: state.parked_keys_max,
            events: state.parked_events_max,
            bytes: state.parked_bytes_max,
        }
    }

    /// A handler owns its effects, and may publish what its manifest says.
    fn role(&self) -> Result<Role, Error> {
        if self.module.kind() == Kind::Projection {
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
        })))
    }
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
}

/// One run: an empty stream and an empty state.
pub(super) struct Bed<'a> {
    stage: &'a Stage,
    folder: TempDir,
    log: Log,
    conditions: Conditions,
    /// How many more events are followed by a restart.
    restarts_left: usize,
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
    /// It has ended.
    is_over: bool,
    thread: std::thread::JoinHandle<(Writer, Ended)>,
}

impl<'a> Bed<'a> {
    pub(super) fn new(
        stage: &'a Stage,
        conditions: Conditions,
        on_failure: OnFailure,
        meter: Meter,
    ) -> Result<Self, Error> {
        let folder = TempDir::new_in(&stage.folder)?;
        let log = Log::open(
            &folder.path().join("log.redb"),
            log::Options {
                // An event that is delivered twice is in the stream twice.
                duplicate_window: Duration::ZERO,
                cache_bytes: CACHE_BYTES,
                ..log::Options::default()
            },
        )?;
        let mut bed = Self {
            stage,
            folder,
            log,
            conditions,
            restarts_left: if conditions.restarts { RESTARTS_MAX } else { 0 },
            parks: Arc::new(AtomicBool::new(on_failure == OnFailure::Park)),
            meter: Arc::new(meter),
            life: None,
        };
        if stage.module.kind() == Kind::Handler {
            state::create_owned(&bed.state_path(), OWNERSHIP)?;
        }
        bed.start()?;
        Ok(bed)
    }

    fn state_path(&self) -> PathBuf {
        self.folder.path().join("state.redb")
    }

    fn life(&self) -> &Life {
        self.life
            .as_ref()
            .expect("it lives except while it restarts")
    }

    /// Opens the state and starts to fold.
    fn start(&mut self) -> Result<(), Error> {
        let stage = self.stage;
        let life = Life::start(stage, self, &self.state_path())?;
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
            let appended = self.log.append(now, &Expectation::default())?;
            self.settle(appended.last_sequence)?;
            if self.restarts_left > 0 {
                self.restarts_left -= 1;
                self.restart()?;
            }
        }
        Ok(())
    }

    /// Waits until the module is through with the stream up to a sequence and everything is
    /// durable, or it has failed.
    fn settle(&mut self, through: u64) -> Result<(), Error> {
        let runtime = self.stage.runtime.handle().clone();
        let life = self
            .life
            .as_mut()
            .expect("it lives except while it restarts");
        life.settle(&runtime, through)
    }

    /// Fires the timers that are due up to a time, in the order of their times. A timer that fires
    /// may set further ones.
    pub(super) fn fire_until(&mut self, until_ns: u64, now_ns: u64) -> Result<(), Error> {
        for _ in 0..FIRINGS_MAX {
            if self.failure().is_some() {
                return Ok(());
            }
            let due = self.life().store.due_timers(until_ns, 1)?;
            let key = self.life().store.keys_of_timers(&due)?.into_iter().next();
            let (Some(due), Some(key)) = (due.into_iter().next(), key) else {
                return Ok(());
            };
            let firing = Firing {
                name: due.name,
                at_ns: due.at_ns,
                key,
                what: What::Due,
            };
            self.happen(&[NewEvent {
                subject: timers::subject(self.stage.deployment()),
                kind: Some(Firing::KIND.to_owned()),
                id: None,
                // One that is late fires now.
                time_ns: Some(due.at_ns.max(now_ns)),
                headers: Vec::new(),
                data: firing.data(),
            }])?;
        }
        Err(Error::Endless)
    }

    /// Asks a query.
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

    /// Its state.
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
        Box::new(move || {
            let instance = module.instantiate(&identity)?;
            Ok(Box::new(Watched {
                module: Arc::clone(&module),
                identity: identity.clone(),
                instance: Some(instance),
                is_fresh,
                meter: Arc::clone(&meter),
            }))
        })
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        if let Some(life) = self.life.take() {
            // Its files go with the folder, so nothing is left to report.
            let _ = life.stop();
        }
    }
}

impl Life {
    fn start(stage: &Stage, bed: &Bed<'_>, path: &Path) -> Result<Self, Error> {
        let module = &stage.module;
        let manifest = module.manifest();
        let options = stage
            .config
            .state_options(CACHE_BYTES as u64, &Memory::unlimited());
        let (store, mut writer) = Store::open(path, options, |_| ())?;
        writer.limit_state_bytes(manifest.state_bytes.unwrap_or(u64::MAX));
        let progress = Arc::new(Progress::new(Some(0), 0));
        progress.opened(store.checkpoint().as_ref(), true);
        progress.started(1);
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
            request: Request {
                resume: None,
                start: Start::Beginning,
                subjects: runner::subjects_of(module, stage.deployment()),
                // Always: a scenario may park, whose keys may be headers.
                wants_headers: true,
                limits: settings.batch,
                accepts_missing_through: 0,
                skips: Arc::default(),
            },
            skips: Skips::default(),
            source_status: watch::Sender::new(source::initial_status()),
            make_fold: bed.make_fold(),
            store: store.clone(),
            writer,
            recognises: manifest.inbox.clone(),
            role: stage.role()?,
            parking: Parking {
                deployment: stage.deployment().to_owned(),
                rule: manifest.key_rule.clone(),
                firings: (manifest.sets_timers).then(|| timers::subject(stage.deployment())),
                generation: 1,
                module: module.info().digest.clone(),
                keeper: None,
                parks: Arc::clone(&bed.parks),
                limits: settings.parking,
            },
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
            runtime: stage.runtime.handle().clone(),
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

    fn settle(&mut self, runtime: &Handle, through: u64) -> Result<(), Error> {
        if self.is_over {
            return Ok(());
        }
        let mut epoch = 0;
        self.pace.send_modify(|pace| {
            pace.ceiling = Ceiling::Position(through);
            pace.epoch += 1;
            epoch = pace.epoch;
        });
        let mut standing = self.standing.subscribe();
        let is_there = |standing: &Option<Standing>| {
            standing
                .as_ref()
                .is_some_and(|standing| standing.epoch >= epoch)
        };
        let ended = &mut self.ended;
        self.is_over = runtime.block_on(async {
            // Both only observe.
            let either = async {
                tokio::select! {
                    _ = standing.wait_for(is_there) => false,
                    _ = ended => true,
                }
            };
            tokio::time::timeout(SETTLE_MAX, either)
                .await
                .map_err(|_| Error::Stuck)
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
    is_fresh: bool,
    meter: Arc<Meter>,
}

impl Fold for Watched {
    fn apply(&mut self, events: &[Event], writer: Writer) -> (Writer, Result<(), ApplyError>) {
        let instance = match self.instance.take() {
            Some(instance) => Ok(instance),
            None => self.module.instantiate(&self.identity),
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
