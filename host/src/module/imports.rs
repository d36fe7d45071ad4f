//! The functions that a guest can call: `foldstream:module/state` and `foldstream:module/log`.
//!
//! Keys are read in place in guest memory, values are copied once in each direction.

use std::time::Instant;

use wasmtime::component::{Linker, WasmStr};
use wasmtime::{AsContext, StoreContext, StoreContextMut};

use super::bindings::{Direction, Level, Page, PayloadCopy, Selection, Value};
use super::output::clipped;
use super::sandbox::{Access, Host, Refusal};
use super::{KEYS_PER_CALL_MAX, MESSAGE_BYTES_MAX, TRANSFER_BYTES_MAX};
use crate::event::Payload;
use crate::state::{self, KEY_BYTES_MAX, SCAN_ENTRIES_MAX};

/// The interface with the module's state.
pub(super) const STATE: &str = "foldstream:module/state@0.1.0";
/// The interface with the log.
pub(super) const LOG: &str = "foldstream:module/log@0.1.0";

/// Keys looked up between two checks of the time.
const KEYS_PER_LOOK: usize = 256;

type Caller<'a> = StoreContextMut<'a, Host>;

/// Defines both interfaces.
pub(super) fn add_to_linker(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut state = linker.instance(STATE)?;
    state.func_wrap("get", get)?;
    state.func_wrap("get-many", get_many)?;
    state.func_wrap("put", put)?;
    state.func_wrap("put-many", put_many)?;
    state.func_wrap("delete", delete)?;
    state.func_wrap("scan", scan)?;
    linker.instance(LOG)?.func_wrap("write", write)
}

fn get(caller: Caller<'_>, (key,): (WasmStr,)) -> wasmtime::Result<(Option<Value>,)> {
    with_access(caller, |store, access| {
        let key = key.to_str(&store)?;
        check_key(&key)?;
        Ok((access.get(&key)?.map(Value::from),))
    })
}

fn get_many(caller: Caller<'_>, (keys,): (Vec<WasmStr>,)) -> wasmtime::Result<(Vec<Option<Value>>,)> {
    check_count(keys.len())?;
    with_access(caller, |store, access| {
        let mut values = Vec::with_capacity(keys.len());
        // The same key may be requested repeatedly, and each time costs the host a copy.
        let mut bytes = 0;
        let ends_at = store.data().ends_at();
        for (index, key) in keys.iter().enumerate() {
            check_time(index, ends_at)?;
            let key = key.to_str(&store)?;
            check_key(&key)?;
            let value = access.get(&key)?;
            bytes += value.as_ref().map_or(0, Payload::len);
            check_transfer(bytes)?;
            values.push(value.map(Value::from));
        }
        Ok((values,))
    })
}

fn put(caller: Caller<'_>, (key, value): (WasmStr, PayloadCopy)) -> wasmtime::Result<()> {
    with_access(caller, |store, access| {
        let key = key.to_str(&store)?;
        check_key(&key)?;
        Ok(access.put(&key, Some(value.into()))?)
    })
}

fn put_many(caller: Caller<'_>, (entries,): (Vec<(WasmStr, Option<PayloadCopy>)>,)) -> wasmtime::Result<()> {
    check_count(entries.len())?;
    with_access(caller, |store, access| {
        let ends_at = store.data().ends_at();
        for (index, (key, value)) in entries.into_iter().enumerate() {
            check_time(index, ends_at)?;
            let key = key.to_str(&store)?;
            check_key(&key)?;
            access.put(&key, value.map(Payload::from))?;
        }
        Ok(())
    })
}

fn delete(caller: Caller<'_>, (key,): (WasmStr,)) -> wasmtime::Result<()> {
    with_access(caller, |store, access| {
        let key = key.to_str(&store)?;
        check_key(&key)?;
        Ok(access.put(&key, None)?)
    })
}

type ScanArguments = (Selection, Option<String>, Direction, u32);

fn scan(caller: Caller<'_>, (selection, after, direction, limit): ScanArguments) -> wasmtime::Result<(Page,)> {
    let wanted = usize::try_from(limit)?.min(SCAN_ENTRIES_MAX);
    let scan = state::Scan { selection: selection.into(), after, direction: direction.into(), limit: wanted.max(1) };
    check_scan(&scan)?;
    with_access(caller, |store, access| {
        let mut page = access.scan(&scan, store.data().ends_at())?;
        if wanted == 0 {
            page = state::Page { more: !page.entries.is_empty(), entries: Vec::new() };
        }
        Ok((page.into(),))
    })
}

fn write(mut caller: Caller<'_>, (level, message): (Level, WasmStr)) -> wasmtime::Result<()> {
    caller.data_mut().count_call()?;
    let message = message.to_str(&caller)?;
    caller.data().output.write(level, clipped(&message, MESSAGE_BYTES_MAX));
    Ok(())
}

/// Counts the call and lends the state to `body`, while the store lends the guest's memory.
fn with_access<R>(
    mut caller: Caller<'_>,
    body: impl FnOnce(StoreContext<'_, Host>, &mut Access) -> wasmtime::Result<R>,
) -> wasmtime::Result<R> {
    let host = caller.data_mut();
    host.count_call()?;
    let mut access = std::mem::take(&mut host.access);
    let result = body(caller.as_context(), &mut access);
    caller.data_mut().access = access;
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
    if index % KEYS_PER_LOOK == KEYS_PER_LOOK - 1 && Instant::now() >= ends_at { Err(Refusal::Late) } else { Ok(()) }
}

fn check_count(count: usize) -> Result<(), Refusal> {
    if count > KEYS_PER_CALL_MAX {
        return Err(Refusal::Limit {
            limit: "keys-per-call",
            message: format!("{count} keys in one call; split them into calls of at most {KEYS_PER_CALL_MAX}"),
        });
    }
    Ok(())
}

/// The host holds the whole result of a call before the guest gets it.
fn check_transfer(bytes: usize) -> Result<(), Refusal> {
    if bytes > TRANSFER_BYTES_MAX {
        return Err(Refusal::Limit {
            limit: "transfer-bytes",
            message: format!(
                "the values of one get-many have more than {TRANSFER_BYTES_MAX} bytes; request fewer keys at once"
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
