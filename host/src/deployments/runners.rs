//! Makes the runners of generations.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::owners;
use super::{Error, Loader};
use crate::actor::blocking;
use crate::bundle::Keeper;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::memory::Memory;
use crate::memory::caches::Caches;
use crate::memory::memtables::Budget;
use crate::metrics::Metrics;
use crate::module::Module;
use crate::pipeline::{Ceiling, NO_LEASH, ParkingLimits, Policy, Settings, Throttle, WhenFull};
use crate::room::Room;
use crate::runner::{self, LoadError, NotLoaded, Program, Runner};
use crate::source::Sources;
use crate::state::catalogue::{BuildSettings, Generation, HandlerRecord, OnFailure, Record};

/// A module, or why it can't be loaded.
type LoadedOrNot = Result<Arc<Module>, NotLoaded>;

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

/// Makes the runners of generations, and what they are given. Each field is what a runner needs of
/// the host.
#[derive(Debug)]
pub(crate) struct Runners {
    pub(crate) config: Arc<Config>,
    /// Reads streams and sends effects. Requests have a runtime of their own, on which no runner
    /// may land.
    pub(crate) runtime: Handle,
    pub(crate) folder: DataDir,
    /// The disk space of the data folder.
    pub(crate) room: Room,
    pub(crate) loader: Arc<Loader>,
    pub(crate) sources: Sources,
    pub(crate) caches: Caches,
    pub(crate) metrics: Metrics,
    pub(crate) budget: Arc<Budget>,
    /// What is taken of the host's memory when it is needed.
    pub(crate) memory: Memory,
}

impl Role {
    /// To answer reads in place of the runner that does so now.
    pub(crate) const TAKES_OVER: Self = Self::Serve {
        catches_up_to: None,
    };
}

impl Runners {
    /// Loads the module of a digest from the data folder. Blocking.
    pub(crate) fn load(&self, digest: &str) -> Result<Arc<Module>, LoadError> {
        self.loader.load(digest)
    }

    /// The loaded module of a generation.
    pub(crate) async fn module_of(
        self: &Arc<Self>,
        generation: &Generation,
    ) -> Result<Arc<Module>, Error> {
        let (runners, digest) = (Arc::clone(self), generation.module.digest.clone());
        Ok(blocking(move || runners.load(&digest)).await?)
    }

    /// Starts a runner for a generation. The runner loads the module from the data folder itself,
    /// so that nobody waits for a slow one.
    pub(crate) fn start(
        &self,
        record: &Record,
        generation: &Generation,
        role: Role,
    ) -> Arc<Runner> {
        self.start_with(record, generation, Err(NotLoaded::Yet), role)
    }

    /// The same with a module that may be loaded.
    pub(crate) fn start_with(
        &self,
        record: &Record,
        generation: &Generation,
        module: LoadedOrNot,
        role: Role,
    ) -> Arc<Runner> {
        let runner = Runner::start(self.options(record, generation, module, role));
        match role {
            Role::Serve { .. } => runner.start_serving(),
            Role::Follow => runner.follow(),
            Role::Build => runner.stop_serving(),
        }
        runner
    }

    /// The options for the runner of a generation.
    pub(crate) fn options(
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
                self.sources.by_name()
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
                idle_after: self.config.modules.idle_after,
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
        let source = self.sources.known(&generation.source).cloned();
        let (loader, digest) = (Arc::clone(&self.loader), generation.module.digest.clone());
        Program {
            generation: generation.number,
            module,
            // Called by the runner whenever it needs the module, on a thread of its own.
            load: Arc::new(move || loader.load(&digest)),
            source_name: generation.source.clone(),
            source,
            start: generation.start,
            begins_after: generation.begins_after,
            accepts_missing_through: generation.accepts_missing_through,
            on_probation: generation.on_probation,
            subjects_from: generation.subjects_from,
            checks_events_after: generation.checks_events_after,
            part: None,
            skips: record.skips(),
            lanes: record.lanes.unwrap_or(self.config.modules.lanes).count(),
            role: owners::role(record, generation, role),
            ownership: record.handler.as_ref().map(owners::ownership),
            first_lineage: record.handler.as_ref().map(HandlerRecord::first_lineage),
        }
    }
}

/// How fast a generation may be built.
pub(crate) fn throttle(build: &BuildSettings) -> Throttle {
    Throttle {
        events_per_second: build.max_rate,
        cpu_percent: build.cpu_percent,
    }
}
