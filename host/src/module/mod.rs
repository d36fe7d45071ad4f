//! Modules: verified Wasm components, and the sandbox in which they run.
//!
//! The engine is set up once per process, linker and compiled code once per
//! module, store and instance once per run. Everything here is synchronous and
//! runs on the caller's thread; nothing here awaits.

mod answer;
mod bindings;
mod cache;
mod causes;
mod checker;
mod checking;
mod child;
mod chosen;
mod copies;
mod description;
mod engine;
mod imports;
mod inbox;
mod instance;
mod key;
mod linked;
mod manifest;
mod migration;
mod outbox;
mod output;
mod places;
mod sandbox;
mod ticker;
mod timers;
mod upload;
mod wanted;
mod wasi;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use answer::Walls;
pub use checker::{Job, Order, run as run_checker};
pub(crate) use checking::Checking;
pub use child::{this_program, walls};
pub use engine::Engine;
pub use inbox::Inbox;
pub use instance::Instance;
pub use linked::Module;
pub use manifest::DrawnManifest;
pub use migration::Migration;
pub use places::NoFreePlace;
pub use upload::digest;
pub use wanted::{Waiting, Wanted};

pub use crate::state::catalogue::ModuleKind;

use crate::failure::{self, FailureClass};
use crate::memory::{Memory, Shortage};
use crate::schemas::EventSchema;
use crate::state;
use crate::subject::{Pattern, SubjectSet};

/// The contract between host and modules.
pub const CONTRACT: &str = "foldstream:module@0.1.0";

/// Most entries in one page of a [`Migration`]; a page of a scan has about 1 MiB at most, as the
/// contract promises.
pub const MIGRATION_ENTRIES_MAX: usize = 1_000;

/// Most places of [`Options::instances_max`] that one instance takes. Most take one; the engines of
/// scripts have more tables than a place has.
pub const PLACES_PER_INSTANCE_MAX: u32 = sandbox::MEMORIES_MAX;
const _: () = assert!(
    sandbox::TABLES_MAX.div_ceil(engine::TABLES_PER_PLACE) <= PLACES_PER_INSTANCE_MAX,
    "the tables of a component fit"
);
/// Most entries that a module returns for one page of a [`Migration`].
const MIGRATED_ENTRIES_MAX: usize = 65_536;
/// Most keys in one call of get-many or put-many.
const KEYS_PER_CALL_MAX: usize = 65_536;
/// Longest message of a guest to keep: log, failure, trap.
const MESSAGE_BYTES_MAX: usize = 4_096;
/// Most bytes that a guest passes in one put-many, gets from one get-many, or returns for one page
/// of a migration: this many, or this part of the memory on demand if that is less, but never less
/// than the minimum.
const TRANSFER_BYTES_MAX: usize = 64 << 20;
const TRANSFER_PART: u64 = 16;
const TRANSFER_BYTES_MIN: usize = 8 << 20;
/// Most handles of resources that a guest holds at once. The run-times of languages need some tens.
const HANDLES_MAX: usize = 4_096;

/// Checks a manifest that does not come from a module; for fuzz tests.
pub(crate) fn check_drawn(
    drawn: &DrawnManifest,
) -> Result<crate::state::catalogue::ModuleInfo, Error> {
    manifest::check_drawn(drawn)
}

/// Reads the answer of the checking process; for fuzz tests.
pub(crate) fn read_answer(bytes: Vec<u8>) -> Option<String> {
    answer::Answer::parse(bytes).map(|answer| format!("{answer:?}"))
}

/// Settings and limits of the engine, the same for all modules.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the compiled-code cache.
    pub cache_dir: PathBuf,
    /// The program that checks and compiles, called with the argument `check-module`; usually
    /// [`this_program`].
    pub compiler: PathBuf,
    /// Largest upload, in bytes.
    pub upload_bytes_max: usize,
    /// Longest check of an upload.
    pub check_time_max: Duration,
    /// Longest compilation.
    pub compile_time_max: Duration,
    /// Most native code of one module, in bytes.
    pub code_bytes_max: u64,
    /// Memory of the process that checks and compiles, in bytes.
    pub compile_memory_max: u64,
    /// Linear memory of one instance unless the manifest asks for another amount, in bytes.
    pub memory_bytes: u64,
    /// Most linear memory that a manifest may ask for, in bytes.
    pub memory_bytes_max: u64,
    /// Longest call unless the manifest asks for another limit.
    pub deadline: Duration,
    /// Longest call that a manifest may ask for.
    pub deadline_max: Duration,
    /// Stack of a call, in bytes.
    pub stack_bytes_max: usize,
    /// Elements of all tables of one instance.
    pub table_elements_max: usize,
    /// Most instances at once, in the whole process.
    pub instances_max: u32,
    /// Host calls in one call of a module.
    pub host_calls_max: u64,
    /// Bytes of log output in one call of a module.
    pub log_bytes_max: usize,
    /// Bytes of the answer of a query.
    pub answer_bytes_max: usize,
    /// Largest value of a state, in bytes.
    pub value_bytes_max: usize,
    /// Whether modules count the instructions that they execute, which makes them a little slower.
    pub counts_fuel: bool,
    /// The memory budget for instances and native code.
    pub memory: Memory,
}

impl Options {
    /// Most that passes the border of a sandbox in one host call, in bytes.
    fn transfer_bytes_max(&self) -> usize {
        let part = usize::try_from(self.memory.total() / TRANSFER_PART).unwrap_or(usize::MAX);
        part.clamp(TRANSFER_BYTES_MIN, TRANSFER_BYTES_MAX)
    }

    /// Sensible limits, with the cache in `cache_dir`.
    pub fn new(cache_dir: PathBuf, compiler: PathBuf) -> Self {
        Self {
            cache_dir,
            compiler,
            upload_bytes_max: 64 << 20,
            check_time_max: Duration::from_secs(30),
            compile_time_max: Duration::from_secs(120),
            code_bytes_max: 128 << 20,
            compile_memory_max: 2 << 30,
            memory_bytes: 64 << 20,
            memory_bytes_max: 256 << 20,
            deadline: Duration::from_secs(5),
            deadline_max: Duration::from_secs(60),
            stack_bytes_max: 512 << 10,
            table_elements_max: 100_000,
            instances_max: 2_000,
            host_calls_max: 1_000_000,
            log_bytes_max: 64 << 10,
            answer_bytes_max: 8 << 20,
            value_bytes_max: 1 << 20,
            counts_fuel: false,
            memory: Memory::unlimited(),
        }
    }
}

/// How the host finds the key of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRule {
    /// Events have no key.
    None,
    /// The whole subject.
    Subject,
    /// A token of the subject, counted from 1.
    SubjectToken(u32),
    /// A header.
    Header(String),
    /// A JSON pointer into the data.
    DataPointer(String),
}

/// A manifest, checked against the host's limits; what it left out stays absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What the module is.
    pub kind: ModuleKind,
    /// Its name.
    pub name: String,
    /// Its purpose.
    pub description: String,
    /// The subjects that it reads.
    pub subjects: SubjectSet,
    /// Whether events carry their headers.
    pub wants_headers: bool,
    /// How the host finds the key of an event.
    pub key_rule: KeyRule,
    /// Version of its stored entries.
    pub state_version: u32,
    /// Total attempts before the deployment stops.
    pub attempts: Option<u32>,
    /// Pause before the second attempt.
    pub initial_backoff: Option<Duration>,
    /// Longest pause.
    pub max_backoff: Option<Duration>,
    /// Linear memory.
    pub memory_bytes: Option<u64>,
    /// Longest call.
    pub deadline: Option<Duration>,
    /// Most events in one batch.
    pub batch_events: Option<u32>,
    /// Largest state.
    pub state_bytes: Option<u64>,
    /// Names and descriptions of its queries.
    pub queries: Vec<(String, String)>,
    /// The subjects that it publishes to; only of handlers.
    pub publishes: Vec<Pattern>,
    /// How events are recognised that a producer published twice.
    pub inbox: Option<Inbox>,
    /// Whether it sets timers; only of handlers.
    pub sets_timers: bool,
}

/// Why a module was not accepted, compiled or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The upload is not a module that we run; the text says why and what to do.
    #[error("module refused: {0}")]
    Refused(String),
    /// Its manifest is not valid.
    #[error("manifest refused: {0}")]
    Manifest(String),
    /// The check of the upload exceeded a limit, or did not end normally.
    #[error("cannot check the module: {0}")]
    Check(String),
    /// Compilation failed or exceeded a limit.
    #[error("cannot compile the module: {0}")]
    Compile(String),
    /// The engine or its cache failed; not the module's fault.
    #[error("engine failed: {message}")]
    Engine {
        /// What happened, and what to do.
        message: String,
        /// The error of the engine or of the system, which the message quotes.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The maximum number of instances is running; there is a place again when one of them ends.
    #[error(transparent)]
    Busy(#[from] NoFreePlace),
    /// The host is short of memory; some is available again when others end.
    #[error(transparent)]
    Short(#[from] Shortage),
}

/// Why a batch could not be applied. Drop its writes; unless noted otherwise the instance can't be
/// used again.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The guest named an event and asked for a retry.
    #[error("event {index} of the batch: {message}")]
    Retry {
        /// Index in the batch.
        index: usize,
        /// The guest's message.
        message: String,
    },
    /// The guest named an event that it can never apply.
    #[error("event {index} of the batch is rejected: {message}")]
    Rejected {
        /// Index in the batch.
        index: usize,
        /// The guest's message.
        message: String,
    },
    /// An event does not fit the schema of its type, and the deployment checks that.
    #[error("event {index} of the batch is invalid: {message}")]
    Invalid {
        /// Index in the batch.
        index: usize,
        /// Which schema it does not fit, and where.
        message: String,
    },
    /// The guest trapped.
    #[error("trap: {0}")]
    Trap(String),
    /// The call took too long.
    #[error(
        "deadline: the call took longer than {0:?}; do less in one call, or ask for a longer \
         deadline in the manifest"
    )]
    Deadline(Duration),
    /// A limit was reached: memory, tables, stack, host calls, state; its name comes first.
    #[error("{limit}: {message}")]
    Limit {
        /// Name of the limit.
        limit: &'static str,
        /// What happened, and what to do.
        message: String,
    },
    /// State failed, not the guest.
    #[error(transparent)]
    State(state::Error),
    /// The host's budget has no memory left for the guest. No event is to blame.
    #[error(transparent)]
    Busy(Shortage),
    /// The machine could not provide what the guest may use, such as memory.
    #[error("the host lacks resources: {0}")]
    Host(String),
}

impl Error {
    /// A failure of the engine.
    fn engine(
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Engine {
            message: message.into(),
            source: Some(source.into()),
        }
    }

    /// What the host lacks, if that is why.
    pub(crate) fn lack(&self) -> Option<Lack> {
        match self {
            Self::Busy(none) => Some(Lack::Place(none.clone())),
            Self::Short(shortage) => Some(Lack::Memory(shortage.clone())),
            _ => None,
        }
    }

    /// Whether a retry may succeed without a change of the module. Only for a module that was
    /// accepted once.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Busy(_)
                | Self::Short(_)
                | Self::Engine { .. }
                | Self::Check(_)
                | Self::Compile(_)
        )
    }
}

/// What the host lacks that comes back when another holder of it ends.
#[derive(Clone, Debug)]
pub(crate) enum Lack {
    /// A place for an instance.
    Place(NoFreePlace),
    /// Memory of its budget.
    Memory(Shortage),
}

impl Lack {
    /// Whether it is there by now.
    pub(crate) fn is_over(&self) -> bool {
        match self {
            Self::Place(none) => none.is_over(),
            Self::Memory(shortage) => shortage.is_over(),
        }
    }

    /// Waits until it is there. Cancel-safe: it only observes.
    pub(crate) async fn over(&self) {
        match self {
            Self::Place(none) => none.over().await,
            Self::Memory(shortage) => shortage.over().await,
        }
    }
}

impl ApplyError {
    /// The same error of events that come after this many others in their batch.
    fn after(self, count: usize) -> Self {
        match self {
            Self::Retry { index, message } => Self::Retry {
                index: index + count,
                message,
            },
            Self::Rejected { index, message } => Self::Rejected {
                index: index + count,
                message,
            },
            Self::Invalid { index, message } => Self::Invalid {
                index: index + count,
                message,
            },
            other => other,
        }
    }

    /// What the host lacks, if that is why.
    pub(crate) fn lack(&self) -> Option<Lack> {
        match self {
            Self::Busy(shortage) => Some(Lack::Memory(shortage.clone())),
            _ => None,
        }
    }

    /// Whether the same call on the same state gives the same error, whatever else the machine
    /// does.
    pub fn is_repeatable(&self) -> bool {
        matches!(self, Self::Trap(_) | Self::Limit { .. })
    }

    /// Whether it is about what the deployment may do, and not about the event.
    pub fn concerns_deployment(&self) -> bool {
        // A chain that is too long is a matter of its event: others have chains of their own.
        matches!(self, Self::Limit { limit: "grant", .. })
    }

    /// Its class, by which the host decides how often it tries; none if the state failed.
    pub fn class(&self) -> Option<FailureClass> {
        Some(match self {
            Self::Retry { .. } => FailureClass::Retry,
            // No module can apply it, whatever the module would have said.
            Self::Rejected { .. } | Self::Invalid { .. } => FailureClass::Rejected,
            Self::Trap(_) => FailureClass::Trap,
            Self::Deadline(_) => FailureClass::Deadline,
            Self::Limit {
                limit: "state-bytes",
                ..
            } => FailureClass::StateLimit,
            Self::Limit {
                limit: "memory-bytes" | "table-elements" | "stack",
                ..
            } => FailureClass::Memory,
            Self::Limit { .. } => FailureClass::Refused,
            Self::Busy(_) | Self::Host(_) => FailureClass::Busy,
            Self::State(_) => return None,
        })
    }

    /// The name of the error, as in `Failure::kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Retry { .. } => "retry",
            Self::Rejected { .. } => "rejected",
            Self::Invalid { .. } => "invalid",
            Self::Trap(_) => "trap",
            Self::Deadline(_) => "deadline",
            Self::Limit { .. } => "limit",
            Self::State(_) => failure::STATE,
            Self::Busy(_) => "busy",
            Self::Host(_) => failure::HOST,
        }
    }
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// No query of that name.
    #[error("the module has no query of that name")]
    UnknownQuery,
    /// The arguments do not match the query.
    #[error("invalid arguments: {0}")]
    InvalidArguments(String),
    /// The state has nothing for these arguments.
    #[error("not found")]
    NotFound,
    /// The guest failed with this message, trapped, or exceeded a limit.
    #[error("{0}")]
    Failed(String),
    /// The call took too long.
    #[error("the query took longer than {0:?}")]
    Deadline(Duration),
    /// The module is not loaded yet; the text says why.
    #[error("the module is not loaded yet: {0}")]
    NotReady(String),
    /// All instances are busy.
    #[error("all instances are busy; try again")]
    Busy,
    /// The host is short of memory.
    #[error("{0}; try again in a moment")]
    Short(#[source] Shortage),
}

/// Why a page of old entries was not migrated. The migration is over; the old state is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The guest cannot migrate this state; the text is the guest's message.
    #[error("the module does not migrate this state: {0}")]
    Refused(String),
    /// The guest trapped, took too long, or reached a limit.
    #[error(transparent)]
    Failed(ApplyError),
}

/// The owner of an instance: names its log lines and seeds its randomness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the deployment.
    pub deployment: String,
    /// Number of the generation.
    pub generation: u64,
}

/// A checked upload.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The component: the upload, or the result of encoding a core module. The host never parses
    /// it.
    pub component: bytes::Bytes,
    /// SHA-256 of the component, in lower-case hexadecimal.
    pub digest: String,
    /// Interfaces that it imports, such as `foldstream:module/state@0.1.0`.
    pub imports: Vec<String>,
    /// The schemas of events that it carries, checked.
    pub(crate) schemas: Arc<[EventSchema]>,
}

/// A module that is ready to run.
#[derive(Debug)]
pub struct Loaded {
    /// The module.
    pub module: Arc<Module>,
    /// How long compiling took; none if the code was cached.
    pub compile_time: Option<Duration>,
}
