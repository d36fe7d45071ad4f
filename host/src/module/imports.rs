//! The functions that a guest can call: `foldstream:module/state`, `foldstream:module/log` and, for
//! handlers, `foldstream:module/outbox` and `foldstream:module/timers`.
//!
//! Keys are read in place in guest memory, values are copied once in each direction, and not before
//! the host has memory for them.

use std::time::Instant;

use wasmtime::component::{Lift, Linker, WasmList, WasmStr};
use wasmtime::{AsContext, AsContextMut as _, StoreContext, StoreContextMut};

use super::bindings::{Direction, Level, Page, PayloadThere, Selection, Target, Value};
use super::output::{Stream, clipped};
use super::sandbox::{Access, Buffer, Host, Refusal};
use super::{KEYS_PER_CALL_MAX, MESSAGE_BYTES_MAX};
use crate::event::Payload;
use crate::state::{self, KEY_BYTES_MAX, SCAN_ENTRIES_MAX};

/// The interface with the module's state.
pub(super) const STATE: &str = "foldstream:module/state@0.1.0";
/// The interface with the log.
pub(super) const LOG: &str = "foldstream:module/log@0.1.0";
/// Standard output and standard error of an encoded core module.
const OUTPUT: &str = "foldstream:preview1/output@0.1.0";
/// The interface with the outbox.
pub(super) const OUTBOX: &str = "foldstream:module/outbox@0.1.0";
/// The interface with timers.
pub(super) const TIMERS: &str = "foldstream:module/timers@0.1.0";

/// Keys looked up between two checks of the time.
const KEYS_PER_LOOK: usize = 256;
/// What an entry of a list or page takes in addition to key and value, in bytes.
const ENTRY_OVERHEAD: usize = 96;

/// Most bytes that are kept of what a guest prints in one call.
const PRINTED_BYTES_MAX: usize = 64 << 10;

type Caller<'a> = StoreContextMut<'a, Host>;

pub(super) fn add_to_linker(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut state = linker.instance(STATE)?;
    state.func_wrap("get", get)?;
    state.func_wrap("get-many", get_many)?;
    state.func_wrap("put", put)?;
    state.func_wrap("put-many", put_many)?;
    state.func_wrap("delete", delete)?;
    state.func_wrap("scan", scan)?;
    linker.instance(LOG)?.func_wrap("write", write)?;
    linker.instance(OUTPUT)?.func_wrap("write", print)?;
    super::outbox::add_to(&mut linker.instance(OUTBOX)?)?;
    super::timers::add_to(&mut linker.instance(TIMERS)?)
}

fn get(caller: Caller<'_>, (key,): (WasmStr,)) -> wasmtime::Result<(Option<Value>,)> {
    with_access(caller, |store, access, _| {
        let key = key.to_str(&store)?;
        check_key(&key)?;
        Ok((access.get(&key)?.map(Value::from),))
    })
}

fn get_many(
    mut caller: Caller<'_>,
    (keys,): (WasmList<WasmStr>,),
) -> wasmtime::Result<(Vec<Option<Value>>,)> {
    let keys = listed(&mut caller, &keys)?;
    with_access_and_list(caller, |store, access, buffer| {
        let mut values = Vec::with_capacity(keys.len());
        // The same key may be requested repeatedly, and each time costs the host a copy.
        let listed = keys.len() * ENTRY_OVERHEAD;
        let mut bytes = 0;
        let (ends_at, bytes_max) = (store.data().ends_at(), store.data().transfer_bytes_max());
        for (index, key) in keys.iter().enumerate() {
            // Only guest code checks epochs, so a long list looks at the deadline itself.
            check_time(index, ends_at)?;
            let key = key.to_str(&store)?;
            check_key(&key)?;
            let value = access.get(&key)?;
            bytes += value.as_ref().map_or(0, Payload::len);
            check_transfer(bytes, bytes_max)?;
            // Before the value is kept: one more value than the host has memory for ends the call.
            buffer.hold(listed + bytes)?;
            values.push(value.map(Value::from));
        }
        Ok((values,))
    })
}

fn put(caller: Caller<'_>, (key, value): (WasmStr, PayloadThere)) -> wasmtime::Result<()> {
    with_access(caller, |store, access, _| {
        let key = key.to_str(&store)?;
        check_key(&key)?;
        put_value(&store, access, &key, Some(&value))
    })
}

type Written = (WasmStr, Option<PayloadThere>);

fn put_many(mut caller: Caller<'_>, (entries,): (WasmList<Written>,)) -> wasmtime::Result<()> {
    let entries = listed(&mut caller, &entries)?;
    with_access_and_list(caller, |store, access, _| {
        let ends_at = store.data().ends_at();
        for (index, (key, value)) in entries.iter().enumerate() {
            check_time(index, ends_at)?;
            let key = key.to_str(&store)?;
            check_key(&key)?;
            put_value(&store, access, &key, value.as_ref())?;
        }
        Ok(())
    })
}

/// Copies a value out of the guest's memory, if it may be written at all.
fn put_value(
    store: &StoreContext<'_, Host>,
    access: &mut Access,
    key: &str,
    value: Option<&PayloadThere>,
) -> wasmtime::Result<()> {
    let value = value.map(|value| value.look(store)).transpose()?;
    // With the length alone: a value that is refused is never copied.
    access.check_put(key, value.as_ref().map_or(0, |value| value.len()))?;
    Ok(access.put(key, value.map(|value| value.copied()))?)
}

/// The elements of a list of the guest's, whose values stay in its memory. The host's list of them
/// is charged.
fn listed<T: Lift + 'static>(
    caller: &mut Caller<'_>,
    list: &WasmList<T>,
) -> wasmtime::Result<Vec<T>> {
    check_count(list.len())?;
    caller.data_mut().buffer.begin();
    caller.data_mut().buffer.hold(list.len() * ENTRY_OVERHEAD)?;
    // What is in the list counts by itself: it stays where it is.
    let (fuel, bytes_max) = (caller.hostcall_fuel(), caller.data().transfer_bytes_max());
    caller.set_hostcall_fuel(bytes_max);
    let listed: wasmtime::Result<Vec<T>> = list.iter(caller.as_context_mut())?.collect();
    // Back to the limit of this instance, for the calls that follow; an error ends the call anyway.
    caller.set_hostcall_fuel(fuel);
    listed
}

fn delete(caller: Caller<'_>, (key,): (WasmStr,)) -> wasmtime::Result<()> {
    with_access(caller, |store, access, _| {
        let key = key.to_str(&store)?;
        check_key(&key)?;
        Ok(access.put(&key, None)?)
    })
}

type ScanArguments = (Selection, Option<String>, Direction, u32);

fn scan(
    caller: Caller<'_>,
    (selection, after, direction, limit): ScanArguments,
) -> wasmtime::Result<(Page,)> {
    let wanted = usize::try_from(limit)?.min(SCAN_ENTRIES_MAX);
    let scan = state::Scan {
        selection: selection.into(),
        after,
        direction: direction.into(),
        // A scan for no entries still answers whether there are any: it reads one, which is not
        // returned.
        limit: wanted.max(1),
    };
    check_scan(&scan)?;
    with_access(caller, |store, access, buffer| {
        let mut page = access.scan(&scan, store.data().ends_at())?;
        // A page has a size of its own, so it is charged when it is there.
        buffer.hold(
            page.entries
                .iter()
                .map(|(key, value)| key.len() + value.len() + ENTRY_OVERHEAD)
                .sum(),
        )?;
        if wanted == 0 {
            page = state::Page {
                more: !page.entries.is_empty(),
                entries: Vec::new(),
            };
        }
        Ok((page.into(),))
    })
}

fn write(mut caller: Caller<'_>, (level, message): (Level, WasmStr)) -> wasmtime::Result<()> {
    // Counted like any other, so that a loop of messages ends, also if none of them is logged.
    caller.data_mut().count_call()?;
    let message = message.to_str(&caller)?;
    caller
        .data()
        .output
        .write(level, clipped(&message, MESSAGE_BYTES_MAX));
    Ok(())
}

fn print(mut caller: Caller<'_>, (target, bytes): (Target, WasmList<u8>)) -> wasmtime::Result<()> {
    caller.data_mut().count_call()?;
    let stream = match target {
        Target::Out => Stream::Out,
        Target::Err => Stream::Err,
    };
    // Bytes and not text: a piece may end in the middle of a character.
    let bytes = bytes.as_le_slice(&caller);
    // The deadline is not seen within one call.
    let kept = &bytes[..bytes.len().min(PRINTED_BYTES_MAX)];
    caller.data().output.write_stream(stream, kept);
    Ok(())
}

/// Counts the call and lends the state to `body`, while the store lends the guest's memory.
fn with_access<R>(
    mut caller: Caller<'_>,
    body: impl FnOnce(StoreContext<'_, Host>, &mut Access, &mut Buffer) -> wasmtime::Result<R>,
) -> wasmtime::Result<R> {
    caller.data_mut().buffer.begin();
    with_access_and_list(caller, body)
}

/// The same for a call whose list is charged already.
fn with_access_and_list<R>(
    mut caller: Caller<'_>,
    body: impl FnOnce(StoreContext<'_, Host>, &mut Access, &mut Buffer) -> wasmtime::Result<R>,
) -> wasmtime::Result<R> {
    let host = caller.data_mut();
    host.count_call()?;
    let (mut access, mut buffer) = (
        // Taken out, because `body` reads the guest's memory through the store, which owns both.
        std::mem::take(&mut host.access),
        std::mem::take(&mut host.buffer),
    );
    let result = body(caller.as_context(), &mut access, &mut buffer);
    let host = caller.data_mut();
    // Back in any case: `end_call` needs the state after an error, too.
    (host.access, host.buffer) = (access, buffer);
    result
}

fn check_key(key: &str) -> Result<(), Refusal> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(key_length(key.len()));
    }
    Ok(())
}

fn key_length(length: usize) -> Refusal {
    Refusal::Limit {
        limit: "key-bytes",
        message: format!("a key has {length} bytes, 1 to {KEY_BYTES_MAX} are allowed; shorten it"),
    }
}

/// Whether there is time left, checked regularly.
fn check_time(index: usize, ends_at: Instant) -> Result<(), Refusal> {
    if index % KEYS_PER_LOOK == KEYS_PER_LOOK - 1 && Instant::now() >= ends_at {
        Err(Refusal::Late)
    } else {
        Ok(())
    }
}

fn check_count(count: usize) -> Result<(), Refusal> {
    if count > KEYS_PER_CALL_MAX {
        return Err(Refusal::Limit {
            limit: "keys-per-call",
            message: format!(
                "{count} keys in one call; split them into calls of at most {KEYS_PER_CALL_MAX}"
            ),
        });
    }
    Ok(())
}

/// The host holds the whole result of a call before the guest gets it.
fn check_transfer(bytes: usize, bytes_max: usize) -> Result<(), Refusal> {
    if bytes > bytes_max {
        return Err(Refusal::Limit {
            limit: "transfer-bytes",
            message: format!(
                "the values of one get-many have more than {bytes_max} bytes; request fewer keys \
                 at once"
            ),
        });
    }
    Ok(())
}

/// The bounds of a scan are no longer than keys can be.
fn check_scan(scan: &state::Scan) -> Result<(), Refusal> {
    let (first, second) = match &scan.selection {
        state::Selection::Prefix(prefix) => (Some(prefix), None),
        state::Selection::Range { start, end } => (start.as_ref(), end.as_ref()),
    };
    for text in [first, second, scan.after.as_ref()].into_iter().flatten() {
        if text.len() > KEY_BYTES_MAX {
            return Err(key_length(text.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_with_many_keys_ends_at_its_deadline() {
        let late = Instant::now();
        let looks = |index: usize| check_time(index, late).is_err();
        assert!(looks(KEYS_PER_LOOK - 1) && looks(3 * KEYS_PER_LOOK - 1));
        assert!(!looks(0), "it does not ask for the time at every key");
        assert!(
            check_time(
                KEYS_PER_LOOK - 1,
                late + std::time::Duration::from_secs(3_600)
            )
            .is_ok()
        );
    }
}
