//! The contract's imports and exports, as the canonical ABI of the component
//! model defines them on wasm32.
//!
//! Records are `#[repr(C)]` structs with the contract's fields in its order:
//! the ABI aligns and pads as C does. An option, a result or a variant is an
//! octet that says which case, followed by the value. The host checks
//! everything that it passes in, so texts are UTF-8 and addresses are valid;
//! what it passes in is in [`ARENA`].

use crate::arena::Arena;
use crate::backend::{Backend, ScanRequest, Selection, Writes};
use crate::effects::{Data, Delivery, Message, TimerChange};
use crate::event::{Header, List, Payload, Text};
use crate::log::Level;
use crate::time::Timestamp;
use crate::timer::{Fired, Timer};

thread_local! {
    /// Memory for what the host passes in.
    pub(crate) static ARENA: Arena = const { Arena::new() };
}

/// Most entries that the host accepts in one call.
const WRITES_MAX: usize = 65_536;

#[link(wasm_import_module = "foldstream:module/state@0.1.0")]
unsafe extern "C" {
    #[link_name = "get"]
    fn state_get(key: *const u8, key_length: usize, found: *mut OptionalPayload<'static>);
    #[link_name = "get-many"]
    fn state_get_many(
        keys: *const Text<'_>,
        count: usize,
        found: *mut List<'static, OptionalPayload<'static>>,
    );
    #[link_name = "put-many"]
    fn state_put_many(writes: *const Write<'_>, count: usize);
    // The second to seventh are a prefix as address and length, or the two ends of a range, each as
    // an octet that says whether there is one, address and length.
    #[link_name = "scan"]
    fn state_scan(
        is_range: u32,
        selection_1: usize,
        selection_2: usize,
        selection_3: usize,
        selection_4: usize,
        selection_5: usize,
        selection_6: usize,
        has_after: u32,
        after: *const u8,
        after_length: usize,
        is_backwards: u32,
        limit: u32,
        page: *mut Page,
    );
}

#[link(wasm_import_module = "foldstream:module/log@0.1.0")]
unsafe extern "C" {
    #[link_name = "write"]
    fn log_write(level: u32, message: *const u8, length: usize);
}

#[link(wasm_import_module = "foldstream:module/outbox@0.1.0")]
unsafe extern "C" {
    #[link_name = "publish"]
    fn outbox_publish(messages: *const WireMessage<'_>, count: usize);
    #[link_name = "publish-with"]
    fn outbox_publish_with(messages: *const WireSent<'_>, count: usize);
}

#[link(wasm_import_module = "foldstream:module/timers@0.1.0")]
unsafe extern "C" {
    #[link_name = "set"]
    fn timers_set(cause: u32, timers: *const WireTimer<'_>, count: usize);
    #[link_name = "cancel"]
    fn timers_cancel(cause: u32, names: *const Text<'_>, count: usize);
}

/// `timer`.
#[repr(C)]
struct WireTimer<'a> {
    name: Text<'a>,
    at_ns: u64,
    key: OptionalText<'a>,
}

/// `fired`.
#[repr(C)]
pub(crate) struct WireFired {
    name: Text<'static>,
    at_ns: u64,
    fired_ns: u64,
    sequence: u64,
    key: OptionalText<'static>,
}

impl WireFired {
    pub(crate) fn get(&self) -> Fired<'_> {
        Fired {
            name: self.name.get(),
            at: Timestamp::from_nanoseconds(self.at_ns),
            time: Timestamp::from_nanoseconds(self.fired_ns),
            sequence: self.sequence,
            key: (self.key.is_some != 0).then(|| self.key.text.get()),
        }
    }
}

/// `message`.
#[repr(C)]
struct WireMessage<'a> {
    cause: u32,
    subject: Text<'a>,
    kind: OptionalText<'a>,
    headers: List<'a, Header<'a>>,
    data: WirePayload<'a>,
    key: OptionalText<'a>,
}

/// `option<u64>`.
#[repr(C)]
struct OptionalNumber {
    is_some: u8,
    number: u64,
}

/// `option<u32>`.
#[repr(C)]
struct OptionalCount {
    is_some: u8,
    count: u32,
}

/// `expected-last`.
#[repr(C)]
struct WireExpectedLast<'a> {
    subject: OptionalText<'a>,
    sequence: u64,
}

/// `option<expected-last>`.
#[repr(C)]
struct OptionalExpectedLast<'a> {
    is_some: u8,
    expected_last: WireExpectedLast<'a>,
}

/// `delivery`.
#[repr(C)]
struct WireDelivery<'a> {
    not_before_ns: OptionalNumber,
    time_to_live_s: OptionalCount,
    expected_last: OptionalExpectedLast<'a>,
}

/// `tuple<message, delivery>`.
#[repr(C)]
struct WireSent<'a> {
    message: WireMessage<'a>,
    delivery: WireDelivery<'a>,
}

impl<'a> WireDelivery<'a> {
    fn new(delivery: &'a Delivery) -> Self {
        let not_before = delivery.not_before;
        let expected = delivery.expected_last.as_ref();
        Self {
            not_before_ns: OptionalNumber {
                is_some: u8::from(not_before.is_some()),
                number: not_before.map_or(0, Timestamp::nanoseconds),
            },
            time_to_live_s: OptionalCount {
                is_some: u8::from(delivery.time_to_live.is_some()),
                count: delivery.time_to_live.unwrap_or(0),
            },
            expected_last: OptionalExpectedLast {
                is_some: u8::from(expected.is_some()),
                expected_last: WireExpectedLast {
                    subject: OptionalText::new(expected.and_then(|last| last.subject.as_ref())),
                    sequence: expected.map_or(0, |last| last.sequence),
                },
            },
        }
    }
}

/// `option<string>`.
#[repr(C)]
struct OptionalText<'a> {
    is_some: u8,
    text: Text<'a>,
}

impl<'a> OptionalText<'a> {
    fn new(text: Option<&'a String>) -> Self {
        Self {
            is_some: u8::from(text.is_some()),
            text: Text::new(text.map_or("", String::as_str)),
        }
    }
}

/// `payload`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct WirePayload<'a> {
    pub(crate) is_bytes: u8,
    pub(crate) octets: List<'a, u8>,
}

/// `option<payload>`.
#[repr(C)]
#[derive(Clone, Copy)]
struct OptionalPayload<'a> {
    is_some: u8,
    payload: WirePayload<'a>,
}

/// `tuple<string, option<payload>>`.
#[repr(C)]
struct Write<'a> {
    key: Text<'a>,
    value: OptionalPayload<'a>,
}

/// `entry`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) key: Text<'a>,
    pub(crate) value: WirePayload<'a>,
}

/// `page`.
#[repr(C)]
struct Page {
    entries: List<'static, Entry<'static>>,
    more: u8,
}

impl<'a> WirePayload<'a> {
    pub(crate) fn text(text: &'a str) -> Self {
        Self {
            is_bytes: 0,
            octets: List::new(text.as_bytes()),
        }
    }

    pub(crate) fn get(self) -> Payload<'a> {
        let octets = self.octets.get();
        if self.is_bytes == 0 {
            // SAFETY: the host checked that text is UTF-8.
            Payload::Text(unsafe { std::str::from_utf8_unchecked(octets) })
        } else {
            Payload::Bytes(octets)
        }
    }
}

impl<'a> OptionalPayload<'a> {
    fn new(text: Option<&'a str>) -> Self {
        Self {
            is_some: u8::from(text.is_some()),
            payload: WirePayload::text(text.unwrap_or_default()),
        }
    }

    fn get(self) -> Option<Payload<'a>> {
        (self.is_some != 0).then(|| self.payload.get())
    }
}

/// Calls the host, and frees the memory of the results.
fn handed_over(call: impl FnOnce()) {
    ARENA.with(|arena| {
        // Results of this call only: arguments of the running batch lie below the mark.
        let mark = arena.mark();
        call();
        // SAFETY: what was given out since the mark was for the results of this call, which stay
        // inside `call`.
        unsafe { arena.release(mark) };
    });
}

/// The state that the host keeps.
#[derive(Debug)]
pub(crate) struct HostState;

impl Backend for HostState {
    fn get(&self, key: &str, show: &mut dyn FnMut(Option<Payload<'_>>)) {
        handed_over(|| {
            let mut found = OptionalPayload::new(None);
            // SAFETY: address and length are those of a `str`, and `found` has the layout of the
            // result.
            unsafe { state_get(key.as_ptr(), key.len(), &mut found) };
            show(found.get());
        });
    }

    fn get_many(&self, keys: &[String], show: &mut dyn FnMut(usize, Option<Payload<'_>>)) {
        let names: Vec<Text<'_>> = keys.iter().map(|key| Text::new(key)).collect();
        handed_over(|| {
            let mut found = List::new(&[]);
            // SAFETY: `Text` has the layout of `string`, and `found` that of the result.
            unsafe { state_get_many(names.as_ptr(), names.len(), &mut found) };
            for (index, payload) in found.get().iter().enumerate() {
                show(index, payload.get());
            }
        });
    }

    fn put_many(&self, writes: &Writes) {
        let writes: Vec<Write<'_>> = writes
            .iter()
            .map(|(key, value)| Write {
                key: Text::new(key),
                value: OptionalPayload::new(value),
            })
            .collect();
        // One call for all, unless there are more than the host takes at once.
        for chunk in writes.chunks(WRITES_MAX) {
            // SAFETY: `Write` has the layout of the list's elements, all of which live until the
            // end of the call.
            unsafe { state_put_many(chunk.as_ptr(), chunk.len()) };
        }
    }

    fn scan(&self, request: &ScanRequest<'_>, show: &mut dyn FnMut(&str, Payload<'_>)) -> bool {
        let (is_range, selection) = match request.selection {
            Selection::Prefix(prefix) => (0, [prefix.as_ptr().addr(), prefix.len(), 0, 0, 0, 0]),
            Selection::Range(start, end) => (
                1,
                [
                    1,
                    start.as_ptr().addr(),
                    start.len(),
                    1,
                    end.as_ptr().addr(),
                    end.len(),
                ],
            ),
        };
        let after = request.after.unwrap_or_default();
        let mut more = false;
        handed_over(|| {
            let mut page = Page {
                entries: List::new(&[]),
                more: 0,
            };
            // SAFETY: addresses and lengths are those of texts that live until the end of the call,
            // and `page` has the layout of the result.
            unsafe {
                state_scan(
                    is_range,
                    selection[0],
                    selection[1],
                    selection[2],
                    selection[3],
                    selection[4],
                    selection[5],
                    u32::from(request.after.is_some()),
                    after.as_ptr(),
                    after.len(),
                    u32::from(request.backwards),
                    request.limit,
                    &mut page,
                );
            }
            for entry in page.entries.get() {
                show(entry.key.get(), entry.value.get());
            }
            more = page.more != 0;
        });
        more
    }
}

/// Publishes messages that an event causes, given its index in the batch.
pub(crate) fn publish(cause: u32, messages: &[Message]) {
    let headers: Vec<Vec<Header<'_>>> = messages
        .iter()
        .map(|message| {
            message
                .headers
                .iter()
                .map(|(name, value)| Header::new(name, value))
                .collect()
        })
        .collect();
    let wire = messages
        .iter()
        .zip(&headers)
        .map(|(message, headers)| WireMessage {
            cause,
            subject: Text::new(&message.subject),
            kind: OptionalText::new(message.kind.as_ref()),
            headers: List::new(headers),
            data: match &message.data {
                Data::Text(text) => WirePayload::text(text),
                Data::Bytes(bytes) => WirePayload {
                    is_bytes: 1,
                    octets: List::new(bytes),
                },
            },
            key: OptionalText::new(message.key.as_ref()),
        });
    // All in one call, because their order matters.
    if messages
        .iter()
        .any(|message| message.delivery != Delivery::default())
    {
        let deliveries = messages
            .iter()
            .map(|message| WireDelivery::new(&message.delivery));
        let sent: Vec<WireSent<'_>> = wire
            .zip(deliveries)
            .map(|(message, delivery)| WireSent { message, delivery })
            .collect();
        // SAFETY: `WireSent` has the layout of the list's elements, and what they borrow lives until
        // the end of the call.
        unsafe { outbox_publish_with(sent.as_ptr(), sent.len()) };
        return;
    }
    let messages: Vec<WireMessage<'_>> = wire.collect();
    // SAFETY: `WireMessage` has the layout of the list's elements, and what they borrow lives until
    // the end of the call.
    unsafe { outbox_publish(messages.as_ptr(), messages.len()) };
}

/// Sets and cancels timers that an event or a timer causes, in order.
pub(crate) fn change_timers(cause: u32, changes: &[TimerChange]) {
    // One call for each, because the order of setting and cancelling matters.
    for change in changes {
        match change {
            TimerChange::Set(Timer { name, at, key }) => {
                let timer = WireTimer {
                    name: Text::new(name),
                    at_ns: at.nanoseconds(),
                    key: OptionalText::new(key.as_ref()),
                };
                // SAFETY: `WireTimer` has the layout of the list's element, and what it borrows
                // lives until the end of the call.
                unsafe { timers_set(cause, &timer, 1) };
            }
            TimerChange::Cancel(name) => {
                let name = Text::new(name);
                // SAFETY: `Text` has the layout of `string`, and lives until the end of the call.
                unsafe { timers_cancel(cause, &name, 1) };
            }
        }
    }
}

/// Writes a message to the host's log.
pub(crate) fn log(level: Level, message: &str) {
    // SAFETY: address and length are those of a `str`.
    unsafe { log_write(level as u32, message.as_ptr(), message.len()) };
}
