//! The contract's types as they cross the boundary of the sandbox.
//!
//! Towards the guest everything is borrowed: a batch is written into guest memory directly from the
//! host's events, without intermediate records. From the guest, values are copied once, after their
//! size was charged. The layouts are those of `wit/`; the derived types check them against each
//! component when it is linked.

// Derived lifting makes the cases of an enum out of numbers, which the compiler does not see.
#![expect(dead_code, reason = "enum cases are made by derived lifting")]

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use wasmtime::component::__internal::{
    CanonicalAbiInfo, ComponentTypes, InstanceType, InterfaceType, LowerContext, bad_type_info,
};
use wasmtime::component::{ComponentType, Lift, Lower, WasmList, WasmStr};
use wasmtime::{StoreContext, ValRaw};

use super::chosen::Chosen;
use super::copies::{CopiedBytes, CopiedText};
use super::sandbox::Host;
use crate::event::{Event, Payload};
use crate::state;

/// `payload`, on its way into the guest.
#[derive(ComponentType, Lower, Clone, Copy)]
#[component(variant)]
pub(super) enum PayloadRef<'a> {
    #[component(name = "text")]
    Text(&'a str),
    #[component(name = "bytes")]
    Bytes(&'a [u8]),
}

impl<'a> From<&'a Payload> for PayloadRef<'a> {
    fn from(payload: &'a Payload) -> Self {
        match payload {
            Payload::Text(text) => Self::Text(text),
            Payload::Bytes(bytes) => Self::Bytes(bytes),
        }
    }
}

/// `payload` as the result of a call: the guest frees it when the call ends, so it is copied at
/// once.
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum PayloadCopy {
    #[component(name = "text")]
    Text(CopiedText),
    #[component(name = "bytes")]
    Bytes(CopiedBytes),
}

impl From<PayloadCopy> for Payload {
    /// Keeps the memory of the copy.
    fn from(payload: PayloadCopy) -> Self {
        match payload {
            PayloadCopy::Text(text) => Self::Text(ByteString::from(text.0)),
            PayloadCopy::Bytes(bytes) => Self::Bytes(Bytes::from(bytes.0)),
        }
    }
}

/// `payload`, still in the memory of the guest: it is copied once the host knows its size and has
/// memory for it.
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum PayloadThere {
    #[component(name = "text")]
    Text(WasmStr),
    #[component(name = "bytes")]
    Bytes(WasmList<u8>),
}

impl PayloadThere {
    /// A view of it; text in another encoding is decoded for that.
    pub(super) fn look<'a>(&self, store: &'a StoreContext<'_, Host>) -> wasmtime::Result<Seen<'a>> {
        Ok(match self {
            Self::Text(text) => Seen::Text(text.to_str(store)?),
            Self::Bytes(bytes) => Seen::Bytes(bytes.as_le_slice(store)),
        })
    }
}

/// A view of a payload in the memory of the guest.
pub(super) enum Seen<'a> {
    Text(Cow<'a, str>),
    Bytes(&'a [u8]),
}

impl Seen<'_> {
    /// Its length, in bytes.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    /// A copy.
    pub(super) fn copied(self) -> Payload {
        match self {
            Self::Text(text) => Payload::Text(ByteString::from(text.into_owned())),
            Self::Bytes(bytes) => Payload::Bytes(Bytes::copy_from_slice(bytes)),
        }
    }
}

/// `payload` as a host function returns it: shares the memory of the state.
#[derive(ComponentType, Lower)]
#[component(variant)]
pub(super) enum Value {
    #[component(name = "text")]
    Text(Text),
    #[component(name = "bytes")]
    Bytes(Octets),
}

impl From<Payload> for Value {
    fn from(payload: Payload) -> Self {
        match payload {
            Payload::Text(text) => Self::Text(Text(text)),
            Payload::Bytes(bytes) => Self::Bytes(Octets(bytes)),
        }
    }
}

/// A `string` that is lowered from shared memory.
pub(super) struct Text(ByteString);

/// A `list<u8>` that is lowered from shared memory.
pub(super) struct Octets(Bytes);

macro_rules! lower_as {
    ($outer:ty => $inner:ty) => {
        // SAFETY: every item forwards to the implementation for the inner type, so the layout and
        // the type check are those of the inner type.
        unsafe impl ComponentType for $outer {
            type Lower = <$inner as ComponentType>::Lower;
            const ABI: CanonicalAbiInfo = <$inner as ComponentType>::ABI;

            fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
                <$inner as ComponentType>::typecheck(ty, types)
            }
        }

        // SAFETY: as above; `destination` is filled by the inner implementation whenever it returns
        // ok.
        unsafe impl Lower for $outer {
            fn linear_lower_to_flat<T>(
                &self,
                cx: &mut LowerContext<'_, T>,
                ty: InterfaceType,
                destination: &mut MaybeUninit<Self::Lower>,
            ) -> wasmtime::Result<()> {
                let inner: &$inner = &self.0;
                inner.linear_lower_to_flat(cx, ty, destination)
            }

            fn linear_lower_to_memory<T>(
                &self,
                cx: &mut LowerContext<'_, T>,
                ty: InterfaceType,
                offset: usize,
            ) -> wasmtime::Result<()> {
                let inner: &$inner = &self.0;
                inner.linear_lower_to_memory(cx, ty, offset)
            }
        }
    };
}

lower_as!(Text => str);
lower_as!(Octets => [u8]);

/// `event`, for the type check and the layout; [`Events`] does the lowering.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct EventShape<'a> {
    sequence: u64,
    #[component(name = "time-ns")]
    time_ns: u64,
    subject: &'a str,
    kind: &'a str,
    headers: &'a [(&'a str, &'a str)],
    data: PayloadRef<'a>,
}

/// Offsets of the fields of `event` in guest memory, by the canonical ABI.
mod offset {
    pub(super) const SEQUENCE: usize = 0;
    pub(super) const TIME_NS: usize = 8;
    pub(super) const SUBJECT: usize = 16;
    pub(super) const KIND: usize = 24;
    pub(super) const HEADERS: usize = 32;
    pub(super) const DATA: usize = 40;
    pub(super) const SIZE: usize = 56;
}

const _: () = assert!(<EventShape<'static> as ComponentType>::SIZE32 == offset::SIZE);
const EVENT_ALIGN: u32 = <EventShape<'static> as ComponentType>::ALIGN32;

/// Size and alignment of a `tuple<string, string>`: two pairs of pointer and length.
const HEADER_SIZE: usize = 16;
const HEADER_ALIGN: u32 = 4;

/// `list<event>`, lowered straight from the host's events.
#[derive(Clone, Copy)]
pub(super) struct Events<'a> {
    /// The batch.
    pub(super) events: Chosen<'a>,
    /// Whether the module asked for headers; if not, each event gets an empty list.
    pub(super) with_headers: bool,
}

impl Events<'_> {
    fn lower_all<T>(
        &self,
        cx: &mut LowerContext<'_, T>,
        ty: InterfaceType,
    ) -> wasmtime::Result<(usize, usize)> {
        let data_type = data_type(cx.types, ty);
        let size = self.events.len() * offset::SIZE;
        let start = cx.realloc(0, 0, EVENT_ALIGN, size)?;
        for (index, event) in self.events.iter().enumerate() {
            self.lower_one(cx, event, data_type, start + index * offset::SIZE)?;
        }
        Ok((start, self.events.len()))
    }

    fn lower_one<T>(
        &self,
        cx: &mut LowerContext<'_, T>,
        event: &Event,
        data_type: InterfaceType,
        at: usize,
    ) -> wasmtime::Result<()> {
        *cx.get(at + offset::SEQUENCE) = event.sequence.to_le_bytes();
        *cx.get(at + offset::TIME_NS) = event.time_ns.to_le_bytes();
        lower_text(cx, &event.subject, at + offset::SUBJECT)?;
        lower_text(cx, &event.kind, at + offset::KIND)?;
        if self.with_headers && !event.headers.is_empty() {
            lower_headers(cx, event, at + offset::HEADERS)?;
        } else {
            // An empty list owns no memory. Asking the guest to allocate nothing would cost as much
            // as a string.
            lower_pair(cx, HEADER_ALIGN, 0, at + offset::HEADERS);
        }
        PayloadRef::from(&event.data).linear_lower_to_memory(cx, data_type, at + offset::DATA)
    }
}

/// The component's own view of `payload`, found inside that of `list<event>`.
fn data_type(types: &ComponentTypes, ty: InterfaceType) -> InterfaceType {
    let InterfaceType::List(list) = ty else {
        bad_type_info()
    };
    let InterfaceType::Record(record) = types[list].element else {
        bad_type_info()
    };
    let Some(data) = types[record].fields.last() else {
        bad_type_info()
    };
    data.ty
}

fn lower_text<T>(cx: &mut LowerContext<'_, T>, text: &str, at: usize) -> wasmtime::Result<()> {
    text.linear_lower_to_memory(cx, InterfaceType::String, at)
}

fn lower_headers<T>(
    cx: &mut LowerContext<'_, T>,
    event: &Event,
    at: usize,
) -> wasmtime::Result<()> {
    let count = event.headers.len();
    let start = cx.realloc(0, 0, HEADER_ALIGN, count * HEADER_SIZE)?;
    for (index, (name, value)) in event.headers.iter().enumerate() {
        lower_text(cx, name, start + index * HEADER_SIZE)?;
        lower_text(cx, value, start + index * HEADER_SIZE + HEADER_SIZE / 2)?;
    }
    let start = u32::try_from(start)?;
    lower_pair(cx, start, u32::try_from(count)?, at);
    Ok(())
}

/// Writes the pointer and the length of a list.
fn lower_pair<T>(cx: &mut LowerContext<'_, T>, pointer: u32, length: u32, at: usize) {
    *cx.get(at) = pointer.to_le_bytes();
    *cx.get(at + 4) = length.to_le_bytes();
}

// SAFETY: layout and type check are those of `[EventShape]`, whose derived implementation describes
// `event`.
unsafe impl ComponentType for Events<'_> {
    type Lower = <[EventShape<'static>] as ComponentType>::Lower;
    const ABI: CanonicalAbiInfo = <[EventShape<'static>] as ComponentType>::ABI;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
        <[EventShape<'static>] as ComponentType>::typecheck(ty, types)
    }
}

// SAFETY: `lower_all` writes only within memory that the guest's allocator handed out, through
// `LowerContext::get`, which checks bounds; both words of the destination are written.
unsafe impl Lower for Events<'_> {
    fn linear_lower_to_flat<T>(
        &self,
        cx: &mut LowerContext<'_, T>,
        ty: InterfaceType,
        destination: &mut MaybeUninit<Self::Lower>,
    ) -> wasmtime::Result<()> {
        let (start, count) = self.lower_all(cx, ty)?;
        destination.write([
            ValRaw::i64(i64::try_from(start)?),
            ValRaw::i64(i64::try_from(count)?),
        ]);
        Ok(())
    }

    fn linear_lower_to_memory<T>(
        &self,
        cx: &mut LowerContext<'_, T>,
        ty: InterfaceType,
        offset: usize,
    ) -> wasmtime::Result<()> {
        let (start, count) = self.lower_all(cx, ty)?;
        lower_pair(cx, u32::try_from(start)?, u32::try_from(count)?, offset);
        Ok(())
    }
}

/// `failure-kind`
#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
pub(super) enum FailureKind {
    #[component(name = "retry")]
    Retry,
    #[component(name = "reject")]
    Reject,
}

/// `failure`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Failure {
    pub(super) index: u32,
    pub(super) kind: FailureKind,
    pub(super) message: String,
}

/// `query-error`
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum QueryFailure {
    #[component(name = "unknown-query")]
    UnknownQuery,
    #[component(name = "invalid-arguments")]
    InvalidArguments(CopiedText),
    #[component(name = "not-found")]
    NotFound,
    #[component(name = "failed")]
    Failed(CopiedText),
}

/// `level`
#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
pub(super) enum Level {
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

/// `target` of what a program prints.
#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
pub(super) enum Target {
    #[component(name = "out")]
    Out,
    #[component(name = "err")]
    Err,
}

/// `key-range`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct KeyRange {
    pub(super) start: Option<String>,
    pub(super) end: Option<String>,
}

/// `selection`
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum Selection {
    #[component(name = "prefix")]
    Prefix(String),
    #[component(name = "range")]
    Range(KeyRange),
}

impl From<Selection> for state::Selection {
    fn from(selection: Selection) -> Self {
        match selection {
            Selection::Prefix(prefix) => Self::Prefix(prefix),
            Selection::Range(KeyRange { start, end }) => Self::Range { start, end },
        }
    }
}

/// `direction`
#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
pub(super) enum Direction {
    #[component(name = "forwards")]
    Forwards,
    #[component(name = "backwards")]
    Backwards,
}

impl From<Direction> for state::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Forwards => Self::Forwards,
            Direction::Backwards => Self::Backwards,
        }
    }
}

/// `entry` as a host function returns it.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct Entry {
    pub(super) key: Arc<str>,
    pub(super) value: Value,
}

/// `entry`, on its way into the guest.
#[derive(ComponentType, Lower, Clone, Copy)]
#[component(record)]
pub(super) struct EntryRef<'a> {
    pub(super) key: &'a str,
    pub(super) value: PayloadRef<'a>,
}

/// `entry`, on its way out of the guest.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct EntryCopy {
    pub(super) key: String,
    pub(super) value: PayloadCopy,
}

/// `page`
#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct Page {
    pub(super) entries: Vec<Entry>,
    pub(super) more: bool,
}

impl From<state::Page> for Page {
    fn from(page: state::Page) -> Self {
        let entries = page
            .entries
            .into_iter()
            .map(|(key, value)| Entry {
                key,
                value: value.into(),
            })
            .collect();
        Self {
            entries,
            more: page.more,
        }
    }
}

/// `module-kind`
#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
pub(super) enum ModuleKind {
    #[component(name = "projection")]
    Projection,
}

/// `key-rule`
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum KeyRule {
    #[component(name = "none")]
    None,
    #[component(name = "subject")]
    Subject,
    #[component(name = "subject-token")]
    SubjectToken(u32),
    #[component(name = "header")]
    Header(String),
    #[component(name = "data-pointer")]
    DataPointer(String),
}

/// `error-policy`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct ErrorPolicy {
    pub(super) attempts: Option<u32>,
    #[component(name = "initial-backoff-ms")]
    pub(super) initial_backoff_ms: Option<u32>,
    #[component(name = "max-backoff-ms")]
    pub(super) max_backoff_ms: Option<u32>,
}

/// `limits`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Limits {
    #[component(name = "memory-bytes")]
    pub(super) memory_bytes: Option<u64>,
    #[component(name = "deadline-ms")]
    pub(super) deadline_ms: Option<u32>,
    #[component(name = "batch-events")]
    pub(super) batch_events: Option<u32>,
    #[component(name = "state-bytes")]
    pub(super) state_bytes: Option<u64>,
}

/// `query-description`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct QueryDescription {
    pub(super) name: String,
    pub(super) description: String,
}

/// `manifest`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct ManifestRecord {
    pub(super) kind: ModuleKind,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) subjects: Vec<String>,
    #[component(name = "wants-headers")]
    pub(super) wants_headers: bool,
    #[component(name = "key-rule")]
    pub(super) key_rule: KeyRule,
    #[component(name = "state-version")]
    pub(super) state_version: u32,
    #[component(name = "error-policy")]
    pub(super) error_policy: ErrorPolicy,
    pub(super) limits: Limits,
    pub(super) queries: Vec<QueryDescription>,
}

/// `handler-manifest`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct HandlerRecord {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) subjects: Vec<String>,
    #[component(name = "wants-headers")]
    pub(super) wants_headers: bool,
    #[component(name = "key-rule")]
    pub(super) key_rule: KeyRule,
    #[component(name = "state-version")]
    pub(super) state_version: u32,
    #[component(name = "error-policy")]
    pub(super) error_policy: ErrorPolicy,
    pub(super) limits: Limits,
    pub(super) queries: Vec<QueryDescription>,
    pub(super) publishes: Vec<String>,
    #[component(name = "sets-timers")]
    pub(super) sets_timers: bool,
}

/// `timer`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct TimerRecord {
    pub(super) name: String,
    #[component(name = "at-ns")]
    pub(super) at_ns: u64,
    pub(super) key: Option<String>,
}

/// `fired`
#[derive(ComponentType, Lower, Clone, Copy)]
#[component(record)]
pub(super) struct Fired<'a> {
    pub(super) name: &'a str,
    #[component(name = "at-ns")]
    pub(super) at_ns: u64,
    #[component(name = "fired-ns")]
    pub(super) fired_ns: u64,
    pub(super) sequence: u64,
    pub(super) key: Option<&'a str>,
}

/// `message` of the outbox
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Message {
    pub(super) cause: u32,
    pub(super) subject: String,
    pub(super) kind: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) data: PayloadCopy,
    pub(super) key: Option<String>,
}

/// `expected-last`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct ExpectedLast {
    pub(super) subject: Option<String>,
    pub(super) sequence: u64,
}

/// `delivery`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct DeliveryRecord {
    #[component(name = "not-before-ns")]
    pub(super) not_before_ns: Option<u64>,
    #[component(name = "time-to-live-s")]
    pub(super) time_to_live_s: Option<u32>,
    #[component(name = "expected-last")]
    pub(super) expected_last: Option<ExpectedLast>,
}
