//! Linked modules: what they export, what their manifest says, and how instances are made.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::Store;
use wasmtime::component::{ComponentExportIndex, Func, InstancePre, TypedFunc};

use super::bindings::{Events, Fired, HandlerRecord, ManifestRecord, PayloadRef, QueryFailure};
use super::checking::Compiled;
use super::copies::Room;
use super::engine::{EngineState, TABLES_PER_PLACE, broken};
use super::inbox::{INBOX, InboxRecord};
use super::instance::{ApplyResult, Handles, Instance, QueryResult, failed, message, ticks};
use super::manifest::{self, Described};
use super::migration::{self, Conversion};
use super::places::{NoFreePlace, Permit, Purpose};
use super::sandbox::{Access, Bounds, Host, MEMORIES_MAX, Made, System};
use super::{
    Accepted, ApplyError, Error, HANDLES_MAX, Identity, Manifest, Migration, ModuleKind, QueryError,
};
use crate::event::Payload;
use crate::memory::{self, Reservation, Shortage};
use crate::schemas::EventSchema;
use crate::state;
use crate::state::catalogue::ModuleInfo;
use crate::timers;

/// A compiled and linked module.
pub struct Module {
    engine: Arc<EngineState>,
    linked: InstancePre<Host>,
    exports: Exports,
    system: System,
    manifest: Manifest,
    info: ModuleInfo,
    /// The schemas of events that it carries.
    schemas: Arc<[EventSchema]>,
    /// The same, compiled once a deployment checks events.
    pub(super) checks: Mutex<Option<Arc<Compiled>>>,
    /// The memory of its native code and its schemas.
    pub(super) code: Reservation,
}

/// The functions of the world.
struct Exports {
    kind: ModuleKind,
    manifest: ComponentExportIndex,
    /// `apply`, or `handle` of a handler.
    apply: ComponentExportIndex,
    query: ComponentExportIndex,
    /// `on-timer`, only of handlers.
    on_timer: Option<ComponentExportIndex>,
    /// Only of modules that can migrate.
    migrate: Option<ComponentExportIndex>,
    /// Only of modules that may have an inbox.
    inbox: Option<ComponentExportIndex>,
}

/// Why there is no instance.
enum StartError {
    /// The maximum number of instances is in use.
    Busy(NoFreePlace),
    /// The host is short of memory.
    Short(Shortage),
    /// The host could not create one, whatever the module.
    Host(wasmtime::Error),
    /// The module failed to start.
    Failed(ApplyError),
}

/// Size of the longest list of keys in a call of get-many, in bytes: it counts towards the same
/// limit as an answer.
const KEYS_BYTES: usize = 3 << 20;
/// Size of the longest list in a call of put-many, in bytes, before its entries are read.
const ENTRIES_BYTES: usize = 8 << 20;

impl fmt::Debug for Module {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Module")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Module {
    /// Asks a linked component for its manifest, in a sandbox without state.
    pub(super) fn new(
        engine: Arc<EngineState>,
        linked: InstancePre<Host>,
        accepted: &Accepted,
        code: Reservation,
    ) -> Result<Self, Error> {
        let exports = Exports::of(&linked)?;
        let wants_wasi = accepted
            .imports
            .iter()
            .any(|name| name.starts_with("wasi:"));
        let system = if wants_wasi {
            System::Wasi
        } else {
            System::None
        };
        let record = ask(&engine, &linked, &exports, system)?;
        let (record, inbox) = record;
        let manifest = Manifest {
            inbox: inbox.map(InboxRecord::checked).transpose()?,
            ..record.checked(&engine.options)?
        };
        let info = ModuleInfo {
            migrates: exports.migrate.is_some(),
            ..manifest::info(&manifest, accepted)
        };
        let module = Self {
            engine,
            linked,
            exports,
            system,
            manifest,
            info,
            schemas: Arc::clone(&accepted.schemas),
            checks: Mutex::default(),
            code,
        };
        // It must also start within the limits that it asked for; otherwise every batch would fail.
        let identity = Identity {
            deployment: module.manifest.name.clone(),
            generation: 0,
        };
        module.instantiate(&identity)?;
        Ok(module)
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The same, for people and machines outside.
    pub fn info(&self) -> &ModuleInfo {
        &self.info
    }

    /// The schemas of events that it carries.
    pub(crate) fn schemas(&self) -> &Arc<[EventSchema]> {
        &self.schemas
    }

    /// Its native code and its schemas, in bytes: memory that they take while it is in use.
    pub fn code_bytes(&self) -> u64 {
        self.code.bytes()
    }

    /// What it is.
    pub fn kind(&self) -> ModuleKind {
        self.exports.kind
    }

    /// Whether it can migrate the state of an older version.
    pub fn migrates(&self) -> bool {
        self.exports.migrate.is_some()
    }

    /// Creates an instance for applying.
    pub fn instantiate(&self, identity: &Identity) -> Result<Instance, Error> {
        self.instantiate_at(identity, 0)
    }

    /// Creates an instance for applying whose clock begins at a time, in nanoseconds since the Unix
    /// epoch: events that are older do not set it back.
    pub fn instantiate_at(&self, identity: &Identity, time_ns: u64) -> Result<Instance, Error> {
        self.start(identity, Purpose::Fold, time_ns)
            .map_err(unavailable)
    }

    /// Creates an instance that migrates a state of version `from_version`, page by page.
    ///
    /// Fails if the module [does not migrate](Self::migrates).
    pub fn migration(&self, identity: &Identity, from_version: u32) -> Result<Migration, Error> {
        let Some(migrate) = self.exports.migrate else {
            return Err(Error::Refused(
                "it has no export `migrate`; export it, or rebuild the state from the stream"
                    .to_owned(),
            ));
        };
        let bounds = manifest::bounds(&self.engine.options, Some(&self.manifest));
        let made = Made {
            bounds,
            identity,
            system: self.system,
            purpose: Purpose::Fold,
            time_ns: 0,
        };
        // In this order, so that the place is released after the store, also on the way out.
        let (permit, mut store, instance) =
            start(&self.engine, &self.linked, &made).map_err(unavailable)?;
        // The result of a page is copied at once, however large it is.
        let mut room = self
            .engine
            .options
            .memory
            .reservation(memory::Purpose::Fold);
        room.grow_to(bounds.transfer_bytes_max as u64)?;
        store.set_hostcall_fuel(bounds.transfer_bytes_max);
        let migrate = function(&mut store, instance, migrate);
        let conversion = Conversion {
            migrate,
            from_version,
            deadline_ticks: ticks(bounds.deadline),
        };
        Ok(Migration::new(store, conversion, room, permit))
    }

    /// Answers a query on a fresh instance over a snapshot.
    ///
    /// The instance's memory is charged as it grows, and the answer before it is copied, when its
    /// length is known.
    pub fn query(
        &self,
        identity: &Identity,
        snapshot: state::Snapshot,
        name: &str,
        args: &Payload,
    ) -> Result<Payload, QueryError> {
        let mut instance = match self.start(identity, Purpose::Query, snapshot.time_ns()) {
            Ok(instance) => instance,
            Err(StartError::Busy(_) | StartError::Host(_)) => return Err(QueryError::Busy),
            Err(StartError::Short(shortage)) => return Err(QueryError::Short(shortage)),
            Err(StartError::Failed(error)) => return Err(failed(error)),
        };
        let options = &self.engine.options;
        let mut room = options.memory.reservation(memory::Purpose::Query);
        if let Err(shortage) = room.grow_to(KEYS_BYTES as u64) {
            instance.store.data().want_memory();
            return Err(QueryError::Short(shortage));
        }
        // What passes from guest to host in one call: the answer at the end, or the keys of a
        // get-many.
        instance
            .store
            .set_hostcall_fuel(options.answer_bytes_max + KEYS_BYTES);
        let room = Room::new(room, options.answer_bytes_max);
        // The room is released when the caller has the answer, which charges it again until it is
        // sent.
        let (result, _room) = room.charge(|| instance.query(snapshot, name, args));
        match result {
            Ok(Ok(answer)) => Ok(Payload::from(answer)),
            Ok(Err(QueryFailure::UnknownQuery)) => Err(QueryError::UnknownQuery),
            Ok(Err(QueryFailure::InvalidArguments(text))) => {
                Err(QueryError::InvalidArguments(message(&text.0)))
            }
            Ok(Err(QueryFailure::NotFound)) => Err(QueryError::NotFound),
            Ok(Err(QueryFailure::Failed(text))) => Err(QueryError::Failed(message(&text.0))),
            Err(error) => Err(failed(instance.store.data().explain(error))),
        }
    }

    fn start(
        &self,
        identity: &Identity,
        purpose: Purpose,
        time_ns: u64,
    ) -> Result<Instance, StartError> {
        let bounds = manifest::bounds(&self.engine.options, Some(&self.manifest));
        let made = Made {
            bounds,
            identity,
            system: self.system,
            purpose,
            time_ns,
        };
        let (permit, mut store, instance) = start(&self.engine, &self.linked, &made)?;
        let apply = function(&mut store, instance, self.exports.apply);
        let query = function(&mut store, instance, self.exports.query);
        let on_timer = self
            .exports
            .on_timer
            .map(|index| function(&mut store, instance, index));
        Ok(Instance {
            store,
            apply,
            query,
            on_timer,
            deadline_ticks: ticks(bounds.deadline),
            with_headers: self.manifest.wants_headers,
            handles: (self.exports.kind == ModuleKind::Handler).then(|| Handles {
                rule: self.manifest.key_rule.clone(),
                publishes: self.manifest.publishes.clone().into(),
                firings: self
                    .manifest
                    .sets_timers
                    .then(|| timers::subject(&identity.deployment)),
            }),
            checks: None,
            spent: false,
            _permit: permit,
        })
    }
}

impl Exports {
    fn of(linked: &InstancePre<Host>) -> Result<Self, Error> {
        let found = |name: &str| linked.component().get_export_index(None, name);
        let required = |name: &str| {
            found(name).ok_or_else(|| {
                Error::Refused(format!(
                    "it exports no function `{name}`; build it with a matching SDK"
                ))
            })
        };
        let (kind, apply) = match found("handle") {
            Some(handle) => (ModuleKind::Handler, handle),
            None => (ModuleKind::Projection, required("apply")?),
        };
        let on_timer = match kind {
            ModuleKind::Handler => Some(required("on-timer")?),
            ModuleKind::Projection => None,
        };
        Ok(Self {
            kind,
            on_timer,
            manifest: required("manifest")?,
            apply,
            query: required("query")?,
            migrate: found("migrate"),
            inbox: found(INBOX),
        })
    }
}

/// A function of an instance whose exports [`ask`] found to be functions.
fn function(
    store: &mut Store<Host>,
    instance: wasmtime::component::Instance,
    index: ComponentExportIndex,
) -> Func {
    instance
        .get_func(store, index)
        .expect("it was a function when the module was linked")
}

/// How many places of the pool an instance of a component takes.
fn places(linked: &InstancePre<Host>) -> u32 {
    let needed = linked.component().resources_required();
    // Wasmtime cannot always say: then the most that the pool lets one component have.
    needed.map_or(MEMORIES_MAX, |needed| {
        needed
            .num_memories
            .max(needed.num_tables.div_ceil(TABLES_PER_PLACE))
            .max(1)
    })
}

/// Creates a store, and an instance in it.
fn start(
    engine: &EngineState,
    linked: &InstancePre<Host>,
    made: &Made<'_>,
) -> Result<(Permit, Store<Host>, wasmtime::component::Instance), StartError> {
    let Made {
        bounds,
        identity,
        purpose,
        time_ns,
        ..
    } = *made;
    let wanted = engine.options.memory.wanted();
    let permit = engine
        .places
        .take(purpose, places(linked))
        .map_err(StartError::Busy)?;
    let memory = engine.options.memory.reservation(match purpose {
        Purpose::Fold => memory::Purpose::Fold,
        Purpose::Query => memory::Purpose::Query,
    });
    let shared = (
        engine.flow(&identity.deployment),
        Arc::clone(&engine.ticker),
    );
    let host = Host::new(made, wanted, memory, shared);
    // For a query the time of its snapshot's last event, never that of the machine: the answer is
    // the same wherever it is asked. Events and firings advance that of a fold.
    host.clock.advance(time_ns);
    let mut store = Store::new(&engine.wasmtime, host);
    store.limiter(|host| &mut host.growth);
    if engine.options.counts_fuel {
        // It is counted, and never used up.
        store
            .set_fuel(u64::MAX)
            .expect("the engine was created with it");
    }
    // The most that one call passes to the host: the list of a put-many, or one value.
    store.set_hostcall_fuel(bounds.value_bytes_max + ENTRIES_BYTES);
    store.set_max_component_handles(HANDLES_MAX);
    // Before the clock is woken by `begin_call`: the epoch only rises while a guest runs.
    store.set_epoch_deadline(ticks(bounds.deadline));
    // A start function runs guest code: it has a deadline and counters, but no state.
    store.data_mut().begin_call(Access::None);
    let result = linked.instantiate(&mut store);
    store.data_mut().end_call();
    match result {
        Ok(instance) => Ok((permit, store, instance)),
        Err(error) => {
            let host = store.data();
            Err(match host.shortage() {
                // A refused growth ends the start as a trap does; only the limiter knows the
                // reason.
                Some(shortage) => {
                    host.want_memory();
                    StartError::Short(shortage.clone())
                }
                None if host.is_of_module(&error) => StartError::Failed(host.explain(error)),
                None => StartError::Host(error),
            })
        }
    }
}

fn unavailable(error: StartError) -> Error {
    match error {
        StartError::Busy(none) => Error::Busy(none),
        StartError::Short(shortage) => Error::Short(shortage),
        StartError::Host(error) => not_created(error),
        StartError::Failed(error) => Error::Refused(format!("it does not start: {error}")),
    }
}

fn not_created(error: wasmtime::Error) -> Error {
    Error::engine(format!("cannot create an instance: {error:#}"), error)
}

/// Calls `manifest`, and `inbox` if there is one, and checks the types of all exports.
fn ask(
    engine: &EngineState,
    linked: &InstancePre<Host>,
    exports: &Exports,
    system: System,
) -> Result<(Described, Option<InboxRecord>), Error> {
    // What the module asks for is in its manifest: until that is read, the host's maximum applies.
    let bounds = Bounds {
        memory_bytes: engine.options.memory_bytes_max,
        ..manifest::bounds(&engine.options, None)
    };
    let identity = Identity {
        deployment: "manifest".to_owned(),
        generation: 0,
    };
    let made = Made {
        bounds,
        identity: &identity,
        system,
        purpose: Purpose::Fold,
        time_ns: 0,
    };
    // In this order, so that the place is released after the store.
    let (_permit, mut store, instance) = start(engine, linked, &made).map_err(unavailable)?;
    // Types before the call: what has another type is refused as such, not as a failed call.
    let (manifest, inbox) = check_types(&mut store, instance, exports)?;
    store.set_epoch_deadline(ticks(bounds.deadline));
    store.data_mut().begin_call(Access::None);
    let result = match manifest {
        Describe::Projection(manifest) => manifest
            .call(&mut store, ())
            .map(|(record,)| Described::Projection(record)),
        Describe::Handler(manifest) => manifest
            .call(&mut store, ())
            .map(|(record,)| Described::Handler(record)),
    };
    store.data_mut().end_call();
    let failed = |name: &str, store: &Store<Host>, error| match store.data().explain(error) {
        ApplyError::Busy(shortage) => Error::Short(shortage),
        error => Error::Manifest(format!("`{name}` failed: {error}")),
    };
    let record = result.map_err(|error| failed("manifest", &store, error))?;
    let Some(inbox) = inbox else {
        return Ok((record, None));
    };
    store.set_epoch_deadline(ticks(bounds.deadline));
    store.data_mut().begin_call(Access::None);
    let result = inbox.call(&mut store, ());
    store.data_mut().end_call();
    match result {
        Ok((inbox,)) => Ok((record, inbox)),
        Err(error) => Err(failed(INBOX, &store, error)),
    }
}

/// `inbox`, ready to be called.
type DescribeInbox = TypedFunc<(), (Option<InboxRecord>,)>;

/// `manifest` of either kind.
enum Describe {
    Projection(TypedFunc<(), (ManifestRecord,)>),
    Handler(TypedFunc<(), (HandlerRecord,)>),
}

/// Checks the types of all exports; returns `manifest` and `inbox`, ready to be called.
fn check_types(
    store: &mut Store<Host>,
    instance: wasmtime::component::Instance,
    exports: &Exports,
) -> Result<(Describe, Option<DescribeInbox>), Error> {
    let mismatch = |name: &'static str| {
        move |error: wasmtime::Error| {
            Error::Refused(format!(
                "its export `{name}` has another type: {error:#}; build it with a matching SDK"
            ))
        }
    };
    let mut function = |index| {
        let function = instance.get_func(&mut *store, index);
        function
            .ok_or_else(|| Error::Refused("an export of the world is not a function".to_owned()))
    };
    let (manifest, apply, query) = (
        function(exports.manifest)?,
        function(exports.apply)?,
        function(exports.query)?,
    );
    let on_timer = exports.on_timer.map(&mut function).transpose()?;
    let migrate = exports.migrate.map(&mut function).transpose()?;
    let inbox = exports.inbox.map(function).transpose()?;
    let applies = if exports.kind == ModuleKind::Handler {
        "handle"
    } else {
        "apply"
    };
    apply
        .typed::<(Events<'_>,), (ApplyResult,)>(&*store)
        .map_err(mismatch(applies))?;
    query
        .typed::<(&str, PayloadRef<'_>), (QueryResult,)>(&*store)
        .map_err(mismatch("query"))?;
    if let Some(on_timer) = on_timer {
        on_timer
            .typed::<(&[Fired<'_>],), (ApplyResult,)>(&*store)
            .map_err(mismatch("on-timer"))?;
    }
    if let Some(migrate) = migrate {
        migration::typed(&migrate, store).map_err(mismatch("migrate"))?;
    }
    let inbox = inbox
        .map(|inbox| inbox.typed(&*store).map_err(mismatch(INBOX)))
        .transpose()?;
    let described = match exports.kind {
        ModuleKind::Projection => manifest.typed(&*store).map(Describe::Projection),
        ModuleKind::Handler => manifest.typed(&*store).map(Describe::Handler),
    };
    Ok((described.map_err(mismatch("manifest"))?, inbox))
}

impl From<wasmtime::Error> for Error {
    fn from(error: wasmtime::Error) -> Self {
        broken(error)
    }
}
