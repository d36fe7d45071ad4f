//! What a projection exports to the host: the bodies of the functions that
//! [`projection!`](crate::projection) declares.
//!
//! Arguments and results are in the arena. It is cleared when the arguments are
//! no longer needed, just before the result is stored there; a result therefore
//! stays until the end of the next call, and the host need not call back to
//! free it.

use std::cell::{Cell, RefCell};
use std::ptr;

use crate::event::{Event, List, Payload, Text};
use crate::failure::{Failure, FailureKind, QueryError};
use crate::handler::{Handler, Handling};
use crate::host::{ARENA, Entry, HostState, WireFired, WirePayload, log};
use crate::log::Level;
use crate::manifest::{EventId, KeyRule, Query};
use crate::migrate::{Migrate, NewEntry, OldEntry, migrate_all};
use crate::projection::{Instance, Projection};
use crate::state::State;

/// The instance that applies, opened at the first batch.
#[doc(hidden)]
pub struct Running<P>(RefCell<Option<Instance<P>>>);

impl<P> Running<P> {
    /// None yet.
    #[expect(clippy::new_without_default, reason = "it must be const")]
    pub const fn new() -> Self {
        Self(RefCell::new(None))
    }
}

/// `result<_, failure>`.
#[repr(C)]
struct ApplyResult {
    is_error: u8,
    index: u32,
    kind: u8,
    message: Text<'static>,
}

/// `result<payload, query-error>`, as both have one text in each case that has any.
#[repr(C)]
struct QueryResult {
    is_error: u8,
    value: WirePayload<'static>,
}

/// `result<list<entry>, string>`, as both are an address and a length.
#[repr(C)]
struct MigrateResult {
    is_error: u8,
    address: usize,
    length: usize,
}

/// Allocates memory for what the host passes in.
///
/// # Safety
///
/// Only the host may call it: `old` is null, or it has `old_size` bytes.
#[doc(hidden)]
#[inline]
pub unsafe fn realloc(old: *mut u8, old_size: usize, alignment: usize, size: usize) -> *mut u8 {
    // The old place is not freed: all goes at once, when the arena is cleared.
    let new = ARENA.with(|arena| arena.take(size, alignment));
    if !old.is_null() {
        // SAFETY: by the caller, and as the arena gave out `size` bytes that overlap nothing.
        unsafe { ptr::copy_nonoverlapping(old, new, old_size.min(size)) };
    }
    new
}

/// `apply`: a batch of events at an address.
///
/// # Safety
///
/// Only the host may call it, with what the contract says.
#[doc(hidden)]
pub unsafe fn apply<P: Projection>(
    running: &Running<P>,
    events: *const u8,
    count: usize,
) -> *const u8 {
    // SAFETY: `Event` has the layout of the contract's `event`, and the host wrote `count` of them.
    let events = unsafe { std::slice::from_raw_parts(events.cast::<Event<'_>>(), count) };
    let mut running = running.0.borrow_mut();
    let instance = running.get_or_insert_with(open);
    let outcome = instance.apply(events);
    if outcome.is_err() {
        // The memory of the instance no longer matches the host's state.
        *running = None;
    }
    // SAFETY: the events were all that lay in the arena, and they are not used any more.
    ARENA.with(|arena| unsafe { arena.clear() });
    keep_outcome(outcome)
}

/// `on-timer`: timers at an address.
///
/// # Safety
///
/// Only the host may call it, with what the contract says.
#[doc(hidden)]
pub unsafe fn on_timer<H: Handler>(
    running: &Running<Handling<H>>,
    timers: *const u8,
    count: usize,
) -> *const u8 {
    // SAFETY: `WireFired` has the layout of the contract's `fired`, and the host wrote `count` of
    // them.
    let timers = unsafe { std::slice::from_raw_parts(timers.cast::<WireFired>(), count) };
    let mut running = running.0.borrow_mut();
    let instance = running.get_or_insert_with(open);
    let outcome = instance.fire(timers.iter().map(WireFired::get));
    if outcome.is_err() {
        // The memory of the instance no longer matches the host's state.
        *running = None;
    }
    // SAFETY: the timers were all that lay in the arena, and they are not used any more.
    ARENA.with(|arena| unsafe { arena.clear() });
    keep_outcome(outcome)
}

fn keep_outcome(outcome: Result<(), (u32, Failure)>) -> *const u8 {
    match outcome {
        Ok(()) => keep(ApplyResult {
            is_error: 0,
            index: 0,
            kind: 0,
            message: Text::new(""),
        }),
        Err((index, failure)) => keep_failure(index, &failure),
    }
}

#[cold]
fn keep_failure(index: u32, failure: &Failure) -> *const u8 {
    let kind = match failure.kind() {
        FailureKind::Retry => 0,
        FailureKind::Reject => 1,
    };
    keep(ApplyResult {
        is_error: 1,
        index,
        kind,
        message: keep_text(failure.message()),
    })
}

/// `query`: a name and a payload.
///
/// # Safety
///
/// Only the host may call it, with what the contract says.
#[doc(hidden)]
pub unsafe fn query<P: Projection>(
    name: *const u8,
    name_length: usize,
    is_bytes: u32,
    arguments: *const u8,
    arguments_length: usize,
) -> *const u8 {
    // SAFETY: the host wrote both, and checked what is text.
    let (name, arguments) = unsafe {
        let name = std::str::from_utf8_unchecked(std::slice::from_raw_parts(name, name_length));
        let arguments = std::slice::from_raw_parts(arguments, arguments_length);
        (
            name,
            if is_bytes == 0 {
                Payload::Text(std::str::from_utf8_unchecked(arguments))
            } else {
                Payload::Bytes(arguments)
            },
        )
    };
    // A fresh instance: the state of a query is a snapshot of its own.
    let answer = open::<P>().query(name, arguments);
    // SAFETY: name and arguments were all that lay in the arena, and they are not used any more.
    ARENA.with(|arena| unsafe { arena.clear() });
    let (is_error, case, text) = match answer {
        Ok(text) => (0, 0, text),
        Err(QueryError::UnknownQuery) => (1, 0, String::new()),
        Err(QueryError::InvalidArguments(text)) => (1, 1, text),
        Err(QueryError::NotFound) => (1, 2, String::new()),
        Err(QueryError::Failed(text)) => (1, 3, text),
    };
    let value = WirePayload {
        // The case is where a payload says whether it is bytes: both are an octet before a text.
        is_bytes: case,
        octets: List::new(keep_text(&text).get().as_bytes()),
    };
    keep(QueryResult { is_error, value })
}

/// `migrate`: a page of old entries at an address.
///
/// # Safety
///
/// Only the host may call it, with what the contract says.
#[doc(hidden)]
pub unsafe fn migrate<P: Migrate>(
    from_version: u32,
    entries: *const u8,
    count: usize,
) -> *const u8 {
    log_panics();
    // SAFETY: `Entry` has the layout of the contract's `entry`, and the host wrote `count` of them.
    let entries = unsafe { std::slice::from_raw_parts(entries.cast::<Entry<'_>>(), count) };
    let old = entries
        .iter()
        .map(|entry| OldEntry::new(entry.key.get(), entry.value.get()));
    let outcome = migrate_all::<P>(from_version, old);
    // SAFETY: the entries were all that lay in the arena; what was made of them borrows nothing.
    ARENA.with(|arena| unsafe { arena.clear() });
    match outcome {
        Ok(new) => {
            // The texts first, then the list that refers to them.
            let new = keep_list(&new.iter().map(keep_entry).collect::<Vec<_>>()).get();
            keep(MigrateResult {
                is_error: 0,
                address: new.as_ptr().addr(),
                length: new.len(),
            })
        }
        Err(error) => {
            let message = keep_text(error.message()).get();
            keep(MigrateResult {
                is_error: 1,
                address: message.as_ptr().addr(),
                length: message.len(),
            })
        }
    }
}

fn keep_entry(entry: &NewEntry) -> Entry<'static> {
    let payload = entry.value.payload();
    let value = WirePayload {
        is_bytes: u8::from(matches!(payload, Payload::Bytes(_))),
        octets: keep_list(payload.as_bytes()),
    };
    Entry {
        key: keep_text(&entry.key),
        value,
    }
}

fn open<P: Projection>() -> Instance<P> {
    log_panics();
    Instance::open(State::new(Box::new(HostState)))
}

/// `option<…>`.
#[repr(C)]
struct Optional<T> {
    is_some: u8,
    value: T,
}

impl<T: Default> Optional<T> {
    fn new(value: Option<T>) -> Self {
        Self {
            is_some: u8::from(value.is_some()),
            value: value.unwrap_or_default(),
        }
    }
}

/// `query-description`.
#[repr(C)]
#[derive(Clone, Copy)]
struct QueryDescription {
    name: Text<'static>,
    description: Text<'static>,
}

/// `manifest`.
#[repr(C)]
struct ManifestRecord {
    kind: u8,
    name: Text<'static>,
    description: Text<'static>,
    subjects: List<'static, Text<'static>>,
    wants_headers: u8,
    key_rule: KeyRuleRecord,
    state_version: u32,
    attempts: Optional<u32>,
    initial_backoff_ms: Optional<u32>,
    max_backoff_ms: Optional<u32>,
    limits: Limits,
    queries: List<'static, QueryDescription>,
}

/// `key-rule`.
#[repr(C)]
struct KeyRuleRecord {
    case: u8,
    /// The number of a token, or the address of a text.
    number_or_address: usize,
    length: usize,
}

impl KeyRuleRecord {
    fn new(rule: &KeyRule) -> Self {
        let text = |case, text: &str| {
            let text = keep_text(text).get();
            Self {
                case,
                number_or_address: text.as_ptr().addr(),
                length: text.len(),
            }
        };
        match rule {
            KeyRule::None => Self {
                case: 0,
                number_or_address: 0,
                length: 0,
            },
            KeyRule::Subject => Self {
                case: 1,
                number_or_address: 0,
                length: 0,
            },
            KeyRule::SubjectToken(number) => Self {
                case: 2,
                number_or_address: *number as usize,
                length: 0,
            },
            KeyRule::Header(name) => text(3, name),
            KeyRule::DataPointer(pointer) => text(4, pointer),
        }
    }
}

/// `limits`.
#[repr(C)]
struct Limits {
    memory_bytes: Optional<u64>,
    deadline_ms: Optional<u32>,
    batch_events: Optional<u32>,
    state_bytes: Optional<u64>,
}

/// `manifest`: opens the projection once, so that mistakes in its tables are noticed at once.
#[doc(hidden)]
pub fn manifest<P: Projection>() -> *const u8 {
    // A table with a wrong name panics here, before anything is deployed.
    drop(open::<P>());
    let manifest = P::manifest();
    let limits = Limits {
        memory_bytes: Optional::new(manifest.memory_bytes),
        deadline_ms: Optional::new(manifest.deadline_ms),
        batch_events: Optional::new(manifest.batch_events),
        state_bytes: Optional::new(manifest.state_bytes),
    };
    let describe = |query: &Query<P>| QueryDescription {
        name: Text::new(query.name),
        description: Text::new(query.description),
    };
    keep(ManifestRecord {
        kind: 0,
        name: Text::new(manifest.name),
        description: Text::new(manifest.description),
        subjects: keep_list(
            &manifest
                .subjects
                .iter()
                .map(|subject| keep_text(subject))
                .collect::<Vec<_>>(),
        ),
        wants_headers: u8::from(manifest.wants_headers),
        key_rule: KeyRuleRecord::new(&manifest.key_rule),
        state_version: manifest.state_version,
        attempts: Optional::new(manifest.attempts),
        initial_backoff_ms: Optional::new(manifest.initial_backoff_ms),
        max_backoff_ms: Optional::new(manifest.max_backoff_ms),
        limits,
        queries: keep_list(&manifest.queries.iter().map(describe).collect::<Vec<_>>()),
    })
}

/// `handler-manifest`.
#[repr(C)]
struct HandlerRecord {
    name: Text<'static>,
    description: Text<'static>,
    subjects: List<'static, Text<'static>>,
    wants_headers: u8,
    key_rule: KeyRuleRecord,
    state_version: u32,
    attempts: Optional<u32>,
    initial_backoff_ms: Optional<u32>,
    max_backoff_ms: Optional<u32>,
    limits: Limits,
    queries: List<'static, QueryDescription>,
    publishes: List<'static, Text<'static>>,
    sets_timers: u8,
}

/// The same as [`manifest`], for a handler.
#[doc(hidden)]
pub fn handler_manifest<H: Handler>() -> *const u8 {
    drop(open::<Handling<H>>());
    let manifest = H::manifest();
    let limits = Limits {
        memory_bytes: Optional::new(manifest.memory_bytes),
        deadline_ms: Optional::new(manifest.deadline_ms),
        batch_events: Optional::new(manifest.batch_events),
        state_bytes: Optional::new(manifest.state_bytes),
    };
    let describe = |query: &Query<H>| QueryDescription {
        name: Text::new(query.name),
        description: Text::new(query.description),
    };
    let texts =
        |texts: &[String]| keep_list(&texts.iter().map(|text| keep_text(text)).collect::<Vec<_>>());
    keep(HandlerRecord {
        name: Text::new(manifest.name),
        description: Text::new(manifest.description),
        subjects: texts(&manifest.subjects),
        wants_headers: u8::from(manifest.wants_headers),
        key_rule: KeyRuleRecord::new(&manifest.key_rule),
        state_version: manifest.state_version,
        attempts: Optional::new(manifest.attempts),
        initial_backoff_ms: Optional::new(manifest.initial_backoff_ms),
        max_backoff_ms: Optional::new(manifest.max_backoff_ms),
        limits,
        queries: keep_list(&manifest.queries.iter().map(describe).collect::<Vec<_>>()),
        publishes: texts(&manifest.publishes),
        sets_timers: u8::from(manifest.timers),
    })
}

/// `inbox-settings`.
#[repr(C)]
struct InboxRecord {
    id: IdRecord,
    window_ms: u64,
    ids_max: u32,
}

/// `event-id`.
#[repr(C)]
struct IdRecord {
    case: u8,
    text: Text<'static>,
}

/// `option<inbox-settings>`, of which only the first octet counts if there is none.
#[repr(C)]
struct OptionalInbox {
    is_some: u8,
    inbox: InboxRecord,
}

/// `inbox`: how events are recognised that were published twice.
#[doc(hidden)]
pub fn inbox<P: Projection>() -> *const u8 {
    let inbox = P::manifest().inbox;
    let (case, text) = match inbox.as_ref().map(|inbox| &inbox.id) {
        None | Some(EventId::Message) => (0, ""),
        Some(EventId::Header(name)) => (1, name.as_str()),
        Some(EventId::DataPointer(pointer)) => (2, pointer.as_str()),
    };
    keep(OptionalInbox {
        is_some: u8::from(inbox.is_some()),
        inbox: InboxRecord {
            id: IdRecord {
                case,
                text: keep_text(text),
            },
            window_ms: inbox.as_ref().map_or(0, |inbox| inbox.window_ms),
            ids_max: inbox.as_ref().map_or(0, |inbox| inbox.ids_max),
        },
    })
}

/// Stores a result where the host can read it, until the end of the next call.
fn keep<T>(value: T) -> *const u8 {
    let place = ARENA
        .with(|arena| arena.take(size_of::<T>(), align_of::<T>()))
        .cast::<T>();
    // SAFETY: the arena gave out memory of that size and alignment.
    unsafe { place.write(value) };
    place.cast_const().cast()
}

/// The same for a text.
fn keep_text(text: &str) -> Text<'static> {
    // SAFETY: they are the octets of a `str`.
    Text::new(unsafe { std::str::from_utf8_unchecked(keep_list(text.as_bytes()).get()) })
}

/// The same for a list.
fn keep_list<T: Copy>(items: &[T]) -> List<'static, T> {
    let place = ARENA
        .with(|arena| arena.take(size_of_val(items), align_of::<T>()))
        .cast::<T>();
    // SAFETY: the arena gave out memory for that many values, which overlaps nothing and is not
    // cleared before the host has read it.
    List::new(unsafe {
        ptr::copy_nonoverlapping(items.as_ptr(), place, items.len());
        std::slice::from_raw_parts(place, items.len())
    })
}

/// Logs the message of a panic: the trap that follows only says where it happened.
fn log_panics() {
    thread_local! {
        static DONE: Cell<bool> = const { Cell::new(false) };
    }
    // Once per instance, whichever call comes first.
    if !DONE.replace(true) {
        std::panic::set_hook(Box::new(|panic| log(Level::Error, &panic.to_string())));
    }
}
