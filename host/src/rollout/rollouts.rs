//! What rollouts need of the host, and what a runner is given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::loader::Loader;
use super::{Error, Pasts, Queue, Snapshots};
use crate::api;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::deployment::Deployment;
use crate::memory::Memory;
use crate::memory::caches::Caches;
use crate::memory::memtables::Budget;
use crate::metrics::Metrics;
use crate::module::{Engine, Module};
use crate::pipeline::{Ceiling, Settings, Throttle, WhenFull};
use crate::room::Room;
use crate::runner::{Parts, Program};
use crate::source::Source;
use crate::state::catalogue::{Catalogue, Generation, Record};

/// All deployments of a host, and every change to them. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Rollouts {
    pub(crate) inner: Arc<Shared>,
}

/// A module, or why it can't be loaded.
pub(super) type LoadedOrNot = Result<Arc<Module>, String>;

/// The role of a runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// To answer reads.
    Serve {
        /// The position that readers may have seen before; none if only the state or the end of the stream can tell.
        catches_up_to: Option<u64>,
    },
    /// To follow the stream, so that it can become active again.
    Follow,
    /// To build a state as fast as it may.
    Build,
}

/// What rollouts share with the host that they belong to.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) folder: DataDir,
    pub(crate) engine: Engine,
    pub(crate) loader: Arc<Loader>,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) sources: BTreeMap<String, Source>,
    pub(crate) caches: Caches,
    pub(crate) deployments: RwLock<BTreeMap<String, Arc<Deployment>>>,
    /// Serialises changes to the set of deployments; reads don't wait for it.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Names of deleted deployments whose runners have not ended yet. They cannot be created again before that.
    pub(crate) ending: tokio::sync::watch::Sender<BTreeSet<String>>,
    /// Held while a file exists that no record names yet; code that removes unnamed files waits for it.
    pub(crate) naming: tokio::sync::RwLock<()>,
    pub(crate) metrics: Metrics,
    pub(crate) rebuilds: Queue,
    pub(crate) pasts: Pasts,
    pub(crate) snapshots: Snapshots,
    /// Housekeeping in progress: its kind, and the deployment or source.
    pub(crate) chores: parking_lot::Mutex<BTreeSet<(&'static str, String)>>,
    pub(crate) budget: Arc<Budget>,
    /// What is taken of the host's memory when it is needed.
    pub(crate) memory: Memory,
    pub(crate) stopping: AtomicBool,
}

impl Rollouts {
    /// All deployments, by name.
    pub fn deployments(&self) -> Vec<Arc<Deployment>> {
        self.inner.deployments.read().values().cloned().collect()
    }

    /// One deployment.
    pub fn deployment(&self, name: &str) -> Result<Arc<Deployment>, Error> {
        self.inner.deployments.read().get(name).cloned().ok_or_else(|| Error::NotFound(name.to_owned()))
    }

    /// Whether the host is stopping.
    pub(crate) fn is_stopping(&self) -> bool {
        self.inner.stopping.load(Ordering::Acquire)
    }
}

impl Shared {
    /// Loads the module of a digest from the data folder.
    pub(crate) fn load(&self, digest: &str) -> Result<Arc<Module>, String> {
        self.loader.load(digest).map_err(|error| error.message)
    }

    /// The options for the runner of a generation.
    pub(crate) fn parts(&self, record: &Record, generation: &Generation, module: LoadedOrNot, role: Role) -> Parts {
        let name = record.name.as_str();
        let (pipeline, state) = (&self.config.pipeline, &self.config.state);
        let (memtable_bytes, throttle) = match role {
            Role::Serve { .. } | Role::Follow => (state.memtable_bytes, Throttle::default()),
            Role::Build => (self.config.rollout.memtable_bytes.max(state.memtable_bytes), throttle(&generation.build)),
        };
        let path = self.folder.state(name, generation.state_file);
        let cache = self.caches.share(u64::MAX);
        let state_options = self.config.state_options(cache.bytes(), &self.memory);
        Parts {
            deployment: name.to_owned(),
            program: self.program(record, generation, module),
            path: path.clone(),
            state: state_options,
            cache,
            settings: Settings {
                batch: self.config.batch_limits(),
                attempts: pipeline.attempts,
                initial_backoff: pipeline.initial_backoff,
                max_backoff: pipeline.max_backoff,
                flush_interval: state.flush_interval,
                memtable_bytes,
                budget: Arc::clone(&self.budget),
                disk: Some((Room::of(self.folder.root()), WhenFull::Wait)),
                shuffle: None,
            },
            metrics: self.metrics.deployment(name),
            paused: generation.paused,
            pace: (Ceiling::None, throttle),
            catches_up_to: match role {
                Role::Serve { catches_up_to } => catches_up_to,
                // A generation without a file has shown nothing. Pages that are pinned to it must not go back either.
                Role::Follow | Role::Build => (!path.exists()).then_some(0),
            },
            floor: match role {
                // A first position of 1 may be a cut-over before the first event.
                Role::Serve { .. } if generation.serves_from > 1 => generation.serves_from,
                Role::Serve { .. } | Role::Follow | Role::Build => 0,
            },
        }
    }

    /// The module of a generation.
    pub(crate) fn program(&self, record: &Record, generation: &Generation, module: LoadedOrNot) -> Program {
        let source = self.sources.get(&generation.source).cloned();
        let (loader, digest) = (Arc::clone(&self.loader), generation.module.digest.clone());
        Program {
            generation: generation.number,
            module,
            load: Arc::new(move || loader.load(&digest)),
            source_name: generation.source.clone(),
            source: source.ok_or_else(|| self.no_source(&generation.source).to_string()),
            start: generation.start,
            accepts_missing_through: generation.accepts_missing_through,
            on_probation: generation.on_probation,
            subjects_from: generation.subjects_from,
            part: None,
            skips: record.skips(),
        }
    }

    pub(crate) fn choose_source(&self, name: Option<&str>) -> Result<String, Error> {
        match name {
            Some(name) if self.sources.contains_key(name) => Ok(name.to_owned()),
            Some(name) => Err(self.no_source(name)),
            None if self.sources.len() == 1 => Ok(self.sources.keys().next().expect("there is one").clone()),
            None => Err(Error::Source(format!(
                "this host has several sources; choose one with --source: {}",
                self.source_names()
            ))),
        }
    }

    pub(crate) fn no_source(&self, name: &str) -> Error {
        Error::Source(format!("there is no source {name}; the configuration has: {}", self.source_names()))
    }

    fn source_names(&self) -> String {
        self.sources.keys().cloned().collect::<Vec<_>>().join(", ")
    }

    /// Removes files that no generation uses: after a delete, a retirement, or a crash during one of them.
    pub(crate) fn remove_leftovers(&self) {
        match self.catalogue.deployments() {
            Ok(records) => self.folder.keep_only(&records),
            Err(error) => tracing::warn!(%error, "left unused files in place"),
        }
    }
}

/// How fast a generation may be built.
pub(crate) fn throttle(build: &api::BuildSettings) -> Throttle {
    Throttle { events_per_second: build.max_rate, cpu_percent: build.cpu_percent }
}
