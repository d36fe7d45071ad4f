//! What rollouts need of the host, and what a runner is given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::loader::Loader;
use super::{Error, PastStates, Queue, Snapshots, owners};
use crate::api::{self, OnFailure};
use crate::bundle::Keeper;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::deployment::Deployment;
use crate::memory::Memory;
use crate::memory::caches::Caches;
use crate::memory::memtables::Budget;
use crate::metrics::Metrics;
use crate::module::{Engine, Module};
use crate::pipeline::{Ceiling, NO_LEASH, ParkingLimits, Policy, Settings, Throttle, WhenFull};
use crate::room::Room;
use crate::runner::{self, LoadError, NotLoaded, Program};
use crate::source::{Source, Unknown};
use crate::state::catalogue::{Catalogue, Generation, Record};

/// All deployments of a host, and every change to them. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Rollouts {
    pub(crate) inner: Arc<Shared>,
}

/// A module, or why it can't be loaded.
pub(super) type LoadedOrNot = Result<Arc<Module>, NotLoaded>;

/// The role of a runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// To answer reads.
    Serve {
        /// The position that readers may have seen before; none if only the state or the end of the
        /// stream can show it.
        catches_up_to: Option<u64>,
    },
    /// To follow the stream, so that it can become active again.
    Follow,
    /// To build a state as fast as it may.
    Build,
}

/// What rollouts share with the host that they belong to.
///
/// The locks are taken in this order: `changing` of a deployment, `changing` of all, `naming`,
/// `deployments`. A task that has one of them never waits for an earlier one; the last is never
/// held across an await.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    /// Reads streams and sends effects. Requests have a runtime of their own, on which no runner
    /// may land.
    pub(crate) runtime: Handle,
    pub(crate) folder: DataDir,
    /// The disk space of the data folder.
    pub(crate) room: Room,
    pub(crate) engine: Engine,
    pub(crate) loader: Arc<Loader>,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) sources: BTreeMap<String, Source>,
    pub(crate) caches: Caches,
    pub(crate) deployments: RwLock<BTreeMap<String, Arc<Deployment>>>,
    /// Serialises changes to the set of deployments; reads don't wait for it.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Names of deleted deployments whose runners have not ended yet. They cannot be created again
    /// before that.
    pub(crate) ending: tokio::sync::watch::Sender<BTreeSet<String>>,
    /// Held while a file exists that no record names yet; code that removes unnamed files waits for
    /// it.
    pub(crate) naming: tokio::sync::RwLock<()>,
    pub(crate) metrics: Metrics,
    pub(crate) rebuilds: Queue,
    pub(crate) past_states: PastStates,
    pub(crate) snapshots: Snapshots,
    /// Housekeeping in progress: its kind, and the deployment or source.
    pub(crate) chores: parking_lot::Mutex<BTreeSet<(&'static str, String)>>,
    pub(crate) budget: Arc<Budget>,
    /// What is taken of the host's memory when it is needed.
    pub(crate) memory: Memory,
    /// Cancelled once the host stops.
    pub(crate) stopping: CancellationToken,
}

impl Role {
    /// To answer reads in place of the runner that does so now.
    pub(crate) const TAKES_OVER: Self = Self::Serve {
        catches_up_to: None,
    };
}

impl Rollouts {
    /// All deployments, by name.
    pub fn deployments(&self) -> Vec<Arc<Deployment>> {
        self.inner.deployments.read().values().cloned().collect()
    }

    /// One deployment.
    pub fn deployment(&self, name: &str) -> Result<Arc<Deployment>, Error> {
        self.inner
            .deployments
            .read()
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NotFound(name.to_owned()))
    }

    /// Whether the host is stopping.
    pub(crate) fn is_stopping(&self) -> bool {
        self.inner.stopping.is_cancelled()
    }
}

impl Shared {
    /// Loads the module of a digest from the data folder.
    pub(crate) fn load(&self, digest: &str) -> Result<Arc<Module>, LoadError> {
        self.loader.load(digest)
    }

    /// The options for the runner of a generation.
    pub(crate) fn runner_options(
        &self,
        record: &Record,
        generation: &Generation,
        module: LoadedOrNot,
        role: Role,
    ) -> runner::Options {
        let name = record.name.as_str();
        let (pipeline, state) = (&self.config.pipeline, &self.config.state);
        // Only a build gets large memtables: it writes much, and nobody reads from it.
        let (memtable_bytes, throttle) = match role {
            Role::Serve { .. } | Role::Follow => (state.memtable_bytes, Throttle::default()),
            Role::Build => (
                self.config.rollout.memtable_bytes.max(state.memtable_bytes),
                throttle(&generation.build),
            ),
        };
        let path = self.folder.state(name, generation.state_file);
        // The share is given back when the runner ends; `u64::MAX` asks for what a state may have
        // at most.
        let cache = self.caches.share(u64::MAX);
        let state_options = self.config.state_options(cache.bytes(), &self.memory);
        runner::Options {
            deployment: name.to_owned(),
            runtime: self.runtime.clone(),
            program: self.program(record, generation, module, role),
            path: path.clone(),
            state: state_options,
            cache,
            // A projection publishes nothing, and so needs no sources to publish to.
            outlets: if record.handler.is_some() {
                Arc::new(self.sources.clone())
            } else {
                Arc::default()
            },
            // In the record, so that it survives a restart; the module does not decide it.
            parks: record.parking.on_failure == OnFailure::Park,
            settings: Settings {
                batch: self.config.batch_limits(),
                policy: Policy {
                    attempts: pipeline.attempts,
                    initial_backoff: pipeline.initial_backoff,
                    max_backoff: pipeline.max_backoff,
                },
                build_attempts: self.config.rollout.attempts,
                build_backoff: self.config.rollout.max_backoff,
                retry_percent: pipeline.retry_percent,
                keeper: Some(Keeper::new(self.folder.clone(), name)),
                parking: ParkingLimits {
                    keys: state.parked_keys_max,
                    events: state.parked_events_max,
                    bytes: state.parked_bytes_max,
                },
                flush_interval: state.flush_interval,
                memtable_bytes,
                budget: Arc::clone(&self.budget),
                disk: Some((self.room.clone(), WhenFull::Wait)),
                shuffle: None,
            },
            metrics: self.metrics.deployment(name),
            paused: generation.paused,
            pace: (Ceiling::None, throttle),
            leash: match role {
                // Until it is known how far the owner has come, if there is one.
                Role::Build if record.handler.is_some() => {
                    generation.lost_effects_after.unwrap_or(0)
                }
                Role::Follow if record.handler.is_some() => 0,
                Role::Serve { .. } | Role::Follow | Role::Build => NO_LEASH,
            },
            succeeds_lost_owner: role == Role::Build && generation.lost_effects_after.is_some(),
            catches_up_to: match role {
                Role::Serve { catches_up_to } => catches_up_to,
                // A generation without a file has shown nothing. Pages that are pinned to it must
                // not go back either.
                // A file that exists may have been read before a restart.
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
    pub(crate) fn program(
        &self,
        record: &Record,
        generation: &Generation,
        module: LoadedOrNot,
        role: Role,
    ) -> Program {
        // A source that the configuration no longer has fails this deployment and no other.
        let source = self.sources.get(&generation.source).cloned();
        let (loader, digest) = (Arc::clone(&self.loader), generation.module.digest.clone());
        Program {
            generation: generation.number,
            module,
            // Called by the runner whenever it needs the module, on a thread of its own.
            load: Arc::new(move || loader.load(&digest)),
            source_name: generation.source.clone(),
            source: source.ok_or_else(|| self.no_source(&generation.source)),
            start: generation.start,
            begins_after: generation.begins_after,
            accepts_missing_through: generation.accepts_missing_through,
            on_probation: generation.on_probation,
            subjects_from: generation.subjects_from,
            part: None,
            skips: record.skips(),
            role: owners::role(record, generation, role),
            ownership: record.handler.as_ref().map(owners::ownership),
        }
    }

    pub(crate) fn choose_source(&self, name: Option<&str>) -> Result<String, Error> {
        match name {
            Some(name) if self.sources.contains_key(name) => Ok(name.to_owned()),
            Some(name) => Err(self.no_source(name).into()),
            None if self.sources.len() == 1 => {
                Ok(self.sources.keys().next().expect("there is one").clone())
            }
            None => Err(Error::Source(format!(
                "this host has several sources; choose one with --source: {}",
                self.source_names()
            ))),
        }
    }

    pub(crate) fn no_source(&self, name: &str) -> Unknown {
        Unknown {
            name: name.to_owned(),
            configured: self.source_names(),
        }
    }

    fn source_names(&self) -> String {
        self.sources.keys().cloned().collect::<Vec<_>>().join(", ")
    }

    /// Removes files that no generation uses: after a delete, a retirement, or a crash during one
    /// of them.
    pub(crate) fn remove_leftovers(&self) {
        // Without the catalogue nobody knows what is used, so nothing is removed.
        match self.catalogue.deployments() {
            Ok(records) => self.folder.keep_only(&records),
            Err(error) => tracing::warn!(%error, "left unused files in place"),
        }
    }
}

/// How fast a generation may be built.
pub(crate) fn throttle(build: &api::BuildSettings) -> Throttle {
    Throttle {
        events_per_second: build.max_rate,
        cpu_percent: build.cpu_percent,
    }
}
