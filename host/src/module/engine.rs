//! The engine: settings, linker and loaded modules, made once per process.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::cache::Cache;
use super::compile;
use super::instance::Module;
use super::output::Flow;
use super::places::Places;
use super::sandbox::{CORE_INSTANCES_MAX, Host, MEMORIES_MAX, TABLES_MAX};
use super::{Accepted, Error, Loaded, Options, accept, imports, wasi};

/// How often the epoch rises: the precision of deadlines.
pub(super) const TICK: Duration = Duration::from_millis(5);
/// Address space that each linear memory takes where there is plenty of it: bounds checks then cost nothing.
const RESERVATION: u64 = 4 << 30;
/// Least number of instances for which a pool is made.
const POOL_MIN: u32 = 16;
/// Tables of the pool for each place; a component with more of them takes several places.
pub(super) const TABLES_PER_PLACE: u32 = 4;
/// Most frames that a trap collects.
const BACKTRACE_FRAMES: std::num::NonZeroUsize = std::num::NonZeroUsize::new(16).expect("16 is not zero");

/// How much address space there is for linear memories. Compiled code depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressSpace {
    /// Enough to reserve all that a 32-bit memory can ever need.
    Plenty,
    /// Memories take what they use, and code checks its bounds.
    Scarce,
}

/// The engine. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(super) inner: Arc<Inner>,
}

/// What all modules share.
pub(super) struct Inner {
    pub(super) wasmtime: wasmtime::Engine,
    pub(super) options: Options,
    address_space: AddressSpace,
    linker: Linker<Host>,
    cache: Cache,
    /// Modules in use, by digest.
    loaded: Mutex<HashMap<String, Weak<Module>>>,
    /// One compilation at a time, so that its memory limit is that of all.
    compiling: Mutex<()>,
    pub(super) places: Arc<Places>,
    /// What modules may log, by the name of their deployment.
    flows: Mutex<HashMap<String, Arc<Flow>>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { options, address_space, .. } = self;
        formatter
            .debug_struct("Engine")
            .field("options", options)
            .field("address_space", address_space)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// What a deployment may log. All its instances share it.
    pub(super) fn flow(&self, deployment: &str) -> Arc<Flow> {
        let mut flows = self.flows.lock();
        if let Some(flow) = flows.get(deployment) {
            return Arc::clone(flow);
        }
        // One that was used lately stays without an instance: after a failure there is none for a moment.
        flows.retain(|_, flow| Arc::strong_count(flow) > 1 || !flow.is_full());
        let flow = Arc::new(Flow::default());
        flows.insert(deployment.to_owned(), Arc::clone(&flow));
        flow
    }
}

impl Engine {
    /// Makes the engine; the pooling allocator where address space allows, else on-demand memory.
    pub fn new(options: Options) -> Result<Self, Error> {
        let (wasmtime, address_space, instances) = allocate(&options)?;
        start_ticker(&wasmtime)?;
        let mut linker = Linker::new(&wasmtime);
        imports::add_to_linker(&mut linker).map_err(broken)?;
        wasi::add_to_linker(&mut linker).map_err(broken)?;
        let cache = Cache::open(&options.cache_dir, &wasmtime)?;
        let inner = Inner {
            wasmtime,
            options,
            address_space,
            linker,
            cache,
            loaded: Mutex::default(),
            compiling: Mutex::default(),
            places: Arc::new(Places::new(instances)),
            flows: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Checks an upload: size, well-formedness, world, imports; encodes a core module.
    pub fn accept(&self, upload: bytes::Bytes) -> Result<Accepted, Error> {
        accept::accept(upload, self.inner.options.upload_bytes_max)
    }

    /// The module of a digest, if somebody uses it just now.
    pub fn loaded(&self, digest: &str) -> Option<Arc<Module>> {
        self.inner.loaded.lock().get(digest).and_then(Weak::upgrade)
    }

    /// Compiles in a child process, or takes the compiled code from the cache; links, and asks for the manifest.
    pub fn load(&self, accepted: &Accepted) -> Result<Loaded, Error> {
        if let Some(module) = self.loaded(&accepted.digest) {
            return Ok(Loaded { module, compile_time: None });
        }
        let (component, compile_time) = self.compiled(accepted)?;
        let linked = self.inner.linker.instantiate_pre(&component).map_err(|error| {
            Error::Refused(format!("it does not fit this host's contract: {error:#}; build it with a matching SDK"))
        })?;
        let module = Arc::new(Module::new(Arc::clone(&self.inner), linked, accepted)?);
        let mut loaded = self.inner.loaded.lock();
        loaded.retain(|_, module| module.strong_count() > 0);
        // Another thread may have loaded it meanwhile; all share one.
        if let Some(module) = loaded.get(&accepted.digest).and_then(Weak::upgrade) {
            return Ok(Loaded { module, compile_time });
        }
        loaded.insert(accepted.digest.clone(), Arc::downgrade(&module));
        Ok(Loaded { module, compile_time })
    }

    fn compiled(&self, accepted: &Accepted) -> Result<(Component, Option<Duration>), Error> {
        if let Some(component) = self.cached(&accepted.digest) {
            return Ok((component, None));
        }
        let _turn = self.inner.compiling.lock();
        // Another thread may have compiled the same module meanwhile.
        if let Some(component) = self.cached(&accepted.digest) {
            return Ok((component, None));
        }
        let begin = Instant::now();
        let code = compile::in_child(&accepted.component, &self.inner.options, self.inner.address_space)?;
        let compile_time = begin.elapsed();
        if wasmtime::Engine::detect_precompiled(&code).is_none() {
            let compiler = self.inner.options.compiler.display();
            return Err(Error::Engine(format!("the compiler {compiler} wrote no code; is it this program?")));
        }
        // SAFETY: the code is what this host's own compiler process just wrote to a pipe that no other process has.
        let component = unsafe { Component::deserialize(&self.inner.wasmtime, &code) }
            .map_err(|error| Error::Refused(format!("it does not fit this host's limits: {error:#}")))?;
        if let Err(error) = self.inner.cache.put(&accepted.digest, &code) {
            tracing::warn!(digest = accepted.digest, %error, "cannot keep compiled code; it is compiled again next time");
        }
        Ok((component, Some(compile_time)))
    }

    fn cached(&self, digest: &str) -> Option<Component> {
        let code = self.inner.cache.get(digest)?;
        // SAFETY: the cache returns only what carries a valid MAC under a key that this host made and that only its
        // user can read, bound to the digest and to these engine settings: it is code that this host compiled.
        match unsafe { Component::deserialize(&self.inner.wasmtime, code.code()) } {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(digest, %error, "cannot use cached code; compiling again");
                None
            }
        }
    }
}

/// Takes the largest pool for which there is address space, or none; with the number of instances that fit.
fn allocate(options: &Options) -> Result<(wasmtime::Engine, AddressSpace, u32), Error> {
    let wanted = options.instances_max.max(1);
    let mut instances = wanted;
    loop {
        let mut config = config(AddressSpace::Plenty);
        stack(&mut config, options);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(options, instances)));
        match wasmtime::Engine::new(&config) {
            Ok(engine) => {
                if instances < wanted {
                    tracing::warn!(
                        wanted,
                        instances,
                        "little address space: fewer instances than modules.instances_max can run at once"
                    );
                }
                return Ok((engine, AddressSpace::Plenty, instances));
            }
            Err(error) if instances <= POOL_MIN => {
                tracing::info!(%error, "little address space: linear memories are allocated one by one");
                break;
            }
            Err(_) => instances = (instances / 4).max(POOL_MIN),
        }
    }
    let mut config = config(AddressSpace::Scarce);
    stack(&mut config, options);
    let engine = wasmtime::Engine::new(&config).map_err(broken)?;
    Ok((engine, AddressSpace::Scarce, wanted))
}

/// What decides about compiled code: the same here and in the compiling process.
pub(super) fn config(address_space: AddressSpace) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .epoch_interruption(true)
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
        AddressSpace::Scarce => {
            config.memory_reservation(0).memory_guard_size(64 << 10).memory_reservation_for_growth(1 << 20)
        }
    };
    config
}

fn stack(config: &mut Config, options: &Options) {
    config.max_wasm_stack(options.stack_bytes_max);
    // Unused, as nothing runs on fibres, but it has to be larger than the other.
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

/// Raises the epoch for as long as the engine lives, so that each call meets its deadline.
fn start_ticker(engine: &wasmtime::Engine) -> Result<(), Error> {
    let engine = engine.weak();
    let ticker = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    };
    match std::thread::Builder::new().name("epoch".to_owned()).spawn(ticker) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Engine(format!("cannot start the thread that watches deadlines: {error}"))),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
pub(super) fn broken(error: wasmtime::Error) -> Error {
    Error::Engine(format!("{error:#}"))
}
