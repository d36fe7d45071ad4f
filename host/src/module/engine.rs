//! The engine: settings, linker and loaded modules, made once per process.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use parking_lot::Mutex;
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::answer::Found;
use super::cache::Cache;
use super::child;
use super::linked::Module;
use super::output::Flow;
use super::places::Places;
use super::sandbox::{CORE_INSTANCES_MAX, Host, MEMORIES_MAX, TABLES_MAX};
use super::ticker::Ticker;
use super::upload::{self, Kind, digest};
use super::{Accepted, Error, Loaded, Options, Wanted, description, imports, wasi};
use crate::memory::{Purpose, Reservation};
use crate::schemas;

/// Address space for each linear memory if there is plenty: bounds checks are then free.
const RESERVATION: u64 = 4 << 30;
/// Smallest number of instances for which to create a pool.
const POOL_MIN: u32 = 16;
/// Tables of the pool per place; a component with more tables takes several places.
pub(super) const TABLES_PER_PLACE: u32 = 4;
/// Most frames that a trap collects.
const BACKTRACE_FRAMES: std::num::NonZeroUsize =
    std::num::NonZeroUsize::new(16).expect("16 is not zero");

/// How much address space linear memories get. Compiled code depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressSpace {
    /// Enough to reserve all that a 32-bit memory can ever need.
    Plenty,
    /// Memories take what they use, and code checks bounds.
    Scarce,
}

/// The engine. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(super) inner: Arc<EngineState>,
}

/// What all modules share.
pub(super) struct EngineState {
    pub(super) wasmtime: wasmtime::Engine,
    pub(super) options: Options,
    address_space: AddressSpace,
    linker: Linker<Host>,
    cache: Cache,
    /// Modules in use, by digest.
    loaded: Mutex<HashMap<String, Weak<Module>>>,
    /// One check or compilation at a time, so that its memory limit is the limit for all. The
    /// holder of the token has the turn.
    turn: (Sender<()>, Receiver<()>),
    pub(super) places: Arc<Places>,
    pub(super) ticker: Arc<Ticker>,
    /// Log budgets, by name of the deployment.
    flows: Mutex<HashMap<String, Arc<Flow>>>,
}

impl fmt::Debug for EngineState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            options,
            address_space,
            ..
        } = self;
        formatter
            .debug_struct("Engine")
            .field("options", options)
            .field("address_space", address_space)
            .finish_non_exhaustive()
    }
}

impl EngineState {
    /// The log budget of a deployment, shared by all its instances.
    pub(super) fn flow(&self, deployment: &str) -> Arc<Flow> {
        let mut flows = self.flows.lock();
        if let Some(flow) = flows.get(deployment) {
            return Arc::clone(flow);
        }
        // A recently used budget stays without an instance, because after a failure there is none
        // for a moment.
        flows.retain(|_, flow| Arc::strong_count(flow) > 1 || !flow.is_full());
        let flow = Arc::new(Flow::default());
        flows.insert(deployment.to_owned(), Arc::clone(&flow));
        flow
    }
}

impl Engine {
    /// Creates the engine; with the pooling allocator if there is enough address space, otherwise
    /// with on-demand memory.
    pub fn new(options: Options) -> Result<Self, Error> {
        let (wasmtime, address_space, instances) = allocate(&options)?;
        // Weak: the thread of the clock must not keep the engine whose end stops it.
        let engine = wasmtime.weak();
        let ticker = Ticker::start(move || {
            if let Some(engine) = engine.upgrade() {
                engine.increment_epoch();
            }
        })?;
        let mut linker = Linker::new(&wasmtime);
        imports::add_to_linker(&mut linker).map_err(broken)?;
        wasi::add_to_linker(&mut linker).map_err(broken)?;
        let cache = Cache::open(&options.cache_dir, &wasmtime, options.code_bytes_max)?;
        let turn = bounded(1);
        turn.0.send(()).expect("it has room for one");
        let places = Arc::new(Places::new(instances, options.memory.clone()));
        let inner = EngineState {
            wasmtime,
            options,
            address_space,
            linker,
            cache,
            loaded: Mutex::default(),
            turn,
            places,
            ticker: Arc::new(ticker),
            flows: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Checks an upload: size, well-formedness, world, imports; encodes a core module. Everything
    /// except the size is checked in a child process, unless this host has compiled the same
    /// component before.
    pub fn accept(&self, upload: bytes::Bytes) -> Result<Accepted, Error> {
        self.accept_while(upload, &Wanted::always())
    }

    /// Like [`Self::accept`], but ends when nobody waits for it any more.
    pub fn accept_while(&self, upload: bytes::Bytes, wanted: &Wanted) -> Result<Accepted, Error> {
        let bytes_max = self.inner.options.upload_bytes_max;
        if upload.len() > bytes_max {
            return Err(Error::Refused(format!(
                "it has {} bytes, {bytes_max} are allowed; strip debug information, or raise the \
                 host's limit",
                upload.len()
            )));
        }
        let kind = upload::kind(&upload).map_err(|words| Error::Refused(words.to_owned()))?;
        if kind == Kind::Component {
            let digest = digest(&upload);
            // Known code was checked when it was compiled, by this version: the name of a cached
            // file has it.
            if let Some(found) = self.known(&digest) {
                return Ok(accepted(upload, digest, found));
            }
        }
        let (found, encoded) = self
            .in_turn(wanted, || {
                child::check(&upload, &self.inner.options, wanted)
            })
            .map_err(Error::Check)??;
        let component = match (kind, encoded) {
            (Kind::Component, None) => upload,
            (Kind::Core, Some(component)) => component.into(),
            _ => {
                return Err(Error::Check(
                    "the checker took it for something else".to_owned(),
                ));
            }
        };
        let digest = digest(&component);
        // The digest is that of the component, also if a core module was uploaded: the same core
        // module, encoded by another version, may be another component.
        Ok(accepted(component, digest, found))
    }

    /// What a module has that this host has accepted and compiled before.
    fn known(&self, digest: &str) -> Option<Found> {
        if let Some(module) = self.loaded(digest) {
            return Some(Found {
                imports: module.info().imports.clone(),
                schemas: module.schemas().to_vec(),
            });
        }
        Some(self.inner.cache.get(digest)?.found)
    }

    /// Runs work when it is its turn, unless nobody waits for it by then.
    fn in_turn<T>(&self, wanted: &Wanted, work: impl FnOnce() -> T) -> Result<T, String> {
        struct CheckPermit<'a>(&'a Sender<()>);
        impl Drop for CheckPermit<'_> {
            fn drop(&mut self) {
                // It has room: the token is out.
                let _ = self.0.try_send(());
            }
        }
        let (back, turn) = &self.inner.turn;
        select! {
            recv(turn) -> _ => {}
            recv(wanted.ended()) -> _ => return Err("nobody waits for it any more".to_owned()),
        }
        let _turn = CheckPermit(back);
        Ok(work())
    }

    /// Tries what the checking process should be denied on this machine, and logs the result.
    pub fn log_walls(&self) {
        match child::walls(&self.inner.options).map(|walls| walls.gaps()) {
            Ok(gaps) if gaps.is_empty() => {
                tracing::info!(
                    "the process that checks uploads reaches no files, sockets or other processes"
                );
            }
            Ok(gaps) => tracing::warn!(
                reaches = gaps.join(", "),
                "the process that checks uploads is not fully confined: this kernel lacks seccomp \
                 or Landlock, or the container's profile forbids them"
            ),
            Err(error) => tracing::warn!(%error, "the process that checks uploads does not start"),
        }
    }

    /// Native code of all modules in use, in bytes.
    pub fn code_bytes(&self) -> u64 {
        self.inner
            .loaded
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .map(|module| module.code_bytes())
            .sum()
    }

    /// The module of a digest, if it is in use.
    pub fn loaded(&self, digest: &str) -> Option<Arc<Module>> {
        self.inner.loaded.lock().get(digest).and_then(Weak::upgrade)
    }

    /// Whether there seems to be compiled code of a module.
    pub fn has_code(&self, digest: &str) -> bool {
        self.inner.cache.length(digest) > 0
    }

    /// Compiles in a child process, or takes the compiled code from the cache; links, and asks for
    /// the manifest.
    pub fn load(&self, accepted: &Accepted) -> Result<Loaded, Error> {
        self.load_while(accepted, &Wanted::always())
    }

    /// Like [`Self::load`], but ends when nobody waits for it any more.
    pub fn load_while(&self, accepted: &Accepted, wanted: &Wanted) -> Result<Loaded, Error> {
        if let Some(module) = self.loaded(&accepted.digest) {
            return Ok(Loaded {
                module,
                compile_time: None,
            });
        }
        // Before it is read: code that does not fit must take no memory.
        // The length of the file serves as that of the code.
        let mut memory = self.inner.options.memory.reservation(Purpose::Code);
        memory.grow_to(self.inner.cache.length(&accepted.digest))?;
        let (component, compile_time) = match self.cached(&accepted.digest, &mut memory)? {
            Some(component) => (component, None),
            None => self
                .in_turn(wanted, || self.compiled(accepted, &mut memory, wanted))
                .map_err(Error::Compile)??,
        };
        // They stay in memory with the module.
        memory.grow_to(memory.bytes() + schemas::memory_bytes(&accepted.schemas))?;
        let linked = self
            .inner
            .linker
            .instantiate_pre(&component)
            .map_err(|error| {
                Error::Refused(format!(
                    "it does not match this host's contract: {error:#}; build it \
                                    with a matching SDK"
                ))
            })?;
        let module = Arc::new(Module::new(
            Arc::clone(&self.inner),
            linked,
            accepted,
            memory,
        )?);
        let mut loaded = self.inner.loaded.lock();
        // Entries whose module nobody uses any more: the map must not grow with every deployment.
        loaded.retain(|_, module| module.strong_count() > 0);
        // Another thread may have loaded it meanwhile; all share one.
        if let Some(module) = loaded.get(&accepted.digest).and_then(Weak::upgrade) {
            return Ok(Loaded {
                module,
                compile_time,
            });
        }
        loaded.insert(accepted.digest.clone(), Arc::downgrade(&module));
        Ok(Loaded {
            module,
            compile_time,
        })
    }

    fn compiled(
        &self,
        accepted: &Accepted,
        memory: &mut Reservation,
        wanted: &Wanted,
    ) -> Result<(Component, Option<Duration>), Error> {
        // Another thread may have compiled the same module meanwhile.
        if let Some(component) = self.cached(&accepted.digest, memory)? {
            return Ok((component, None));
        }
        let begin = Instant::now();
        let code = child::compile(
            &accepted.component,
            &self.inner.options,
            self.inner.address_space,
            wanted,
        )?;
        let compile_time = begin.elapsed();
        // The setting may name any program; what it wrote is looked at before it is deserialized.
        if wasmtime::Engine::detect_precompiled(&code).is_none() {
            let compiler = self.inner.options.compiler.display();
            return Err(Error::Engine {
                message: format!("the compiler {compiler} wrote no code; is it this program?"),
                source: None,
            });
        }
        charge(memory, &code)?;
        // SAFETY: the code is what this host's own compiler process just wrote to a pipe that no
        // other process has.
        let component = unsafe { Component::deserialize(&self.inner.wasmtime, &code) }
            .map_err(|error| Error::Refused(format!("it exceeds this host's limits: {error:#}")))?;
        let found = Found {
            imports: accepted.imports.clone(),
            schemas: accepted.schemas.to_vec(),
        };
        if let Err(error) = self.inner.cache.put(&accepted.digest, &found, &code) {
            tracing::warn!(
                digest = accepted.digest,
                %error,
                "cannot cache compiled code; it will be compiled again next time"
            );
        }
        Ok((component, Some(compile_time)))
    }

    fn cached(&self, digest: &str, memory: &mut Reservation) -> Result<Option<Component>, Error> {
        let Some(code) = self.inner.cache.get(digest) else {
            return Ok(None);
        };
        charge(memory, code.code())?;
        // SAFETY: the cache returns only what carries a valid MAC under a key that this host made
        // and that only its user can read, bound to the digest and to these engine settings: it is
        // code that this host compiled.
        match unsafe { Component::deserialize(&self.inner.wasmtime, code.code()) } {
            Ok(component) => Ok(Some(component)),
            Err(error) => {
                // It is authentic, so it may exceed a limit that was larger then: compiling it
                // again says which.
                tracing::warn!(digest, %error, "cannot use cached code; compiling again");
                Ok(None)
            }
        }
    }
}

fn accepted(component: bytes::Bytes, digest: String, found: Found) -> Accepted {
    let Found { imports, schemas } = found;
    Accepted {
        component,
        digest,
        imports,
        schemas: schemas.into(),
    }
}

/// Reserves the memory that code takes once it is loaded. Called before that: code that does not
/// fit must take none.
fn charge(memory: &mut Reservation, code: &[u8]) -> Result<(), Error> {
    let bytes = description::memory_bytes(code);
    memory.shrink_to(bytes);
    Ok(memory.grow_to(bytes)?)
}

/// The largest pool that fits the address space, or none; with the number of instances that fit.
fn allocate(options: &Options) -> Result<(wasmtime::Engine, AddressSpace, u32), Error> {
    let wanted = options.instances_max.max(1);
    let mut instances = wanted;
    loop {
        let mut config = config(AddressSpace::Plenty, options.counts_fuel.into());
        stack(&mut config, options);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(
            options, instances,
        )));
        match wasmtime::Engine::new(&config) {
            Ok(engine) => {
                if instances < wanted {
                    tracing::warn!(
                        wanted,
                        instances,
                        "little address space: fewer instances than modules.instances_max can run \
                         at once"
                    );
                }
                return Ok((engine, AddressSpace::Plenty, instances));
            }
            Err(error) if instances <= POOL_MIN => {
                tracing::info!(
                    %error,
                    "little address space: linear memories are allocated one by one"
                );
                break;
            }
            // Where the address space is limited (`ulimit -v`), a smaller pool is better than none.
            Err(_) => instances = (instances / 4).max(POOL_MIN),
        }
    }
    let mut config = config(AddressSpace::Scarce, options.counts_fuel.into());
    stack(&mut config, options);
    let engine = wasmtime::Engine::new(&config).map_err(broken)?;
    Ok((engine, AddressSpace::Scarce, wanted))
}

/// Whether compiled code counts its instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fuel {
    Counted,
    Uncounted,
}

impl From<bool> for Fuel {
    fn from(is_counted: bool) -> Self {
        if is_counted {
            Self::Counted
        } else {
            Self::Uncounted
        }
    }
}

/// Settings that affect compiled code: the same here and in the compiling process.
pub(super) fn config(address_space: AddressSpace, fuel: Fuel) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .epoch_interruption(true)
        .consume_fuel(fuel == Fuel::Counted)
        .wasm_backtrace_max_frames(Some(BACKTRACE_FRAMES))
        .native_unwind_info(false)
        // The result of a fold may not depend on the processor.
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .shared_memory(false)
        .wasm_memory64(false)
        .wasm_stack_switching(false);
    match address_space {
        AddressSpace::Plenty => config.memory_reservation(RESERVATION),
        AddressSpace::Scarce => config
            .memory_reservation(0)
            .memory_guard_size(64 << 10)
            .memory_reservation_for_growth(1 << 20),
    };
    config
}

fn stack(config: &mut Config, options: &Options) {
    config.max_wasm_stack(options.stack_bytes_max);
    // Unused, because nothing runs on fibres, but it must be larger than the other.
    config.async_stack_size(options.stack_bytes_max + (1 << 20));
}

fn pool(options: &Options, instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_MAX))
        .max_memories_per_component(MEMORIES_MAX)
        .total_memories(instances)
        .max_memory_size(usize::try_from(options.memory_bytes_max).unwrap_or(usize::MAX))
        .max_tables_per_component(TABLES_MAX)
        .total_tables(instances.saturating_mul(TABLES_PER_PLACE))
        .table_elements(options.table_elements_max)
        .total_stacks(1);
    pool
}

pub(super) fn broken(error: wasmtime::Error) -> Error {
    Error::engine(format!("{error:#}"), error)
}
