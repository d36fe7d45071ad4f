//! The sandbox of one instance: its limits, its counters, and the state that it works on.
//!
//! A [`Host`] is the data of one store. It never outlives the instance, and it holds the state only
//! while a call runs.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use wasmtime::{ResourceLimiter, Trap, WasmBacktrace};
use wasmtime_wasi::{I32Exit, WasiCtxView, WasiView};

use super::outbox::Handling;
use super::output::{Flow, Output, clipped};
use super::places::Purpose;
use super::ticker::{Running, Ticker};
use super::wasi::{Clock, Wasi};
use super::{ApplyError, Identity, MESSAGE_BYTES_MAX};
use crate::event::Payload;
use crate::memory::{Reservation, Shortage};
use crate::state;

/// Longest name of a function in a backtrace, in bytes.
const NAME_BYTES_MAX: usize = 200;
/// Most frames of a trap's backtrace that are reported.
const FRAMES_MAX: usize = 16;
/// Most core instances, memories and tables of one component. Python needs some thirty core
/// instances.
pub(super) const CORE_INSTANCES_MAX: u32 = 128;
pub(super) const MEMORIES_MAX: u32 = 4;
pub(super) const TABLES_MAX: u32 = 16;

/// Host memory of an instance in addition to its linear memories and tables, in bytes: its store,
/// its handles, and small buffers of host calls.
const INSTANCE_BYTES: u64 = 64 << 10;
/// Memory for larger buffers of a host call is taken in pieces of this size, in bytes.
const BUFFER_PIECE: u64 = 256 << 10;

/// The state for a call.
#[derive(Debug, Default)]
pub(super) enum Access {
    /// None: during `manifest`, a migration, or instantiation.
    #[default]
    None,
    /// A batch is being applied. Boxed so that taking it out for a host call moves one word.
    Apply(Box<state::Writer>),
    /// A query reads a snapshot.
    Query(Box<state::Snapshot>),
}

impl Access {
    pub(super) fn get(&self, key: &str) -> Result<Option<Payload>, Refusal> {
        match self {
            Self::None => Err(Refusal::NO_STATE),
            Self::Apply(writer) => Ok(writer.get(key)?),
            Self::Query(snapshot) => Ok(snapshot.get(key)?),
        }
    }

    /// Whether a value of this length may be written under a key, before it is copied.
    pub(super) fn check_put(&self, key: &str, length: usize) -> Result<(), Refusal> {
        match self {
            Self::None => Err(Refusal::NO_STATE),
            Self::Apply(writer) => Ok(writer.check_put(key, length)?),
            Self::Query(_) => Err(Refusal::READ_ONLY),
        }
    }

    pub(super) fn put(&mut self, key: &str, value: Option<Payload>) -> Result<(), Refusal> {
        match self {
            Self::None => Err(Refusal::NO_STATE),
            Self::Apply(writer) => Ok(writer.put(key, value)?),
            Self::Query(_) => Err(Refusal::READ_ONLY),
        }
    }

    pub(super) fn scan(&self, scan: &state::Scan, until: Instant) -> Result<state::Page, Refusal> {
        match self {
            Self::None => Err(Refusal::NO_STATE),
            Self::Apply(writer) => Ok(writer.scan_until(scan, until)?),
            Self::Query(snapshot) => Ok(snapshot.scan_until(scan, until)?),
        }
    }
}

/// Why the host refused a guest call; it ends the call.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{limit}: {message}")]
    Limit {
        limit: &'static str,
        message: String,
    },
    #[error(transparent)]
    State(state::Error),
    /// The host is short of memory.
    #[error(transparent)]
    Short(#[from] Shortage),
    #[error("the call passed its deadline")]
    Late,
    #[error("{0}")]
    Denied(&'static str),
}

impl Refusal {
    const NO_STATE: Self = Self::Denied(
        "the module used its state outside of `apply` and `query`; it is not available at start, \
         in `manifest` or in `migrate`, which works on its arguments alone",
    );
    pub(super) const NO_OUTBOX: Self = Self::Denied(
        "the module published outside of `handle`; publish only there, because `query` and \
         `manifest` have no effects",
    );
    pub(super) const NO_TIMERS: Self = Self::Denied(
        "the module used timers outside of `handle` and `on-timer`; set and cancel them only there",
    );
    const READ_ONLY: Self = Self::Denied(
        "the module wrote to its state in `query`; a query can only read, so write in `apply`",
    );
}

impl From<state::Error> for Refusal {
    fn from(error: state::Error) -> Self {
        match error {
            state::Error::Limit { limit, message } => Self::Limit { limit, message },
            state::Error::Busy(shortage) => Self::Short(shortage),
            state::Error::Late => Self::Late,
            other => Self::State(other),
        }
    }
}

/// The limits of one instance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) host_calls_max: u64,
    pub(super) memory_bytes: u64,
    pub(super) table_elements_max: usize,
    pub(super) log_bytes_max: usize,
    pub(super) deadline: Duration,
    /// Most bytes that pass in one call of put-many or get-many, or as the result of one page of a
    /// migration.
    pub(super) transfer_bytes_max: usize,
    /// Largest value, in bytes.
    pub(super) value_bytes_max: usize,
}

/// Options for creating an instance.
pub(super) struct Made<'a> {
    pub(super) bounds: Bounds,
    pub(super) identity: &'a Identity,
    pub(super) system: System,
    pub(super) purpose: Purpose,
    /// The start of its clock.
    pub(super) time_ns: u64,
}

/// The memory of what one host call collects: a list of the guest, values, a page. The next call
/// releases it, because by then the guest has a copy.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    /// Present except while a call has it.
    memory: Option<Reservation>,
}

impl Buffer {
    pub(super) fn begin(&mut self) {
        if let Some(memory) = &mut self.memory {
            memory.shrink_to(0);
        }
    }

    /// Grows to this many bytes. A few bytes need no memory: each instance is charged for them.
    pub(super) fn hold(&mut self, bytes: usize) -> Result<(), Refusal> {
        let bytes = bytes as u64;
        match &mut self.memory {
            // A call that grows again keeps its larger piece, until `begin` returns it.
            Some(memory) if bytes > INSTANCE_BYTES && bytes > memory.bytes() => {
                Ok(memory.grow_to(bytes.next_multiple_of(BUFFER_PIECE))?)
            }
            _ => Ok(()),
        }
    }
}

/// Whether a component expects an operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum System {
    /// It imports only our own interfaces.
    None,
    /// It imports WASI.
    Wasi,
}

/// The data of one store.
pub(super) struct Host {
    pub(super) access: Access,
    /// Only during a call of `handle` or `on-timer`.
    pub(super) handling: Option<Handling>,
    pub(super) growth: Growth,
    pub(super) buffer: Buffer,
    pub(super) output: Arc<Output>,
    /// Only for components that import WASI.
    pub(super) wasi: Option<Box<Wasi>>,
    pub(super) clock: Arc<Clock>,
    calls_left: u64,
    /// When the running call must end.
    ends_at: Instant,
    bounds: Bounds,
    /// Changes whenever something else lacks a place for an instance, or memory. From before this
    /// instance took its own, so that it is seen even if it happens during a call.
    wanted: watch::Receiver<()>,
    ticker: Arc<Ticker>,
    /// Keeps the deadline clock running during a call.
    running: Option<Running>,
}

impl fmt::Debug for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Host")
            .field("bounds", &self.bounds)
            .finish_non_exhaustive()
    }
}

impl Host {
    pub(super) fn new(
        made: &Made<'_>,
        wanted: watch::Receiver<()>,
        memory: Reservation,
        (flow, ticker): (Arc<Flow>, Arc<Ticker>),
    ) -> Self {
        let Made {
            bounds,
            identity,
            system,
            ..
        } = *made;
        let output = Arc::new(Output::new(identity.clone(), bounds.log_bytes_max, flow));
        let clock = Arc::new(Clock::default());
        let wasi = match system {
            System::None => None,
            System::Wasi => Some(Box::new(Wasi::new(identity, &clock, &output))),
        };
        Self {
            access: Access::None,
            handling: None,
            buffer: Buffer {
                memory: Some(memory.another()),
            },
            growth: Growth::new(&bounds, memory),
            output,
            wasi,
            clock,
            calls_left: bounds.host_calls_max,
            ends_at: Instant::now() + bounds.deadline,
            bounds,
            wanted,
            ticker,
            running: None,
        }
    }

    /// Changes whenever an instance found no place, or no memory.
    pub(super) fn wanted(&self) -> watch::Receiver<()> {
        self.wanted.clone()
    }

    /// Counters start again with each call.
    pub(super) fn begin_call(&mut self, access: Access) {
        self.access = access;
        self.running = Some(self.ticker.run());
        self.calls_left = self.bounds.host_calls_max;
        self.ends_at = Instant::now() + self.bounds.deadline;
        self.growth.refused = None;
        self.output.begin();
    }

    /// Takes the state back and completes the call's log output.
    pub(super) fn end_call(&mut self) -> Access {
        self.output.end();
        // What the call collected has been copied into the guest's memory by now.
        self.buffer.begin();
        self.running = None;
        self.handling = None;
        // The state goes back to the caller also if the call trapped: its batch decides what to do.
        std::mem::take(&mut self.access)
    }

    /// Counts one host call.
    pub(super) fn count_call(&mut self) -> Result<(), Refusal> {
        match self.calls_left.checked_sub(1) {
            Some(left) => self.calls_left = left,
            None => {
                return Err(Refusal::Limit {
                    limit: "host-calls",
                    message: format!(
                        "more than {} host calls in one call of the module; use get-many and \
                         put-many",
                        self.bounds.host_calls_max
                    ),
                });
            }
        }
        Ok(())
    }

    /// When the running call must end. Only guest code checks epochs, so long work of the host
    /// checks this.
    pub(super) fn ends_at(&self) -> Instant {
        self.ends_at
    }

    /// Most bytes that pass in one host call.
    pub(super) fn transfer_bytes_max(&self) -> usize {
        self.bounds.transfer_bytes_max
    }

    /// Whether an error of a call is about the module, and not only about the machine.
    pub(super) fn is_of_module(&self, error: &wasmtime::Error) -> bool {
        // Looked at first: the trap that a refused growth causes looks like one of the module.
        if matches!(self.growth.refused, Some(Refused::Short(_)))
            || matches!(error.downcast_ref(), Some(Refusal::Short(_)))
        {
            return false;
        }
        matches!(self.growth.refused, Some(Refused::Limit(..)))
            || error.is::<Refusal>()
            || error.downcast_ref::<Trap>().is_some()
            || error.downcast_ref::<I32Exit>().is_some()
            // A backtrace is attached whenever guest code was on the stack as the error arose.
            || error.downcast_ref::<WasmBacktrace>().is_some()
    }

    /// Classifies an error of a call.
    pub(super) fn explain(&self, error: wasmtime::Error) -> ApplyError {
        let error = match error.downcast::<Refusal>() {
            Ok(Refusal::Limit { limit, message }) => return ApplyError::Limit { limit, message },
            Ok(Refusal::State(error)) => return ApplyError::State(error),
            Ok(Refusal::Short(shortage)) => return self.short(shortage),
            Ok(Refusal::Late) => return ApplyError::Deadline(self.bounds.deadline),
            Ok(Refusal::Denied(reason)) => return ApplyError::Trap(reason.to_owned()),
            Err(error) => error,
        };
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => return ApplyError::Deadline(self.bounds.deadline),
            Some(Trap::StackOverflow) => {
                return ApplyError::Limit {
                    limit: "stack",
                    message: "the module's calls nest too deeply; replace recursion by a loop"
                        .to_owned(),
                };
            }
            _ => {}
        }
        // Languages with a runtime of their own end themselves by `proc_exit` after they print why.
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            let said = self
                .output
                .last_words()
                .map(|words| format!(" ({words})"))
                .unwrap_or_default();
            let message = format!(
                "the module ended itself with exit status {}{said}; return instead",
                exit.0
            );
            return ApplyError::Trap(message);
        }
        match &self.growth.refused {
            Some(Refused::Limit(limit, message)) => {
                return ApplyError::Limit {
                    limit,
                    message: message.clone(),
                };
            }
            Some(Refused::Short(shortage)) => return self.short(shortage.clone()),
            Some(Refused::Host(message)) => return ApplyError::Host(message.clone()),
            None => {}
        }
        if is_out_of_fuel(&error) {
            return ApplyError::Limit {
                limit: "transfer-bytes",
                message: format!(
                    "the module passed more in one call than its host takes, {} bytes at most; \
                     pass less at once",
                    self.bounds.transfer_bytes_max
                ),
            };
        }
        // The panic says more than the trap that follows it.
        let said = self.output.panic();
        ApplyError::Trap(said.unwrap_or_else(|| describe(&error, self.output.last_words())))
    }
}

/// Whether the guest passed more at once than allowed. The error has no type of its own to test
/// for.
fn is_out_of_fuel(error: &wasmtime::Error) -> bool {
    error
        .root_cause()
        .to_string()
        .contains("fuel allocated for hostcalls has been exhausted")
}

impl Host {
    /// The host is short of memory: idle instances release theirs.
    pub(super) fn want_memory(&self) {
        self.growth.memory.memory().want();
    }

    fn short(&self, shortage: Shortage) -> ApplyError {
        self.want_memory();
        ApplyError::Busy(shortage)
    }

    /// Requests that to make of the module's word that an event failed, if its instance has as much
    /// memory as the module declares: the limit is named, and the event is tried by an instance
    /// that holds nothing.
    pub(super) fn doubted(&self, failure: &str) -> Option<ApplyError> {
        let mebibytes = self.growth.memory_bytes >> 20;
        self.growth.is_at_own_maximum.then(|| ApplyError::Limit {
            limit: "memory-bytes",
            message: format!(
                "the module has the {mebibytes} MiB of memory that it declares as its own maximum, \
                 and then failed: {failure}; keep less in memory, or build it with a larger \
                 maximum"
            ),
        })
    }

    /// Requests that the host's shortage of memory refused since the call began.
    pub(super) fn shortage(&self) -> Option<&Shortage> {
        match &self.growth.refused {
            Some(Refused::Short(shortage)) => Some(shortage),
            _ => None,
        }
    }
}

/// Cause and backtrace of a trap, with the module's last message, within the limit of messages.
/// Frames without a name are useless.
fn describe(error: &wasmtime::Error, last_words: Option<String>) -> String {
    let mut text = error.root_cause().to_string();
    if let Some(words) = last_words {
        text.push_str(&format!("; the module said last: {words}"));
    }
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        let names = backtrace
            .frames()
            .iter()
            .take(FRAMES_MAX)
            .filter_map(|frame| frame.func_name());
        // The names come from the upload: they are clipped, as everything that goes to the log.
        for name in names {
            text.push_str(&format!("\n  at {}", clipped(name, NAME_BYTES_MAX)));
        }
    }
    clipped(&text, MESSAGE_BYTES_MAX).to_owned()
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let wasi = self
            .wasi
            .as_mut()
            .expect("a component that imports WASI gets it when its store is made");
        WasiCtxView {
            ctx: &mut wasi.context,
            table: &mut wasi.table,
        }
    }
}

/// Grants memory and table growth, or ends the call and remembers why.
#[derive(Debug)]
pub(super) struct Growth {
    /// Linear memory of the instance, over all its memories.
    pub(super) memory_bytes: usize,
    memory_bytes_max: usize,
    /// Its reservation of host memory.
    memory: Reservation,
    table_elements: usize,
    table_elements_max: usize,
    /// What was refused since the call began.
    refused: Option<Refused>,
    /// Whether the module was ever told that it has as much as it declares to be enough for it.
    is_at_own_maximum: bool,
}

/// Why memory or a table did not grow.
#[derive(Clone, Debug)]
enum Refused {
    /// Name of the limit, and what to do.
    Limit(&'static str, String),
    /// The host's budget has no memory left.
    Short(Shortage),
    /// The machine has no memory left.
    Host(String),
}

impl Growth {
    fn new(bounds: &Bounds, memory: Reservation) -> Self {
        Self {
            memory_bytes: 0,
            memory,
            memory_bytes_max: usize::try_from(bounds.memory_bytes).unwrap_or(usize::MAX),
            table_elements: 0,
            table_elements_max: bounds.table_elements_max,
            refused: None,
            is_at_own_maximum: false,
        }
    }
}

impl Growth {
    fn table_bytes(&self) -> u64 {
        self.table_elements as u64 * size_of::<usize>() as u64
    }

    /// Ends the call. A guest that learns of the failure could behave differently than with more
    /// memory, and its result would depend on what its instance happens to hold.
    fn refuse(&mut self, refused: Refused) -> wasmtime::Result<bool> {
        let message = match &refused {
            Refused::Limit(_, message) | Refused::Host(message) => message.clone(),
            Refused::Short(shortage) => shortage.to_string(),
        };
        let error = wasmtime::Error::msg(message);
        self.refused = Some(refused);
        Err(error)
    }
}

impl ResourceLimiter for Growth {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // `current` and `desired` are of one memory; the limit is for all of them.
        let total = self
            .memory_bytes
            .saturating_sub(current)
            .saturating_add(desired);
        if total > self.memory_bytes_max {
            let message = format!(
                "the module needs {total} bytes of memory, {} are allowed; keep less in memory, or \
                 ask for more under `limits` in its manifest",
                self.memory_bytes_max
            );
            return self.refuse(Refused::Limit("memory-bytes", message));
        }
        // After the host's limit, which ends the call: a module above both must hear of the one
        // that it can ask to be raised.
        if maximum.is_some_and(|maximum| desired > maximum) {
            // The module's own maximum: allocators look for it, and have another way. What it says
            // of an event from then on may be due to what its instance holds.
            self.is_at_own_maximum = true;
            return Ok(false);
        }
        // With tables and overhead, because one reservation covers the whole instance.
        if let Err(shortage) = self
            .memory
            .grow_to(total as u64 + self.table_bytes() + INSTANCE_BYTES)
        {
            return self.refuse(Refused::Short(shortage));
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // It was granted, and the machine refused it: the guest may not learn of that either.
        self.refuse(Refused::Host(format!(
            "no more memory for a module: {error}"
        )))
        .map(drop)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self
            .table_elements
            .saturating_sub(current)
            .saturating_add(desired);
        if total > self.table_elements_max {
            let message = format!(
                "the module needs {total} table elements; this host allows {}",
                self.table_elements_max
            );
            return self.refuse(Refused::Limit("table-elements", message));
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.is_at_own_maximum = true;
            return Ok(false);
        }
        // Before its memory, because `table_bytes` counts them; if that fails, the call ends
        // anyway.
        self.table_elements = total;
        if let Err(shortage) = self
            .memory
            .grow_to(self.memory_bytes as u64 + self.table_bytes() + INSTANCE_BYTES)
        {
            return self.refuse(Refused::Short(shortage));
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX as usize
    }

    fn tables(&self) -> usize {
        TABLES_MAX as usize
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX as usize
    }
}
