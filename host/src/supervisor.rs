//! The host: all deployments, sources and modules of one data folder.
//!
//! ```text
//! catalog.redb             which deployments there are
//! modules/<digest>.wasm    their modules
//! state/<name>/<n>.redb    their states, by generation
//! log/<source>.redb        embedded logs
//! cache/                   compiled modules
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::api::{self, DeployOutcome};
use crate::assembly;
use crate::config::Config;
use crate::deployment::{Deployment, Parts};
use crate::folder::Folder;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::module::{self, Accepted, Engine, Module};
use crate::pipeline::{Budget, Settings};
use crate::source::Source;
use crate::state;
use crate::state::catalogue::{Audit, Catalogue, Record};

/// How often embedded logs remove what they need not keep.
const RETENTION_INTERVAL: Duration = Duration::from_secs(2);

/// Why the host refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No deployment of that name.
    #[error("there is no deployment {0}; `foldstream list` shows those there are")]
    NotFound(String),
    /// A name is unusable.
    #[error("name `{0}` is refused: use 1 to 63 lower-case letters, digits and hyphens, a letter first")]
    Name(String),
    /// No source of that name, or several to choose from.
    #[error("{0}")]
    Source(String),
    /// The module was refused.
    #[error(transparent)]
    Module(#[from] module::Error),
    /// A state file or the catalogue failed.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The embedded log failed.
    #[error(transparent)]
    Log(#[from] crate::log::Error),
    /// The data folder is in use or unusable.
    #[error("data folder {folder}: {message}")]
    DataFolder {
        /// The folder.
        folder: String,
        /// What is wrong, and what to do next.
        message: String,
    },
    /// Too many deployments.
    #[error("{0} deployments are the limit of this host; delete some, or raise limits.deployments")]
    TooMany(usize),
    /// The host is stopping.
    #[error("the host is stopping")]
    Stopping,
}

/// What a deploy asks for beside the module.
#[derive(Clone, Debug, Default)]
pub struct DeployRequest {
    /// Name of the deployment; none takes the module's.
    pub name: Option<String>,
    /// Source; none takes the only one.
    pub source: Option<String>,
    /// Where a new state begins.
    pub start: api::Start,
}

/// Whether the host is well.
#[derive(Clone, Debug)]
pub struct Health {
    /// Whether all deployments were opened after the start.
    pub started: bool,
    /// Whether it can answer reads.
    pub ready: bool,
    /// What keeps it from being ready.
    pub reasons: Vec<String>,
}

/// The host. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<Inner>,
}

/// A module, or why it can't be loaded.
type LoadedOrNot = Result<Arc<Module>, String>;

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    folder: Folder,
    engine: Engine,
    catalogue: Arc<Catalogue>,
    sources: BTreeMap<String, Source>,
    deployments: RwLock<BTreeMap<String, Arc<Deployment>>>,
    /// One change of the set of deployments at a time; reads don't wait for it.
    changing: tokio::sync::Mutex<()>,
    metrics: Metrics,
    budget: Arc<Budget>,
    started_at: jiff::Timestamp,
    stopping: AtomicBool,
}

/// Runs blocking work off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

impl Host {
    /// Opens the data folder and starts every deployment in it.
    pub async fn start(config: Arc<Config>) -> Result<Self, Error> {
        let inner = blocking(move || Inner::open(config)).await?;
        let host = Self { inner: Arc::new(inner) };
        let inner = Arc::clone(&host.inner);
        let loaded = blocking(move || inner.load_all()).await?;
        for (record, accepted) in loaded {
            let parts = host.inner.parts(record, accepted, None);
            host.insert(parts);
        }
        host.keep_logs_small();
        Ok(host)
    }

    /// Applies the retention of embedded logs for as long as the host lives.
    fn keep_logs_small(&self) {
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RETENTION_INTERVAL).await;
                let Some(inner) = inner.upgrade() else { return };
                Self { inner }.enforce_retention().await;
            }
        });
    }

    fn insert(&self, parts: Parts) -> Arc<Deployment> {
        let deployment = Deployment::start(parts);
        self.inner.deployments.write().insert(deployment.name().to_owned(), Arc::clone(&deployment));
        deployment
    }

    /// Takes a module into service.
    pub async fn deploy(&self, upload: Bytes, request: DeployRequest) -> Result<api::Deployed, Error> {
        let inner = Arc::clone(&self.inner);
        let (accepted, loaded) = blocking(move || {
            let accepted = inner.engine.accept(upload)?;
            let loaded = inner.engine.load(&accepted)?;
            Ok::<_, Error>((accepted, loaded))
        })
        .await?;
        let compile_ms = loaded.compile_time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let name = request.name.clone().unwrap_or_else(|| loaded.module.manifest().name.clone());
        check_name(&name)?;
        let source = self.inner.choose_source(request.source.as_deref())?;
        let _changing = self.inner.changing.lock().await;
        if self.inner.stopping.load(Ordering::Acquire) {
            return Err(Error::Stopping);
        }
        let existing = self.inner.deployments.read().get(&name).cloned();
        if let Some(existing) = &existing {
            let record = existing.record();
            if record.module.digest == accepted.digest && record.source == source && record.start == request.start {
                return Ok(api::Deployed {
                    deployment: existing.info(),
                    outcome: DeployOutcome::Unchanged,
                    compile_ms,
                });
            }
        } else if self.inner.deployments.read().len() >= self.inner.config.limits.deployments {
            return Err(Error::TooMany(self.inner.config.limits.deployments));
        }
        let record = new_record(name, source, request.start, loaded.module.info().clone(), existing.as_deref());
        let deployment = self.replace(existing.as_ref(), record, accepted, loaded.module).await?;
        let outcome = if existing.is_some() { DeployOutcome::Replaced } else { DeployOutcome::Created };
        tracing::info!(deployment = deployment.name(), generation = deployment.record().generation, "deployed");
        Ok(api::Deployed { deployment: deployment.info(), outcome, compile_ms })
    }

    /// Puts a generation in the place of the one there was.
    async fn replace(
        &self,
        existing: Option<&Arc<Deployment>>,
        record: Record,
        accepted: Accepted,
        module: Arc<Module>,
    ) -> Result<Arc<Deployment>, Error> {
        let (inner, noted) = (Arc::clone(&self.inner), record.clone());
        blocking(move || {
            inner.folder.store_module(&accepted.digest, &accepted.component)?;
            inner.folder.prepare_state(&noted.name)?;
            let detail =
                format!("generation {} of module {} on source {}", noted.generation, noted.module.digest, noted.source);
            inner.catalogue.put(&noted, &audit("deploy", &noted.name, detail))?;
            Ok::<_, Error>(())
        })
        .await?;
        if let Some(existing) = existing {
            self.end(existing).await;
        }
        let answers_from = record.answers_from;
        let deployment = self.insert(self.inner.parts(record, Ok(module), Some(answers_from)));
        self.remove_leftovers().await;
        Ok(deployment)
    }

    async fn end(&self, deployment: &Arc<Deployment>) {
        deployment.ask_to_stop();
        let deployment = Arc::clone(deployment);
        blocking(move || deployment.join()).await;
    }

    async fn remove_leftovers(&self) {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.remove_leftovers()).await;
    }

    /// All deployments, by name.
    pub fn deployments(&self) -> Vec<Arc<Deployment>> {
        self.inner.deployments.read().values().cloned().collect()
    }

    /// One deployment.
    pub fn deployment(&self, name: &str) -> Result<Arc<Deployment>, Error> {
        self.inner.deployments.read().get(name).cloned().ok_or_else(|| Error::NotFound(name.to_owned()))
    }

    /// Stops applying, keeps answering; survives restarts.
    pub async fn pause(&self, name: &str) -> Result<api::Deployment, Error> {
        self.note(name, "pause", |deployment| deployment.pause()).await
    }

    /// Goes on after a pause or a failure.
    pub async fn resume(&self, name: &str) -> Result<api::Deployment, Error> {
        self.note(name, "resume", |deployment| deployment.resume()).await
    }

    async fn note(
        &self,
        name: &str,
        action: &'static str,
        change: impl FnOnce(&Deployment),
    ) -> Result<api::Deployment, Error> {
        let _changing = self.inner.changing.lock().await;
        let deployment = self.deployment(name)?;
        change(&deployment);
        let (catalogue, record) = (Arc::clone(&self.inner.catalogue), deployment.record());
        blocking(move || catalogue.put(&record, &audit(action, &record.name, String::new()))).await?;
        Ok(deployment.info())
    }

    /// Stops a deployment and removes its state.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let _changing = self.inner.changing.lock().await;
        let deployment = self.deployment(name)?;
        let (catalogue, gone) = (Arc::clone(&self.inner.catalogue), name.to_owned());
        blocking(move || catalogue.remove(&gone, &audit("delete", &gone, String::new()))).await?;
        self.inner.deployments.write().remove(name);
        self.end(&deployment).await;
        self.remove_leftovers().await;
        self.inner.metrics.forget(name);
        tracing::info!(deployment = name, "deleted");
        Ok(())
    }

    /// All sources, asked just now.
    pub async fn sources(&self) -> Vec<api::SourceInfo> {
        futures_util::future::join_all(self.inner.sources.values().map(Source::info)).await
    }

    /// The embedded log behind a source; none takes the only one.
    pub fn log(&self, source: Option<&str>) -> Result<Log, Error> {
        let embedded =
            |source: &Source| if let Source::Embedded(embedded) = source { Some(embedded.log().clone()) } else { None };
        if let Some(name) = source {
            let source = self.inner.sources.get(name).ok_or_else(|| self.inner.no_source(name))?;
            return embedded(source).ok_or_else(|| {
                Error::Source(format!("source {name} is a JetStream stream; publish to it and read it through NATS"))
            });
        }
        let mut logs = self.inner.sources.values().filter_map(embedded);
        match (logs.next(), logs.next()) {
            (Some(log), None) => Ok(log),
            (None, _) => Err(Error::Source("this host has no embedded log; publish to the stream through NATS, or configure a source of kind `embedded`".to_owned())),
            _ => Err(Error::Source("this host has several embedded logs; name one with `source`".to_owned())),
        }
    }

    /// Whether the host is well.
    pub fn health(&self) -> Health {
        let deployments = self.deployments();
        let opening: Vec<_> = deployments
            .iter()
            .filter(|deployment| !deployment.is_opened())
            .map(|deployment| format!("{} is being opened", deployment.name()))
            .collect();
        let stopping = self.inner.stopping.load(Ordering::Acquire);
        let mut reasons = opening.clone();
        reasons.extend(stopping.then(|| "the host is stopping".to_owned()));
        Health { started: opening.is_empty(), ready: reasons.is_empty(), reasons }
    }

    /// The metrics of this host.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Version, contract, start time.
    pub fn info(&self) -> api::HostInfo {
        api::HostInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            contract: "foldstream:module@0.1.0".to_owned(),
            started_at: self.inner.started_at.to_string(),
            deployments: self.inner.deployments.read().len() as u64,
        }
    }

    /// Removes what the embedded logs no longer have to keep.
    async fn enforce_retention(&self) {
        for source in self.inner.sources.values() {
            let Source::Embedded(embedded) = source else { continue };
            let log = embedded.log().clone();
            match blocking(move || log.enforce_retention()).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "removed old events from the embedded log"),
                Err(error) => tracing::error!(%error, "retention of the embedded log failed"),
            }
        }
    }

    /// Finishes the running batches, flushes, and stops; within the configured budget.
    pub async fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        let _changing = self.inner.changing.lock().await;
        let deployments = self.deployments();
        for deployment in &deployments {
            deployment.ask_to_stop();
        }
        let joined = blocking(move || deployments.iter().for_each(|deployment| deployment.join()));
        if tokio::time::timeout(self.inner.config.pipeline.stop_budget, joined).await.is_err() {
            tracing::warn!(
                "not all deployments ended within pipeline.stop_budget; they go on from their checkpoints at the next start"
            );
        }
    }
}

impl Inner {
    fn open(config: Arc<Config>) -> Result<Self, Error> {
        let folder = Folder::create(&config.data_dir)?;
        let catalogue = Arc::new(Catalogue::open(&folder.catalogue())?);
        let compiler = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("foldstream"));
        let engine = Engine::new(config.module_options(folder.cache(), compiler))?;
        let sources = assembly::sources(&config, &folder)?;
        Ok(Self {
            folder,
            engine,
            catalogue,
            sources,
            deployments: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            metrics: Metrics::new(),
            budget: Arc::new(Budget::new(config.state.memtable_bytes_total)),
            started_at: jiff::Timestamp::now(),
            stopping: AtomicBool::new(false),
            config,
        })
    }

    /// All deployments of the catalogue with their modules; one that can't be loaded does not keep the others down.
    fn load_all(&self) -> Result<Vec<(Record, LoadedOrNot)>, Error> {
        self.remove_leftovers();
        let records = self.catalogue.deployments()?;
        Ok(records
            .into_iter()
            .map(|record| {
                let module = self.load(&record.module.digest);
                (record, module)
            })
            .collect())
    }

    fn load(&self, digest: &str) -> Result<Arc<Module>, String> {
        let path = self.folder.module(digest);
        let component =
            std::fs::read(&path).map_err(|error| format!("module {digest} is missing: {error}; deploy it again"))?;
        let accepted = self.engine.accept(component.into()).map_err(|error| error.to_string())?;
        if accepted.digest != digest {
            return Err(format!("module {digest} is damaged on disk; deploy it again"));
        }
        self.engine.load(&accepted).map(|loaded| loaded.module).map_err(|error| error.to_string())
    }

    fn parts(&self, record: Record, module: Result<Arc<Module>, String>, answers_from: Option<u64>) -> Parts {
        let settings = &self.config.pipeline;
        let source = self.sources.get(&record.source).cloned();
        Parts {
            module_info: record.module.clone(),
            module,
            source: source.ok_or_else(|| self.no_source(&record.source).to_string()),
            path: self.folder.state(&record.name, record.generation),
            // As if there were a few more, so that those to come leave the budget nearly whole.
            state: self.config.state_options(self.deployments.read().len() + 4),
            settings: Settings {
                batch: self.config.batch_limits(),
                attempts: settings.attempts,
                initial_backoff: settings.initial_backoff,
                max_backoff: settings.max_backoff,
                flush_interval: self.config.state.flush_interval,
                memtable_bytes: self.config.state.memtable_bytes,
                budget: Arc::clone(&self.budget),
            },
            metrics: self.metrics.deployment(&record.name),
            answers_from,
            catch_up_wait: settings.catch_up_wait,
            record,
        }
    }

    fn choose_source(&self, name: Option<&str>) -> Result<String, Error> {
        match name {
            Some(name) if self.sources.contains_key(name) => Ok(name.to_owned()),
            Some(name) => Err(self.no_source(name)),
            None if self.sources.len() == 1 => Ok(self.sources.keys().next().expect("there is one").clone()),
            None => Err(Error::Source(format!(
                "this host has several sources; name one with --source: {}",
                self.source_names()
            ))),
        }
    }

    fn no_source(&self, name: &str) -> Error {
        Error::Source(format!("there is no source {name}; the configuration has: {}", self.source_names()))
    }

    fn source_names(&self) -> String {
        self.sources.keys().cloned().collect::<Vec<_>>().join(", ")
    }

    /// Removes files that no deployment uses: after a delete, a replacement, or a crash in one of them.
    fn remove_leftovers(&self) {
        match self.catalogue.deployments() {
            Ok(records) => self.folder.keep_only(&records),
            Err(error) => tracing::warn!(%error, "left unused files in place"),
        }
    }
}

fn new_record(
    name: String,
    source: String,
    start: api::Start,
    module: api::ModuleInfo,
    existing: Option<&Deployment>,
) -> Record {
    Record {
        generation: existing.map_or(1, |existing| existing.record().generation + 1),
        // Only positions of one stream compare.
        answers_from: existing
            .filter(|existing| existing.record().source == source)
            .map_or(0, |existing| existing.info().position),
        name,
        source,
        start,
        module,
        paused: false,
        deployed_at: jiff::Timestamp::now().to_string(),
    }
}

fn audit(action: &str, deployment: &str, detail: String) -> Audit {
    Audit {
        at: jiff::Timestamp::now().to_string(),
        action: action.to_owned(),
        deployment: deployment.to_owned(),
        detail,
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let sound = (1..=63).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if sound { Ok(()) } else { Err(Error::Name(name.to_owned())) }
}
