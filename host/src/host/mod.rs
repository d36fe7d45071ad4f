//! The host: all deployments, sources and modules of one data folder.
//!
//! ```text
//! catalog.redb             which deployments there are
//! modules/<digest>.wasm    their modules
//! state/<name>/<n>.redb    their states, by generation
//! log/<source>.redb        embedded logs
//! cache/                   compiled modules
//! ```
//!
//! `deployments/` knows all deployments; `rollout/`, `exceptions/`, `handlers/` and `history/` work
//! on them.

mod contact;
mod retention;
pub(crate) mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::contact::{Contacts, ReaderStatus};
use crate::actor::blocking;
use crate::backup::make::Backup;
use crate::clock::RemovalClock;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::deployment::Deployment;
pub use crate::deployments::Error;
use crate::deployments::{Deployments, Loader, Queue, Runners};
use crate::exceptions::Exceptions;
use crate::handlers::Handlers;
use crate::history::History;
use crate::log::Log;
use crate::memory::caches::Caches;
use crate::memory::memtables::Budget;
use crate::memory::{self, Memory};
use crate::metrics::Metrics;
use crate::module::{self, Engine};
use crate::overview;
use crate::progress::DeploymentState;
use crate::rollout::{Others, Rollouts};
use crate::room::Room;
use crate::runner::Runner;
use crate::source::{self, Source, Sources};
use crate::state::catalogue::{Audit, Catalogue, Record};
use crate::usage;
use crate::view::EventView;

/// How often the host checks for housekeeping: events that embedded logs need not keep, old
/// generations.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(2);
/// How often the host asks for the head of streams that are not read at the moment.
const HEADS_INTERVAL: Duration = Duration::from_secs(2);
/// How often the host checks whether its sources are read.
const CONTACTS_INTERVAL: Duration = Duration::from_millis(500);

/// The health of the host.
#[derive(Clone, Debug)]
pub struct Health {
    /// Whether all deployments were opened since the start.
    pub started: bool,
    /// Whether it can answer reads.
    pub ready: bool,
    /// Why it is not ready.
    pub reasons: Vec<String>,
    /// How many deployments are still opening.
    pub opening: usize,
    /// What does not work although the host answers reads.
    pub degraded: Vec<String>,
}

/// The host itself.
#[derive(Clone, Debug)]
pub struct Info {
    /// Version of foldstream.
    pub version: &'static str,
    /// Version of the contract.
    pub contract: &'static str,
    /// When the process started.
    pub started_at: jiff::Timestamp,
    /// Number of deployments.
    pub deployments: usize,
    /// Limits and usage of its process.
    pub process: memory::ProcessUsage,
    /// What is wrong with the host itself.
    pub faults: Vec<String>,
}

/// The host. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<HostState>,
}

/// What the host owns, and what works on it.
#[derive(Debug)]
struct HostState {
    config: Arc<Config>,
    folder: DataDir,
    catalogue: Arc<Catalogue>,
    sources: Sources,
    engine: Engine,
    /// Reads streams and sends effects, apart from requests.
    runtime: Handle,
    loader: Arc<Loader>,
    metrics: Metrics,
    budget: Arc<Budget>,
    /// What is taken of the host's memory when it is needed.
    memory: Memory,
    /// Cancelled once the host stops.
    stopping: CancellationToken,
    deployments: Arc<Deployments>,
    history: Arc<History>,
    exceptions: Arc<Exceptions>,
    handlers: Arc<Handlers>,
    rollouts: Arc<Rollouts>,
    /// Keeps the logs' shares of the caches reserved; logs stay open as long as the host lives.
    _log_caches: Vec<crate::memory::caches::Share>,
    contacts: Contacts,
    /// What the data folder takes on its disk.
    usage: usage::Recent,
    started_at: jiff::Timestamp,
}

impl Host {
    /// Opens the data folder and starts all its deployments.
    pub async fn start(config: Arc<Config>) -> Result<Self, Error> {
        let inner = blocking(move || HostState::open(config)).await?;
        let host = Self {
            inner: Arc::new(inner),
        };
        host.rollouts().resume_deployments().await?;
        host.keep_house();
        Ok(host)
    }

    /// Runs housekeeping for as long as the host lives.
    fn keep_house(&self) {
        let clock = Mutex::new(RemovalClock::new());
        self.every(HOUSEKEEPING_INTERVAL, move |host: Self| {
            let now_ns = clock.lock().look();
            async move { host.keep_house_once(now_ns).await }
        });
        let engine = self.inner.engine.clone();
        tokio::task::spawn_blocking(move || engine.log_walls());
        // Idle deployments are checked at once, so that their lag is known soon.
        let host = self.clone();
        tokio::spawn(async move { host.look_at_heads().await });
        self.every(HEADS_INTERVAL, async |host: Self| {
            host.look_at_heads().await;
        });
        self.every(CONTACTS_INTERVAL, async |host: Self| {
            host.look_at_contacts();
        });
    }

    /// One round of housekeeping. Without a time, nothing is removed by age.
    async fn keep_house_once(&self, now_ns: Option<u64>) {
        // Each step only starts what is due: nothing waits for anything else.
        self.enforce_retention(now_ns);
        if let Some(now_ns) = now_ns {
            self.rollouts().retire_previous(now_ns);
        }
        self.history().make_snapshots();
        self.history().expire();
        // Both are asked: each remembers when it was asked last.
        let calm = [
            self.inner.budget.has_calmed_down(),
            self.inner.memory.has_calmed_down(),
        ];
        if calm.contains(&true) {
            blocking(memory::give_back).await;
        }
    }

    /// Repeats a task for as long as the host lives.
    fn every<F: Future<Output = ()> + Send>(
        &self,
        interval: Duration,
        work: impl Fn(Self) -> F + Send + 'static,
    ) {
        // Weak: this task must not keep a host alive that nobody else holds.
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(inner) = inner.upgrade() else { return };
                work(Self { inner }).await;
            }
        });
    }

    /// Asks for the head of streams that did not answer lately, because they are not read at the
    /// moment or because read events are waiting, and passes it on to the deployments.
    async fn look_at_heads(&self) {
        let mut asking: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for deployment in self.deployments() {
            for runner in deployment
                .runners()
                .into_iter()
                .filter(|runner| runner.asks_for_head())
            {
                let source = runner.program().source_name;
                asking
                    .entry(source)
                    .or_default()
                    .push((Arc::clone(&deployment), runner));
            }
        }
        // Sources that nobody reads are asked as well, though less often: an operator sees their
        // state.
        let used = self.used_sources();
        for (name, _) in self
            .inner
            .sources
            .iter()
            .filter(|(name, _)| !used.contains(*name))
        {
            if self.inner.contacts.is_due(name) {
                // No runners: the answer is only for the state of the source itself.
                asking.entry(name.to_owned()).or_default();
            }
        }
        let looks = asking.into_iter().map(async |(source, runners)| {
            let Some(source) = self.inner.sources.get(&source) else {
                return;
            };
            // One request for all deployments of a source.
            let info = source.info().await;
            self.inner.contacts.asked(&info);
            for (deployment, runner) in runners {
                runner.source_says(&info);
                // From the catalogue, because the module of an idle deployment may not be loaded.
                if let Some(position) = runner.asks_for_age().filter(|_| info.reachable)
                    && let Some(subjects) = deployment.subjects_of(runner.program().generation)
                {
                    let waiting = source.time_behind(position, &subjects).await;
                    runner.next_event_is(waiting, info.last_sequence.unwrap_or_default());
                }
            }
        });
        futures_util::future::join_all(looks).await;
    }

    /// Names of the sources that deployments read.
    fn used_sources(&self) -> BTreeSet<String> {
        let runners = self
            .deployments()
            .into_iter()
            .flat_map(|deployment| deployment.runners());
        runners.map(|runner| runner.program().source_name).collect()
    }

    /// Records how the deployments see their sources, and whether the data folder is where it was.
    fn look_at_contacts(&self) {
        let mut readers: BTreeMap<String, Vec<ReaderStatus>> = BTreeMap::new();
        for deployment in self.deployments() {
            let failure = deployment.active().now().failure;
            if failure.is_some_and(|failure| failure.is_of_state()) {
                self.inner.contacts.state_fails(deployment.name());
            } else {
                self.inner.contacts.state_works(deployment.name());
            }
            for runner in deployment.runners() {
                // Also of a source that was removed from the configuration, while a deployment
                // still names it; nobody asks for that below.
                let name = runner.program().source_name;
                let reader = ReaderStatus {
                    deployment: deployment.name().to_owned(),
                    status: runner.source_status(),
                };
                readers.entry(name).or_default().push(reader);
            }
        }
        for (name, source) in self.inner.sources.iter() {
            self.inner
                .contacts
                .seen(name, source, readers.get(name).map_or(&[], Vec::as_slice));
        }
        let folder = self.inner.folder.root();
        self.inner.contacts.folder_seen(folder, &self.faults());
    }

    /// What is wrong with the host itself: what it writes now would be lost with its process.
    fn faults(&self) -> Vec<String> {
        self.inner
            .catalogue
            .check_place()
            .err()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// The metrics of this host, as a page for Prometheus. Blocking.
    pub fn metrics_page(&self) -> Vec<u8> {
        // So that the page shows contacts as of now, and not as of the last look.
        self.look_at_contacts();
        let deployments: Vec<_> = self
            .deployments()
            .iter()
            .map(|deployment| overview::Deployment {
                sagas: deployment.sagas(),
                ..deployment.overview()
            })
            .collect();
        let sources = self.inner.sources.iter();
        let sources: Vec<_> = sources
            .map(|(name, source)| self.inner.contacts.reachable(name, source))
            .collect();
        let mut usage = self.inner.usage.of(self.inner.folder.root());
        // It may be some seconds old, and name a deployment that was deleted since.
        let names: BTreeSet<&str> = deployments
            .iter()
            .map(|deployment| deployment.name.as_str())
            .collect();
        usage
            .deployments
            .retain(|name, _| names.contains(name.as_str()));
        self.inner
            .metrics
            .page(&deployments, &sources, &usage, &self.memory_parts())
    }

    /// All deployments of this host.
    pub fn all_deployments(&self) -> &Arc<Deployments> {
        &self.inner.deployments
    }

    /// What creates, switches and retires generations.
    pub fn rollouts(&self) -> &Arc<Rollouts> {
        &self.inner.rollouts
    }

    /// What decides about events that fail.
    pub fn exceptions(&self) -> &Arc<Exceptions> {
        &self.inner.exceptions
    }

    /// What shows and changes the effects of handlers.
    pub fn handlers(&self) -> &Arc<Handlers> {
        &self.inner.handlers
    }

    /// What reads and checks the past of deployments.
    pub fn history(&self) -> &Arc<History> {
        &self.inner.history
    }

    /// Freezes all files of the data folder for a backup. Blocking, and short.
    pub fn begin_backup(&self) -> Result<Backup, Error> {
        Backup::begin(
            &self.inner.deployments,
            &self.inner.sources,
            &self.inner.runtime,
        )
    }

    /// All deployments, by name.
    pub fn deployments(&self) -> Vec<Arc<Deployment>> {
        self.inner.deployments.all()
    }

    /// All sources and their current state.
    pub async fn sources(&self) -> Vec<source::Info> {
        let sources =
            futures_util::future::join_all(self.inner.sources.all().map(Source::info)).await;
        sources
            .iter()
            .for_each(|info| self.inner.contacts.asked(info));
        sources
    }

    /// A source; without a name, the only one or the only embedded log.
    pub fn source(&self, name: Option<&str>) -> Result<EventView, Error> {
        let sources = &self.inner.sources;
        let mut logs = sources.iter().filter(|(_, source)| source.log().is_some());
        let chosen = match (name, logs.next(), logs.next()) {
            // One embedded log among other sources is what the operator intends.
            (None, Some((log, _)), None) => log.to_owned(),
            _ => sources.choose(name)?,
        };
        Ok(EventView::new(sources.known(&chosen)?.clone()))
    }

    /// The embedded log of a source; without a name, the only one.
    pub fn log(&self, source: Option<&str>) -> Result<Log, Error> {
        if let Some(name) = source {
            let log = self.inner.sources.known(name)?.log().ok_or_else(|| {
                Error::Source(format!(
                    "source {name} is a JetStream stream; publish to it and read it through NATS"
                ))
            })?;
            return Ok(log?);
        }
        let mut logs = self.inner.sources.all().filter_map(Source::log);
        match (logs.next(), logs.next()) {
            (Some(log), None) => Ok(log?),
            (None, _) => Err(Error::Source(
                "this host has no embedded log; publish to the stream through NATS, or configure \
                 a source of kind `embedded`"
                    .to_owned(),
            )),
            _ => Err(Error::Source(
                "this host has several embedded logs; choose one with `source`".to_owned(),
            )),
        }
    }

    /// The name of the source to which events are appended.
    pub(crate) fn log_name<'a>(&'a self, source: Option<&'a str>) -> Option<&'a str> {
        let mut sources = self.inner.sources.iter();
        match source {
            Some(source) => Some(source),
            None => sources
                .find(|(_, source)| source.log().is_some())
                .map(|(name, _)| name),
        }
    }

    /// The health of the host.
    pub fn health(&self) -> Health {
        // A probe may come before the first look of housekeeping.
        self.look_at_contacts();
        let deployments = self.deployments();
        let opening: Vec<_> = deployments
            .iter()
            .filter(|deployment| !deployment.is_opened())
            .map(|deployment| format!("{} is still opening", deployment.name()))
            .collect();
        let stopping = self.inner.stopping.is_cancelled();
        // Not ready while it stops: a balancer should send nothing more to it.
        let mut reasons = opening.clone();
        reasons.extend(stopping.then(|| "the host is stopping".to_owned()));
        let mut degraded = [self.inner.contacts.degraded(), self.faults()].concat();
        let mut answering = 0;
        for deployment in &deployments {
            let (name, active) = (deployment.name(), deployment.active());
            let state = active.state(&active.now());
            if matches!(state, DeploymentState::Failed | DeploymentState::Retrying) {
                degraded.push(format!("deployment {name} is {}", state.name()));
            }
            match active.try_snapshot(None) {
                // What counts is whether a read would be answered, not what state the deployment is
                // in.
                Ok(_) => answering += 1,
                Err(_) => degraded.push(format!("deployment {name} can't be read yet")),
            }
        }
        if reasons.is_empty() && answering == 0 && !deployments.is_empty() {
            // One deployment that cannot be read only degrades the host; if all cannot, it is not
            // ready.
            reasons.push("no deployment can be read yet".to_owned());
        }
        Health {
            started: opening.is_empty(),
            ready: reasons.is_empty(),
            opening: opening.len(),
            reasons,
            degraded,
        }
    }

    /// The metrics of this host.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Version, contract, start time.
    pub fn info(&self) -> Info {
        Info {
            version: env!("CARGO_PKG_VERSION"),
            contract: module::CONTRACT,
            started_at: self.inner.started_at,
            deployments: self.inner.deployments.count(),
            process: memory::process(
                &self.inner.config.shares(),
                Some(&self.inner.memory),
                self.memory_parts(),
            ),
            faults: self.faults(),
        }
    }

    /// The memory that is allocated on demand.
    pub fn memory(&self) -> &Memory {
        &self.inner.memory
    }

    /// Usage of each part of the memory budget.
    fn memory_parts(&self) -> Vec<memory::PartUsage> {
        memory::parts(
            &self.inner.config.shares(),
            &self.inner.memory,
            self.inner.budget.used(),
        )
    }

    /// The last `limit` entries of the audit log, newest first; for one deployment if given, even a
    /// deleted one. Blocking.
    pub fn audit(&self, limit: usize, deployment: Option<&str>) -> Result<Vec<Audit>, Error> {
        Ok(self.inner.catalogue.audit(limit, deployment)?)
    }

    /// Asks all runners to stop.
    fn ask_all_to_stop(&self) -> Vec<Arc<Runner>> {
        let deployments = self.deployments();
        let runners: Vec<_> = deployments
            .iter()
            .flat_map(|deployment| deployment.runners())
            .collect();
        runners.iter().for_each(|runner| runner.ask_to_stop());
        runners
    }

    /// Finishes the running batches, flushes, and stops; within the configured budget.
    pub async fn stop(&self) {
        self.inner.stopping.cancel();
        // First, so that everything that waits for it ends its wait before the runners are asked.
        self.inner.loader.stop();
        let stopped = async {
            // Runners end while a running change does, because the change may be waiting for one of
            // them.
            self.ask_all_to_stop();
            let _changing = self.inner.deployments.changing.lock().await;
            // What the change started meanwhile is asked to stop by the second call.
            let runners = self.ask_all_to_stop();
            blocking(move || runners.iter().for_each(|runner| runner.join())).await;
            self.note_logs().await;
        };
        if tokio::time::timeout(self.inner.config.pipeline.stop_budget, stopped)
            .await
            .is_err()
        {
            tracing::warn!(
                "not all deployments stopped within pipeline.stop_budget; they continue from their \
                 checkpoints at the next start"
            );
        }
    }
}

impl HostState {
    /// Blocks. Must be called within the runtime that is to read the streams.
    fn open(config: Arc<Config>) -> Result<Self, Error> {
        let folder = DataDir::claim(&config.data_dir)?;
        // Opening the catalogue is what keeps a second host out of the folder.
        let catalogue = Arc::new(Catalogue::open(&folder.catalogue())?);
        // Not before the catalogue is ours: another process may be using the files.
        folder.complete()?;
        // Leftovers of a host that was killed: nothing has opened a file of these yet.
        folder.sweep();
        let checker = module::this_program().unwrap_or_else(|_| PathBuf::from("foldstream"));
        let shares = config.shares();
        let memory = Memory::new(shares.modules);
        let engine = Engine::new(config.module_options(folder.cache(), checker, &memory))?;
        // Counted before anything is opened, because a cache keeps its size (see memory/caches.rs).
        let files: usize = catalogue.deployments()?.iter().map(Record::files).sum();
        let caches = Caches::new(shares.caches, files + sources::logs(&config));
        let room = Room::of(folder.root()).within(config.limits.disk_bytes);
        // Before the deployments, which read from them as soon as they start.
        let (sources, log_caches) = sources::sources(&config, (&folder, &room), &caches)?;
        let sources = Sources::from(sources);
        let stopping = CancellationToken::new();
        let deployments = Arc::new(Deployments::new(
            Arc::clone(&catalogue),
            folder.clone(),
            stopping.clone(),
        ));
        let runners = Arc::new(Runners {
            config: Arc::clone(&config),
            runtime: Handle::current(),
            folder: folder.clone(),
            room,
            loader: Arc::new(Loader::new(folder.clone(), engine.clone())),
            sources: sources.clone(),
            caches,
            metrics: Metrics::new(),
            budget: Arc::new(Budget::of(shares.memtables, shares.read_ahead)),
            memory,
        });
        let rebuilds = Queue::new(config.rollout.rebuilds_max);
        let history = History::new(Arc::clone(&deployments), Arc::clone(&runners), rebuilds);
        let history = Arc::new(history);
        let exceptions = Arc::new(Exceptions::new(
            Arc::clone(&deployments),
            Arc::clone(&history),
            sources.clone(),
        ));
        let handlers = Arc::new(Handlers::new(Arc::clone(&deployments), sources.clone()));
        let rollouts = Arc::new(Rollouts::new(
            Arc::clone(&deployments),
            Arc::clone(&runners),
            engine.clone(),
            Others {
                history: Arc::clone(&history),
                exceptions: Arc::clone(&exceptions),
                handlers: Arc::clone(&handlers),
            },
        ));
        Ok(Self {
            config,
            folder,
            catalogue,
            sources,
            engine,
            runtime: runners.runtime.clone(),
            loader: Arc::clone(&runners.loader),
            metrics: runners.metrics.clone(),
            budget: Arc::clone(&runners.budget),
            memory: runners.memory.clone(),
            stopping,
            deployments,
            history,
            exceptions,
            handlers,
            rollouts,
            _log_caches: log_caches,
            contacts: Contacts::default(),
            usage: usage::Recent::default(),
            started_at: jiff::Timestamp::now(),
        })
    }
}
