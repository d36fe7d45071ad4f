//! A deployment: a name under which a module runs and is queried.
//!
//! Everything outside reaches a deployment through its handle. Behind it one
//! thread opens the state, runs the pipeline, and waits for an operator when
//! the pipeline can't go on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::api::{self, DeploymentState};
use crate::event::Payload;
use crate::metrics::DeploymentMetrics;
use crate::module::{Identity, Module, QueryError};
use crate::pipeline::{Desired, Ended, MakeFold, Pipeline, Settings};
use crate::progress::Progress;
use crate::source::{self, Request, Source};
use crate::state::catalogue::Record;
use crate::state::{self, Key, Snapshot, Store};
use crate::subject::SubjectSet;

/// Pause before a state that failed is opened again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// The position asked for was not reached in time.
#[derive(Debug, thiserror::Error)]
#[error("position {wanted} was not reached in time: the deployment is at {position}")]
pub struct Behind {
    /// The position asked for.
    pub wanted: u64,
    /// The position reached.
    pub position: u64,
}

/// Why a deployment can't be read just now.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its state file is still being opened.
    #[error("{0}")]
    NotReady(String),
    /// It has not yet passed the position that it had to.
    #[error(transparent)]
    Behind(#[from] Behind),
}

/// What a deployment is made of.
pub struct Parts {
    /// What the catalogue says.
    pub record: Record,
    /// Its module, or why it can't be loaded.
    pub module: Result<Arc<Module>, String>,
    /// What the module says of itself, even when it can't be loaded.
    pub module_info: api::ModuleInfo,
    /// Its source, or why there is none.
    pub source: Result<Source, String>,
    /// Path of the state file.
    pub path: PathBuf,
    /// How the state behaves.
    pub state: state::Options,
    /// How the pipeline behaves.
    pub settings: Settings,
    /// Counters and histograms.
    pub metrics: DeploymentMetrics,
    /// The position from which on reads are answered; none takes the head that is found.
    pub answers_from: Option<u64>,
    /// For how long reads are declined until then.
    pub catch_up_wait: Duration,
}

/// The handle of a deployment.
pub struct Deployment {
    name: String,
    record: RwLock<Record>,
    module: Result<Arc<Module>, String>,
    module_info: api::ModuleInfo,
    progress: Arc<Progress>,
    store: watch::Sender<Option<Store>>,
    control: watch::Sender<Desired>,
    source_status: watch::Sender<api::SourceStatus>,
    metrics: DeploymentMetrics,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl std::fmt::Debug for Deployment {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Deployment").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Deployment {
    /// Starts a deployment. Must be called within a runtime.
    pub fn start(parts: Parts) -> Arc<Self> {
        let progress = Arc::new(Progress::new(parts.answers_from));
        let desired = if parts.record.paused { Desired::Pause } else { Desired::Run(0) };
        let deployment = Arc::new(Self {
            name: parts.record.name.clone(),
            record: RwLock::new(parts.record.clone()),
            module: parts.module.clone(),
            module_info: parts.module_info.clone(),
            progress: Arc::clone(&progress),
            store: watch::Sender::new(None),
            control: watch::Sender::new(desired),
            source_status: watch::Sender::new(source::initial_status()),
            metrics: parts.metrics.clone(),
            thread: Mutex::new(None),
        });
        if parts.answers_from.is_none() {
            let wait = parts.catch_up_wait;
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                progress.answers_now();
            });
        }
        let worker = Worker {
            name: deployment.name.clone(),
            progress: Arc::clone(&deployment.progress),
            store: deployment.store.clone(),
            control: deployment.control.subscribe(),
            source_status: deployment.source_status.clone(),
            runtime: Handle::current(),
            parts,
        };
        let thread = std::thread::Builder::new().name(format!("fold-{}", deployment.name)).spawn(move || worker.run());
        match thread {
            Ok(thread) => *deployment.thread.lock() = Some(thread),
            Err(error) => deployment.progress.stopped(
                "host",
                &format!("cannot start a thread: {error}; raise the limit of tasks"),
                None,
            ),
        }
        deployment
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the catalogue says.
    pub fn record(&self) -> Record {
        self.record.read().clone()
    }

    /// How it is.
    pub fn info(&self) -> api::Deployment {
        let record = self.record();
        let now = self.progress.now();
        let store = self.store.borrow().clone();
        let position = store.as_ref().map_or(0, Store::position);
        let checkpoint = store.as_ref().and_then(Store::checkpoint).map_or(0, |checkpoint| checkpoint.position);
        let sizes = store.as_ref().map(Store::sizes).unwrap_or_default();
        let catching_up = now.pending > 0 && now.rate > 0.0;
        api::Deployment {
            name: record.name,
            generation: record.generation,
            state: now.state,
            source: record.source,
            stream: now.stream,
            source_status: self.source_status.borrow().clone(),
            position,
            checkpoint,
            head: now.head.max(position),
            lag_events: now.pending,
            lag_seconds: lag_seconds(now.pending, now.last_event_ns),
            events_applied: now.applied,
            rate: now.rate,
            remaining_seconds: catching_up.then(|| now.pending as f64 / now.rate),
            repair_percent: now.repair_percent,
            state_bytes: sizes.state_bytes,
            memtable_bytes: sizes.memtable_bytes,
            file_bytes: sizes.file_bytes,
            guest_memory_bytes: now.memory_bytes,
            instances: u64::from(now.memory_bytes > 0),
            deployed_at: record.deployed_at,
            failure: now.failure,
            module: self.module_info.clone(),
        }
    }

    /// Whether its state was opened, or can't be.
    pub fn is_opened(&self) -> bool {
        self.progress.now().state != DeploymentState::Opening
    }

    /// A consistent view that reflects at least a sequence, waited for no longer than `timeout`.
    pub async fn snapshot(&self, at_least: Option<u64>, timeout: Duration) -> Result<Snapshot, ReadError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut stores = self.store.subscribe();
        let opened = tokio::time::timeout_at(deadline, stores.wait_for(Option::is_some)).await;
        let store = opened.ok().and_then(Result::ok).and_then(|store| store.clone());
        let Some(store) = store else { return Err(ReadError::NotReady(self.why_not_ready())) };
        let mut positions = store.positions();
        loop {
            let gate = self.progress.now().answers_from;
            let wanted = gate.map(|gate| gate.max(at_least.unwrap_or(0)));
            let position = *positions.borrow_and_update();
            if wanted.is_some_and(|wanted| position >= wanted) {
                return Ok(store.snapshot());
            }
            let late = tokio::time::Instant::now() >= deadline;
            match wanted {
                Some(wanted) if late => return Err(Behind { wanted, position }.into()),
                None if late => return Err(ReadError::NotReady(self.why_not_ready())),
                // While the gate may still be lifted by time or by the first batch, look again soon.
                _ => {
                    let soon = deadline.min(tokio::time::Instant::now() + Duration::from_millis(50));
                    let _ = tokio::time::timeout_at(soon, positions.changed()).await;
                }
            }
        }
    }

    fn why_not_ready(&self) -> String {
        let now = self.progress.now();
        match (now.failure, now.repair_percent) {
            (Some(failure), _) => format!("{} can't be read: {}", self.name, failure.message),
            (None, Some(percent)) => format!(
                "the state of {} is being repaired after an unclean stop: {percent:.0} %; try again later",
                self.name
            ),
            (None, None) => {
                format!("{} was just started and does not know yet how far it has to be; try again", self.name)
            }
        }
    }

    /// Answers a query over a snapshot, on a blocking thread.
    pub async fn query(&self, snapshot: Snapshot, name: String, args: Payload) -> Result<Payload, QueryError> {
        let module = self.module.clone().map_err(QueryError::Failed)?;
        let identity = self.identity();
        let seconds = self.metrics.query_seconds.clone();
        let answered = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let answer = module.query(&identity, snapshot, &name, &args);
            seconds.observe(started.elapsed().as_secs_f64());
            answer
        });
        answered.await.unwrap_or_else(|error| Err(QueryError::Failed(format!("the query ended unexpectedly: {error}"))))
    }

    fn identity(&self) -> Identity {
        Identity { deployment: self.name.clone(), generation: self.record.read().generation }
    }

    /// Waits until the position passes `after`; returns the new position.
    pub async fn advanced(&self, after: u64) -> u64 {
        let mut stores = self.store.subscribe();
        loop {
            let store = stores.borrow_and_update().clone();
            let Some(store) = store else {
                if stores.changed().await.is_err() {
                    return after;
                }
                continue;
            };
            let mut positions = store.positions();
            tokio::select! {
                // Both arms only look: nothing is lost when one is dropped.
                position = positions.wait_for(|position| *position > after) => if let Ok(position) = position { return *position },
                changed = stores.changed() => if changed.is_err() { return after },
            }
        }
    }

    /// The keys under a prefix that changed after a position, without duplicates; none when that is no longer known
    /// and a watcher must read everything again.
    pub fn changed_since(&self, position: u64, prefix: &str) -> Option<Vec<Key>> {
        self.store.borrow().as_ref().and_then(|store| store.changed_since(position, prefix))
    }

    /// Stops applying, keeps answering. The caller notes it in the catalogue.
    pub fn pause(&self) {
        self.record.write().paused = true;
        self.control.send_replace(Desired::Pause);
    }

    /// Goes on after a pause or a failure. The caller notes it in the catalogue.
    pub fn resume(&self) {
        self.record.write().paused = false;
        self.control.send_modify(|desired| {
            let number = if let Desired::Run(number) = desired { *number + 1 } else { 1 };
            *desired = Desired::Run(number);
        });
    }

    /// Asks it to finish its batch, flush and end.
    pub fn ask_to_stop(&self) {
        self.control.send_replace(Desired::Stop);
    }

    /// Waits for the end that was asked for. Blocking.
    pub fn join(&self) {
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!(deployment = self.name, "ended by a panic");
        }
    }
}

fn lag_seconds(pending: u64, last_event_ns: u64) -> f64 {
    if pending == 0 || last_event_ns == 0 {
        return 0.0;
    }
    let now_ns = jiff::Timestamp::now().as_nanosecond();
    ((now_ns - i128::from(last_event_ns)) as f64 / 1e9).max(0.0)
}

/// The thread behind a deployment.
struct Worker {
    name: String,
    parts: Parts,
    progress: Arc<Progress>,
    store: watch::Sender<Option<Store>>,
    control: watch::Receiver<Desired>,
    source_status: source::StatusSender,
    runtime: Handle,
}

impl Worker {
    fn run(mut self) {
        while !self.is_stopping() {
            let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.live()));
            self.store.send_replace(None);
            let message = match lived {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "a defect of the host ended the fold; look into its log, and report it".to_owned(),
            };
            tracing::error!(deployment = self.name, error = message, "state is opened again");
            self.progress.stopped("state", &message, None);
            let _ = self.wait_for_change(Some(REOPEN_PAUSE));
        }
        self.progress.set_state(DeploymentState::Stopping);
    }

    fn is_stopping(&self) -> bool {
        *self.control.borrow() == Desired::Stop
    }

    /// Opens the state and runs the pipeline as often as it is wanted; an error asks to open it again.
    fn live(&mut self) -> Result<(), state::Error> {
        let progress = Arc::clone(&self.progress);
        let opened =
            Store::open(&self.parts.path, self.parts.state.clone(), move |percent| progress.repairing(Some(percent)));
        self.progress.repairing(None);
        let (store, mut writer) = opened?;
        if let Ok(Some(bytes)) = self.parts.module.as_ref().map(|module| module.manifest().state_bytes) {
            writer.limit_state_bytes(bytes);
        }
        self.store.send_replace(Some(store.clone()));
        loop {
            let wanted = *self.control.borrow_and_update();
            match wanted {
                Desired::Stop => return Ok(()),
                Desired::Pause => self.progress.set_state(DeploymentState::Paused),
                Desired::Run(_) => {
                    let ended;
                    (writer, ended) = self.run_pipeline(store.clone(), writer);
                    match ended {
                        Ended::Asked => continue,
                        Ended::State(error) => return Err(error),
                        Ended::Failed => {
                            let failure =
                                self.progress.now().failure.map(|failure| failure.message).unwrap_or_default();
                            tracing::error!(
                                deployment = self.name,
                                position = store.position(),
                                error = failure,
                                "stopped; `foldstream resume` tries again"
                            );
                        }
                    }
                }
            }
            if !self.wait_for_change(None) {
                return Ok(());
            }
        }
    }

    /// Waits until something else is wanted, or for so long; returns whether someone can still want something.
    fn wait_for_change(&mut self, at_most: Option<Duration>) -> bool {
        let changed = self.control.changed();
        match at_most {
            None => self.runtime.block_on(changed).is_ok(),
            Some(at_most) => self
                .runtime
                .block_on(async { tokio::time::timeout(at_most, changed).await })
                .is_ok_and(|changed| changed.is_ok()),
        }
    }

    fn run_pipeline(&mut self, store: Store, writer: state::Writer) -> (state::Writer, Ended) {
        let (module, source) = match (&self.parts.module, &self.parts.source) {
            (Ok(module), Ok(source)) => (Arc::clone(module), source.clone()),
            (Err(message), _) => {
                self.progress.stopped("module", message, None);
                return (writer, Ended::Failed);
            }
            (_, Err(message)) => {
                self.progress.stopped("source", message, None);
                return (writer, Ended::Failed);
            }
        };
        self.progress.started();
        let manifest = module.manifest();
        let request = Request {
            resume: None,
            start: self.parts.record.start,
            subjects: SubjectSet::clone(&manifest.subjects),
            wants_headers: manifest.wants_headers,
            limits: self.parts.settings.batch,
        };
        let pipeline = Pipeline {
            source,
            request,
            source_status: self.source_status.clone(),
            make_fold: self.make_fold(&module),
            store,
            writer,
            settings: self.settings(&module),
            progress: Arc::clone(&self.progress),
            metrics: self.parts.metrics.clone(),
            control: self.control.clone(),
            runtime: self.runtime.clone(),
        };
        pipeline.run()
    }

    fn make_fold(&self, module: &Arc<Module>) -> MakeFold {
        let module = Arc::clone(module);
        let identity = Identity { deployment: self.name.clone(), generation: self.parts.record.generation };
        Box::new(move || module.instantiate(&identity).map(|instance| Box::new(instance) as _))
    }

    /// The host's settings, with what the module asks for instead.
    fn settings(&self, module: &Module) -> Settings {
        let manifest = module.manifest();
        let mut settings = self.parts.settings.clone();
        settings.attempts = manifest.attempts.unwrap_or(settings.attempts).max(1);
        settings.initial_backoff = manifest.initial_backoff.unwrap_or(settings.initial_backoff);
        settings.max_backoff = manifest.max_backoff.unwrap_or(settings.max_backoff);
        if let Some(events) = manifest.batch_events {
            settings.batch.events = settings.batch.events.min(events.max(1) as usize);
        }
        settings
    }
}
